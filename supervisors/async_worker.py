"""The worker of `async def` functions: all its runs at once on one event loop, each with the journal that lanes have."""

import asyncio
import contextvars
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from functools import partial
from typing import Any

import greenlet

from pgqrs import flow
from pgqrs.flow import Definition, StepCall, Suspended
from pgqrs.writes import RecordedStep, Step
from supervisors import wire
from supervisors.board import Board
from supervisors.endings import over_time
from supervisors.journal import READ_BYTES, Leased, Outbox, PipeJournal
from supervisors.output import finish_lines


class AsyncLane(PipeJournal):
    """One `async def` run: a task on the loop, driven inside a greenlet so that a plain step in it can wait too."""

    told = True  # many are under way at once, of which a board shows one

    def __init__(self, order: wire.Execute, steps: tuple[RecordedStep, ...], worker: "AsyncWorker") -> None:
        super().__init__(order, steps, worker, ordered=False)
        self._worker = worker
        self._progress = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()  # the run's own and those that it started
        self.entered = False  # a task that is cancelled before that ends without a word
        context = contextvars.copy_context()
        context.run(_lane.set, self)
        self.task = asyncio.get_running_loop().create_task(self._main(), context=context)

    async def begin(self, call: StepCall) -> None:
        await self._allowed(0 if call.pure else self.sent)
        self.announce(call)

    def body(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        return Resumed(awaitable, self.goes_on) if isinstance(awaitable, Coroutine) else awaitable

    def goes_on(self) -> None:
        """With the step of the context in which this is called, or with its own code."""
        call = flow.step_under_way()
        position, step = (self.context.position, None) if call is None else (call.position, call.name)
        self.outbox.runs(self.message_id, self.claim_no, position, step)
        self._worker.rests_soon()

    async def _allowed(self, durable: int) -> None:
        """Waits until that many checkpoints are durable and what is here is our supervisor's."""
        while (self.durable < durable or self._worker.overdue) and not self.leaving:
            self._progress.clear()
            await self._progress.wait()
        if self.leaving:
            raise Suspended

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
        limit = asyncio.timeout(self.seconds_left)
        self.entered = True
        try:
            await self._allowed(0)
            self.announce(None)
            async with limit:
                run = flow.execute_async(self.definition, self.context, self.payload)
                output = await Driven(run, self.goes_on)
            end: wire.Up = wire.Finished(*ids, output)
        except flow.Refused as e:
            end = wire.Failed(*ids, e.error)
        except Suspended:
            end = wire.Idle() if self.left else wire.Returned((self.message_id,))
        except TimeoutError:
            pass  # the limit's: whatever the function raises is Refused
        except BaseException as e:
            if self._worker.closed:
                raise
            # It was told to stop at once, or it ended itself by what asyncio would keep to itself.
            end = (
                wire.Returned((self.message_id,))
                if self.stopped
                else wire.Failed(*ids, flow.Refused(e).error)
            )
        finally:
            finish_lines(self.message_id)
            if self._worker.lanes.get(self.message_id) is self:
                del self._worker.lanes[self.message_id]
            for task in self.tasks - {self.task}:
                task.cancel()  # what the run left behind would go on beside its next attempt
        if limit.expired() and not self.left:
            end = wire.Failed(*ids, flow.Refused(TimeoutError(over_time(self.definition)), "TIMEOUT").error)
        self.outbox.add(end)
        self._worker.idle()


_lane: contextvars.ContextVar[AsyncLane | None] = contextvars.ContextVar("pgqrs_lane", default=None)


def _task_of_its_lane(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> "asyncio.Task[Any]":
    context: contextvars.Context | None = options.get("context")
    lane = _lane.get() if context is None else context.get(_lane)
    if lane is not None and isinstance(coroutine, Coroutine):
        coroutine = Resumed(coroutine, lane.goes_on)
    task = asyncio.Task(coroutine, loop=loop, **options)
    if lane is not None:
        lane.tasks.add(task)
        task.add_done_callback(lane.tasks.discard)
    return task


class Resumed(Coroutine[Any, Any, Any]):
    """A coroutine that has somebody told whenever it goes on: an event loop does not say whose code it runs. To be awaited, or
    to be a task."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], goes_on: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._goes_on = goes_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # by which it is shown, such as its name and where it stands

    def send(self, value: Any) -> Any:
        self._goes_on()
        return self._coroutine.send(value)

    def throw(self, *problem: Any) -> Any:
        self._goes_on()
        return self._coroutine.throw(*problem)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        answer: Any = None
        problem: BaseException | None = None
        while True:
            try:
                value = self.send(answer) if problem is None else self.throw(problem)
            except StopIteration as e:
                return e.value
            answer = problem = None
            try:
                answer = yield value
            except BaseException as e:
                problem = e


class Driven:
    """A coroutine run inside a greenlet, so that plain code deep in it can wait for an awaitable with `Driven.wait`. It says, too,
    whenever it goes on."""

    def __init__(self, coroutine: Coroutine[Any, Any, bytes], goes_on: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._goes_on = goes_on

    def __await__(self) -> Generator[Any, Any, bytes]:
        side = greenlet.greenlet(self._drive)
        side.gr_context = contextvars.copy_context()
        self._goes_on()
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
            self._goes_on()
            kind, value = side.switch(answer, problem)
        return value  # type: ignore[no-any-return]

    def _drive(self, answer: Any, problem: BaseException | None) -> tuple[str, Any]:
        parent = greenlet.getcurrent().parent
        assert parent is not None
        try:
            while True:
                if problem is None:
                    value = self._coroutine.send(answer)
                else:
                    value = self._coroutine.throw(problem)
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


class AsyncWorker(Leased):
    """Runs `async def` functions, all of them at once on one event loop."""

    def __init__(
        self,
        sock: socket.socket,
        functions: Mapping[str, Definition],
        payload_bytes_max: int,
        board: Board | None = None,
    ) -> None:
        self.outbox = Outbox(sock, board)
        self.functions = functions
        self.payload_bytes_max = payload_bytes_max
        self.lanes: dict[int, AsyncLane] = {}
        self._sock = sock
        self._parser = wire.Parser("worker")
        self._history: dict[int, list[RecordedStep]] = {}
        self.closed = False
        self._drained = False
        self._idle_due = False
        self._rest_due = False

    def run(self, pid: int) -> None:
        with asyncio.Runner() as runner:
            try:
                runner.run(self._main(pid))
            finally:
                # However it ended: the runner cancels what is left, which is no end of a run.
                self.closed = True

    async def _main(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_task_of_its_lane)
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

    def rests_soon(self) -> None:
        """Once the loop has run what is ready, nobody has the CPU until something goes on."""
        if not self._rest_due:
            self._rest_due = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self._rest_due = False
        self.outbox.nobody()

    def _read(self, closed: "asyncio.Future[None]") -> None:
        self.outbox.stay_ours()
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

    def _ended(self, lane: AsyncLane, _: "asyncio.Task[Any]") -> None:
        if lane.left and not self.closed:
            self.outbox.add(wire.Left(lane.message_id))
            self.idle()

    def _take(self, frame: wire.Down | wire.Up) -> None:
        match frame:
            case wire.Execute():
                if self._drained:
                    self.outbox.add(wire.Returned((frame.message_id,)))
                    self.idle()
                else:
                    steps = tuple(self._history.pop(frame.message_id, ()))
                    begun = self.lanes[frame.message_id] = AsyncLane(frame, steps, self)
                    begun.task.add_done_callback(partial(self._ended, begun))
            case wire.Lease():
                self.lease_until = frame.until
                for each in self.lanes.values():
                    each.woken()
            case wire.History():
                self._history.setdefault(frame.message_id, []).extend(frame.steps)
            case wire.Committed():
                for message_id, claim_no in frame.runs:
                    lane = self.lanes.get(message_id)
                    if lane is not None and lane.claim_no == claim_no:
                        lane.durable += 1
                        lane.woken()
            case wire.Cancel():
                lane = self.lanes.get(frame.message_id)
                if lane is not None and lane.claim_no == frame.claim_no:
                    lane.stopped = True
                    lane.woken()
                    if frame.now and lane.entered:
                        lane.task.cancel()
            case wire.WaitRefused():
                lane = self.lanes.get(frame.message_id)
                if lane is not None and lane.claim_no == frame.claim_no:
                    lane.refused = frame.why
            case wire.Revoke():
                self.outbox.add(wire.Returned(()))
                self.idle()
            case wire.Drain():
                self._drained = True
                if frame.at_boundary:
                    for lane in list(self.lanes.values()):
                        lane.stopped = True
                        lane.woken()
