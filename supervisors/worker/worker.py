"""The worker process: a pipe, the user's functions, nothing else.

A worker has several runs at hand, one of which runs user code at any moment. Each is a lane: in a greenlet, it runs until
its next step must wait for the commit of the one before, and then yields to another. So the CPU does not idle through a
commit, lanes change only where a step begins or ends, and user code meets no thread. `async def` runs have a worker of
their own (async_worker.py), where an event loop takes the lanes' place.
"""

import contextvars
import math
import socket
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import greenlet

from pgqrs.flows import flow
from pgqrs.flows.flow import Definition, Suspended
from pgqrs.flows.scope import StepCall
from pgqrs.model.writes import RecordedStep
from supervisors import wire
from supervisors.worker.board import Board
from supervisors.worker.journal import CLOCKS, READ_BYTES, Leased, Outbox, PipeJournal
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
        """To its end; a plain handler has nothing to wait for on the way."""
        contextvars.copy_context().run(self._main)

    def start(self) -> None:
        """Until it waits."""
        self._carrier = self._worker.spare_carrier()
        self._carrier.switch(self)

    def go_on(self) -> None:
        assert self._carrier is not None, "it was started"
        self._carrier.switch()

    def begin(self, call: StepCall) -> None:
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

    def _wait_in_place(self) -> None:
        """Hears something of the supervisor's, while no other lane goes on. As long as it hears, the worker is in no run's code
        and this run may be recalled: so it has to be let in again."""
        self.stopped = not self._worker.hear() or self.stopped
        while not self.leaving and not self._worker.enters(self.message_id):
            self.stopped = not self._worker.hear() or self.stopped

    def look(self) -> None:
        """While its code waits for another run: what the supervisor says is heard at once, though the hub has not its turn."""
        self._worker.look()
        super().look()

    def _main(self) -> None:
        ids = (self.message_id, self.claim_no)
        try:
            self.announce(None)
            began = CLOCKS.now_s()
            output = flow.execute(self.definition, self.context, self.payload)
            seconds = None
            if self.definition.kind == "handler":
                seconds = CLOCKS.now_s() - began
                self.outbox.handled(self.definition.name, seconds)
            end: wire.Up = wire.Finished(*ids, output, seconds)
        except flow.Refused as e:
            end = wire.Failed(*ids, e.error)
        except Suspended:
            if self.left:
                return  # it said itself why
            end = self.given_back()
        finally:
            finish_lines(self.message_id)
        self.outbox.add(end)
        self.outbox.nobody()


class Worker(Leased):
    """Runs plain functions, one lane at a time."""

    def __init__(
        self,
        sock: socket.socket,
        functions: Mapping[str, Definition],
        payload_bytes_max: int,
        board: Board | None = None,
    ) -> None:
        self.outbox = Outbox(sock, board)
        self._board = board
        self.functions = functions
        self.payload_bytes_max = payload_bytes_max
        self.hub = greenlet.getcurrent()
        self.lane_state = LaneState()
        self._sock = sock
        self._parser = wire.Parser("worker")
        self._fresh: deque[wire.Execute] = deque()
        self._history: dict[int, list[RecordedStep]] = {}
        self._lanes: dict[int, Lane] = {}
        self._carriers: list[greenlet.greenlet] = []  # that have nothing to carry
        self._ready: deque[Lane] = deque()  # may go on
        self._inside: Lane | None = (
            None  # whose code runs: it reads the pipe itself while it waits for another run
        )
        self._drained = False
        self._looked_at = -math.inf

    def run(self, pid: int) -> None:
        """Until the supervisor closes the pipe, or until it is drained and told so."""
        self.outbox.add(wire.Ready(pid))
        self.outbox.flush()
        while not self._due() or self._read(block=self.overdue):
            if self.overdue:
                continue
            # Runs under way go before new ones: what is begun should end.
            if not self._may_enter():
                if not self._read(block=True):
                    return
            elif self._ready:
                self._inside = lane = self._ready.popleft()
                lane.go_on()
                self._left(lane)
            elif self._fresh:
                order = self._fresh.popleft()
                lane = Lane(order, tuple(self._history.pop(order.message_id, ())), self)
                if order.kind == "handler":
                    self._inside = lane
                    lane.run()
                    self._inside = None
                else:
                    self._lanes[order.message_id] = self._inside = lane
                    lane.start()
                    self._left(lane)
            else:
                if not self.hear():
                    return

    def hear(self) -> bool:
        """Waits for the supervisor's next word, of which it is told that nothing goes on without it. False: the supervisor
        is gone."""
        self.outbox.nobody()
        self.outbox.add(wire.Idle())
        self.outbox.flush()
        return self._read(block=True)

    def _may_enter(self) -> bool:
        """Whether what is next may begin or go on. False while a Recall is on its way: this run may be among those that it names."""
        self.outbox.stay_ours()
        if self._board is None:
            return True
        if self._ready:
            return self._board.enter(self._ready[0].message_id)
        return not self._fresh or self._board.enter(self._fresh[0].message_id)

    def enters(self, message_id: int) -> bool:
        return self._board is None or self._board.enter(message_id)

    def spare_carrier(self) -> greenlet.greenlet:
        """A greenlet that runs one lane after another: to make one costs as much as a tiny step."""
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
            if self._lanes.get(lane.message_id) is lane:
                del self._lanes[lane.message_id]
        elif lane.durable >= lane.sent or lane.stopped:
            self._ready.append(lane)

    def look(self) -> None:
        self._read(block=False)

    def _due(self) -> bool:
        """Whether to look what the supervisor has to say. Not between any two tiny steps: a look costs more than they do."""
        idle = not (self._ready or self._fresh)
        return idle or self.overdue or CLOCKS.now_s() - self._looked_at >= LOOK_EVERY_S

    def _read(self, block: bool) -> bool:
        self.outbox.stay_ours()
        if block and self._board is not None:
            self._board.leave()
        self._looked_at = CLOCKS.now_s()
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
            case wire.Welcome():
                self.database = frame.database
            case wire.Lease():
                self.lease_until = frame.until
            case wire.History():
                self._history.setdefault(frame.message_id, []).extend(frame.steps)
            case wire.Committed():
                for message_id, claim_no in frame.runs:
                    lane = self._lanes.get(message_id)
                    if lane is not None and lane.claim_no == claim_no:
                        lane.durable += 1
                        if lane.durable >= lane.sent and not lane.stopped and lane is not self._inside:
                            self._ready.append(lane)
            case wire.Cancel():
                if (lane := self._begun(frame.message_id, frame.claim_no)) is not None:
                    self._stop(lane)
                else:
                    asked = (frame.message_id, frame.claim_no)
                    self._give_back([o for o in self._fresh if (o.message_id, o.claim_no) == asked])
            case wire.WaitRefused():
                if (lane := self._begun(frame.message_id, frame.claim_no)) is not None:
                    lane.refused = frame.why
            case wire.Revoke():
                self._give_back(list(self._fresh)[-frame.count :] if frame.count else [])
            case wire.Recall():
                self._recalled(set(frame.runs))
            case wire.Drain():
                self._drained = True
                self._give_back(list(self._fresh))
                if frame.at_boundary:
                    for lane in list(self._lanes.values()):
                        self._stop(lane)

    def _begun(self, message_id: int, claim_no: int) -> Lane | None:
        """Of this run, also where it is a plain message's, which is in no list: it is over when the hub has its turn again."""
        inside = self._inside
        lane = inside if inside and inside.message_id == message_id else self._lanes.get(message_id)
        return lane if lane is not None and lane.claim_no == claim_no else None

    def _recalled(self, runs: set[tuple[int, int]]) -> None:
        assert self._board is not None, "only what has a gate is recalled from"
        self._board.recalls_heard += 1
        self._give_back([o for o in self._fresh if (o.message_id, o.claim_no) in runs])
        for message_id, claim_no in runs:
            lane = self._lanes.get(message_id)
            if lane is not None and lane.claim_no == claim_no:
                self._stop(lane)

    def _stop(self, lane: Lane) -> None:
        """Its next boundary is where it waits now: it unwinds as soon as the hub lets it."""
        lane.stopped = True
        if lane not in self._ready and lane is not self._inside:
            self._ready.append(lane)

    def _give_back(self, orders: list[wire.Execute]) -> None:
        """Also an answer when there is nothing to give: a revoke is open until it is answered."""
        for order in orders:
            self._fresh.remove(order)
            self._history.pop(order.message_id, None)
        self.outbox.add(wire.Returned(tuple(o.message_id for o in orders)))
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
