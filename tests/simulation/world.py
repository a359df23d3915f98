"""One seed: a database, supervisors, a stream of messages, and faults; then a calm phase, in which
everything must end.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import greenlet

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.turns import Turn, Want
from pgqrs.model.writes import Write
from pgqrs.store import maps
from pgqrs.store.sqlite import SqliteDatabase
from pgqrs.store.store import MessageStore
from supervisors.core import state
from tests.simulation.invariants import Violation, Watch
from tests.simulation.plan import RunPlan, StepPlan, make_item, make_plan
from tests.simulation.supervisor import LEASE_S, SimSupervisor
from tests.simulation.workers import SimWorker

EVENTS_MIN, FAULTS_MIN = 200, 5
# How long faults happen.
TROUBLE_S, BRIEF_TROUBLE_S = 4.0, 1.2
MESSAGES, BRIEF_MESSAGES = (8, 16), (3, 6)
# How long the calm phase may take.
CALM_S = 400.0
EVENTS_MAX = 60_000
READ_CT_MAX = 5
# The last digits of the seeds without workflows.
ONLY_MESSAGES = (3, 6)
# The last digits of the seeds with maps besides.
WITH_MAPS = (4, 7, 8)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    def __init__(self, seed: int, brief: bool = False) -> None:
        self.seed = seed
        self._trouble_s = BRIEF_TROUBLE_S if brief else TROUBLE_S
        self._messages = BRIEF_MESSAGES if brief else MESSAGES
        self.rng = random.Random(seed)
        # The greenlet in which events happen. Workers have greenlets of their own.
        self.hub = greenlet.getcurrent()
        self.now = 0.0
        self.events = 0
        self.faults: Counter[str] = Counter()
        self._notes: deque[tuple[float, str]] = deque(maxlen=60)
        self.read_ct_max = READ_CT_MAX
        self.plans: dict[int, RunPlan] = {}
        self._bodies: Counter[tuple[int, int]] = Counter()
        # The plans of the items, by map.
        self.items: dict[int, list[StepPlan]] = {}
        # Maps whose input is not recorded to its end.
        self._unfed: set[int] = set()
        self._troubled = True
        self._skew_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._pids = itertools.count(100)
        database = SqliteDatabase(
            Config("sqlite::memory:"), lambda: EPOCH + timedelta(seconds=self.now + self._skew_s)
        )
        _installed().backup(database._connection)
        self.store = MessageStore(database)
        self.functions = self._functions()
        self.watch = Watch(database._connection, READ_CT_MAX)
        # The latencies and faults of this seed: some seeds are calm, some are storms.
        self._storm = self.rng.choice([0.3, 1.0, 3.0])
        self._slow = self.rng.choice([0.0, 0.02, 0.2])
        self.supervisors: list[SimSupervisor] = []

    def run(self) -> None:
        """Executes the seed. Raises Violation."""
        try:
            self._run()
        finally:
            for supervisor in self.supervisors:
                for worker in supervisor.workers.values():
                    worker.release()

    def _run(self) -> None:
        for n in range(self.rng.choice([2, 2, 3])):
            self._start_supervisor(host=f"host{n % 2}")
        for _ in range(self.rng.randint(*self._messages)):
            self.after(self.rng.uniform(0, self._trouble_s * 0.7), self._enqueue_some)
        if self.seed % 10 in WITH_MAPS:
            for _ in range(self.rng.choice([1, 1, 2])):
                self.after(self.rng.uniform(0, self._trouble_s * 0.7), self._map)
        self.after(0.2, self._trouble)
        self._run_until(self._trouble_s)
        while sum(self.faults.values()) < FAULTS_MIN or self.events < EVENTS_MIN:
            self._enqueue()
            self._strike()
            self._run_until(self.now + 1.0)
        self._calm()
        self._run_until(self.now + CALM_S, until_ended=True)
        self.watch.look()
        self.watch.everything_ended()
        self.watch.every_item_ended({m: len(plans) for m, plans in self.items.items()})
        self._run_until(self.now + 5.0)
        for supervisor in self.supervisors:
            if (
                supervisor.alive
                and supervisor.frozen_until < self.now
                and (supervisor.core.runs or supervisor.core._saving)
            ):
                raise Violation(
                    f"left-over: {supervisor.name} still has runs {sorted(supervisor.core.runs)} and {supervisor.core._saving} writes"
                )
        self.watch.handled_once_at_least({i for i, p in self.plans.items() if not p.is_workflow})

    def _run_until(self, time: float, until_ended: bool = False) -> None:
        while self._heap and self._heap[0][0] <= time:
            self.now, _, do = heapq.heappop(self._heap)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise Violation(f"too-many-events: {EVENTS_MAX}")
            do()
            if until_ended and self.events % 50 == 0 and not self._unended() and not self._unfed:
                return
        self.now = time

    # For supervisors and workers

    def at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(time, self.now), next(self._numbers), do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, do)

    def note(self, text: str) -> None:
        self._notes.append((self.now, text))

    @property
    def trace(self) -> list[str]:
        """The last notes."""
        return [f"{now:9.4f} {text}" for now, text in self._notes]

    def fault(self, kind: str, chance: float) -> bool:
        if self._troubled and self.rng.random() < chance * self._storm:
            self.faults[kind] += 1
            self.note(f"fault: {kind}")
            return True
        return False

    def latency(self) -> float:
        return self.rng.choice([0.00005, 0.0002, 0.001]) if self.rng.random() > 0.02 else 0.05

    def commit_s(self) -> float:
        slow = self._troubled and self.rng.random() < self._slow * 0.2
        if slow:
            self.faults["slow-commit"] += 1
        return self.rng.uniform(0.05, 3.0) if slow else self.rng.uniform(0.001, 0.01)

    def late_s(self) -> float:
        """The time until the loop learns of a turn."""
        return self.rng.uniform(0.1, 1.0) if self.fault("late-outcome", 0.005) else self.latency()

    def next_pid(self) -> int:
        return next(self._pids)

    def lives(self, pid: int) -> bool:
        return any(s.pid == pid and s.alive for s in self.supervisors)

    def body_started(self, worker: SimWorker, message: int, claim_no: int, position: int) -> int:
        """Returns which execution of this body this is, counted over all workers."""
        supervisor = worker.supervisor
        holder, number, archived = self.watch.holder(message)
        held = holder in supervisor.session.consumers.values() and number == claim_no
        live = held and not archived and supervisor.alive
        self.note(f"{supervisor.name} worker {worker.id} body {message}.{position} live={live}")
        for other in supervisor.workers.values():
            if other is not worker and other.alive and other.running == message and live:
                raise Violation(f"twice-at-once: message {message} runs in two workers of {supervisor.name}")
        self.watch.body_started(message, position, supervisor.name, live, self.plans[message].is_workflow)
        self._bodies[message, position] += 1
        return self._bodies[message, position]

    def item_started(self, worker: SimWorker, map_id: int, item: int, message: int, claim_no: int) -> int:
        """Returns which execution of this item's body this is, counted over all workers."""
        supervisor = worker.supervisor
        holder, number, archived = self.watch.holder(message)
        held = holder in supervisor.session.consumers.values() and number == claim_no
        live = held and not archived and supervisor.alive
        self.note(f"{supervisor.name} worker {worker.id} item {map_id}.{item} of {message} live={live}")
        if live:
            self.watch.item_started(map_id, item)
            for s in self.supervisors:
                for other in s.workers.values():
                    if other is not worker and other.alive and s.alive and other.item == (map_id, item, True):
                        raise Violation(
                            f"item-twice-at-once: item {item} of map {map_id} runs in two workers"
                        )
        worker.item = map_id, item, live
        self._bodies[-map_id, item] += 1
        return self._bodies[-map_id, item]

    def turn(self, who: str, writes: Sequence[Write], wanted: Sequence[Want], unsure: bool) -> Turn:
        before = {m: self.watch.holder(m) for m in {w.claim.message_id for w in writes}}
        turn = self.store.turn(writes, wanted, unsure)
        self.note(
            f"{who} turn: {len(writes)} writes, {sum(len(t.messages) for t in turn.taken)} taken, unsure={unsure}"
        )
        self.watch.turned(before, turn.outcomes, unsure)
        return turn

    def recover(self, who: str) -> int:
        count = self.store.recover(READ_CT_MAX)
        if count:
            self.note(f"{who} recovers {count}")
            self.watch.look()
        return count

    # Messages and faults

    def _start_supervisor(self, host: str) -> None:
        name = f"s{len(self.supervisors) + 1}"
        self.note(f"{name} starts on {host}")
        self.supervisors.append(SimSupervisor(self, name, host))

    def _functions(self) -> list[state.Function]:
        flow = self.store.ensure_workflow("flow", "flow")
        plain = self.store.ensure_queue("plain")
        functions = [
            state.Function("flow", "workflow", False, "flow", flow.queue_id, flow.id),
            state.Function("plain", "handler", False, "plain", plain, None),
        ]
        if self.seed % 10 in WITH_MAPS:
            queue_id = self.store.ensure_queue("item.map")
            functions.append(state.Function("item.map", "map", False, "item.map", queue_id, None))
        return functions

    def _enqueue_some(self) -> None:
        """Enqueues one message or several at once, so that runs are queued behind others in their
        workers.
        """
        for _ in range(self.rng.choice([1, 1, 1, 5])):
            self._enqueue()

    def _enqueue(self) -> None:
        plan = make_plan(self.rng, only_messages=self.seed % 10 in ONLY_MESSAGES)
        flow, plain = self.functions[:2]
        payload = b'{"input": null}' if plan.is_workflow else b"null"
        delay_s = self.rng.choice([0.0, 0.0, 0.5])
        [message] = self.store.enqueue(
            flow.queue_id if plan.is_workflow else plain.queue_id, [payload], delay_s
        )
        self.plans[message] = plan

    def _map(self) -> None:
        """Starts a map and records the first segment of its input. The others follow."""
        queue_id = self.functions[2].queue_id
        map_id, _ = maps.create(self.store.database, None, "item", queue_id, None, False)
        self.items[map_id] = []
        self._unfed.add(map_id)
        self._feed(map_id, self.rng.choice([1, 2, 3]))

    def _feed(self, map_id: int, segments: int) -> None:
        if map_id not in self._unfed:
            return
        plans = self.items[map_id]
        first = len(plans)
        plans += [make_item(self.rng) for _ in range(self.rng.choice([1, 3, 12, 30]))]
        lines = [b'{"input": %d}' % n for n in range(first, len(plans))]
        assert maps.feed(self.store.database, map_id, first, lines)
        if segments > 1:
            self.after(self.rng.uniform(0.0, 1.0), lambda: self._feed(map_id, segments - 1))
        else:
            self._unfed.discard(map_id)
            maps.end_input(self.store.database, map_id)

    def _trouble(self) -> None:
        if self._troubled:
            self._strike()
            self.after(self.rng.expovariate(0.8 * self._storm), self._trouble)

    def _strike(self) -> None:
        living = [s for s in self.supervisors if s.alive]
        if not living:
            self._start_supervisor(self.rng.choice(["host0", "host1"]))
            return
        supervisor = self.rng.choice(living)
        workers = [w for w in supervisor.workers.values() if w.alive]
        kind = self.rng.choices(
            [
                "worker-kill",
                "worker-freeze",
                "supervisor-kill",
                "supervisor-freeze",
                "partition",
                "clock-jump",
                "cancel",
                "stop",
                "parent-gone",
            ],
            [30, 8, 8, 5, 8, 4, 20, 4, 1],
        )[0]
        self.faults[kind] += 1
        self.note(f"fault: {kind} {supervisor.name}")
        if kind == "worker-kill" and workers:
            self.rng.choice(workers).die("SIGKILL")
        elif kind == "worker-freeze" and workers:
            self.rng.choice(workers).freeze(self.now + self.rng.uniform(0.5, LEASE_S * 1.5))
        elif kind == "supervisor-kill":
            supervisor.die()
            self.after(
                self.rng.uniform(0.05, 2.0),
                lambda: self._start_supervisor(self.rng.choice(["host0", "host1"])),
            )
        elif kind in ("stop", "parent-gone"):
            if kind == "stop":
                supervisor.stop(self.rng.choice([1, 1, 2, 3]))
            else:
                supervisor.lose_parent()
            self.after(
                self.rng.uniform(0.05, 2.0),
                lambda: self._start_supervisor(self.rng.choice(["host0", "host1"])),
            )
        elif kind == "supervisor-freeze":
            supervisor.freeze(self.now + self.rng.uniform(0.5, LEASE_S * 2))
        elif kind == "partition":
            supervisor.cut_until = self.now + self.rng.uniform(0.5, LEASE_S * 2)
        elif kind == "clock-jump":
            jump_s = self.rng.choice([-3.0, -1.0, 1.0, LEASE_S + 1.0])
            self._skew_s += jump_s
            self.watch.clock_jumped = self.watch.clock_jumped or jump_s > 0
        elif kind == "cancel" and self.plans:
            message = self.rng.choice([i for i in self._unended() if i in self.plans] or sorted(self.plans))
            try:
                status = self.store.cancel(message, now=self.rng.random() < 0.3)
            except errors.ValidationError:
                return
            if status is WorkflowStatus.Cancelled:
                self.watch.cancelled.add(message)
            self.watch.look()

    def _calm(self) -> None:
        self._troubled = False
        self.note("calm")
        for supervisor in self.supervisors:
            supervisor.cut_until = min(supervisor.cut_until, self.now)
        if not any(s.alive and s.frozen_until <= self.now for s in self.supervisors):
            self._start_supervisor("host0")
        self._resume()

    def _resume(self) -> None:
        """Ends the pauses that have no end."""
        unended = self._unended()
        for message in unended:
            if message in self.plans and self.plans[message].is_workflow:
                self.store.resume(message)
        if unended:
            self.after(5.0, self._resume)

    def _unended(self) -> list[int]:
        execute = self.watch._connection.execute
        return [i for (i,) in execute("select id from pgqrs_messages where archived_at is null")]


@cache
def _installed() -> sqlite3.Connection:
    """The database that every seed begins with. Installing it for each seed would take longer than
    the seed does.
    """
    database = SqliteDatabase(Config("sqlite::memory:"))
    MessageStore(database).install()
    connection: sqlite3.Connection = database._connection
    return connection
