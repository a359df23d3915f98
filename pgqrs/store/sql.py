"""The SQL statements. Each is defined once, in a .sql file in this folder, after a line `-- name:
…`.

They are written in the SQL that PostgreSQL and SQLite share. Where the two differ, a word in braces
is replaced:

    {now}                  the database's clock; {now + x} and {now - x} are x seconds later and earlier
    {rows: a bigint, …}    the rows passed with the statement, as a table `r` in the given order
    {lock m}               lock the rows of m against other writers; `{lock m skip}` skips locked ones
    {lock m to delete}     also against transactions with {keep m}, which prevents deletion of rows of m
    {wait briefly}         true; from here on, the transaction waits at most LOCK_WAIT_MS for a lock
    {m.vt + x}             a time in a row plus x seconds
    {seconds since m.vt}   the time since a time in a row, in seconds
    {c of table}           inside RETURNING: c, the alias of the updated table, or its name on SQLite
    {=}                    equality that does not depend on the search path of a caller's connection
    {use name}             the text of another statement, or of a part that several statements share
    {json} {status} {time} {worker_status}  types for casts
    {schema}               the schema's name, quoted, as text; PostgreSQL only
    :name                  a parameter

On PostgreSQL each name of a table or type is qualified by its schema, also in text that becomes a
regclass. Statements on a caller's own connection (`enqueue`) execute with the caller's search path,
and the words above name pg_catalog there. All other statements execute with pg_catalog as their
search path.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from msgspec import Struct

from pgqrs.arguments import names
from pgqrs.errors import ValidationError

Dialect = Literal["postgres", "sqlite"]

# A supervisor's turn contains writes of many runs. If one of them meets a lock, all of them wait. A
# lock of another client's statement is released within a few milliseconds. A lock that lasts longer
# belongs to a session that was left open.
LOCK_WAIT_MS = 50


# A time before every time in a table, for each dialect.
DAWN: dict[Dialect, str] = {"postgres": "-infinity", "sqlite": ""}


class Statement(Struct, frozen=True):
    """A statement in one dialect. `columns` are the columns of the statement's {rows: …}. Empty if
    it has none.
    """

    name: str
    sql: str
    columns: tuple[tuple[str, str], ...]
    # `sql` as the driver's cursor takes it.
    encoded: bytes
    # The same for the server itself, with $1 for the first of `parameters`.
    numbered: bytes = b""
    parameters: tuple[str, ...] = ()


@cache
def statement(name: str, dialect: Dialect, own_clock: bool = False, schema: str = "public") -> Statement:
    """Returns the statement `name` in a dialect. On SQLite, {now} is always the parameter `now`.
    With `own_clock`, it is this parameter on PostgreSQL too.
    """
    return _rendered(name, _sources()[name], dialect, own_clock, schema)


def qualified(text: str, schema: str) -> str:
    """Adds the schema to the unqualified names of pgqrs's tables and types in PostgreSQL's SQL."""
    return _OURS.sub(lambda m: f'"{schema}".{m[0]}', text)


# A longer index or column name that contains one of these names does not match.
_OURS = re.compile(r'(?<![\w."])(?:pgqrs_[a-z_]+|worker_status)(?!\w)')


def askable(params: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters that every database accepts. An id beyond 64 bits becomes -1, because no
    row has either of these ids. Raises ValidationError for text that no database can store.
    """
    for name, value in params.items():
        if isinstance(value, str) and not names.storable(value):
            raise ValidationError(f"{value[:80]!r} is no {name}: it holds a NUL or half of a surrogate pair")
        if (
            isinstance(value, int)
            and (name == "id" or name.endswith("_id"))
            and not -(2**63) <= value < 2**63
        ):
            params[name] = -1
    return params


@cache
def _sources() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files("pgqrs.store").iterdir():
        if file.name.endswith(".sql"):
            for part in re.split(r"^-- name: ", file.read_text(), flags=re.M)[1:]:
                name, _, body = part.partition("\n")
                if name in found:
                    raise ValueError(f"{file.name}: a second statement is named {name}")
                found[name.strip()] = _without_comments(body)
    return found


def _without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*", "", sql).strip().rstrip(";")


def _rendered(name: str, source: str, dialect: Dialect, own_clock: bool, schema: str = "public") -> Statement:
    while "{use " in source:
        source = re.sub(r"\{use (\w+)\}", lambda m: _sources()[m[1]], source)
    columns: tuple[tuple[str, str], ...] = ()
    if found := re.search(r"\{rows: ([^}]*)\}", source):
        columns = tuple((c.split()[0], c.split()[1]) for c in found[1].split(","))
    if dialect == "postgres":
        sql = re.sub(r"(?<![:\w]):([a-z_]\w*)", r"%(\1)s", source)
        words = _postgres_words(own_clock, schema)
    else:
        sql, words = source, _sqlite_words()
    sql = re.sub(r"\{([^}]*)\}", lambda m: words(m[1]), sql)
    if dialect == "sqlite":
        return Statement(name, sql, columns, sql.encode())
    sql = qualified(sql, schema)
    parameters = tuple(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
    numbered = re.sub(r"%\((\w+)\)s", lambda m: f"${parameters.index(m[1]) + 1}", sql)
    return Statement(name, sql, columns, sql.encode(), numbered.encode(), parameters)


def _postgres_words(own_clock: bool, schema: str) -> Callable[[str], str]:
    now = "cast(%(now)s as timestamptz)" if own_clock else "pg_catalog.now()"

    def word(text: str) -> str:
        if text == "now":
            return now
        if text == "schema":
            return f"'\"{schema}\"'"
        if m := _MOVED.fullmatch(text):
            start = now if m[1] == "now" else m[1]
            return f"({start} operator(pg_catalog.{m[2]}) pg_catalog.make_interval(secs => {m[3]}))"
        if text.startswith("seconds since "):
            # The difference of two numbers: PostgreSQL cannot subtract one infinite time from another.
            return f"cast(extract(epoch from {now}) - extract(epoch from {text[14:]}) as float8)"
        if text.startswith("rows: "):
            columns = [c.split() for c in text[6:].split(",")]
            arrays = ", ".join(f"%({c})s::{_ARRAYS[t]}[]" for c, t in columns)
            # `unnest` of several arrays is special syntax that allows no schema.
            unnest = "pg_catalog.unnest" if len(columns) == 1 else "unnest"
            names = ", ".join(c for c, _ in columns)
            wanted = ", ".join(f"{c}::jsonb as {c}" if t == "json" else c for c, t in columns)
            return f"(select {wanted} from {unnest}({arrays}) as u ({names})) as r"
        if m := re.fullmatch(r"lock (\w+)( to delete)?( skip)?", text):
            return f"for {'' if m[2] else 'no key '}update of {m[1]}" + (" skip locked" if m[3] else "")
        if text == "wait briefly":
            return f"(select pg_catalog.set_config('lock_timeout', '{LOCK_WAIT_MS}', true)) is not null"
        if text == "=":
            return "operator(pg_catalog.=)"
        if " of " in text:
            return text.partition(" of ")[0]
        if text.startswith("keep "):
            return f"for key share of {text[5:]}"
        return _POSTGRES_TYPES[text]

    return word


def _sqlite_words() -> Callable[[str], str]:
    def word(text: str) -> str:
        if text == "now":
            return ":now"
        if m := _MOVED.fullmatch(text):
            # A null number of seconds must give null, as on PostgreSQL. `||` ensures that.
            return (
                f"strftime('%Y-%m-%d %H:%M:%f', {':now' if m[1] == 'now' else m[1]}, "
                f"'{m[2]}' || {m[3]} || ' seconds')"
            )
        if text.startswith("seconds since "):
            return f"((julianday(:now) - julianday({text[14:]})) * 86400.0)"
        if text.startswith("rows: "):
            columns = [c.split()[0] for c in text[6:].split(",")]
            wanted = ", ".join(f"value ->> {i} as {c}" for i, c in enumerate(columns))
            return f"(select {wanted} from json_each(:rows)) as r"
        if text == "wait briefly":
            return "true"
        if text == "=":
            return "="
        if " of " in text:
            return text.partition(" of ")[2]
        if text.startswith(("lock ", "keep ")):
            return ""  # `begin immediate` has locked the whole database
        return dict.fromkeys([*_POSTGRES_TYPES, "schema"], "text")[text]

    return word


_MOVED = re.compile(r"(now|\w+\.\w+) ([+-]) (.+)")
_POSTGRES_TYPES = {
    "json": "jsonb",
    "status": "pgqrs_workflow_status",
    "time": "timestamptz",
    "worker_status": "worker_status",
}
_ARRAYS = {
    "bigint": "bigint",
    "int": "int",
    "float": "float8",
    "text": "text",
    "json": "text",
    "bool": "bool",
}
