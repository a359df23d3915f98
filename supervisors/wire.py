"""The messages on the pipe between a supervisor and a worker: msgspec Structs in msgpack frames.

A frame is 4 bytes of length (big endian, of the rest), 1 byte of protocol version, then the
message. JSON payloads are raw bytes inside, so that a process that only forwards a payload never
decodes it. A pipe belongs to one worker and is never reused. An incomplete frame can therefore only
be the last thing that a dead worker wrote, and is dropped.
"""

from collections.abc import Iterator
from struct import Struct as Packed
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from pgqrs.model.bounds import Count, Id, Number, Position, Seconds, StepName
from pgqrs.model.states import Kind
from pgqrs.model.writes import Place, RecordedStep, Step

VERSION = 1
# The longest frame. It is far above any useful payload limit, and makes a corrupt length harmless.
FRAME_BYTES_MAX = 64 * 1024 * 1024
# Limits a payload, or one step of a history. The rest of its frame always fits into the remainder.
VALUE_BYTES_MAX = FRAME_BYTES_MAX - 1024 * 1024
_HEAD = Packed("!IB")


# The values that a worker may send. The decoder refuses all others, because a worker executes code
# that the supervisor does not know.
TEXT_LENGTH_MAX = 1024 * 1024
RETURNED_MAX = 100_000  # runs in one frame
Text = Annotated[str, Meta(max_length=TEXT_LENGTH_MAX)]
Ids = Annotated[tuple[Id, ...], Meta(max_length=RETURNED_MAX)]


class Frame(Struct, frozen=True, array_like=True, tag=True):
    pass


# Down: to the worker


class Execute(Frame, frozen=True):
    """Execute this run. `payload` is the message's raw payload. If the history is long, it is sent
    first, in History frames. `seconds_left` is the rest of the time limit of the whole run. `async
    def` code is ended by its worker at that time.
    """

    message_id: int
    claim_no: int
    function: str
    kind: Kind
    payload: bytes
    attempt: int
    steps: tuple[RecordedStep, ...]
    seconds_left: float | None = None
    # Of a range of a map: the number of items from the first one that are executed.
    end: int | None = None


class History(Frame, frozen=True):
    """A part of a run's recorded steps. Sent before its Execute."""

    message_id: int
    steps: tuple[RecordedStep, ...]


class Committed(Frame, frozen=True):
    """For each of these runs (message id and claim number), its next checkpoint is durable, and the
    run may continue.
    """

    runs: tuple[tuple[int, int], ...]


class Revoke(Frame, frozen=True):
    """Return up to `count` runs that have not started, the last received first."""

    count: int


class Recall(Frame, frozen=True):
    """The supervisor has taken these runs (message id and claim number) back, and another worker
    may execute them. The worker must drop them and send Returned for each. The supervisor sends one
    Recall each time that it has closed the gate of the board.

    `cuts`: ranges of maps (message id, claim number) and the item, counted from the range's first
    one, before which the range ends from now on.
    """

    runs: tuple[tuple[int, int], ...]
    cuts: tuple[tuple[int, int, int], ...] = ()


class Cancel(Frame, frozen=True):
    """Stop this run at its next step and return it. With `now`, an event loop cancels it where it
    waits.
    """

    message_id: int
    claim_no: int
    now: bool = False


class WaitRefused(Frame, frozen=True):
    """The run that this run waits for could never end."""

    message_id: int
    claim_no: int
    why: str


class Drain(Frame, frozen=True):
    """The worker must return the runs that have not started. With `at_boundary`, it must also
    return every run at its next step.
    """

    at_boundary: bool


class Lease(Frame, frozen=True):
    """The time until which the worker's runs belong to its supervisor, on the machine's monotonic
    clock. After that time no step body starts until a new Lease arrives. If a worker and its
    supervisor were both stopped, the worker may continue first, and this rule protects the runs.
    """

    until: float


class Welcome(Frame, frozen=True):
    """Values that hold for all runs. `database` is the identity of the supervisor's database, which
    is part of every idempotency key.
    """

    database: str


# Up: from the worker


class Ready(Frame, frozen=True):
    pid: Count


class Started(Frame, frozen=True):
    """This run is executing from now on. If `step` is None, it executes the function's own code
    between steps. A worker with a board (board.py) sends this only for a step with a limit of time
    or memory.

    `retry_in_s` is the delay before the step's retry if this attempt fails, or None if the step has
    no retry.
    """

    message_id: Id
    claim_no: Number
    step: StepName | None = None
    position: Position = 0
    timeout_s: Seconds | None = None
    retry_count: Count = 0
    retry_in_s: Seconds | None = None
    # Limits the memory of the worker's whole process.
    memory_bytes: Number | None = None
    place: Place | None = None


class Checkpoint(Frame, frozen=True):
    """A step has a result to record. The run waits for Committed. If the step failed, it has no
    tries left, with one exception: `step.retry_in_s` says when a run that stays in its worker
    retries the step.
    """

    message_id: Id
    claim_no: Number
    step: Step


class StepFailed(Frame, frozen=True):
    """A step failed and is retried after `step.retry_in_s`. The run leaves the worker until
    then.
    """

    message_id: Id
    claim_no: Number
    step: Step


class Paused(Frame, frozen=True):
    """The run leaves the worker for `step.retry_in_s` seconds; None means until somebody resumes it."""

    message_id: Id
    claim_no: Number
    step: Step


class Finished(Frame, frozen=True):
    """A run or message has ended successfully. `seconds` is the execution time of a plain handler."""

    message_id: Id
    claim_no: Number
    output: bytes
    seconds: Seconds | None = None


class Failed(Frame, frozen=True):
    message_id: Id
    claim_no: Number
    error: bytes


class Returned(Frame, frozen=True):
    """These runs have not ended in this worker: they never started, or stopped at a step as
    ordered.
    """

    message_ids: Ids


class Left(Frame, frozen=True):
    """A run that sent StepFailed or Paused has now left the worker: its code has ended."""

    message_id: Id


class Waiting(Frame, frozen=True):
    """Code of this run waits for the end of the run `of`, which belongs to `workflow`. If `of` is
    0, the wait has ended. With `blocks`, the worker can execute nothing else during the wait.
    """

    message_id: Id
    claim_no: Number
    of: Number = 0
    workflow: Text = ""
    blocks: bool = False


class Idle(Frame, frozen=True):
    """The worker has nothing to execute until the supervisor answers, so the supervisor should
    commit now.
    """


Down = Execute | History | Committed | Revoke | Recall | Cancel | WaitRefused | Drain | Lease | Welcome
Up = Ready | Started | Checkpoint | StepFailed | Paused | Finished | Failed | Returned | Left | Waiting | Idle

_encoder = msgspec.msgpack.Encoder()
_down = msgspec.msgpack.Decoder(Down)
_up = msgspec.msgpack.Decoder(Up)


class WireError(Exception):
    """The other side sent data that is not a frame of this protocol."""


def encode(frame: Down | Up) -> bytes:
    body = _encoder.encode(frame)
    if len(body) >= FRAME_BYTES_MAX:
        raise WireError(
            f"a {type(frame).__name__} of {len(body):,} bytes is over the limit of {FRAME_BYTES_MAX:,}"
        )
    return _HEAD.pack(len(body) + 1, VERSION) + body


_steps = msgspec.msgpack.Decoder(tuple[RecordedStep, ...])


def unfit_steps(steps: tuple[RecordedStep, ...]) -> str | None:
    """Returns why a worker would refuse this history: it does not fit into frames of this protocol."""
    try:
        _steps.decode(_encoder.encode(steps))
    except (msgspec.MsgspecError, UnicodeError, OverflowError) as e:
        return str(e)
    return None


class Parser:
    """Splits a stream of bytes into frames."""

    def __init__(self, side: Literal["supervisor", "worker"]) -> None:
        self._decoder: msgspec.msgpack.Decoder[Down] | msgspec.msgpack.Decoder[Up] = (
            _up if side == "supervisor" else _down
        )
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Down | Up]:
        """Yields every complete frame. Raises WireError for data that is not a frame."""
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
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as e:
                    raise WireError(f"not a message of this protocol: {e}") from e
                at = end
                yield frame
        finally:
            del self._buffer[:at]

    @property
    def torn(self) -> bool:
        """Whether the stream ends within a frame so far."""
        return bool(self._buffer)
