"""The worker of `async def` functions. All its runs share one event loop. A run here has the same
journal as a run in a lane.
"""

import asyncio
import contextvars
import socket
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

from pgqrs.flows import flow
from pgqrs.flows.flow import Definition, Suspended
from pgqrs.flows.scope import StepCall
from pgqrs.model.writes import RecordedStep, Step
from supervisors import wire
from supervisors.core.endings import over_time
from supervisors.worker.board import Board
from supervisors.worker.coroutines import BranchLoop, Driven, walk_in_order
from supervisors.worker.frames import Runs
from supervisors.worker.journal import READ_BYTES, Outbox, PipeJournal
from supervisors.worker.output import finish_lines

# The context of the worker's own callbacks, which belong to no run.
_NOBODYS = contextvars.Context()


class AsyncLane(PipeJournal):
    """One `async def` run: a task on the loop. A greenlet drives the task, so that a plain step in
    it can wait for a commit.
    """

    # Many steps are under way at once, and the board shows only one.
    told = True

    def __init__(self, order: wire.Execute, steps: tuple[RecordedStep, ...], worker: "AsyncWorker") -> None:
        super().__init__(order, steps, worker, ordered=False)
        self._worker = worker
        self._progress = asyncio.Event()
        # The tasks of the run: its own and those that it started.
        self.tasks: set[asyncio.Task[Any]] = set()
        self._is_leaving = False
        # Whether the run was told to stop where it is.
        self.cancelled = False
        # Whether the task has started. A task that is cancelled before that ends without a frame.
        self.entered = False
        self._own = contextvars.copy_context()
        self.task = asyncio.get_running_loop().create_task(self._main(), context=self._own)

    async def begin(self, call: StepCall) -> None:
        await self._allowed(0 if call.pure else self.sent)
        self.announce(call)

    def goes_on(self) -> None:
        """Reports that the step of the current context has the CPU again, or the run's own code."""
        call = flow.step_under_way()
        position, step = (self.context.position, None) if call is None else (call.position, call.name)
        self.outbox.runs(self.message_id, self.claim_no, position, step)
        self._worker.rests_soon()

    async def _allowed(self, durable: int) -> None:
        """Waits until `durable` checkpoints are durable and the lease holds. If the run has to
        leave its worker, raises Suspended instead, but only when the other steps that are under way
        have ended and are recorded.
        """
        while self._holds(durable):
            self._progress.clear()
            await self._progress.wait()
        if self.leaving:
            self._leave()
            raise Suspended

    def _holds(self, durable: int) -> bool:
        if self.left or self.cancelled:
            return False
        if self.stopped:
            return self.context.handover.bodies > 0
        return self.durable < durable or self._worker.overdue

    def record(self, step: Step) -> None:
        try:
            super().record(step)
        except Suspended:
            self._leave()
            raise
        finally:
            if self.stopped:
                self.woken()
            self._worker.idle()

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        return Driven.wait(awaitable)

    def _leave(self) -> None:
        """Cancels the run's own task, because it may never wait for the task in which the run has
        left.
        """
        if not self._is_leaving:
            self._is_leaving = True
            asyncio.get_running_loop().call_soon(self.task.cancel, context=_NOBODYS)

    def over(self, task: "asyncio.Task[Any]") -> None:
        """Handles the end of one of the run's tasks."""
        self.tasks.discard(task)
        if self.leaving and not task.cancelled():
            # Retrieved, because asyncio reports an exception that nobody has retrieved.
            task.exception()

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
                output = await Driven(run, self.goes_on, None, self._own)
            # A function that swallows its cancellation has skipped something.
            end: wire.Up = (
                wire.Returned((self.message_id,)) if self.cancelled else wire.Finished(*ids, output)
            )
        except flow.Refused as e:
            end = wire.Failed(*ids, e.error)
        except Suspended:
            end = wire.Idle() if self.left else self.given_back()
        except TimeoutError:
            # The time limit has raised this. An exception of the function would be Refused.
            pass
        except BaseException as e:
            if self._worker.closed:
                raise
            # The run was told to stop at once, or it ended itself by an exception that asyncio
            # would not report.
            if self.left:
                end = wire.Idle()
            elif self.stopped:
                end = wire.Returned((self.message_id,))
            else:
                end = wire.Failed(*ids, flow.Refused(e).error)
        finally:
            finish_lines(self.message_id)
            if self._worker.lanes.get(self.message_id) is self:
                del self._worker.lanes[self.message_id]
            for task in self.tasks - {self.task}:
                # Tasks that the run left behind would continue beside its next attempt.
                task.cancel()
        if limit.expired() and not self.left:
            end = wire.Failed(*ids, flow.Refused(TimeoutError(over_time(self.definition)), "TIMEOUT").error)
        self.outbox.add(end)
        self._worker.idle()


class AsyncWorker(Runs[AsyncLane]):
    """Executes `async def` functions, all of them at once on one event loop."""

    def __init__(
        self,
        sock: socket.socket,
        functions: Mapping[str, Definition],
        payload_bytes_max: int,
        board: Board | None = None,
    ) -> None:
        super().__init__(Outbox(sock, board), functions, payload_bytes_max)
        self._sock = sock
        self._parser = wire.Parser("worker")
        self.closed = False
        self._idle_due = False
        self._rest_due = False

    def run(self, pid: int) -> None:
        walk_in_order()
        with asyncio.Runner(loop_factory=BranchLoop) as runner:
            try:
                runner.run(self._main(pid))
            finally:
                # However the loop ended: the runner cancels the remaining tasks, which is not an
                # end of their runs.
                self.closed = True

    async def _main(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        closed = loop.create_future()
        loop.add_reader(self._sock, self._read, closed)
        self.outbox.add(wire.Ready(pid))
        self.idle()
        await closed

    def idle(self) -> None:
        """Reports Idle when the loop has executed everything that is ready, because other tasks may
        add frames in this round.
        """
        if not self._idle_due:
            self._idle_due = True
            asyncio.get_running_loop().call_soon(self._say_idle, context=_NOBODYS)

    def _say_idle(self) -> None:
        self._idle_due = False
        self.outbox.add(wire.Idle())
        self.outbox.flush()

    def rests_soon(self) -> None:
        """Clears the board's entry when the loop has executed everything that is ready. Then no run
        has the CPU until a task continues.
        """
        if not self._rest_due:
            self._rest_due = True
            asyncio.get_running_loop().call_soon(self._rest, context=_NOBODYS)

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
            self.take(frame)

    def _ended(self, lane: AsyncLane, _: "asyncio.Task[Any]") -> None:
        if lane.left and not self.closed:
            self.outbox.add(wire.Left(lane.message_id))
            self.idle()

    # The effects of frames: see Runs

    def _arrived(self) -> None:
        """Begins a run as soon as its order has come: each run has a task on the loop."""
        order, steps = self.next_order()
        lane = self.lanes[order.message_id] = AsyncLane(order, steps, self)
        lane.task.add_done_callback(partial(self._ended, lane), context=_NOBODYS)

    def _wake(self, lane: AsyncLane) -> None:
        lane.woken()

    def _stop(self, lane: AsyncLane, now: bool = False) -> None:
        lane.stopped = True
        if now and lane.entered:
            lane.cancelled = True
            lane.task.cancel()
        lane.woken()

    def _extended(self) -> None:
        for lane in self.lanes.values():
            lane.woken()

    def _said(self) -> None:
        self.idle()
