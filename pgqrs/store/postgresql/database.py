"""PostgreSQL 13 or newer, through psycopg 3 and its pool."""

import json
import os
import re
import select
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from pgqrs import errors
from pgqrs.config import Config, conninfo, redact, scrub_errors
from pgqrs.store import sql
from pgqrs.store.calls import interruptible
from pgqrs.store.database import Row, refused_value
from pgqrs.store.encoding import quoted
from pgqrs.store.postgresql.pooling import MAX_IDLE_S, Connections, PooledConnection, abandon, give_back, lend
from pgqrs.store.postgresql.prepared import Prepared, Settings
from pgqrs.store.sql import Dialect

CHANNEL = "pgqrs"
# Number of transactions in which `is_pooled` asks for the server process.
POOLER_LOOKS = 3

SUPERVISOR: Settings = (
    # Settings of a supervisor's transactions. Its statements find rows by id, a few hundred at a
    # time. In tables that grow by the second, the planner's statistics are always old. The planner
    # then tends to read or hash a whole table: measured 16 ms for a fence instead of 3 ms.
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    # A supervisor that stops inside a transaction (SIGSTOP, a frozen host) must not keep its locks,
    # or its lease could not be taken over.
    ("idle_in_transaction_session_timeout", "3s"),
)
# SQLSTATEs of temporary errors: the server is a standby, the transaction was idle or took too long
# because its client was stopped, or a pooler left a prepared statement on another server
# connection.
PASSING = ("25006", "25P03", "25P04", "26000", "42P05")
# SQLSTATE classes of errors caused by a value: data, constraints, and limits such as the depth of JSON.
OF_VALUES = ("22", "23", "54")


class PostgresDatabase:
    dialect: Dialect = "postgres"

    def __init__(
        self, config: Config, clock: Callable[[], datetime] | None = None, steady_plans: bool = False
    ) -> None:
        self.dsn = config.dsn
        self._schema = config.schema
        self.options = "--dsn …" + ("" if config.schema == "public" else f" --schema {config.schema}")
        self._clock = clock
        self._pid = os.getpid()
        # Reports an unreachable server now, not at the first query.
        connect(config).close()
        self._connections = lend(_key(config, steady_plans), partial(_make, copy(config), steady_plans))
        self._pool = self._connections.pool
        self._lent = weakref.finalize(self, abandon, self._connections)
        self._lent.atexit = False

    @contextmanager
    def transaction(self, at: datetime | None = None) -> Iterator["PostgresTransaction"]:
        with (
            self._connection() as connection,
            _Transaction(connection),
            interruptible(connection.cancel_safe),
        ):
            yield self._on(connection, at)

    @contextmanager
    def single(self, at: datetime | None = None) -> Iterator["PostgresTransaction"]:
        with self._connection() as connection, interruptible(connection.cancel_safe, committed=True):
            yield self._on(connection, at, alone=True)

    @contextmanager
    def reading(self) -> Iterator["PostgresTransaction"]:
        with self._connection() as connection, interruptible(connection.cancel_safe, committed=True):
            yield self._on(connection, None, alone=True, writes=False)

    @contextmanager
    def _connection(self) -> Iterator[PooledConnection]:
        """Yields a connection in autocommit mode. Transactions of several statements begin and
        commit explicitly.
        """
        if os.getpid() != self._pid:
            raise errors.InternalError(
                "this store was opened before a fork; connect again in the child process"
            )
        if not self._lent.alive:
            raise errors.PgqrsConnectionError(f"the store on {redact(self.dsn)} was closed")
        # Not `pool.connection()`, which would commit. In autocommit mode that is useless work.
        with self._translated():
            connection = self._pool.getconn()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)

    def _on(
        self, connection: PooledConnection, at: datetime | None, alone: bool = False, writes: bool = True
    ) -> "PostgresTransaction":
        clock = self._clock if at is None else lambda: at
        return PostgresTransaction(connection, self._schema, clock, connection.prepared, alone, writes)

    def prepare(self) -> None:
        pass

    def now(self) -> datetime:
        if self._clock:
            return self._clock()
        with self.reading() as tx:
            [(now,)] = tx.run("clock")
        return cast(datetime, now).astimezone(UTC)

    def hint(self, queues: Iterable[str]) -> None:
        self._connections.hint(queues)

    def sever(self) -> None:
        """Breaks off every connection if the link to the server has become silent. May be called
        from any thread. Calls in progress raise PgqrsConnectionError, and later calls connect
        again.
        """
        self._connections.sever()

    def close(self) -> None:
        if self._lent.detach():
            give_back(self._connections)

    def _translated(self) -> "_Translated":
        return _Translated(self.dsn, self._schema)


def _key(config: Config, steady_plans: bool) -> tuple[object, ...] | None:
    """Returns the settings by which stores share connections. A supervisor shares with no other
    store, because its lease must not wait for the pool of another store.
    """
    if steady_plans:
        return None
    return (
        config.dsn, config.schema, config.max_connections, config.connection_timeout_seconds,
        config.prepared_statements,
    )  # fmt: skip


def _make(config: Config, steady_plans: bool, key: tuple[object, ...] | None) -> Connections:
    def configure(connection: PooledConnection) -> None:
        connections.opened.add(connection)
        connection.prepared = Prepared(
            connection, SUPERVISOR if steady_plans else (), config.prepared_statements
        )

    pool = ConnectionPool(
        conninfo(config.dsn),
        connection_class=PooledConnection,
        min_size=0,
        max_size=config.max_connections,
        timeout=config.connection_timeout_seconds,
        max_idle=MAX_IDLE_S,
        # The pool waits longer after each failed attempt. A supervisor retries itself, at a steady rate.
        reconnect_timeout=1.0 if steady_plans else 300.0,
        kwargs=connection_options(config) | {"autocommit": True},
        configure=configure,
        check=_check,
        open=False,
        name="pgqrs",
    )
    connections = Connections(key, pool, lambda: connect(config, autocommit=True), notify_soon)
    return connections


def _check(connection: psycopg.Connection[Row]) -> None:
    """Raises if the server has closed the idle connection. In that case the server's last message
    is waiting to be read. If there is nothing to read, the connection is not tested, because a
    query would cost a round trip.
    """
    readable = select.poll()
    readable.register(connection.fileno(), select.POLLIN)
    if readable.poll(0):
        ConnectionPool.check_connection(connection)


class _Transaction:
    """The context of a transaction's statements. It is a class, because entering a generator takes
    several times as long.
    """

    def __init__(self, connection: PooledConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.prepared.begin()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._connection.prepared.commit()
        elif self._connection.info.transaction_status in (
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        ):
            with suppress(psycopg.Error):  # the original error says more
                self._connection.prepared.rollback()


class PostgresTransaction:
    dialect: Dialect = "postgres"

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        schema: str,
        clock: Callable[[], datetime] | None = None,
        prepared: Prepared | None = None,
        alone: bool = False,
        writes: bool = True,
    ) -> None:
        """`prepared` is given if pgqrs owns the connection. It is not given for a caller's
        connection, which may be in a pipeline, or may lose prepared statements. With `alone`, each
        statement is a transaction by itself.
        """
        self._connection = connection
        self._schema = schema
        self._clock = clock
        self._prepared = prepared
        self._alone = alone
        self._writes = writes

    def run(self, statement: str, rows: Iterable[Row] | None = None, **params: Any) -> list[Row]:
        known = sql.statement(statement, "postgres", self._clock is not None, self._schema)
        params = sql.askable(params)
        if rows is not None:
            columns = list(zip(*rows, strict=True)) or [()] * len(known.columns)
            for (name, kind), values in zip(known.columns, columns, strict=True):
                if kind == "json" and self._prepared is None and self._connection.info.encoding != "utf-8":
                    values = tuple([None if v is None else _ascii(v) for v in values])
                params[name] = _array(kind, values)
        if self._clock is not None:
            params["now"] = self._clock()
        if self._prepared is None:
            return _run_for_caller(self._connection, known, params)
        if self._alone:
            return self._prepared.run_alone(known, params, self._writes)
        return self._prepared.run(known, params)

    def copy_in(self, table: str, data: bytes) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(sql.qualified(f"copy {table} from stdin", self._schema).encode()) as copy,
        ):
            copy.write(data)

    def script(self, script: str) -> None:
        """Executes a migration. Unqualified names in it refer to pgqrs's schema only. Later
        statements of the transaction use the usual search path again.
        """
        self._connection.execute(
            b"select set_config('search_path', quote_ident(%s) || ', pg_temp', true)", (self._schema,)
        )
        self._connection.execute(b"set local standard_conforming_strings = on")
        self._connection.execute(script.encode())
        self._connection.execute(b"set local search_path = pg_catalog, pg_temp")


def _run_for_caller(
    connection: psycopg.Connection[Any], known: sql.Statement, params: dict[str, Any]
) -> list[Row]:
    """Executes a statement on a caller's connection, which may be in a pipeline, use another cursor
    class, or use another encoding.
    """
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    with connection.pipeline() if connection.pgconn.pipeline_status else nullcontext():
        cursor.execute(
            known.encoded,
            params,
            prepare=False,
            # the end of a nested pipeline waits for the answer
        )
    return cursor.fetchall() if cursor.description else []


def connect(config: Config, autocommit: bool = False) -> psycopg.Connection[Row]:
    """Opens a connection outside the pool. It is used for the lease, for listening, and for the
    first check.
    """
    with _Translated(config.dsn, config.schema):
        try:
            connection: psycopg.Connection[Row] = psycopg.connect(
                conninfo(config.dsn), autocommit=autocommit, **connection_options(config)
            )
        except psycopg.ProgrammingError as e:
            scrub_errors(e, config.dsn)
            raise errors.ConfigError(f"the DSN cannot be used: {str(e).strip()}") from e
        return connection


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether the connection goes through a pooler. Then the server process differs from the one
    that accepted the connection, or differs between transactions.
    """
    ask = "select pg_catalog.pg_backend_pid()"
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        found = [cursor.execute(ask).fetchone() for _ in range(POOLER_LOOKS)]
    return any(row != (connection.pgconn.backend_pid,) for row in found)


def connection_options(config: Config) -> dict[str, Any]:
    """Returns connection options. With them, a dead link is noticed within seconds instead of two
    hours, and the client encoding is UTF-8 whatever the environment says.
    """
    wanted = {
        "connect_timeout": max(2, min(int(config.connection_timeout_seconds), 10)),
        "application_name": "pgqrs",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    try:
        given = psycopg.conninfo.conninfo_to_dict(conninfo(config.dsn))
    except psycopg.ProgrammingError as e:
        scrub_errors(e, config.dsn)
        raise errors.ConfigError(f"not a PostgreSQL DSN: {str(e).strip()}") from e
    return {k: v for k, v in wanted.items() if k not in given} | {
        "client_encoding": "utf8",
        # psycopg names prepared statements by a counter. Behind a pooler, other clients use the
        # same names.
        "prepare_threshold": None,
    }


def notify(connection: psycopg.Connection[Any], queue: str) -> None:
    """Notifies all listening supervisors when the connection's transaction commits."""
    psycopg.Cursor(connection).execute(
        "select pg_catalog.pg_notify(%s::text, %s::text)", (CHANNEL, queue), prepare=False
    )


def notify_soon(connection: psycopg.Connection[Any], queues: Sequence[str]) -> bool:
    """Notifies at once, without waiting for the server, on a connection reserved for notifications.
    Returns False if the connection is still busy with the last one.
    """
    link = connection.pgconn
    if link.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
        link.consume_input()
        while not link.is_busy():
            if link.get_result() is None:
                break
        else:
            return False
    link.send_query_params(
        b"select pg_catalog.pg_notify($1, q) from pg_catalog.unnest($2::text[]) as q",
        [CHANNEL.encode(), _array("text", queues).encode()],
    )
    return True


def _array(kind: str, values: Sequence[Any]) -> str:
    """Returns a whole column as one parameter, in PostgreSQL's notation. psycopg's own conversion
    of lists took a quarter of the time of a supervisor's database thread.
    """
    if kind in ("json", "text"):
        return "{" + ",".join([quoted(v) for v in values]) + "}"
    return "{" + ",".join(["NULL" if v is None else str(v) for v in values]) + "}"


def _ascii(raw: bytes | str) -> str:
    """Returns the same JSON in ASCII, for a connection with any encoding. Characters outside ASCII
    occur only in strings, where they can be escaped.
    """
    text = raw.decode() if isinstance(raw, bytes) else raw
    return _NOT_ASCII.sub(lambda m: json.dumps(m[0])[1:-1], text)


_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


class _Translated:
    """Converts psycopg's errors to pgqrs's, without the password."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn = dsn
        self._schema = schema

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, psycopg.Error | PoolTimeout):
            return
        scrub_errors(error, self._dsn)
        text = str(error).strip()
        if isinstance(error, PoolTimeout):
            raise errors.PgqrsConnectionError(
                f"no connection became free: {text}; the server may be down, or raise max_connections"
            ) from error
        raise _in_our_words(error, text, self._schema) from error


def _in_our_words(error: psycopg.Error, text: str, schema: str) -> errors.PgqrsError:
    option = "" if schema == "public" else f" --schema {schema}"
    if isinstance(error, psycopg.errors.InvalidSchemaName):
        return errors.SchemaError(
            f'the schema {schema!r} does not exist; make it first: create schema "{schema}"'
        )
    if isinstance(
        error,
        psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn | psycopg.errors.UndefinedObject,
    ):
        return errors.SchemaError(
            "this database holds no complete pgqrs schema "
            f"({text.splitlines()[0]}); run: pgqrs install --dsn …{option}"
        )
    if (error.sqlstate or "").startswith(OF_VALUES):
        return refused_value(text)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return errors.DatabaseError(
            f"{text.splitlines()[0]}; what the role lacks is told by: "
            f"pgqrs verify --dsn …{option} (docs/roles.md has the grants)"
        )
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return errors.PgqrsConnectionError(
            f"PostgreSQL: {text.splitlines()[0]}; the server is a standby, or "
            "default_transaction_read_only is on for this role or database"
        )
    if _passes(error):
        return errors.PgqrsConnectionError(f"PostgreSQL: {text}")
    return errors.DatabaseError(text)


def _passes(error: psycopg.Error) -> bool:
    """Whether an error concerns the server's state or the connection, and not the statement. The
    statement may succeed later.
    """
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return True
    return error.sqlstate in PASSING
