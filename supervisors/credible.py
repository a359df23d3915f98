"""What a worker may say, judged where it is read: in its pipe and on its board.

A worker runs code that nobody here knows. It may write anything into its pipe, over its board and to its output. A frame
that has the right shape (wire.py) may still hold numbers that no database takes, speak of runs that the worker was never
given, or come without an end. Whoever says such a thing is killed; nothing of it reaches the core.

The checks go by the names and the types of fields, so that a frame or a field that is added is checked too.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from pgqrs.durations import DURATION_S_MAX
from pgqrs.flow import STEPS_MAX
from pgqrs.names import NAME_CHARS_MAX, storable
from supervisors import wire

NUMBER_MAX = 2**63 - 1
COUNT_MAX = 2**31 - 1
NAME_LENGTH_MAX = 4 * NAME_CHARS_MAX  # of a step, with its number and whatever else tells its calls apart
TEXT_LENGTH_MAX = 1024 * 1024
RETURNED_MAX = 100_000  # runs in one frame
REMEMBERED_MAX = (
    16_384  # runs that a worker was given and that have left it: what it printed may be read later
)
SAYS_NOTHING_MAX = 10_000  # frames one after another that change nothing


class Credit:
    """One worker's: what the supervisor has told it, and so what it may speak of."""

    def __init__(self) -> None:
        self._given: dict[int, wire.Execute] = {}
        self._left: dict[int, None] = {}
        self._checkpoints: dict[int, int] = {}
        self._is_ready = False
        self._said_nothing = 0  # frames

    def told(self, frame: wire.Down) -> None:
        self._said_nothing = 0
        if isinstance(frame, wire.Execute):
            self._given.pop(frame.message_id, None)
            self._given[frame.message_id] = msgspec.structs.replace(frame, payload=b"", steps=())
            self._checkpoints.pop(frame.message_id, None)

    def knows(self, run: int | None) -> bool:
        """Whether the worker was given this run, some time."""
        return run in self._given or run in self._left

    def suspect(self) -> wire.Started | None:
        """Whom to charge with the death of a worker that hides what it runs: the run that it has had longest. Where that is
        charged without cause, it is alone in its next worker, and another is the suspect then."""
        given = next(iter(self._given.values()), None)
        return None if given is None else wire.Started(given.message_id, given.claim_no)

    def check(self, frame: wire.Up) -> None:
        """Raises WireError for what no worker of ours says."""
        check_fields(frame)
        if isinstance(frame, wire.Checkpoint):  # by far the most
            self._check_run(frame.message_id, frame)
            self._check_kind(frame.message_id, frame)
            self._said_nothing = 0
            return
        match frame:
            case wire.Ready():
                if self._is_ready:
                    raise wire.WireError("it was ready before")
                self._is_ready = True
            case wire.Idle():
                self._says_nothing()
                return
            case wire.Returned():
                for message_id in frame.message_ids:
                    self._check_run(message_id, frame)
                    self._leaves(message_id)
                if not frame.message_ids:
                    self._says_nothing()
                    return
            case _:
                self._check_run(frame.message_id, frame)
                self._check_kind(frame.message_id, frame)
                if isinstance(frame, wire.Started):
                    self._says_nothing()
                    return
                if isinstance(frame, wire.Finished | wire.Failed):
                    self._leaves(frame.message_id)
        self._said_nothing = 0

    def _says_nothing(self) -> None:
        self._said_nothing += 1
        if self._said_nothing > SAYS_NOTHING_MAX:
            raise wire.WireError(f"{SAYS_NOTHING_MAX:,} frames that say nothing new")

    def _check_run(self, message_id: int, frame: wire.Up) -> None:
        if not self.knows(message_id):
            raise wire.WireError(
                f"a {type(frame).__name__} of run {message_id}, which this worker was never given"
            )

    def _check_kind(self, message_id: int, frame: wire.Up) -> None:
        if isinstance(frame, (wire.Started, wire.Finished, wire.Failed)):
            return
        given = self._given.get(message_id)
        if given is not None and given.kind == "handler":
            raise wire.WireError(
                f"a {type(frame).__name__} of message {message_id}, whose handler has no steps"
            )
        count = self._checkpoints[message_id] = self._checkpoints.get(message_id, 0) + 1
        if count > STEPS_MAX:
            raise wire.WireError(f"more than {STEPS_MAX:,} steps of run {message_id}")

    def _leaves(self, message_id: int) -> None:
        self._checkpoints.pop(message_id, None)
        if self._given.pop(message_id, None) is not None:
            self._left[message_id] = None
            if len(self._left) > REMEMBERED_MAX:
                del self._left[next(iter(self._left))]


# Fields


def check_fields(frame: Struct) -> None:
    """Raises WireError where a field holds what a worker of ours cannot have put there."""
    for name, check in _checks_of(type(frame)):
        value = getattr(frame, name)
        if value is not None and not check(value):
            raise wire.WireError(f"a {type(frame).__name__} with {name} {_shown(value)}")


_Check = Callable[[Any], bool]
_checks: dict[type, tuple[tuple[str, _Check], ...]] = {}


def _checks_of(kind: type[Struct]) -> tuple[tuple[str, _Check], ...]:
    found = _checks.get(kind)
    if found is None:
        found = _checks[kind] = tuple(
            (name, _BY_NAME.get(name, _is_sound)) for name in kind.__struct_fields__
        )
    return found


def _is_sound(value: Any) -> bool:
    """By its type alone."""
    if check := _BY_TYPE.get(type(value)):
        return check(value)
    if isinstance(value, Struct):
        check_fields(value)
        return True
    return False


def _is_number(value: int) -> bool:
    return 0 <= value <= NUMBER_MAX


def _is_time(value: float) -> bool:
    return 0 <= value <= DURATION_S_MAX  # neither of which a NaN is


def _is_text(value: str) -> bool:
    return len(value) <= TEXT_LENGTH_MAX and storable(value)


def _are_sound(value: Sequence[Any]) -> bool:
    return len(value) <= RETURNED_MAX and all(map(_is_sound, value))


def _is_id(value: int) -> bool:
    return 0 < value <= NUMBER_MAX


def _is_position(value: int) -> bool:
    return 0 <= value <= STEPS_MAX


def _is_count(value: int) -> bool:
    return 0 <= value <= COUNT_MAX


def _is_name(value: str) -> bool:
    return 0 < len(value) <= NAME_LENGTH_MAX and storable(value)


def _are_ids(value: Iterable[int]) -> bool:
    return len(tuple(value)) <= RETURNED_MAX and all(map(_is_id, value))


_raw_json = msgspec.json.Decoder(msgspec.Raw)


def is_json(value: bytes) -> bool:
    """One JSON document in UTF-8, of a depth that can be read. Not every database takes every such document."""
    try:
        _raw_json.decode(value)
        return value.isascii() or bool(value.decode())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


_BY_TYPE: dict[type, _Check] = {
    bool: lambda value: True,
    int: _is_number,
    float: _is_time,
    str: _is_text,
    bytes: is_json,
    tuple: _are_sound,
    list: _are_sound,
}
_BY_NAME: dict[str, _Check] = {
    "message_id": _is_id,
    "message_ids": _are_ids,
    "position": _is_position,
    "retry_count": _is_count,
    "pid": _is_count,
    "name": _is_name,
    "step": lambda value: _is_name(value) if isinstance(value, str) else _is_sound(value),
}


def _shown(value: object) -> str:
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{value:,}"
    return repr(value if not isinstance(value, str | bytes | tuple) else value[:40])
