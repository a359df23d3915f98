"""The worker process: a pipe and the user's functions, nothing else.

A worker holds several runs, one of which executes user code at any moment. Each run is in a lane,
which is a greenlet. A lane executes until its next step must wait for the commit of the step
before, and then yields to another lane. So the CPU is busy during a commit, lanes switch only where
a step begins or ends, and user code meets no second thread. `async def` runs have a worker of their
own (async_worker.py), with an event loop in place of lanes.
"""

import contextvars
import math
import socket
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import greenlet

from pgqrs.flows import flow, items
from pgqrs.flows.flow import Clocks, Definition, Suspended
from pgqrs.flows.scope import StepCall
from pgqrs.model.writes import RecordedStep
from supervisors import wire
from supervisors.worker.board import Board
from supervisors.worker.frames import Runs
from supervisors.worker.journal import CLOCKS, READ_BYTES, Outbox, Pipe, PipeJournal
from supervisors.worker.lane_state import LaneState, holds_loop
from supervisors.worker.output import finish_lines

if TYPE_CHECKING:
    from supervisors.worker.async_worker import AsyncWorker


LOOK_EVERY_S = 0.001


class Lane(PipeJournal):
    """One run."""

    def __init__(self, order: wire.Execute, steps: tuple[RecordedStep, ...], worker: "Worker") -> None:
        super().__init__(order, steps, worker, ordered=True)
        self._worker = worker
        self._carrier: greenlet.greenlet | None = None
        self.ended = False

    def run(self) -> None:
        """Executes the run to its end. A plain handler has nothing to wait for on the way."""
        contextvars.copy_context().run(self._main)

    def start(self) -> None:
        """Executes the run until it waits."""
        self._carrier = self._worker.spare_carrier()
        self._carrier.switch(self)

    def go_on(self) -> None:
        assert self._carrier is not None, "it was started"
        self._carrier.switch()

    def begin(self, call: StepCall) -> bool:
        while ((not call.pure and self.durable < self.sent) or self._worker.overdue) and not self.leaving:
            if self.definition.lanes == 1 or holds_loop():
                self._wait_in_place()
            else:
                own = self._worker.lane_state.take()
                self._worker.hub.switch()
                self._worker.lane_state.put(own)
        if self.leaving:
            raise Suspended
        self.announce(call)
        return self.definition.kind != "map" or self._enters_item(call)

    def _enters_item(self, call: StepCall) -> bool:
        """Passes the gate for an item of a range. The item was announced before: a supervisor that
        closes the gate and then cuts the range takes no item up to the announced one. If the gate
        is closed, the range may have been cut before this item meanwhile.
        """
        self.stopped = not self._worker.looks_now_and_then() or self.stopped
        while not self.leaving and not self._worker.enters(self.message_id):
            self.stopped = not self._worker.hear() or self.stopped
            if call.position < self.end:
                self.announce(call)
        if self.leaving:
            raise Suspended
        return call.position < self.end

    def _wait_in_place(self) -> None:
        """Reads frames of the supervisor in this lane, so that no other lane continues. Meanwhile
        the worker is in no run's code, and the supervisor may recall this run. So the run must
        enter the gate again afterwards.
        """
        self.stopped = not self._worker.hear() or self.stopped
        while not self.leaving and not self._worker.enters(self.message_id):
            self.stopped = not self._worker.hear() or self.stopped

    def look(self) -> None:
        """Reads frames of the supervisor while the run's code waits for another run. The hub, which
        otherwise reads frames, cannot continue during such a wait.
        """
        self._worker.look()
        super().look()

    def _main(self) -> None:
        ids = (self.message_id, self.claim_no)
        try:
            self.announce(None)
            began = self.clocks.now_s()
            if self.definition.step is None:
                output = flow.execute(self.definition, self.context, self.payload)
            else:
                output = items.execute(self.definition.step, self.context, self.payload)
            seconds = None
            if self.definition.kind == "handler":
                seconds = self.clocks.now_s() - began
                self.outbox.handled(self.definition.name, seconds)
            end: wire.Up = wire.Finished(*ids, output, seconds)
        except flow.Refused as e:
            end = wire.Failed(*ids, e.error)
        except Suspended:
            if self.left:
                # The run has reported the reason itself.
                return
            end = self.given_back()
        finally:
            finish_lines(self.message_id)
        self.outbox.add(end)
        self.outbox.nobody()


class Worker(Runs[Lane]):
    """Executes plain functions, one lane at a time."""

    def __init__(
        self,
        sock: Pipe,
        functions: Mapping[str, Definition],
        payload_bytes_max: int,
        board: Board | None = None,
        clocks: Clocks = CLOCKS,
    ) -> None:
        super().__init__(Outbox(sock, board, clocks), functions, payload_bytes_max, clocks)
        self.hub = greenlet.getcurrent()
        self.lane_state = LaneState()
        self._sock = sock
        self._board = board
        self._parser = wire.Parser("worker")
        # Greenlets that carry no lane.
        self._carriers: list[greenlet.greenlet] = []
        # Lanes that may continue.
        self._ready: deque[Lane] = deque()
        # The lane whose code executes. It reads the pipe itself while it waits for another run.
        self._inside: Lane | None = None
        self._looked_at = -math.inf

    def run(self, pid: int) -> None:
        """Executes runs until the supervisor closes the pipe."""
        self.outbox.add(wire.Ready(pid))
        self.outbox.flush()
        while not self._due() or self._read(block=self.overdue):
            if self.overdue:
                continue
            # Runs that have begun come before new ones, so that they end.
            if not self._may_enter():
                if not self._read(block=True):
                    return
            elif self._ready:
                self._inside = lane = self._ready.popleft()
                lane.go_on()
                self._left(lane)
            elif self.fresh:
                order, steps = self.next_order()
                lane = Lane(order, steps, self)
                if order.kind == "handler":
                    self._inside = lane
                    lane.run()
                    self._inside = None
                else:
                    self.lanes[order.message_id] = self._inside = lane
                    lane.start()
                    self._left(lane)
            else:
                if not self.hear():
                    return

    def hear(self) -> bool:
        """Tells the supervisor that the worker can continue nothing without another frame, and
        waits for one. Returns False if the supervisor is gone.
        """
        self.outbox.nobody()
        self.outbox.add(wire.Idle())
        self.outbox.flush()
        return self._read(block=True)

    def _may_enter(self) -> bool:
        """Whether the next run may begin or continue. False while a Recall is on its way, because
        the Recall may name this run.
        """
        self.outbox.stay_ours()
        if self._board is None:
            return True
        if self._ready:
            return self._board.enter(self._ready[0].message_id)
        return not self.fresh or self._board.enter(self.fresh[0].message_id)

    def enters(self, message_id: int) -> bool:
        return self._board is None or self._board.enter(message_id)

    def spare_carrier(self) -> greenlet.greenlet:
        """Returns a greenlet that executes one lane after another. Creating a greenlet costs as
        much as a tiny step.
        """
        if self._carriers:
            return self._carriers.pop()
        made = greenlet.greenlet(self._carry)
        made.gr_context = contextvars.copy_context()
        return made

    def _carry(self, lane: Lane) -> None:
        here = greenlet.getcurrent()
        while True:
            lane.run()
            lane.ended = True
            self.lane_state.reset()
            self._carriers.append(here)
            lane = self.hub.switch()

    def _left(self, lane: Lane) -> None:
        self._inside = None
        if lane.ended:
            if lane.left:
                self.outbox.add(wire.Left(lane.message_id))
            if self.lanes.get(lane.message_id) is lane:
                del self.lanes[lane.message_id]
        elif lane.durable >= lane.sent or lane.stopped:
            self._ready.append(lane)

    def look(self) -> None:
        self._read(block=False)

    def looks_now_and_then(self) -> bool:
        """Reads frames of the supervisor, unless that was done a moment ago. Returns False if the
        supervisor is gone.
        """
        return self.clocks.now_s() - self._looked_at < LOOK_EVERY_S or self._read(block=False)

    def _due(self) -> bool:
        """Whether to read frames of the supervisor now. The worker does not read between any two
        tiny steps, because a read costs more than such a step.
        """
        idle = not (self._ready or self.fresh)
        return idle or self.overdue or self.clocks.now_s() - self._looked_at >= LOOK_EVERY_S

    def _read(self, block: bool) -> bool:
        self.outbox.stay_ours()
        if block and self._board is not None:
            self._board.leave()
        self._looked_at = self.clocks.now_s()
        try:
            data = self._sock.recv(READ_BYTES, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        for frame in self._parser.feed(data):
            self.take(frame)
        return bool(data)

    # The effects of frames: see Runs

    def _lane(self, message_id: int, claim_no: int) -> Lane | None:
        """Returns the lane of the run. Also finds a plain message, which is in no list: it has
        ended before the hub continues.
        """
        inside = self._inside
        if inside is not None and (inside.message_id, inside.claim_no) == (message_id, claim_no):
            return inside
        return super()._lane(message_id, claim_no)

    def _wake(self, lane: Lane) -> None:
        if lane.durable >= lane.sent and not lane.stopped and lane is not self._inside:
            self._ready.append(lane)

    def _stop(self, lane: Lane, now: bool = False) -> None:
        """Makes the lane stop where it waits now, which is its next step boundary. The lane unwinds
        as soon as the hub continues it.
        """
        lane.stopped = True
        if lane not in self._ready and lane is not self._inside:
            self._ready.append(lane)

    def _recalled(self) -> None:
        assert self._board is not None, "only what has a gate is recalled from"
        self._board.recalls_heard += 1

    def _said(self) -> None:
        self.outbox.flush()


def make_worker(
    kind: str,
    sock: socket.socket,
    functions: Mapping[str, Definition],
    payload_bytes_max: int,
    board_fd: int | None = None,
) -> "Worker | AsyncWorker":
    board = None if board_fd is None else Board(board_fd)
    if kind == "async":
        from supervisors.worker.async_worker import AsyncWorker

        return AsyncWorker(sock, functions, payload_bytes_max, board)
    return Worker(sock, functions, payload_bytes_max, board)
