"""Executes pgqrs's statements on its own connections through libpq, without psycopg's cursor.

At each execution, psycopg's cursor examines the placeholders, the types, and whether to prepare.
For pgqrs the outcome is always the same, and the examination takes as long as the server needs to
insert a row.

The statements neither depend on the session nor change it. Behind a pooler, the next transaction
may execute in another session, and another client may get this session. Settings of the role or the
database must not change the meaning of a statement either:

- The search path is pg_catalog within these transactions. Names of tables include the schema
  (`sql.qualified`).
- The isolation level is READ COMMITTED, which the fence relies on. Setting it costs a third of the
  time of a single statement. So a single statement on a direct connection omits it if it is the
  default.
- Results use the binary format. DateStyle, TimeZone, IntervalStyle, bytea_output and
  extra_float_digits do not affect it.
- array_nulls is on, because rows are sent as arrays.

The name of a prepared statement is a hash of its text. So if a client finds the name on a server
connection, it finds the same statement.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
from psycopg import generators, waiting
from psycopg.adapt import Loader, Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader
from psycopg.types.string import TextBinaryLoader

from pgqrs.store.database import Row
from pgqrs.store.sql import Statement

# Executions on a connection before a statement is prepared: preparing costs more than one execution saves.
PREPARE_AT = 2
# psycopg registers the loader of unknown types, such as enums, under this type.
TYPE_UNKNOWN = 0

Settings = tuple[tuple[str, str], ...]
ALWAYS: Settings = (("search_path", "pg_catalog, pg_temp"), ("array_nulls", "on"))

# `default_transaction_read_only` is respected: an administrator who sets it wants no writes.
BEGIN_WRITE = b"begin isolation level read committed"
BEGIN_READ = b"begin isolation level read committed read only"
COMMIT = b"COMMIT"
ROLLBACK = b"ROLLBACK"

# The server connection does not know the name, or knows it already: a pooler has switched server
# connections, and another client has used this one.
SWAPPED = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)

Types = tuple[int, ...]
What = tuple[bytes, Types]


class Prepared:
    """Executes statements on one connection, whose client_encoding is UTF-8.

    `settings` apply to each transaction, in addition to `ALWAYS`. With `prepares` None, statements
    are prepared until a pooler is detected. True means always, and False means never.
    """

    def __init__(
        self, connection: psycopg.Connection[Any], settings: Settings = (), prepares: bool | None = None
    ) -> None:
        self._connection = connection
        adapt(connection)
        self._loading = Transformer(connection)
        self._setting: What = (_setting(ALWAYS + settings), ())
        self._executions: dict[What, int] = {}
        self._names: dict[What, bytes] = {}
        self._prepares = prepares is not False
        self._trusts = prepares is True
        # Whether a single statement needs no explicit transaction on this connection.
        self._plain = False
        self.pooled = False

    # A transaction of several statements

    def begin(self, writes: bool = True) -> None:
        """Begins a transaction, applies the settings and checks for a pooler, in one round trip."""
        begin = BEGIN_WRITE if writes else BEGIN_READ
        with self._connection.lock:
            self._connection.pgconn.send_query(begin + b"; " + self._setting[0])
            self._look_at(self._answer()[-1])

    def run(self, statement: Statement, params: dict[str, Any]) -> list[Row]:
        """Executes a statement in the current transaction. Raises psycopg's errors, as a cursor
        does. Parameters are None, bool, int, float, str or datetime.
        """
        types, data = _typed(statement, params)
        what = statement.numbered, types
        with self._connection.lock:
            if (name := self._name(what)) and what not in self._names:
                self._connection.pgconn.send_prepare(name, *what)
                self._forgetting(self._answer)
                self._names[what] = name
            self._send(what, data)
            return self._rows(self._forgetting(self._answer)[-1])

    def commit(self) -> None:
        self._simply(COMMIT)

    def rollback(self) -> None:
        self._simply(ROLLBACK)

    def _simply(self, command: bytes) -> None:
        with self._connection.lock:
            self._connection.pgconn.send_query(command)
            self._answer()

    # A single statement

    def run_alone(self, statement: Statement, params: dict[str, Any], writes: bool = True) -> list[Row]:
        """Executes a statement as a transaction of its own, in one round trip."""
        types, data = _typed(statement, params)
        with self._connection.lock:
            try:
                return self._alone((statement.numbered, types), data, writes)
            except SWAPPED:
                return self._alone((statement.numbered, types), data, writes)

    def _alone(self, what: What, data: Sequence[bytes | None], writes: bool) -> list[Row]:
        commands: list[tuple[What, Sequence[bytes | None]]] = [(self._setting, ()), (what, data)]
        if not self._plain:
            begin = BEGIN_WRITE if writes else BEGIN_READ
            commands = [((begin, ()), ()), *commands, ((COMMIT, ()), ())]
        executed = self._sent_at_once(commands)
        told, found = executed[-2:] if self._plain else executed[1:3]
        self._look_at(told, Format.BINARY)
        return self._rows(found)

    def _sent_at_once(self, commands: Sequence[tuple[What, Sequence[bytes | None]]]) -> list[PGresult]:
        """Sends the commands as one pipeline. Returns the result of each."""
        link = self._connection.pgconn
        link.enter_pipeline_mode()
        # Commands to be prepared, by the place of the answer that confirms it.
        new: dict[int, What] = {}
        for place, (command, data) in enumerate(commands):
            if command not in self._names and (name := self._name(command)):
                link.send_prepare(name, *command)
                new[place + len(new)] = command
                self._names[command] = name
            self._send(command, data)
        link.pipeline_sync()
        results = self._connection.wait(_pipelined(link))
        if link.status == ConnStatus.OK:
            link.exit_pipeline_mode()
        for place, command in new.items():
            if place >= len(results) or results[place].status != ExecStatus.COMMAND_OK:
                self._names.pop(command, None)
        self._refuse_failed(results)
        if len(results) != len(commands) + len(new):
            raise psycopg.OperationalError("the server gave no whole answer")
        return [r for place, r in enumerate(results) if place not in new] if new else results

    def _refuse_failed(self, results: list[PGresult]) -> None:
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                if self._connection.pgconn.transaction_status == TransactionStatus.INERROR:
                    self._connection.pgconn.send_query(ROLLBACK)
                    self._answer()
                self._forgetting(partial(_refuse, result))

    # Shared by both ways

    def _name(self, what: What) -> bytes | None:
        """Returns the name of the prepared statement, or None if the text of the statement is to be
        sent.
        """
        if not self._prepares:
            return None
        if (known := self._names.get(what)) is not None:
            return known
        self._executions[what] = count = self._executions.get(what, 0) + 1
        return _name_of(what) if count >= PREPARE_AT else None

    def _send(self, what: What, data: Sequence[bytes | None]) -> None:
        link = self._connection.pgconn
        if (name := self._names.get(what)) is None:
            link.send_query_params(what[0], data, what[1], result_format=Format.BINARY)
        else:
            link.send_query_prepared(name, data, result_format=Format.BINARY)

    def _answer(self) -> list[PGresult]:
        results: list[PGresult] = self._connection.wait(generators.execute(self._connection.pgconn))
        if not results:
            raise psycopg.OperationalError("the server gave no answer")
        for result in results:
            if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
                _refuse(result)
        return results

    def _rows(self, result: PGresult) -> list[Row]:
        if result.status != ExecStatus.TUPLES_OK:
            return []
        self._loading.set_pgresult(result)
        return self._loading.load_rows(0, result.ntuples, tuple)

    def _look_at(self, result: PGresult, format: Format = Format.TEXT) -> None:
        """Reads the default isolation level and the server process from the result of `_setting`.
        If this process is not the one that accepted the connection, there is a pooler.
        """
        last = result.nfields - 1
        told = result.get_value(0, last)
        pid = int.from_bytes(told or b"", "big") if format == Format.BINARY else int(told or 0)
        if pid != self._connection.pgconn.backend_pid and not self.pooled:
            self.pooled = True
            if not self._trusts:
                self._unprepared()
        self._plain = not self.pooled and result.get_value(0, last - 1) == b"read committed"

    def _forgetting(self, answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except SWAPPED:
            self._unprepared()
            raise

    def _unprepared(self) -> None:
        self._prepares = False
        self._names.clear()


def _refuse(result: PGresult) -> None:
    raise psycopg.errors.error_from_result(result, encoding="utf-8")


def _setting(settings: Settings) -> bytes:
    """Returns a statement that applies the settings, and that selects the values that `_look_at`
    reads.
    """
    parts = [f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in settings]
    parts.append("pg_catalog.current_setting('default_transaction_isolation')")
    return f"select {', '.join(parts)}, pg_catalog.pg_backend_pid()".encode()


def _name_of(what: What) -> bytes:
    text, types = what
    hashed = hashlib.blake2b(b"%b %r" % (text, types), digest_size=12)
    return b"pgqrs_" + hashed.hexdigest().encode()


def _pipelined(link: PGconn) -> Generator[Any, Any, list[PGresult]]:
    """Returns the results up to the sync. If the connection breaks, returns fewer results."""
    while link.flush():
        if (yield waiting.Wait.RW) & waiting.Ready.R:
            link.consume_input()
    found: list[PGresult] = []
    ended = False
    while True:
        while link.is_busy():
            if (yield waiting.Wait.R):
                link.consume_input()
        result = link.get_result()
        # None follows the results of each command. A second None means that nothing more follows.
        if result is None:
            if ended:
                return found
            ended = True
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return found
        found.append(result)
        ended = False


# Reading values


class RawJson(Loader):
    """Loads JSON as bytes, without decoding."""

    def load(self, data: Any) -> bytes:
        return bytes(data)


# Times outside Python's range, including infinite ones, become the first or the last time of that range.
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, tzinfo=UTC)


class AnyTime(TimestamptzLoader):
    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            return _FIRST if text.startswith(b"-") or text.endswith(b"BC") else _LAST


class AnyBinaryTime(TimestamptzBinaryLoader):
    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _FIRST if int.from_bytes(bytes(data), "big", signed=True) < 0 else _LAST


class RawBinaryJson(Loader):
    format = Format.BINARY

    def load(self, data: Any) -> bytes:
        # The first byte is the version of the format.
        return bytes(data[1:])


def adapt(connection: psycopg.Connection[Any]) -> None:
    connection.adapters.register_loader("jsonb", RawJson)
    connection.adapters.register_loader("jsonb", RawBinaryJson)
    connection.adapters.register_loader("timestamptz", AnyTime)
    connection.adapters.register_loader("timestamptz", AnyBinaryTime)
    connection.adapters.register_loader(TYPE_UNKNOWN, TextBinaryLoader)


# Sending values


def _typed(statement: Statement, params: dict[str, Any]) -> tuple[Types, list[bytes | None]]:
    sent = [_sent(params[name]) for name in statement.parameters]
    return tuple([oid for oid, _ in sent]), [value for _, value in sent]


# The types of parameters. From them the server infers the type of an expression that consists only
# of parameters. The server infers the type of text and null itself.
TEXT = NULL = 0
BOOL, INT8, FLOAT8, TIMESTAMPTZ = 16, 20, 701, 1184


def _sent(value: Any) -> tuple[int, bytes | None]:
    """Returns the type and the text of a parameter. A value of a subclass, such as a NumPy float,
    is sent as a value of its base class.
    """
    match value:
        case None:
            return NULL, None
        case str():
            return TEXT, value.encode()
        case bool():
            return BOOL, b"t" if value else b"f"
        case int():
            return INT8, b"%d" % value
        case float():
            return FLOAT8, repr(float(value)).encode()
        case datetime():
            return TIMESTAMPTZ, value.isoformat().encode()
    raise TypeError(f"a statement takes no {type(value).__name__}")
