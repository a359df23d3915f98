"""What a run sends to the supervisor, and what it waits for. Lanes and `async def` runs share this
part.
"""

import math
import os
import random
import resource
import sys
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
# How long a frame may wait for others: less than it will wait for its commit.
HOLD_S, HOLD_FRAMES = 0.05, 32


class Meter:
    """The CPU time and memory of this process, exact to a millisecond. A reading is a system call,
    which costs more than the body of a tiny step. So within a millisecond of the last reading, CPU
    time advances with the wall clock.
    """

    def __init__(self) -> None:
        self._at = -math.inf
        self._read = 0.0
        # The peak at the last reading.
        self.peak_rss_bytes = 0

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

# The number of forks between the program's start and this process.
_forks = 0
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
    """The frames for the supervisor. A write may block on this side, because the supervisor always
    reads.

    With a board, frames wait on the board for others, but never while code runs that may take
    longer than HOLD_S.
    """

    def __init__(self, sock: Pipe, board: Board | None = None, clocks: Clocks = CLOCKS) -> None:
        self._clocks = clocks
        self._forks = _forks
        self._sock = sock
        # The frames, if there is no board.
        self._frames: list[bytes] = []
        self._board = board
        # When the oldest frame on the board was added.
        self._oldest = math.inf
        # The number of frames on the board.
        self._waiting = 0
        # The last duration in seconds, by step or handler.
        self._took: dict[str, float] = {}

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
        """Records that the run has the CPU again."""
        if self._board is not None:
            self._board.on_cpu(message_id, claim_no, position, step)

    def nobody(self) -> None:
        """Records that no run has the CPU."""
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
        """Records that user code has the CPU, so that a death is charged to its run. Waiting frames
        are sent first, unless this code took no longer than HOLD_S the last time. `what` None: a
        workflow on the way to its next step.
        """
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
        """Records that user code has the CPU, and reports it to the supervisor at once, because the
        supervisor enforces limits.
        """
        if self._board is None:
            has_cpu(started.message_id, on_board=False)
        else:
            self.stay_ours()
            self._board.on_cpu(started.message_id, started.claim_no, started.position, started.step)
        self.add(started)
        self.flush()

    def ended(self, checkpoint: wire.Checkpoint, what: str) -> None:
        """Records that a step has ended and the function's own code continues. Without a board, the
        checkpoint is sent now, and not when the worker next reads.
        """
        self._took[what] = checkpoint.step.seconds
        if self._board is None:
            self.flush()
        else:
            self._board.on_cpu(checkpoint.message_id, checkpoint.claim_no, checkpoint.step.position + 1)

    def handled(self, what: str, seconds: float) -> None:
        self._took[what] = seconds

    def stay_ours(self) -> None:
        """If user code forked this process and let it return here, ends it: the pipe and the board
        belong to its parent.
        """
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
    """One run in a worker. The pipe is its journal. Counts the checkpoints that were sent, and how
    many of them are durable.
    """

    # Whether the supervisor is told of everything that begins, even with a board.
    told = False

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
        # The checkpoints sent. They are committed in the order in which they were sent.
        self.sent = 0
        self.durable = 0
        # Of a range: see items.Journal.
        self.end = sys.maxsize if order.end is None else order.end
        # Whether the run was told to leave at the next step boundary.
        self.stopped = False
        # Why the run that this run waits for could never end.
        self.refused: str | None = None
        # How many runs this run waits for at the same time.
        self._waits = 0
        # Whether the run has reported that it leaves. No step may follow, even if a `finally` block
        # or a gathered task calls one.
        self.left = False

    @property
    def leaving(self) -> bool:
        return self.stopped or self.left

    def given_back(self) -> wire.Up:
        """Returns the last frame of a run whose function raised Suspended. If the run was not told
        to leave, its own code raised the exception. Then the run fails, because another worker
        would only execute the same code again.
        """
        if self.leaving:
            return wire.Returned((self.message_id,))
        own = errors.ValidationError(
            "the code of this run raised pgqrs.flow.Suspended, which is for pgqrs to raise when a run is "
            "to leave its worker; to wait, call pgqrs.pause() or raise pgqrs.TransientStepError in a step"
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
        """Reports that the step of this call begins. None: the function's own code."""
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
        """Sends a failed attempt of a step that is retried in this worker."""
        if not self.left:
            self._check_in(step)

    def _check_in(self, step: Step) -> None:
        checkpoint = wire.Checkpoint(self.message_id, self.claim_no, _measured(step))
        self.outbox.add(checkpoint)
        self.outbox.ended(checkpoint, step_of(step.name))
        self.sent += 1


def _measured(step: Step) -> Step:
    """Returns the step with the CPU time and memory, which only this process knows."""
    return replace(step, peak_rss_bytes=METER.peak_rss_bytes, pid=_pid)
