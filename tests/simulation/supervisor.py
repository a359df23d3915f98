"""The real core and the real store, with a loop around them that lives in simulated time. Follows supervisors/loop/loop.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgqrs import errors
from pgqrs.model.writes import Claim, Write
from pgqrs.store.store import Identity
from pgqrs.store.turning import Turn, Wanted, follows_refused
from supervisors.core import core, events, state
from supervisors.loop.committing import RETRY_S
from supervisors.loop.loop import ATTEMPT_S, RECOVER_EVERY_S, SELF_FENCE_MARGIN_S
from supervisors.loop.outgoing import TURN_WRITES_MAX
from tests.simulation.workers import SimWorker

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE_S = 5.0
DEATH_OF_WORKERS_S = 1.0  # after their supervisor's


class SimSupervisor:
    def __init__(self, world: World, name: str, host: str) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.pid = world.next_pid()
        self.alive = True
        self.frozen_until = 0.0
        self.cut_until = 0.0  # from the database
        self.workers: dict[int, SimWorker] = {}
        self._waiting: deque[object] = deque()
        self._writes: deque[Write] = deque()
        self._wants: list[events.Want] = []
        self._oldest: float | None = None
        self._hurry = False
        self._busy = False
        self._in_flight = 0
        self._consumers: dict[int, int] = {}
        self._until = 0.0
        self._lost_lease = False
        self._life = 0
        self._timer: float | None = None
        settings = state.Settings(
            workers=2, lanes=world.rng.choice([None, 1, 3]), read_ct_max=world.read_ct_max
        )
        self.core = core.Core(world.functions, settings)
        self._enlist()
        self._later(RECOVER_EVERY_S, self._recover)

    def freeze(self, until: float) -> None:
        """One that is stopped already stays so for as long as it would have: what waits was put off until then."""
        self.frozen_until = max(self.frozen_until, until)

    # Time

    def _later(self, seconds: float, do: object) -> None:
        self.world.after(seconds, lambda: self._when_awake(do))

    def _when_awake(self, do: object) -> None:
        """While it is stopped, what happens to it waits, in its order."""
        self._waiting.append(do)
        self._wake()

    def _wake(self) -> None:
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, self._wake)
            return
        while self._waiting and self.alive:
            do = self._waiting.popleft()
            self._look_at_lease()
            do()  # type: ignore[operator]
            self._settle()

    def told(self, worker: SimWorker, take: Callable[[], events.Event | None]) -> None:
        """Something is readable at a worker's pipe."""

        def read() -> None:
            if self.workers.get(worker.id) is not worker or (event := take()) is None:
                return
            if isinstance(event, events.Exited):
                del self.workers[worker.id]
            self.core.take(event, self.world.now)

        self._when_awake(read)

    def _settle(self) -> None:
        now = self.world.now
        commands: list[events.Command] | None = None
        while commands is None or any(isinstance(c, events.Recall) for c in commands):
            commands = self.core.settle(now)
            for command in commands:
                self._do(command)
        self._commit()
        timer = self.core.next_timer()
        if timer is not None and (self._timer is None or timer < self._timer or self._timer <= now):
            self._timer = max(timer, now + 1e-6)
            self.world.at(self._timer, lambda: self._when_awake(self._tick))

    def _tick(self) -> None:
        timer = self.core.next_timer()
        if timer is not None and self.world.now >= timer:
            self.core.take(events.Tick(), self.world.now)

    def _do(self, command: events.Command) -> None:
        match command:
            case events.Send():
                if worker := self.workers.get(command.worker):
                    worker.hear(command.frame)
            case events.Save():
                self._writes.append(command.write)
                self._oldest = self.world.now if self._oldest is None else self._oldest
                self._hurry = self._hurry or command.urgent
            case events.Hurry():
                self._hurry = True
            case events.Want():
                self._wants.append(command)
            case events.Launch():
                self.workers[command.worker] = SimWorker(self, command.worker)
            case events.Recall():
                self._recall(command.worker)
            case events.Dump():
                pass  # nobody reads it here
            case events.Kill():
                if worker := self.workers.get(command.worker):
                    worker.killed(command.force)
            case events.Note():
                self.world.note(f"{self.name}: {command.text} {command.run or ''}")
            case events.Exit():
                self.world.note(f"{self.name} exits: {command.reason}")
                self.die()

    def _recall(self, n: int) -> None:
        if worker := self.workers.get(n):
            said, entered = worker.recall()
            for event in said:
                self.core.take(event, self.world.now)
            self.core.take(events.Recalled(n, entered), self.world.now)

    # Turns

    def _commit(self) -> None:
        now = self.world.now
        if self._busy or not self.alive or not (self._writes or self._wants):
            return
        assert self._oldest is not None or self._wants
        every_s = self.core.scheduling.commit_every_s
        if not (self._hurry or self._wants or now >= (self._oldest or 0.0) + every_s):
            self._later((self._oldest or now) + every_s - now, lambda: None)
            return
        writes = [self._writes.popleft() for _ in range(min(len(self._writes), TURN_WRITES_MAX))]
        self._oldest = now if self._writes else None
        self._hurry = bool(self._writes) and self._hurry
        wanted = [
            Wanted(
                w.queue_id,
                w.consumer_id,
                w.limit,
                self.world.read_ct_max,
                w.after,
                w.lapsed,
                w.polls,
                w.first,
            )
            for w in self._wants
            if w.consumer_id == self._consumers.get(w.queue_id)
        ]
        self._wants.clear()
        if writes or wanted:
            self._busy, self._in_flight = True, len(writes)
            self.world.after(self.world.commit_s(), lambda: self._attempt(writes, wanted, 0))

    def _attempt(self, writes: list[Write], wanted: list[Wanted], failures: int) -> None:
        """What the database's thread does. It may commit though its supervisor died meanwhile: the statement was sent."""
        world = self.world
        if not self.alive and (failures or world.rng.random() < 0.5):
            return
        if world.now < self.frozen_until:
            world.at(self.frozen_until, lambda: self._attempt(writes, wanted, failures))
            return
        again = lambda: self._attempt(writes, wanted, failures + 1)  # noqa: E731
        retry_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
        if world.now < self.cut_until:
            world.after(ATTEMPT_S + retry_s, again)
            return
        if world.fault("store-error", 0.02):
            world.after(retry_s, again)
            return
        held: list[Claim] | None = None
        if not failures:
            turn = world.turn(self.name, writes, wanted, False)
        else:
            turn = world.turn(self.name, writes, (), True)
            held = world.store.held(tuple(self._consumers.values()))
        if world.fault("outcome-unknown", 0.02):
            world.after(retry_s, again)
            return
        world.after(world.late_s(), lambda: self._when_awake(lambda: self._took_place(turn, wanted, held)))

    def _took_place(self, turn: Turn, wanted: list[Wanted], held: list[Claim] | None) -> None:
        now = self.world.now
        self._busy, self._in_flight = False, 0
        if turn.outcomes:
            refused = follows_refused(self._writes, turn.outcomes)
            self.core.take(events.Saved([*turn.outcomes, *refused]), now)
        if held is not None:
            self.core.take(events.Held(held), now)
            for w in wanted:
                self.core.take(events.ClaimLost(w.queue_id), now)
        for taken in turn.taken:
            if taken.wanted.consumer_id == self._consumers.get(taken.wanted.queue_id):
                self.core.take(
                    events.Taken(
                        taken.wanted.queue_id, taken.messages, taken.wanted.limit, taken.after, taken.ready
                    ),
                    now,
                )

    # The lease

    def _enlist(self) -> None:
        """A new supervisor, also after a lost lease. Raises PgqrsConnectionError while it is cut off."""
        world = self.world
        if world.now < self.cut_until:
            raise errors.PgqrsConnectionError("cut off")
        identity = Identity(f"{self.name}.{self._life}", self.host, "boot", "ns", self.pid, self.pid)
        for supervisor_id, pid, _ in world.store.watched(identity)[0]:
            if not world.lives(pid):
                world.store.expire_lease(supervisor_id)
        world.recover(self.name)
        self._life += 1
        queues = {f.queue: f.queue_id for f in world.functions}
        self._id, consumers = world.store.register_supervisor(identity, queues, LEASE_S)
        self._consumers = {queues[name]: c for name, c in consumers.items()}
        self._until, self._lost_lease = world.now + LEASE_S, False
        self._later(LEASE_S / 3, lambda life=self._life: self._renew(life))
        self.core.take(events.Registered(self._consumers, self._until), world.now)
        self._settle()

    def _renew(self, life: int) -> None:
        if life != self._life:
            return
        self._later(LEASE_S / 3, lambda: self._renew(life))
        if self.world.now >= self.cut_until and not self.world.fault("store-error", 0.02):
            if self.world.store.renew_lease(self._id, LEASE_S):
                self._until = self.world.now + LEASE_S
                self.core.take(events.Renewed(self._until), self.world.now)
            else:
                self._lost_lease = True

    def _look_at_lease(self) -> None:
        if not (self._lost_lease or self.world.now > self._until - SELF_FENCE_MARGIN_S):
            return
        self._life += 1
        for command in self.core.settle(self.world.now):
            self._do_without_writing(command)
        self._writes.clear()
        self._wants.clear()
        self._consumers = {}
        self.core.take(events.LeaseLost(self._in_flight), self.world.now)
        self._oldest = None
        try:
            self._enlist()
        except errors.PgqrsConnectionError:
            self._lost_lease, self._until = False, self.world.now + 2.0
            self._later(1.5, lambda: None)

    def _do_without_writing(self, command: events.Command) -> None:
        if not isinstance(command, events.Save | events.Want | events.Hurry):
            self._do(command)

    def _recover(self) -> None:
        self._later(RECOVER_EVERY_S, self._recover)
        if self.world.now < self.cut_until:
            return
        claims = [r.claim for r in self.core.runs.values() if not r.ending]
        held = set(self.world.store.held(tuple(self._consumers.values())))
        if gone := [c for c in claims if c not in held]:
            self.core.take(events.Gone(gone), self.world.now)
        if self.world.recover(self.name):
            self.core.take(events.Hinted(), self.world.now)

    # Faults

    def die(self) -> None:
        if self.alive:
            self.alive = False
            for worker in self.workers.values():
                self.world.after(
                    self.world.rng.uniform(0, DEATH_OF_WORKERS_S), lambda w=worker: w.die("SIGKILL")
                )
