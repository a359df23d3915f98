"""The statements: each stands once, in a .sql file beside this module, behind a line `-- name: …`.

They are PostgreSQL's SQL as far as SQLite understands it too; where the two part, a word in braces stands for both:

    {now}                  the database's clock; {now + x} and {now - x} are x seconds later and earlier
    {rows: a bigint, …}    the rows handed in with the statement, as a table `r` in the order given
    {lock m}               lock the rows of m against other writers, `{lock m skip}` passing over those locked already
    {lock m to delete}     also against those who keep it; {keep m} keeps the rows of m from being deleted
    {wait briefly}         true; from here on, this transaction waits LOCK_WAIT_MS at most for a lock of somebody else's
    {m.vt + x}             a time of a row, moved in the same way
    {seconds since m.vt}   how long ago a time of a row was, in seconds
    {c of table}           c, an updated table's alias, inside a RETURNING: SQLite knows it by its name only there
    {=}                    equality, on a caller's connection too, whose search path may lead to an operator of others
    {use name}             the text of another statement, or of a part that several share
    {json} {status} {time} {worker_status}  the types to cast to
    {schema}               the schema's name, quoted, as a text; PostgreSQL's alone
    :name                  a parameter

On PostgreSQL each name of ours is qualified by its schema, also within a text that becomes a
regclass. The statements of a caller's own connection (`enqueue`) run under the caller's search
path; the words above name pg_catalog there. All other statements run with pg_catalog as their
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

# A supervisor's turn carries writes of many runs, and all of them wait where one meets a lock. The lock of another client's
# statement is released within a few milliseconds; one that takes longer belongs to a session that was left open.
LOCK_WAIT_MS = 50


# Before every time that a table can hold, in each dialect's words.
DAWN: dict[Dialect, str] = {"postgres": "-infinity", "sqlite": ""}


class Statement(Struct, frozen=True):
    """`columns` are those of its {rows: …}, empty when it takes none."""

    name: str
    sql: str
    columns: tuple[tuple[str, str], ...]
    encoded: bytes  # `sql`, as the driver's cursor wants it
    numbered: bytes = b""  # the same for the server itself, with $1 for the first of `parameters`
    parameters: tuple[str, ...] = ()


@cache
def statement(name: str, dialect: Dialect, own_clock: bool = False, schema: str = "public") -> Statement:
    """The statement `name` in a dialect's words. With `own_clock`, {now} is the parameter `now` on PostgreSQL too."""
    return _rendered(name, _sources()[name], dialect, own_clock, schema)


def qualified(text: str, schema: str) -> str:
    """PostgreSQL's SQL with the schema before each name of ours that has none yet."""
    return _OURS.sub(lambda m: f'"{schema}".{m[0]}', text)


# An index or a column whose name only contains one of ours does not match.
_OURS = re.compile(r'(?<![\w."])(?:pgqrs_[a-z_]+|worker_status)(?!\w)')


def askable(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that every database takes: an id beyond 64 bits is no row's, and is asked for as -1, which is none's either.
    Raises ValidationError for text that none can hold."""
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
            # Two differences of numbers: PostgreSQL refuses to subtract an infinite time from another one.
            return f"cast(extract(epoch from {now}) - extract(epoch from {text[14:]}) as float8)"
        if text.startswith("rows: "):
            columns = [c.split() for c in text[6:].split(",")]
            arrays = ", ".join(f"%({c})s::{_ARRAYS[t]}[]" for c, t in columns)
            # Of several arrays, `unnest` is special syntax, in which no schema can be named.
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
            # A null number of seconds must give null, as on PostgreSQL: `||` sees to that.
            return f"strftime('%Y-%m-%d %H:%M:%f', {':now' if m[1] == 'now' else m[1]}, '{m[2]}' || {m[3]} || ' seconds')"
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
            return ""  # `begin immediate` has locked everything
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
