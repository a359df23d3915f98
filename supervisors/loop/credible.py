"""Checks everything that a worker sends, where the supervisor reads it: from the worker's pipe and
its board.

A worker executes unknown code, which may write anything into its pipe, over its board and to its
output. Even a frame of the right shape (wire.py) may hold numbers that no database accepts, or name
runs that the worker was never given. Frames may also follow one another without end. If a worker
sends such frames, the supervisor kills it, and none of these frames reaches the core.

The decoder checks numbers, lengths and times at no cost (the types of wire.py). This module checks
what the decoder cannot know.
"""

import msgspec
from msgspec import Struct

from pgqrs.model.bounds import STEPS_MAX
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Step
from supervisors import wire

REMEMBERED_MAX = (
    # The runs that have left a worker and are remembered, because their output may be read later.
    16_384
)
# The most consecutive frames that change nothing.
SAYS_NOTHING_MAX = 10_000


class _Given(Struct):
    """A run that was sent to the worker."""

    # The order without its payload.
    order: wire.Execute
    is_handler: bool
    # The number of steps that the worker has reported.
    steps: int = 0


class Credit:
    """What the supervisor has sent to one worker, and therefore what the worker may report."""

    def __init__(self) -> None:
        # The runs of the worker, the oldest first.
        self._given: dict[int, _Given] = {}
        # The runs that have left, and whether each was a plain message.
        self._left: dict[int, bool] = {}
        self._is_ready = False
        # The number of consecutive frames that changed nothing.
        self._said_nothing = 0

    def told(self, frame: wire.Down) -> None:
        self._said_nothing = 0
        if isinstance(frame, wire.Execute):
            self._given.pop(frame.message_id, None)
            order = msgspec.structs.replace(frame, payload=b"", steps=())
            self._given[frame.message_id] = _Given(order, frame.kind == "handler")

    def knows(self, run: int | None) -> bool:
        """Whether the worker was ever given this run."""
        return run in self._given or run in self._left

    def is_message(self, run: int) -> bool:
        """Whether this id belongs to a plain message."""
        given = self._given.get(run)
        return self._left.get(run, False) if given is None else given.is_handler

    def suspect(self) -> wire.Started | None:
        """Returns the run to charge with the death of a worker that hides what it executes: the run
        that the worker has had longest. If a run is charged by mistake, it is alone in its next
        worker, and the next death of this kind is charged to another run.
        """
        given = next(iter(self._given.values()), None)
        return None if given is None else wire.Started(given.order.message_id, given.order.claim_no)

    def check(self, frame: wire.Up) -> None:
        """Raises WireError if no worker of pgqrs sends such a frame."""
        match frame:
            case wire.Checkpoint() | wire.StepFailed() | wire.Paused():
                self._check_step(frame)
            case wire.Finished():
                self._check_run(frame.message_id, frame)
                _refuse_no_json(frame, frame.output)
                self._leaves(frame.message_id)
            case wire.Failed():
                self._check_run(frame.message_id, frame)
                _refuse_no_json(frame, frame.error)
                self._leaves(frame.message_id)
            case wire.Returned():
                for message_id in frame.message_ids:
                    self._check_run(message_id, frame)
                    self._leaves(message_id)
                if not frame.message_ids:
                    self._says_nothing()
            case wire.Ready():
                if self._is_ready:
                    raise wire.WireError("it was ready before")
                self._is_ready = True
                self._said_nothing = 0
            case wire.Idle():
                self._says_nothing()
            case wire.Left():
                self._check_run(frame.message_id, frame)
                self._says_nothing()
            case wire.Started():
                self._check_run(frame.message_id, frame)
                _refuse_nul(frame, frame.step, frame.place.path if frame.place else None)
                self._says_nothing()
            case wire.Waiting():
                self._check_run(frame.message_id, frame)
                _refuse_nul(frame, frame.workflow)
                self._says_nothing()

    def _says_nothing(self) -> None:
        self._said_nothing += 1
        if self._said_nothing > SAYS_NOTHING_MAX:
            raise wire.WireError(f"{SAYS_NOTHING_MAX:,} frames that say nothing new")

    def _check_run(self, message_id: int, frame: wire.Up) -> None:
        if not self.knows(message_id):
            raise wire.WireError(
                f"a {type(frame).__name__} of run {message_id}, which this worker was never given"
            )

    def _check_step(self, frame: wire.Checkpoint | wire.StepFailed | wire.Paused) -> None:
        """Checks the step of a frame, also if its run has left the worker meanwhile."""
        given = self._given.get(frame.message_id)
        if given is None:
            self._check_run(frame.message_id, frame)
            self._says_nothing()
        elif given.is_handler:
            raise wire.WireError(
                f"a {type(frame).__name__} of message {frame.message_id}, whose handler has no steps"
            )
        else:
            self._said_nothing = 0
            given.steps += 1
            if given.steps > STEPS_MAX:
                raise wire.WireError(f"more than {STEPS_MAX:,} steps of run {frame.message_id}")
        step = frame.step
        if "\0" in step.name or (step.place is not None and "\0" in step.place.path):
            _refuse_nul(frame, step.name, step.place.path if step.place else None)
        _refuse_no_json(frame, step.output)
        _refuse_no_json(frame, step.error)
        if (
            type(frame) is not wire.Checkpoint
            or step.status is not WorkflowStatus.Success
            or step.error is not None
        ):
            _check_outcome(frame, step)

    def _leaves(self, message_id: int) -> None:
        if (given := self._given.pop(message_id, None)) is None:
            self._says_nothing()
        else:
            self._said_nothing = 0
            self._left[message_id] = given.is_handler
            if len(self._left) > REMEMBERED_MAX:
                del self._left[next(iter(self._left))]


def _check_outcome(frame: wire.Checkpoint | wire.StepFailed | wire.Paused, step: Step) -> None:
    """Checks that a step's status, output and error belong together and to this frame."""
    if step.status is WorkflowStatus.Success:
        fits = type(frame) is wire.Checkpoint and step.error is None and step.retry_in_s is None
    elif isinstance(frame, wire.Paused):
        fits = step.status is WorkflowStatus.Paused and step.error is None
        _refuse_nul(frame, _text(frame, step.output))
    else:
        fits = step.status is WorkflowStatus.Error and step.error is not None
        fits = fits and (type(frame) is wire.Checkpoint or step.retry_in_s is not None)
    if not fits or (step.error is not None and step.output is not None):
        raise wire.WireError(f"a {type(frame).__name__} of a step that is {step.status.value}")


def _text(frame: wire.Up, told: bytes | None) -> str:
    """Decodes the text that a paused run gave as its reason."""
    try:
        return _texts.decode(told or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise wire.WireError(f"a {type(frame).__name__} with a text that is none: {e}") from e


def _refuse_nul(frame: wire.Up, *texts: str | None) -> None:
    """Refuses NUL. The decoder has checked the length of the text and that it is UTF-8."""
    for text in texts:
        if text is not None and "\0" in text:
            raise wire.WireError(f"a {type(frame).__name__} with the text {text[:40]!r}")


def _refuse_no_json(frame: wire.Up, value: bytes | None) -> None:
    if value is not None and not is_json(value):
        raise wire.WireError(f"a {type(frame).__name__} with {value[:40]!r}, which is no JSON")


_texts = msgspec.json.Decoder(wire.Text)
_raw_json = msgspec.json.Decoder(msgspec.Raw)


def is_json(value: bytes) -> bool:
    """Whether the bytes are one JSON document in UTF-8 that is not nested too deeply to be read. A
    database may still refuse such a document.
    """
    try:
        _raw_json.decode(value)
        return value.isascii() or bool(value.decode())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
