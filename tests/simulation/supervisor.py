"""The real session with the real core and the real store, on simulated time. This class carries out
the session's commands, as supervisors/loop does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pgqrs.model.writes import Claim
from pgqrs.store.store import Identity
from supervisors.core import events, state
from supervisors.core.core import Core
from supervisors.core.session import Session
from supervisors.loop.loop import ATTEMPT_S, REFRESH_S, is_known, is_there
from supervisors.loop.turns import RETRY_S
from tests.simulation.workers import SimWorker

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE_S = 5.0
# The time between the death of a supervisor and that of its workers.
DEATH_OF_WORKERS_S = 1.0


class SimSupervisor:
    def __init__(self, world: World, name: str, host: str) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.pid = world.next_pid()
        self.alive = True
        self.frozen_until = 0.0
        # Until when the supervisor cannot reach the database.
        self.cut_until = 0.0
        self.workers: dict[int, SimWorker] = {}
        self._waiting: deque[Callable[[], None]] = deque()
        # The id of its latest registration.
        self._id = 0
        self._life = 0
        self._timer: float | None = None
        settings = state.Settings(
            workers=2,
            lanes=world.rng.choice([None, 1, 3]),
            read_ct_max=world.read_ct_max,
            drain_timeout_s=3.0,
            gather_s=world.rng.choice([0.0, 0.0, 0.015]),
        )
        self.session = Session(world.functions, settings)
        self.session.take(self._registered(), world.now)
        self._settle()
        self._later(REFRESH_S, self._refresh)

    @property
    def core(self) -> Core:
        return self.session.core

    def freeze(self, until: float) -> None:
        """Freezes the supervisor until then, and never shortens an earlier freeze: events are put
        off until its end.
        """
        self.frozen_until = max(self.frozen_until, until)

    # Time

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self.world.after(seconds, lambda: self._when_awake(do))

    def _when_awake(self, do: Callable[[], None]) -> None:
        """While the supervisor is frozen, its events wait in their order."""
        self._waiting.append(do)
        self._wake()

    def _wake(self) -> None:
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, self._wake)
            return
        while self._waiting and self.alive:
            self._waiting.popleft()()
            self._settle()

    def _take(self, event: events.SessionEvent) -> None:
        self.session.take(event, self.world.now)

    def hears(self, event: events.Event) -> None:
        self._take(event)

    def told(self, worker: SimWorker, read: Callable[[], None]) -> None:
        """The pipe of a worker is readable, or the worker is dead."""
        self._when_awake(lambda: read() if self.workers.get(worker.id) is worker else None)

    def stop(self, level: int) -> None:
        """Asks for a level of stopping, as a signal does."""
        self._when_awake(lambda: self._take(events.Stop(level)))

    def lose_parent(self) -> None:
        self._when_awake(lambda: self._take(events.ParentGone()))

    def _settle(self) -> None:
        now = self.world.now
        recalls = self.alive
        while recalls:
            recalls = False
            for command in self.session.settle(now):
                recalls = recalls or isinstance(command, events.Recall)
                self._do(command)
        timer = self.session.next_timer()
        if self.alive and (self._timer is None or timer < self._timer or self._timer <= now):
            self._timer = max(timer, now + 1e-6)
            self.world.at(self._timer, lambda: self._when_awake(lambda: None))

    def _do(self, command: events.SessionCommand) -> None:
        match command:
            case events.Send():
                if worker := self.workers.get(command.worker):
                    worker.hear(command.frame)
            case events.Commit():
                self.world.after(self.world.commit_s(), lambda: self._attempt(command, 0))
            case events.Launch():
                self.workers[command.worker] = SimWorker(self, command.worker)
            case events.Recall():
                self._recall(command.worker)
            case events.Dump() | events.Listen() | events.Sever():
                # Nobody reads stacks here, pipes hold any number of frames, and no connection is
                # silent.
                pass
            case events.Kill():
                if worker := self.workers.get(command.worker):
                    worker.killed(command.force)
            case events.Note():
                self.world.note(f"{self.name}: {command.text} {command.run or ''}")
            case events.LookAround():
                self._ask(lambda: self._look_around(command))
            case events.Join():
                self._ask(self._registered)
            case events.Exit():
                self.world.note(f"{self.name} exits: {command.reason}")
                self._exit()

    def _recall(self, n: int) -> None:
        if worker := self.workers.get(n):
            entered = worker.recall()
            self._take(events.Recalled(n, entered, worker.position_in(entered)))

    def _refresh(self) -> None:
        """Reads from the boards what workers have not sent yet, and which runs they execute."""
        self._later(REFRESH_S, self._refresh)
        for worker in list(self.workers.values()):
            if worker.board is not None and (entered := worker.board.entered) is not None and worker.is_up:
                worker.hearing.look()
                worker.hearing.look_who_runs(partial(is_known, self.core, worker.id))
                if not is_there(self.core, worker.id, entered):
                    self._take(events.Inside(worker.id, entered))

    # Turns: the work of the thread for transactions

    def _attempt(self, commit: events.Commit, failures: int) -> None:
        """Executes a turn. It may commit although its supervisor died meanwhile, because the
        statement was sent.
        """
        world = self.world
        if not self.alive and (failures or world.rng.random() < 0.5):
            return
        if world.now < self.frozen_until:
            world.at(self.frozen_until, lambda: self._attempt(commit, failures))
            return
        retry_s = RETRY_S[min(failures, len(RETRY_S) - 1)]

        def again(after_s: float = retry_s) -> None:
            if not failures:
                self._when_awake(lambda: self._take(events.Unreachable("simulated")))
            world.after(after_s, lambda: self._attempt(commit, failures + 1))

        if world.now < self.cut_until:
            again(ATTEMPT_S + retry_s)
            return
        if world.fault("store-error", 0.02):
            again()
            return
        held: list[Claim] | None = None
        if not failures:
            turn = world.turn(self.name, commit.writes, commit.wants, False)
        else:
            turn = world.turn(self.name, commit.writes, (), True)
            held = world.store.held(tuple(self.session.consumers.values()))
        if world.fault("outcome-unknown", 0.02):
            again()
            return
        ended = events.TurnEnded(commit, turn, held)
        world.after(world.late_s(), lambda: self._when_awake(lambda: self._take(ended)))

    # Other questions to the database, and the lease

    def _ask(self, call: Callable[[], events.SessionEvent]) -> None:
        """Makes a call as the Aside thread does. The answer comes later. While the supervisor is
        cut off, the answer is Unanswered.
        """

        def answer() -> None:
            if self.world.now < self.cut_until or self.world.fault("store-error", 0.02):
                self._take(events.Unanswered())
            else:
                self._take(call())

        self._later(self.world.latency(), answer)

    def _look_around(self, asked: events.LookAround) -> events.LookedAround:
        held = set(self.world.store.held(tuple(asked.consumers)))
        gone = [c for c in asked.claims if c not in held]
        return events.LookedAround(gone, self.world.recover(self.name))

    def _registered(self) -> events.Registered:
        """A new registration: the first one, or the next one after a lost lease."""
        world = self.world
        self._life += 1
        if self._id:
            world.store.expire_lease(self._id)
        identity = Identity(f"{self.name}.{self._life}", self.host, "boot", "ns", self.pid, self.pid)
        for supervisor_id, pid, _ in world.store.watched(identity)[0]:
            if not world.lives(pid):
                world.store.expire_lease(supervisor_id)
        world.recover(self.name)
        queues = {f.queue: f.queue_id for f in world.functions}
        self._id, consumers = world.store.register_supervisor(identity, queues, LEASE_S)
        life = self._life
        self._later(LEASE_S / 3, lambda: self._renew(life))
        return events.Registered({queues[name]: c for name, c in consumers.items()}, world.now + LEASE_S)

    def _renew(self, life: int) -> None:
        if life != self._life or not self.session.is_joined:
            return
        self._later(LEASE_S / 3, lambda: self._renew(life))
        if self.world.now >= self.cut_until and not self.world.fault("store-error", 0.02):
            if self.world.store.renew_lease(self._id, LEASE_S):
                self._take(events.Renewed(self.world.now + LEASE_S))
            else:
                self._take(events.LeaseTaken())

    # The end

    def _exit(self) -> None:
        """Ends as the loop does: closes the workers, then retires the registration."""
        for worker in self.workers.values():
            worker.die("SIGKILL")
        self.alive = False
        if self.session.away is None and self.session.is_joined:
            self.world.store.retire(self._id, self.world.read_ct_max)
            self.world.watch.look()

    def die(self) -> None:
        if self.alive:
            self.alive = False
            for worker in self.workers.values():
                worker.orphaned()
                self.world.after(
                    self.world.rng.uniform(0, DEATH_OF_WORKERS_S), lambda w=worker: w.die("SIGKILL")
                )
