"""Reads values from rows that another program may have written: SQLite accepts any value in any
column.

Each function raises ValueError for a value that pgqrs never writes. The caller then reports the
error for that row alone.
"""

from typing import Any

from pgqrs import errors
from pgqrs.model.states import WorkflowStatus

# PostgreSQL's columns hold no larger number, and the next one must fit too.
COUNT_MAX = 2**31 - 1


def read_fingerprint(value: Any) -> int | None:
    if value is not None and not isinstance(value, int):
        raise ValueError(f"{value!r} is no fingerprint")
    return value


def read_count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < COUNT_MAX:
        raise ValueError(f"{value!r} is no count")
    return value


def read_seconds(value: Any) -> float | None:
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no time")
    return value


def read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    value.encode()  # raises UnicodeError if the column is not UTF-8
    return value


def read_json(value: Any) -> bytes | None:
    if value is not None and not isinstance(value, bytes | str):
        value = str(value)  # a number in a SQLite column is JSON too
    return value.encode() if isinstance(value, str) else value


def read_status(value: Any, what: str) -> WorkflowStatus:
    """Reads the status of `what`, for example "run 7". Raises DatabaseError for an unknown status."""
    try:
        return WorkflowStatus(value)
    except ValueError:
        raise errors.DatabaseError(
            f"the status of {what} is {str(value)[:40]!r} in the "
            "database, which is none; somebody else has written there"
        ) from None
