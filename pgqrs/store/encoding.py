"""Values in the notation in which a database's statements take them, made before a transaction begins.

To quote hundreds of megabytes takes seconds. In an open transaction a PostgreSQL server would end a connection that is silent for so
long, and on SQLite every other writer would wait.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from pgqrs.store.sql import Dialect


class Encoded(str):
    """An element of an array, in PostgreSQL's notation."""

    __slots__ = ()


Value = Encoded | msgspec.Raw | str | None

SHORT = 1024  # characters, which are quoted in no time: an object of their own would take longer


def encoded(raw: bytes | str | None, dialect: Dialect) -> Value:
    """A text or a JSON value, as a row of a statement's `rows` takes it."""
    if raw is None:
        return None
    text = raw.decode() if isinstance(raw, bytes) else raw
    if dialect == "postgres":
        return Encoded(quoted(text))
    return text if len(text) <= SHORT else msgspec.Raw(msgspec.json.encode(text))


def quoted(value: bytes | str | None) -> str:
    """An element of an array of PostgreSQL's."""
    if value is None:
        return "NULL"
    if isinstance(value, Encoded):
        return value
    text = value.decode() if isinstance(value, bytes) else value
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def plain(row: Sequence[Any]) -> Sequence[Any]:
    """A row, as msgspec writes it into the JSON that SQLite's statements take."""
    if bytes not in map(type, row):
        return row
    return [v.decode() if isinstance(v, bytes) else v for v in row]
