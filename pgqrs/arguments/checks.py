"""Checks of arguments before they reach a database. Databases treat `5`, `True` and None
differently, so the checks make calls behave the same on all of them.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from pgqrs.errors import ArgumentError, ValidationError
from pgqrs.model.states import WorkflowStatus

# Replaces an id beyond 64 bits, which no row has.
ID_NONE = -1
ID_END = 2**63


def identity(value: object, of: str = "a run") -> int:
    """Returns an id. Accepts everything that Python accepts as an index, such as NumPy integers.
    Raises ArgumentError.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None:
        hint = f": it has one, .{_ID_OF[kind]}" if (kind := type(value).__name__) in _ID_OF else ""
        raise ArgumentError(f"the id of {of} is a whole number, not {_shown(value)}{hint}")
    return found if -ID_END <= found < ID_END else ID_NONE


# The attribute with the id, for objects that callers pass instead of one.
_ID_OF = {
    "RunHandle": "id", "RunRecord": "message_id", "QueueMessage": "id", "Run": "message_id",
    "WorkerInfo": "id", "QueueInfo": "id", "Consumer": "worker_id", "Producer": "worker_id",
}  # fmt: skip


def name(value: object, of: str) -> str:
    """Returns a name to look up. Raises ArgumentError unless it is text."""
    if not isinstance(value, str):
        raise ArgumentError(f"the name of {of} is text, not {_shown(value)}")
    return value


def count(of: str, value: object, least: int = 0) -> int:
    """Returns a whole number that fits in 64 bits. Raises ValidationError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < ID_END:
        raise ValidationError(f"{of} is a whole number of at least {least}, not {_shown(value)}")
    return value


def several(values: object, of: str) -> list[Any]:
    """Returns the items of an iterable as a list. Raises ArgumentError for text, bytes and
    mappings, because each of them counts as one value.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping) or not isinstance(values, Iterable):
        raise ArgumentError(f"{of} are a list, not {_shown(values)}; put a single one in a list")
    return list(values)


def status(value: object) -> WorkflowStatus | None:
    """Converts a run's status, given as WorkflowStatus or as text in either case. Raises ArgumentError."""
    if value is None or isinstance(value, WorkflowStatus):
        return value
    try:
        return WorkflowStatus(value.upper() if type(value) is str else "")
    except ValueError:
        states = ", ".join(s.value for s in WorkflowStatus)
        raise ArgumentError(f"a run's status is one of {states}, not {_shown(value)}") from None


def _shown(value: object) -> str:
    """Returns a short text that shows any value in an error message."""
    if value is None or isinstance(value, bool | float | str | bytes):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}…"
    return f"{value}" if type(value) is int and abs(value) < 10**40 else type(value).__name__
