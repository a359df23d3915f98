"""The worker process: a pipe, the user's functions, nothing else.

A worker has several runs at hand, one of which runs user code at any moment. Each is a lane: a greenlet that runs until
its next step must wait for the commit of the one before, and then yields to another. So the CPU does not idle through a
commit, lanes change only where a step begins or ends, and user code meets no thread. `async def` runs have a worker of
their own (below), where an event loop takes the lanes' place.
"""

import asyncio
import contextvars
import os
import random
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

import greenlet
import msgspec

from pgqrs import flow
from pgqrs.flow import Clocks, Context, Definition, History, StepCall, Suspended
from pgqrs.states import WorkflowStatus
from pgqrs.writes import RecordedStep, Step
from supervisors import wire

READ_BYTES = 256 * 1024
CLOCKS = Clocks(time.monotonic, time.process_time, random.random)


class Outbox:
    """Frames for the supervisor, which always reads: a blocking write is safe on this side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._frames: list[bytes] = []

    def add(self, frame: wire.Up) -> None:
        if os.getpid() != self._pid:
            os._exit(70)  # a child that user code forked and let return: the pipe is not its own
        self._frames.append(wire.encode(frame))

    def flush(self) -> None:
        if self._frames:
            data, self._frames = b"".join(self._frames), []
            self._sock.sendall(data)


class PipeJournal:
    """The part of a journal that lanes and async runs share: what is sent, and how far it is durable."""

    def __init__(self, order: wire.Execute, outbox: Outbox) -> None:
        self.message_id = order.message_id
        self.claim_no = order.claim_no
        self.outbox = outbox
        self.sent = 0  # checkpoints; they are committed in the order in which they were sent
        self.durable = 0
        self.stopped = False  # told to leave at the next boundary

    def announce(self, call: StepCall | None) -> None:
        """Who has the CPU from here on: a death or a time limit is charged to it."""
        if call is None:
            self.outbox.add(wire.Started(self.message_id, self.claim_no))
        else:
            self.outbox.add(
                wire.Started(
                    self.message_id,
                    self.claim_no,
                    call.name,
                    call.position,
                    call.timeout_s,
                    call.retry_count,
                    call.retry_in_s,
                )
            )
        self.outbox.flush()

    def record(self, step: Step) -> None:
        """A checkpoint leaves when its step ends, not when the worker next reads."""
        ids = (self.message_id, self.claim_no, step.position, step.name)
        if step.status is WorkflowStatus.Paused:
            self.outbox.add(
                wire.Paused(*ids, str(msgspec.json.decode(step.output or b'""')), step.retry_in_s)
            )
            raise Suspended
        if step.retry_in_s is not None:
            error = step.error or b"null"
            self.outbox.add(
                wire.StepFailed(
                    *ids, error, step.seconds, step.cpu_seconds or 0.0, step.retry_count, step.retry_in_s
                )
            )
            raise Suspended
        self.outbox.add(
            wire.Checkpoint(
                *ids, step.output, step.error, step.seconds, step.cpu_seconds or 0.0, step.retry_count
            )
        )
        self.outbox.flush()
        self.sent += 1


class Lane(PipeJournal):
    """One run, in a greenlet of its own."""

    def __init__(self, order: wire.Execute, steps: tuple[RecordedStep, ...], worker: "Worker") -> None:
        super().__init__(order, worker.outbox)
        self._worker = worker
        self._definition = worker.functions[order.function]
        self._payload = order.payload
        self._context = Context(
            self._definition,
            order.message_id,
            order.attempt,
            History(steps, ordered=True),
            self,
            CLOCKS,
            worker.payload_bytes_max,
        )
        self.greenlet = greenlet.greenlet(self._main)
        self.greenlet.gr_context = contextvars.copy_context()

    def begin(self, call: StepCall) -> None:
        while not call.pure and self.durable < self.sent and not self.stopped:
            self._worker.hub.switch()
        if self.stopped:
            raise Suspended
        self.announce(call)

    def _main(self) -> None:
        ids = (self.message_id, self.claim_no)
        try:
            self.announce(None)
            end: wire.Up = wire.Finished(*ids, flow.execute(self._definition, self._context, self._payload))
        except flow.Refused as e:
            end = wire.Failed(*ids, e.error)
        except Suspended:
            if not self.stopped:
                return  # it said itself why it left
            end = wire.Returned((self.message_id,))
        self.outbox.add(end)


class Worker:
    """Runs plain functions, one lane at a time."""

    def __init__(
        self, sock: socket.socket, functions: Mapping[str, Definition], payload_bytes_max: int
    ) -> None:
        self.outbox = Outbox(sock)
        self.functions = functions
        self.payload_bytes_max = payload_bytes_max
        self.hub = greenlet.getcurrent()
        self._sock = sock
        self._parser = wire.Parser("worker")
        self._fresh: deque[wire.Execute] = deque()
        self._history: dict[int, list[RecordedStep]] = {}
        self._lanes: dict[int, Lane] = {}
        self._ready: deque[Lane] = deque()  # may go on
        self._drained = False

    def run(self, pid: int) -> None:
        """Until the supervisor closes the pipe, or until it is drained and told so."""
        self.outbox.add(wire.Ready(pid))
        self.outbox.flush()
        while self._read(block=False):
            # Runs under way go before new ones: what is begun should end.
            if self._ready:
                self._enter(self._ready.popleft())
            elif self._fresh:
                order = self._fresh.popleft()
                lane = Lane(order, tuple(self._history.pop(order.message_id, ())), self)
                self._lanes[order.message_id] = lane
                self._enter(lane)
            else:
                self.outbox.add(wire.Idle())
                self.outbox.flush()
                if not self._read(block=True):
                    return

    def _enter(self, lane: Lane) -> None:
        lane.greenlet.switch()
        if lane.greenlet.dead:
            self._lanes.pop(lane.message_id, None)
        elif lane.durable >= lane.sent or lane.stopped:
            self._ready.append(lane)

    def _read(self, block: bool) -> bool:
        try:
            data = self._sock.recv(READ_BYTES, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        for frame in self._parser.feed(data):
            self._take(frame)
        return bool(data)

    def _take(self, frame: wire.Down | wire.Up) -> None:
        match frame:
            case wire.Execute():
                if self._drained:
                    self.outbox.add(wire.Returned((frame.message_id,)))
                else:
                    self._fresh.append(frame)
            case wire.History():
                self._history.setdefault(frame.message_id, []).extend(frame.steps)
            case wire.Committed():
                lane = self._lanes.get(frame.message_id)
                if lane is not None and lane.claim_no == frame.claim_no:
                    lane.durable += 1
                    if lane.durable >= lane.sent and lane not in self._ready:
                        self._ready.append(lane)
            case wire.Cancel():
                lane = self._lanes.get(frame.message_id)
                if lane is not None and lane.claim_no == frame.claim_no:
                    self._stop(lane)
                else:
                    self._give_back([o for o in self._fresh if o.message_id == frame.message_id])
            case wire.Revoke():
                self._give_back(list(self._fresh)[-frame.count :] if frame.count else [])
            case wire.Drain():
                self._drained = True
                self._give_back(list(self._fresh))
                if frame.at_boundary:
                    for lane in list(self._lanes.values()):
                        self._stop(lane)

    def _stop(self, lane: Lane) -> None:
        """Its next boundary is where it waits now: it unwinds as soon as the hub lets it."""
        lane.stopped = True
        if lane not in self._ready:
            self._ready.append(lane)

    def _give_back(self, orders: list[wire.Execute]) -> None:
        """Also an answer when there is nothing to give: a revoke is open until it is answered."""
        for order in orders:
            self._fresh.remove(order)
            self._history.pop(order.message_id, None)
        self.outbox.add(wire.Returned(tuple(o.message_id for o in orders)))
        self.outbox.flush()


# async def


class AsyncLane(PipeJournal):
    """One `async def` run: a task on the loop, driven inside a greenlet so that a plain step in it can wait too."""

    def __init__(self, order: wire.Execute, steps: tuple[RecordedStep, ...], worker: "AsyncWorker") -> None:
        super().__init__(order, worker.outbox)
        self._worker = worker
        self._definition = worker.functions[order.function]
        self._payload = order.payload
        self._context = Context(
            self._definition,
            order.message_id,
            order.attempt,
            History(steps, ordered=False),
            self,
            CLOCKS,
            worker.payload_bytes_max,
        )
        self._progress = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._main())

    async def begin(self, call: StepCall) -> None:
        wanted = self.sent
        while not call.pure and self.durable < wanted and not self.stopped:
            self._progress.clear()
            await self._progress.wait()
        if self.stopped:
            raise Suspended
        self.announce(call)

    def record(self, step: Step) -> None:
        try:
            super().record(step)
        finally:
            self._worker.idle()

    def wait(self, awaitable: Awaitable[None]) -> None:
        Driven.wait(awaitable)

    def woken(self) -> None:
        self._progress.set()

    async def _main(self) -> None:
        ids = (self.message_id, self.claim_no)
        try:
            self.announce(None)
            end: wire.Up = wire.Finished(
                *ids, await Driven(flow.execute_async(self._definition, self._context, self._payload))
            )
        except flow.Refused as e:
            end = wire.Failed(*ids, e.error)
        except Suspended:
            end = wire.Returned((self.message_id,)) if self.stopped else wire.Idle()
        finally:
            self._worker.lanes.pop(self.message_id, None)
        self.outbox.add(end)
        self._worker.idle()


class Driven:
    """A coroutine run inside a greenlet, so that plain code deep in it can wait for an awaitable with `Driven.wait`."""

    def __init__(self, coroutine: Coroutine[Any, Any, bytes]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, bytes]:
        side = greenlet.greenlet(self._drive)
        side.gr_context = contextvars.copy_context()
        kind, value = side.switch(None, None)
        while kind != "done":
            answer: Any = None
            problem: BaseException | None = None
            try:
                if kind == "yield":
                    answer = yield value
                else:
                    answer = yield from value.__await__()
            except BaseException as e:
                problem = e
            kind, value = side.switch(answer, problem)
        return value  # type: ignore[no-any-return]

    def _drive(self, answer: Any, problem: BaseException | None) -> tuple[str, Any]:
        parent = greenlet.getcurrent().parent
        assert parent is not None
        try:
            while True:
                value = self._coroutine.throw(problem) if problem else self._coroutine.send(answer)
                answer, problem = parent.switch(("yield", value))
        except StopIteration as e:
            return ("done", e.value)

    @staticmethod
    def wait(awaitable: Awaitable[Any]) -> Any:
        parent = greenlet.getcurrent().parent
        assert parent is not None, "a plain step waits inside a driven coroutine only"
        answer, problem = parent.switch(("await", awaitable))
        if problem is not None:
            raise problem
        return answer


class AsyncWorker:
    """Runs `async def` functions, all of them at once on one event loop."""

    def __init__(
        self, sock: socket.socket, functions: Mapping[str, Definition], payload_bytes_max: int
    ) -> None:
        self.outbox = Outbox(sock)
        self.functions = functions
        self.payload_bytes_max = payload_bytes_max
        self.lanes: dict[int, AsyncLane] = {}
        self._sock = sock
        self._parser = wire.Parser("worker")
        self._history: dict[int, list[RecordedStep]] = {}
        self._drained = False
        self._idle_due = False

    def run(self, pid: int) -> None:
        asyncio.run(self._main(pid))

    async def _main(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        closed = loop.create_future()
        loop.add_reader(self._sock, self._read, closed)
        self.outbox.add(wire.Ready(pid))
        self.idle()
        await closed

    def idle(self) -> None:
        """Once the loop has run what is ready: others may still have something to send in this round."""
        if not self._idle_due:
            self._idle_due = True
            asyncio.get_running_loop().call_soon(self._say_idle)

    def _say_idle(self) -> None:
        self._idle_due = False
        self.outbox.add(wire.Idle())
        self.outbox.flush()

    def _read(self, closed: "asyncio.Future[None]") -> None:
        try:
            data = self._sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._sock)
            if not closed.done():
                closed.set_result(None)
        for frame in self._parser.feed(data):
            self._take(frame)

    def _take(self, frame: wire.Down | wire.Up) -> None:
        match frame:
            case wire.Execute():
                if self._drained:
                    self.outbox.add(wire.Returned((frame.message_id,)))
                    self.idle()
                else:
                    steps = tuple(self._history.pop(frame.message_id, ()))
                    self.lanes[frame.message_id] = AsyncLane(frame, steps, self)
            case wire.History():
                self._history.setdefault(frame.message_id, []).extend(frame.steps)
            case wire.Committed():
                lane = self.lanes.get(frame.message_id)
                if lane is not None and lane.claim_no == frame.claim_no:
                    lane.durable += 1
                    lane.woken()
            case wire.Cancel():
                lane = self.lanes.get(frame.message_id)
                if lane is not None and lane.claim_no == frame.claim_no:
                    lane.stopped = True
                    lane.woken()
            case wire.Revoke():
                self.outbox.add(wire.Returned(()))
                self.idle()
            case wire.Drain():
                self._drained = True
                if frame.at_boundary:
                    for lane in list(self.lanes.values()):
                        lane.stopped = True
                        lane.woken()


def make_worker(
    kind: str, sock: socket.socket, functions: Mapping[str, Definition], payload_bytes_max: int
) -> Worker | AsyncWorker:
    make: Callable[..., Worker | AsyncWorker] = AsyncWorker if kind == "async" else Worker
    return make(sock, functions, payload_bytes_max)
