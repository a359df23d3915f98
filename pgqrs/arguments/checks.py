"""What callers pass, checked before a database sees it: each database has its own idea of what `5`, `True` or None equals."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from pgqrs.errors import ArgumentError, ValidationError
from pgqrs.model.states import WorkflowStatus

ID_NONE = -1  # stands for an id beyond 64 bits, which no row has
ID_END = 2**63


def identity(value: object, of: str = "a run") -> int:
    """An id. What counts as a whole number everywhere (NumPy's integers, say) does here. Raises ArgumentError."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None:
        hint = f": it has one, .{_ID_OF[kind]}" if (kind := type(value).__name__) in _ID_OF else ""
        raise ArgumentError(f"the id of {of} is a whole number, not {_shown(value)}{hint}")
    return found if -ID_END <= found < ID_END else ID_NONE


# Where what callers confuse with an id has its own.
_ID_OF = {
    "RunHandle": "id", "RunRecord": "message_id", "QueueMessage": "id", "Run": "message_id", "WorkerInfo": "id",
    "QueueInfo": "id", "Consumer": "worker_id", "Producer": "worker_id",
}  # fmt: skip


def name(value: object, of: str) -> str:
    """A name to be looked up. Raises ArgumentError for what is no text."""
    if not isinstance(value, str):
        raise ArgumentError(f"the name of {of} is text, not {_shown(value)}")
    return value


def count(of: str, value: object, least: int = 0) -> int:
    """A whole number that fits in 64 bits. Raises ValidationError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < ID_END:
        raise ValidationError(f"{of} is a whole number of at least {least}, not {_shown(value)}")
    return value


def several(values: object, of: str) -> list[Any]:
    """What a call for many was given, as a list: any iterable but text, bytes and a mapping, which are one thing. Raises
    ArgumentError."""
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping) or not isinstance(values, Iterable):
        raise ArgumentError(f"{of} are a list, not {_shown(values)}; put a single one in a list")
    return list(values)


def status(value: object) -> WorkflowStatus | None:
    """A run's status as such or as text, in either case. Raises ArgumentError."""
    if value is None or isinstance(value, WorkflowStatus):
        return value
    try:
        return WorkflowStatus(value.upper() if type(value) is str else "")
    except ValueError:
        states = ", ".join(s.value for s in WorkflowStatus)
        raise ArgumentError(f"a run's status is one of {states}, not {_shown(value)}") from None


def _shown(value: object) -> str:
    """Short, and of any value."""
    if value is None or isinstance(value, bool | float | str | bytes):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}…"
    return f"{value}" if type(value) is int and abs(value) < 10**40 else type(value).__name__
