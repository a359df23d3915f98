"""What a run says to the supervisor, and what it waits for: the part that lanes and `async def` runs share."""

import math
import os
import random
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import msgspec

from pgqrs.flow import Clocks, Context, Definition, History, Journal, StepCall, Suspended
from pgqrs.states import WorkflowStatus
from pgqrs.writes import RecordedStep, Step
from supervisors import wire

READ_BYTES = 256 * 1024
CPU_EXACT_S = 0.001


class CpuClock:
    """This process's CPU seconds, exact to a millisecond: a reading is a system call, which cost a tiny step more than its own
    body did, so within a millisecond of the last one it is carried on by the wall clock."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._read = 0.0

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._at < CPU_EXACT_S:
            return self._read + (now - self._at)
        self._at, self._read = now, time.process_time()
        return self._read


CLOCKS = Clocks(time.monotonic, CpuClock(), random.random)


class Outbox:
    """Frames for the supervisor, which always reads: a blocking write is safe on this side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._frames: list[bytes] = []

    def add(self, frame: wire.Up) -> None:
        self._frames.append(wire.encode(frame))

    def flush(self) -> None:
        if self._frames:
            if os.getpid() != self._pid:
                os._exit(70)  # a child that user code forked and let return: the pipe is not its own
            data, self._frames = b"".join(self._frames), []
            self._sock.sendall(data)


class Leased:
    """A worker, by what it was told of its supervisor's lease."""

    lease_until = math.inf  # monotonic seconds

    @property
    def overdue(self) -> bool:
        """Whether what is here may be another supervisor's by now."""
        return CLOCKS.now_s() >= self.lease_until


class Owner(Protocol):
    """The worker that a run is in."""

    outbox: Outbox
    functions: Mapping[str, Definition]
    payload_bytes_max: int


class PipeJournal:
    """One run in a worker: its journal is the pipe. What is sent of it, and how far that is durable."""

    def __init__(
        self, order: wire.Execute, steps: Sequence[RecordedStep], owner: Owner, ordered: bool
    ) -> None:
        self.message_id = order.message_id
        self.claim_no = order.claim_no
        self.outbox = owner.outbox
        self.definition = owner.functions[order.function]
        self.payload = order.payload
        self.seconds_left = order.seconds_left
        self.context = Context(
            self.definition,
            order.message_id,
            order.attempt,
            History(steps, ordered),
            cast(Journal, self),
            CLOCKS,
            owner.payload_bytes_max,
        )
        self.sent = 0  # checkpoints; they are committed in the order in which they were sent
        self.durable = 0
        self.stopped = False  # told to leave at the next boundary
        self.left = False  # said that it leaves: no step may follow, whatever a `finally` or a gathered task would call

    @property
    def leaving(self) -> bool:
        return self.stopped or self.left

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
                    call.memory_bytes,
                )
            )
        self.outbox.flush()

    def record(self, step: Step) -> None:
        """A checkpoint leaves when its step ends, not when the worker next reads."""
        if self.left:
            raise Suspended
        ids = (self.message_id, self.claim_no, step.position, step.name)
        if step.status is WorkflowStatus.Paused:
            self.outbox.add(
                wire.Paused(*ids, str(msgspec.json.decode(step.output or b'""')), step.retry_in_s)
            )
            self.left = True
            raise Suspended
        if step.retry_in_s is not None:
            error = step.error or b"null"
            self.outbox.add(
                wire.StepFailed(
                    *ids, error, step.seconds, step.cpu_seconds or 0.0, step.retry_count, step.retry_in_s
                )
            )
            self.left = True
            raise Suspended
        self.outbox.add(
            wire.Checkpoint(
                *ids, step.output, step.error, step.seconds, step.cpu_seconds or 0.0, step.retry_count
            )
        )
        self.outbox.flush()
        self.sent += 1
