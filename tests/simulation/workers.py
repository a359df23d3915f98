"""The real worker (supervisors/worker) in a greenlet, on simulated time: a pipe, a board, bodies
that take a while, and a death at any moment.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, cast

import greenlet

import pgqrs
from pgqrs.flows.definitions import definition_of
from pgqrs.flows.flow import Clocks, Definition
from pgqrs.flows.retry import BackoffStrategy, StepRetryPolicy
from supervisors import wire
from supervisors.core import events
from supervisors.loop.hearing import Hearing
from supervisors.worker.board import Board, BoardReader, new_board
from supervisors.worker.journal import PipeJournal
from supervisors.worker.worker import Worker
from tests.simulation.invariants import Violation
from tests.simulation.plan import RETRIES, STEPS_MAX, TIMEOUT_S

if TYPE_CHECKING:
    from tests.simulation.supervisor import SimSupervisor

BACKOFF_S = 0.3
PAYLOAD_BYTES_MAX = 1024 * 1024

# The worker whose code executes: one at a time, in this thread.
_at_work: SimWorker | None = None


class SimPipe:
    """The worker's end of the pipe. Frames for the worker come as events of the world."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._inbox = bytearray()
        self.closed = False
        self.awaited = False

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        while not self._inbox and not self.closed:
            if flags & socket.MSG_DONTWAIT:
                raise BlockingIOError
            self.awaited = True
            self._worker.rest()
        self.awaited = False
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        return data

    def sendall(self, data: bytes | memoryview, /) -> None:
        self._worker.sent(bytes(data))

    def come(self, data: bytes) -> None:
        if not self.closed:
            self._inbox += data

    def hang_up(self) -> None:
        self.closed = True
        self._inbox.clear()


class SimWorker:
    def __init__(self, supervisor: SimSupervisor, worker_id: int) -> None:
        self.supervisor = supervisor
        self.world = supervisor.world
        self.id = worker_id
        self.alive = True
        self.frozen_until = 0.0
        # The message whose body the worker executes.
        self.running: int | None = None
        # The item whose body the worker executes: the map, the item, and whether its claim was live.
        self.item: tuple[int, int, bool] | None = None
        self.pipe = SimPipe(self)
        fd = new_board() if self.world.rng.random() < 0.75 else None
        self.gated = fd is not None
        self._their_board = None if fd is None else Board(os.dup(fd))
        self.board = None if fd is None else BoardReader(fd)
        self.hearing = Hearing(worker_id, self.board, supervisor.hears, self._distrusted)
        self.is_up = False
        # When the last bytes in the pipe are read.
        self._said_at = 0.0
        self._heard_at = 0.0
        self._in_pipe: deque[bytes] = deque()
        self._waiting: deque[Callable[[], None]] = deque()
        self._violation: Violation | None = None
        # Whether the worker is in a body that never ends.
        self._stuck = False
        self._hub = self._greenlet = greenlet.greenlet(self._main)
        # `_greenlet` is the one that continues next: the hub's, or that of the lane whose body
        # executes.
        self._worker: Worker | None = None
        self.world.after(self.world.rng.uniform(0.01, 0.1), self._boot)

    def freeze(self, until: float) -> None:
        """Freezes the worker until then, and never shortens an earlier freeze: events are put off
        until its end.
        """
        self.frozen_until = max(self.frozen_until, until)

    def _when_awake(self, do: Callable[[], None]) -> None:
        """While the worker is frozen, its events wait in their order."""
        self._waiting.append(do)
        self._wake()

    def _wake(self) -> None:
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, self._wake)
            return
        while self._waiting and self.alive:
            self._waiting.popleft()()

    # The worker's side

    def _boot(self) -> None:
        self.is_up = True
        self._reach(lambda: self.supervisor.hears(events.Launched(self.id, 1000 + self.id, self.gated)))
        if self.world.fault("boot-death", 0.01):
            self.die("SIGSEGV")
            return
        self._when_awake(self._go_on)

    def _main(self) -> None:
        clocks = Clocks(lambda: self.world.now, lambda: self.world.now, self.world.rng.random)
        self._worker = Worker(self.pipe, _functions(), PAYLOAD_BYTES_MAX, self._their_board, clocks)
        self._worker.run(1000 + self.id)

    def rest(self) -> None:
        """Called in one of the worker's greenlets: waits until an event of the world continues
        it.
        """
        self._greenlet = greenlet.getcurrent()
        self.world.hub.switch()

    def _go_on(self) -> None:
        global _at_work
        before, _at_work = _at_work, self
        self._greenlet.switch()
        _at_work = before
        if self._violation is not None:
            raise self._violation
        if self._hub.dead and self.alive:
            self.die(None)

    def sleep(self, seconds: float) -> None:
        self.world.after(seconds, lambda: self._when_awake(self._go_on))
        self.rest()

    def sent(self, data: bytes) -> None:
        self._in_pipe.append(data)
        self._reach(self._read)

    def _reach(self, do: Callable[[], None]) -> None:
        """The supervisor notices this after a while, in order."""
        self._said_at = max(self._said_at, self.world.now) + self.world.latency()
        self.world.at(self._said_at, lambda: self.supervisor.told(self, do))

    def body(self, position: int, message: int, claim_no: int) -> str:
        """One execution of a step's body, or of a handler. Each execution returns another result,
        so that every recorded result shows its execution.
        """
        world, step = self.world, self.world.plans[message].steps[position]
        try:
            number = world.body_started(self, message, claim_no, position)
        except Violation as e:
            # A violation must not count as a failure of the step.
            self._violation = e
            self.rest()
        bad = number <= step.times or step.fate == "poison"
        self.running = message
        if step.fate == "hang" and bad:
            self._stuck = True
            # Until the worker is killed at the step's time limit.
            self.rest()
        if step.fate in ("crash", "poison") and bad:
            world.after(
                step.seconds * world.rng.random(), lambda: self._when_awake(lambda: self.die("SIGSEGV"))
            )
            self.rest()
        self.sleep(step.seconds)
        self.running = None
        if step.fate in ("retry", "fail") and bad:
            raise RuntimeError("bad")
        return f"{message}.{position}.{number}"

    def body_of_item(self, map_id: int, item: int, message: int, claim_no: int) -> str:
        """One execution of an item's body. See `body`."""
        world, plan = self.world, self.world.items[map_id][item]
        try:
            number = world.item_started(self, map_id, item, message, claim_no)
        except Violation as e:
            self._violation = e
            self.rest()
        bad = number <= plan.times or plan.fate == "poison"
        self.running = message
        if plan.fate in ("crash", "poison") and bad:
            world.after(
                plan.seconds * world.rng.random(), lambda: self._when_awake(lambda: self.die("SIGSEGV"))
            )
            self.rest()
        self.sleep(plan.seconds)
        self.running = self.item = None
        if plan.fate == "fail" or (plan.fate == "retry" and bad):
            raise RuntimeError(f"bad {map_id}.{item}")
        return f"{map_id}.{item}.{number}"

    # The supervisor's side

    def hear(self, frame: wire.Down) -> None:
        """Puts a frame of the supervisor on its way."""
        self.hearing.credit.told(frame)
        self._heard_at = max(self._heard_at, self.world.now) + self.world.latency()
        self.world.at(self._heard_at, lambda: self._when_awake(lambda: self._come(wire.encode(frame))))

    def _come(self, data: bytes) -> None:
        self.pipe.come(data)
        if self.pipe.awaited:
            self._go_on()

    def _read(self) -> None:
        while self._in_pipe:
            self.hearing.come(self._in_pipe.popleft())

    def _distrusted(self, why: str) -> None:
        raise AssertionError(f"worker {self.id} is distrusted: {why}")

    def recall(self) -> int:
        """Closes the gate and reads everything that the worker sent before. Returns the run that
        the worker is in.
        """
        assert self.board is not None
        self.board.recall()
        entered = self.board.entered
        self._read()
        self.hearing.look()
        return entered

    def position_in(self, entered: int) -> int | None:
        """The step or item that the run which the worker is in has announced."""
        assert self.board is not None
        on_cpu = self.board.last_on_cpu()
        return None if on_cpu is None or on_cpu.message_id != entered else on_cpu.position

    def killed(self, force: bool) -> None:
        """SIGKILL always ends the worker. Without `force`, an idle worker ends by the end of its
        pipe, and SIGTERM ends one that is not stuck.
        """
        if not self.is_up:
            return
        idle = self.board is not None and (running := self.board.on_cpu()) and not running.message_id
        if not force and idle:
            self.world.after(self.world.latency(), lambda: self._when_awake(self._close))
        elif force or not self._stuck:
            self.world.after(self.world.latency(), lambda: self.die("SIGKILL" if force else "SIGTERM"))

    def orphaned(self) -> None:
        """The supervisor has died. The kernel kills its workers at once; a worker that lives on for a
        moment finds the end of its pipe where it would have read an order.
        """
        self.pipe.hang_up()
        if self.pipe.awaited:
            self._when_awake(self._go_on)

    def _close(self) -> None:
        self.pipe.closed = True
        if self.pipe.awaited:
            self._go_on()

    def die(self, signal: str | None) -> None:
        if self.alive:
            self.alive = False
            if self.running is not None:
                self.world.watch.died_on_cpu(self.running)
            self.world.note(f"{self.supervisor.name} worker {self.id} dies of {signal} on {self.running}")
            self._said_at += self.world.rng.choice([0.0, 0.001, 0.05])
            self._reach(lambda: self._bury(signal))

    def _bury(self, signal: str | None) -> None:
        self._read()
        self.hearing.last_words(signal not in ("SIGKILL", "SIGTERM"), is_async=False)
        del self.supervisor.workers[self.id]
        self.release()
        self.supervisor.hears(events.Exited(self.id, signal, None if signal else 0))

    def release(self) -> None:
        """Ends the worker's greenlets and unmaps its board. Nothing else would, and a process has
        thousands of workers.
        """
        self.alive = False
        worker, self._worker = self._worker, None
        lanes = [] if worker is None else [lane._carrier for lane in worker.lanes.values()]
        spare = [] if worker is None else worker._carriers
        # The hub first, because it would continue when a lane ends.
        for each in (self._hub, *lanes, *spare):
            if each:
                each.throw()
        if self.board is not None and self._their_board is not None:
            self.board.close()
            self._their_board.close()
            self.board = None


# The functions that the runs execute, by their plans (plan.py)


def _body(position: int) -> str:
    run, worker = pgqrs.current_run(), _at_work
    assert worker is not None
    return worker.body(position, run.id, cast(PipeJournal, run.journal).claim_no)


@cache
def _functions() -> Mapping[str, Definition]:
    policy = StepRetryPolicy(max_attempts=RETRIES, backoff=BackoffStrategy.fixed(BACKOFF_S))
    steps = {
        (position, retried, limited): pgqrs.step(
            name=f"step{position}",
            retry=policy if retried else None,
            timeout=TIMEOUT_S if limited else None,
        )(_body)
        for position in range(STEPS_MAX)
        for retried in (False, True)
        for limited in (False, True)
    }

    def flow(_: object) -> dict[str, str]:
        assert _at_work is not None
        outputs: dict[str, str] = {}
        for position, step in enumerate(_at_work.world.plans[pgqrs.current_run().id].steps):
            if step.fate == "pause":
                pgqrs.pause("wait", step.resume_after_s)
            else:
                retried = step.fate in ("retry", "hang")
                outputs[f"step{position}"] = steps[position, retried, step.limited](position)
        return outputs

    def plain(_: object) -> None:
        _body(0)

    def item(n: int) -> str:
        run, worker = pgqrs.current_run(), _at_work
        assert worker is not None
        assert run.of_map is not None
        return worker.body_of_item(run.of_map[0], n, run.id, cast(PipeJournal, run.journal).claim_no)

    made = [pgqrs.workflow(name="flow")(flow), pgqrs.handler(queue="plain", name="plain")(plain)]
    made.append(pgqrs.step(name="item", retry=policy)(item))
    return {definition_of(f).name: definition_of(f) for f in made}
