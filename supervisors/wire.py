"""What crosses the pipe between a supervisor and a worker: msgspec Structs in length-prefixed msgpack frames.

A frame is 4 bytes of length (big endian, of what follows), 1 byte of protocol version, then the message. JSON payloads
travel inside as raw bytes: whoever only forwards one never decodes it. A pipe belongs to one worker and is never used
again, so a torn frame can only be the last thing a dead worker wrote, and is dropped with it.
"""

from collections.abc import Iterator
from struct import Struct as Packed
from typing import Literal

import msgspec
from msgspec import Struct

from pgqrs.writes import RecordedStep

VERSION = 1
FRAME_BYTES_MAX = (
    64 * 1024 * 1024
)  # far above any payload limit that makes sense; keeps a garbled length harmless
# Of a payload, or of one step of a history: the rest of its frame takes far less than what is left.
VALUE_BYTES_MAX = FRAME_BYTES_MAX - 1024 * 1024
_HEAD = Packed("!IB")

Kind = Literal["workflow", "handler"]


class Frame(Struct, frozen=True, array_like=True, tag=True):
    pass


# Down: to the worker


class Execute(Frame, frozen=True):
    """Run this. `payload` is the message's, raw. A long history goes ahead in History frames. `seconds_left` is what is left of
    the time of the whole run: `async def` code ends itself then."""

    message_id: int
    claim_no: int
    function: str
    kind: Kind
    payload: bytes
    attempt: int
    steps: tuple[RecordedStep, ...]
    seconds_left: float | None = None


class History(Frame, frozen=True):
    """A part of a run's recorded steps, ahead of its Execute."""

    message_id: int
    steps: tuple[RecordedStep, ...]


class Committed(Frame, frozen=True):
    """A checkpoint of each of these runs (message id and claim number) is durable, the first that was not: it may go on."""

    runs: tuple[tuple[int, int], ...]


class Revoke(Frame, frozen=True):
    """Give back up to `count` runs that were not started, the last received first."""

    count: int


class Cancel(Frame, frozen=True):
    """Stop this run at its step boundary and return it. `now`: an event loop cancels it where it waits."""

    message_id: int
    claim_no: int
    now: bool = False


class Drain(Frame, frozen=True):
    """Return what was not started; with `at_boundary`, also every run at its next step boundary."""

    at_boundary: bool


class Lease(Frame, frozen=True):
    """Until when, by the machine's monotonic clock, what the worker has is its supervisor's: no body starts after that before
    it hears of more. A worker that was stopped with its supervisor may wake up first."""

    until: float


# Up: from the worker


class Ready(Frame, frozen=True):
    pid: int


class Started(Frame, frozen=True):
    """This run has the CPU from now on; `step` None means the function's own code between steps. A worker with a board
    (board.py) only says so where there is a limit of time or memory.

    `retry_in_s` is when its policy would try the step again if this attempt failed, None if it would not.
    """

    message_id: int
    claim_no: int
    step: str | None = None
    position: int = 0
    timeout_s: float | None = None
    retry_count: int = 0
    retry_in_s: float | None = None
    memory_bytes: int | None = None  # of the worker's whole process, at most


class Checkpoint(Frame, frozen=True):
    """A step has a result to record; the run waits for Committed. `error` set: it failed for good. `peak_rss_bytes`: the most
    memory that the process has held until now."""

    message_id: int
    claim_no: int
    position: int
    name: str
    output: bytes | None
    error: bytes | None
    seconds: float
    cpu_seconds: float
    retry_count: int
    peak_rss_bytes: int | None = None


class StepFailed(Frame, frozen=True):
    """A step failed and is to be tried again: the run leaves the worker until then."""

    message_id: int
    claim_no: int
    position: int
    name: str
    error: bytes
    seconds: float
    cpu_seconds: float
    retry_count: int
    retry_in_s: float
    peak_rss_bytes: int | None = None


class Paused(Frame, frozen=True):
    """The run leaves the worker; `resume_after_s` None means until somebody resumes it."""

    message_id: int
    claim_no: int
    position: int
    name: str
    text: str
    resume_after_s: float | None


class Finished(Frame, frozen=True):
    """`seconds` on the CPU, of a plain handler."""

    message_id: int
    claim_no: int
    output: bytes
    seconds: float | None = None


class Failed(Frame, frozen=True):
    message_id: int
    claim_no: int
    error: bytes


class Returned(Frame, frozen=True):
    """Not done here: never started, or left at a step boundary because it was told to."""

    message_ids: tuple[int, ...]


class Idle(Frame, frozen=True):
    """Nothing left to run until an answer comes: whoever commits, let it be now."""


Down = Execute | History | Committed | Revoke | Cancel | Drain | Lease
Up = Ready | Started | Checkpoint | StepFailed | Paused | Finished | Failed | Returned | Idle

_encoder = msgspec.msgpack.Encoder()
_down = msgspec.msgpack.Decoder(Down)
_up = msgspec.msgpack.Decoder(Up)


class WireError(Exception):
    """The other side sent what is no frame of this protocol."""


def encode(frame: Down | Up) -> bytes:
    body = _encoder.encode(frame)
    if len(body) >= FRAME_BYTES_MAX:
        raise WireError(
            f"a {type(frame).__name__} of {len(body):,} bytes is over the limit of {FRAME_BYTES_MAX:,}"
        )
    return _HEAD.pack(len(body) + 1, VERSION) + body


class Parser:
    """Bytes in, frames out, whatever the cuts between them."""

    def __init__(self, side: Literal["supervisor", "worker"]) -> None:
        self._decoder: msgspec.msgpack.Decoder[Down] | msgspec.msgpack.Decoder[Up] = (
            _up if side == "supervisor" else _down
        )
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Down | Up]:
        """Every frame that is complete by now. Raises WireError on anything else than frames."""
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _HEAD.size:
                length, version = _HEAD.unpack_from(self._buffer, at)
                if version != VERSION or not 1 < length <= FRAME_BYTES_MAX:
                    raise WireError(f"not a frame: version {version}, length {length:,}")
                end = at + 4 + length
                if len(self._buffer) < end:
                    break
                try:
                    frame = self._decoder.decode(bytes(self._buffer[at + _HEAD.size : end]))
                except (msgspec.DecodeError, UnicodeDecodeError) as e:
                    raise WireError(f"not a message of this protocol: {e}") from e
                at = end
                yield frame
        finally:
            del self._buffer[:at]

    @property
    def torn(self) -> bool:
        """Whether a part of a frame is left over."""
        return bool(self._buffer)
