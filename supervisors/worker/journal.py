"""What a run says to the supervisor, and what it waits for: the part that lanes and `async def` runs share."""

import math
import os
import random
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from msgspec.structs import replace

from pgqrs import errors
from pgqrs.flows import flow
from pgqrs.flows.flow import Clocks, Context, Definition, Journal, Suspended
from pgqrs.flows.history import History, step_of
from pgqrs.flows.scope import StepCall
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import RecordedStep, Step
from supervisors import wire
from supervisors.worker.board import Board
from supervisors.worker.output import has_cpu

READ_BYTES = 256 * 1024
EXACT_S = 0.001
HOLD_S, HOLD_FRAMES = 0.05, 32  # how long a frame may wait for company: less than it will for its commit


class Meter:
    """What this process has used, exact to a millisecond: a reading is a system call, which cost a tiny step more than its own
    body did, so within a millisecond of the last one CPU time is carried on by the wall clock."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._read = 0.0
        self.peak_rss_bytes = 0  # when it was last read

    def cpu_s(self) -> float:
        now = time.monotonic()
        if now - self._at < EXACT_S:
            return self._read + (now - self._at)
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._at, self._read = now, used.ru_utime + used.ru_stime
        self.peak_rss_bytes = used.ru_maxrss * 1024
        return self._read


METER = Meter()
CLOCKS = Clocks(time.monotonic, METER.cpu_s, random.random)

_forks = 0  # between the program's start and this process
_pid = os.getpid()


def _count_fork() -> None:
    global _forks, _pid
    _forks += 1
    _pid = os.getpid()


os.register_at_fork(after_in_child=_count_fork)


class Pipe(Protocol):
    """The worker's end of the socket to the supervisor."""

    def recv(self, size: int, flags: int = 0, /) -> bytes: ...

    def sendall(self, data: bytes | memoryview, /) -> object: ...


class Outbox:
    """Frames for the supervisor, which always reads: a blocking write is safe on this side.

    With a board they wait there for company, as long as they need not wait for anything longer than HOLD_S.
    """

    def __init__(self, sock: Pipe, board: Board | None = None, clocks: Clocks = CLOCKS) -> None:
        self._clocks = clocks
        self._forks = _forks
        self._sock = sock
        self._frames: list[bytes] = []  # without a board
        self._board = board
        self._oldest = math.inf  # when the first of what waits on the board came
        self._waiting = 0  # frames on the board
        self._took: dict[str, float] = {}  # seconds, by step or handler

    @property
    def has_board(self) -> bool:
        return self._board is not None

    def add(self, frame: wire.Up) -> None:
        data = wire.encode(frame)
        board = self._board
        if board is None:
            self._frames.append(data)
            return
        self.stay_ours()
        if not board.has_room(len(data)):
            self.flush()
        if not board.unsent:
            self._oldest, self._waiting = self._clocks.now_s(), 0
        if board.put(data):
            self._waiting += 1
        else:
            self._sock.sendall(data)
            board.passed(len(data))

    def flush(self) -> None:
        if self._board is not None:
            if self._board.unsent:
                self.stay_ours()
                self._board.send(self._sock.sendall)
        elif self._frames:
            self.stay_ours()
            data, self._frames = b"".join(self._frames), []
            self._sock.sendall(data)

    def runs(self, message_id: int, claim_no: int, position: int, step: str | None) -> None:
        """Has the CPU from here on, for a while, as it had before."""
        if self._board is not None:
            self._board.on_cpu(message_id, claim_no, position, step)

    def nobody(self) -> None:
        """Has the CPU from here on."""
        if self._board is not None:
            self._board.on_cpu(0)

    def begins(
        self,
        message_id: int,
        claim_no: int,
        position: int = 0,
        step: str | None = None,
        what: str | None = None,
    ) -> None:
        """User code has the CPU from here on: a death is charged to it. Whatever there is to say is said before, unless this will be
        over soon: it took no longer last time. `what` None: a workflow on the way to its next step."""
        board = self._board
        if board is None:
            self.tells(wire.Started(message_id, claim_no, step, position))
            return
        self.stay_ours()
        board.on_cpu(message_id, claim_no, position, step)
        if board.unsent:
            expected_s = self._took.get(what, math.inf) if what else 0.0
            if self._waiting >= HOLD_FRAMES or self._clocks.now_s() - self._oldest + expected_s > HOLD_S:
                self.flush()

    def tells(self, started: wire.Started) -> None:
        """The same, and the supervisor hears of it at once: it has limits to watch over."""
        if self._board is None:
            has_cpu(started.message_id, on_board=False)
        else:
            self.stay_ours()
            self._board.on_cpu(started.message_id, started.claim_no, started.position, started.step)
        self.add(started)
        self.flush()

    def ended(self, checkpoint: wire.Checkpoint, what: str) -> None:
        """The function's own code goes on. The checkpoint leaves now, not when the worker next reads, unless the board has it."""
        self._took[what] = checkpoint.step.seconds
        if self._board is None:
            self.flush()
        else:
            self._board.on_cpu(checkpoint.message_id, checkpoint.claim_no, checkpoint.step.position + 1)

    def handled(self, what: str, seconds: float) -> None:
        self._took[what] = seconds

    def stay_ours(self) -> None:
        """Ends a child that user code forked and let return: pipe and board are its parent's."""
        if _forks != self._forks:
            os._exit(70)


class Owner(Protocol):
    """The worker that a run is in."""

    outbox: Outbox
    functions: Mapping[str, Definition]
    payload_bytes_max: int
    database: str
    clocks: Clocks


class PipeJournal:
    """One run in a worker: its journal is the pipe. What is sent of it, and how far that is durable."""

    told = False  # of all that it begins, whatever is on a board

    def __init__(
        self, order: wire.Execute, steps: Sequence[RecordedStep], owner: Owner, ordered: bool
    ) -> None:
        self.message_id = order.message_id
        self.claim_no = order.claim_no
        self.outbox = owner.outbox
        self.clocks = owner.clocks
        self.definition = owner.functions[order.function]
        self.payload = order.payload
        self.seconds_left = order.seconds_left
        self.context = Context(
            self.definition,
            order.message_id,
            order.attempt,
            History(steps, ordered),
            cast(Journal, self),
            owner.clocks,
            owner.payload_bytes_max,
            owner.database,
        )
        self.sent = 0  # checkpoints; they are committed in the order in which they were sent
        self.durable = 0
        self.stopped = False  # told to leave at the next boundary
        self.refused: str | None = None  # why what it waits for could never end
        self._waits = 0  # for other runs, at the same time
        self.left = False  # said that it leaves: no step may follow, whatever a `finally` or a gathered task would call

    @property
    def leaving(self) -> bool:
        return self.stopped or self.left

    def given_back(self) -> wire.Up:
        """The last frame of a run whose function raised Suspended. If the run was not told to leave, its own code raised that: the
        run fails, because another worker would only execute it again."""
        if self.leaving:
            return wire.Returned((self.message_id,))
        own = errors.ValidationError(
            "the code of this run raised pgqrs.flow.Suspended, which is for pgqrs to raise when a run is to leave its worker; "
            "to wait, call pgqrs.pause() or raise pgqrs.TransientStepError in a step"
        )
        return wire.Failed(self.message_id, self.claim_no, flow.Refused(own).error)

    def waits(self, run_id: int, workflow: str, blocks: bool) -> None:
        self._waits += 1
        if self._waits == 1 or blocks:
            self.outbox.add(wire.Waiting(self.message_id, self.claim_no, run_id, workflow, blocks))
            self.outbox.flush()

    def look(self) -> None:
        if self.leaving:
            raise Suspended
        if self.refused is not None:
            why, self.refused = self.refused, None
            raise errors.InternalError(why)

    def waited(self) -> None:
        self._waits -= 1
        if not self._waits:
            self.outbox.add(wire.Waiting(self.message_id, self.claim_no))
            self.outbox.flush()

    def announce(self, call: StepCall | None) -> None:
        """None: the function's own code."""
        told = self.told or self.definition.timeout_s is not None
        if call is None:
            if told:
                self.outbox.tells(wire.Started(self.message_id, self.claim_no))
            else:
                handler = self.definition.name if self.definition.kind == "handler" else None
                self.outbox.begins(self.message_id, self.claim_no, what=handler)
        elif told or call.timeout_s is not None or call.memory_bytes is not None or not self.outbox.has_board:
            self.outbox.tells(
                wire.Started(
                    self.message_id,
                    self.claim_no,
                    call.name,
                    call.position,
                    call.timeout_s,
                    call.retry_count,
                    call.retry_in_s,
                    call.memory_bytes,
                    call.place,
                )
            )
        else:
            self.outbox.begins(self.message_id, self.claim_no, call.position, call.name, call.step)

    def record(self, step: Step) -> None:
        if self.left:
            raise Suspended
        if step.status is WorkflowStatus.Paused:
            frame: wire.Up = wire.Paused(self.message_id, self.claim_no, step)
        elif step.retry_in_s is not None:
            frame = wire.StepFailed(self.message_id, self.claim_no, _measured(step))
        else:
            self._check_in(step)
            return
        self.outbox.add(frame)
        self.left = True
        raise Suspended

    def tried(self, step: Step) -> None:
        """A failed attempt of a step that is tried again in this worker."""
        if not self.left:
            self._check_in(step)

    def _check_in(self, step: Step) -> None:
        checkpoint = wire.Checkpoint(self.message_id, self.claim_no, _measured(step))
        self.outbox.add(checkpoint)
        self.outbox.ended(checkpoint, step_of(step.name))
        self.sent += 1


def _measured(step: Step) -> Step:
    """With what only the process knows."""
    return replace(step, peak_rss_bytes=METER.peak_rss_bytes, pid=_pid)
