"""Encodes values for the statements of a database, before a transaction begins.

Encoding hundreds of megabytes takes seconds. In an open transaction, a PostgreSQL server could end
the idle connection meanwhile, and on SQLite every other writer would wait.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from pgqrs.store.sql import Dialect


class Encoded(str):
    """An array element in PostgreSQL's notation."""

    __slots__ = ()


Value = Encoded | msgspec.Raw | str | None

# Characters. A shorter text is encoded so quickly that a separate object would take longer.
SHORT = 1024


def encoded(raw: bytes | str | None, dialect: Dialect) -> Value:
    """Encodes text or a JSON value for the `rows` of a statement."""
    if raw is None:
        return None
    text = raw.decode() if isinstance(raw, bytes) else raw
    if dialect == "postgres":
        return Encoded(quoted(text))
    return text if len(text) <= SHORT else msgspec.Raw(msgspec.json.encode(text))


def quoted(value: bytes | str | None) -> str:
    """Returns an element of a PostgreSQL array."""
    if value is None:
        return "NULL"
    if isinstance(value, Encoded):
        return value
    text = value.decode() if isinstance(value, bytes) else value
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def plain(row: Sequence[Any]) -> Sequence[Any]:
    """Returns a row in a form that msgspec can write into the JSON parameter of a SQLite statement."""
    if bytes not in map(type, row):
        return row
    return [v.decode() if isinstance(v, bytes) else v for v in row]
