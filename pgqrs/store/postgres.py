"""PostgreSQL 12 or newer, through psycopg 3 and its pool."""

import os
import select
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import psycopg
from psycopg import sql as pgsql
from psycopg.adapt import Loader
from psycopg.rows import tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg_pool import ConnectionPool, PoolTimeout

from pgqrs import errors
from pgqrs.config import Config, conninfo, redact, scrub
from pgqrs.store import sql
from pgqrs.store.calls import interruptible
from pgqrs.store.database import Row
from pgqrs.store.encoding import quoted
from pgqrs.store.pooling import MAX_IDLE_S, Connections, PooledConnection, abandon, give_back, lend
from pgqrs.store.prepared import Prepared
from pgqrs.store.sql import Dialect

CHANNEL = "pgqrs"

# A supervisor's statements reach rows by their ids, a few hundred at a time. In tables that grow by the second the planner's
# statistics are always old, and it then likes to read or hash a whole table: 16 ms for a fence instead of 3, measured.
STEADY_PLANS = (
    b"set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set jit = off"
)
# A supervisor that stops in the middle of a transaction (SIGSTOP, a frozen host) must not keep its locks, its lease among them.
IDLE_TRANSACTION = b"set idle_in_transaction_session_timeout = '3s'"
# What psycopg calls internal: a standby, or a server that became one; a transaction that its client left alone for too long (it was
# stopped), or that took too long.
PASSING = ("25006", "25P03", "25P04")


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
        connect(config).close()  # an unreachable server is said now, not by the first query
        self._connections = lend(_key(config, steady_plans), partial(_make, copy(config), steady_plans))
        self._pool = self._connections.pool
        self._lent = weakref.finalize(self, abandon, self._connections)
        self._lent.atexit = False

    @contextmanager
    def transaction(self, at: datetime | None = None) -> Iterator["PostgresTransaction"]:
        with (
            self._connection() as connection,
            connection.transaction(),
            interruptible(connection.cancel_safe),
        ):
            yield self._on(connection, at)

    @contextmanager
    def single(self, at: datetime | None = None) -> Iterator["PostgresTransaction"]:
        with self._connection() as connection, interruptible(connection.cancel_safe, committed=True):
            yield self._on(connection, at)

    reading = single

    @contextmanager
    def _connection(self) -> Iterator[PooledConnection]:
        """In autocommit: what is more than a statement says where it begins and ends."""
        if os.getpid() != self._pid:
            raise errors.InternalError(
                "this store was opened before a fork; connect again in the child process"
            )
        if not self._lent.alive:
            raise errors.PgqrsConnectionError(f"the store on {redact(self.dsn)} was closed")
        # Not `pool.connection()`: that commits, which in autocommit is work for nothing.
        with self._translated():
            connection = self._pool.getconn()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)

    def _on(self, connection: PooledConnection, at: datetime | None) -> "PostgresTransaction":
        return PostgresTransaction(connection, self._clock if at is None else lambda: at, connection.prepared)

    def prepare(self) -> None:
        pass

    def now(self) -> datetime:
        if self._clock:
            return self._clock()
        with self._translated(), self._pool.connection() as connection:
            row = connection.execute("select clock_timestamp()").fetchone()
            assert row is not None
            return cast(datetime, row[0]).astimezone(UTC)

    def hint(self, queues: Iterable[str]) -> None:
        self._connections.hint(queues)

    def sever(self) -> None:
        """Breaks every connection off, from any thread: for a link that says nothing any more. What is under way raises
        PgqrsConnectionError; what comes next connects anew."""
        self._connections.sever()

    def close(self) -> None:
        if self._lent.detach():
            give_back(self._connections)

    def _translated(self) -> "_Translated":
        return _Translated(self.dsn, self._schema)


def _key(config: Config, steady_plans: bool) -> tuple[object, ...] | None:
    """Who connects alike. A supervisor keeps its connections to itself: its lease must not wait for another's pool."""
    if steady_plans:
        return None
    return config.dsn, config.schema, config.max_connections, config.connection_timeout_seconds


def _make(config: Config, steady_plans: bool, key: tuple[object, ...] | None) -> Connections:
    def configure(connection: PooledConnection) -> None:
        connections.opened.add(connection)
        prepare_connection(connection, config)
        if steady_plans:
            connection.execute(STEADY_PLANS)
            connection.execute(IDLE_TRANSACTION)

    pool = ConnectionPool(
        conninfo(config.dsn),
        connection_class=PooledConnection,
        min_size=0,
        max_size=config.max_connections,
        timeout=config.connection_timeout_seconds,
        max_idle=MAX_IDLE_S,
        # Between its own attempts the pool waits ever longer. A supervisor asks again by itself, at a steady pace.
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
    """Raises for a connection whose server went away while it was idle: its farewell is there to be read. Nothing is asked of a
    silent one, which would take as long as a statement."""
    readable = select.poll()
    readable.register(connection.fileno(), select.POLLIN)
    if readable.poll(0):
        ConnectionPool.check_connection(connection)


class PostgresTransaction:
    dialect: Dialect = "postgres"

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        clock: Callable[[], datetime] | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        """`prepared` where the connection is ours. A caller's own may be in a pipeline, or lose what was prepared."""
        self._connection = connection
        self._clock = clock
        self._prepared = prepared

    def run(self, statement: str, rows: Iterable[Row] | None = None, **params: Any) -> list[Row]:
        known = sql.statement(statement, "postgres", self._clock is not None)
        params = sql.askable(params)
        if rows is not None:
            columns = list(zip(*rows, strict=True)) or [()] * len(known.columns)
            for (name, kind), values in zip(known.columns, columns, strict=True):
                params[name] = _array(kind, values)
        if self._clock is not None:
            params["now"] = self._clock()
        if self._prepared is not None:
            return self._prepared.run(known, params)
        cursor = self._connection.cursor(row_factory=tuple_row)
        cursor.execute(known.encoded, params)
        return cursor.fetchall() if cursor.description else []

    def copy_in(self, table: str, data: bytes) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(f"copy {table} from stdin".encode()) as copy,
        ):
            copy.write(data)

    def script(self, sql: str) -> None:
        self._connection.execute(sql.encode())


def connect(config: Config, autocommit: bool = False) -> psycopg.Connection[Row]:
    """A connection outside the pool: for the lease, for listening, for the first look at the server."""
    with _Translated(config.dsn, config.schema):
        try:
            connection: psycopg.Connection[Row] = psycopg.connect(
                conninfo(config.dsn), autocommit=autocommit, **connection_options(config)
            )
        except psycopg.ProgrammingError as e:
            raise errors.ConfigError(f"the DSN cannot be used: {scrub(str(e), config.dsn).strip()}") from e
        prepare_connection(connection, config)
        return connection


def connection_options(config: Config) -> dict[str, Any]:
    """A dead link must be noticed in seconds, not in the kernel's two hours. What we say is UTF-8, whatever the environment asks for."""
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
        raise errors.ConfigError(f"not a PostgreSQL DSN: {scrub(str(e), config.dsn).strip()}") from e
    return {k: v for k, v in wanted.items() if k not in given} | {"client_encoding": "utf8"}


def prepare_connection(connection: psycopg.Connection[Any], config: Config) -> None:
    connection.adapters.register_loader("jsonb", _RawJson)
    connection.adapters.register_loader("timestamptz", _AnyTime)
    if config.schema != "public":
        connection.execute(pgsql.SQL("set search_path to {}").format(pgsql.Identifier(config.schema)))
        if not connection.autocommit:
            connection.commit()


@contextmanager
def in_schema(connection: psycopg.Connection[Any], config: Config) -> Iterator[None]:
    """A caller's connection, looking at our schema meanwhile. Leaves its transaction as it is."""
    if config.schema == "public":
        yield
        return
    before = connection.execute("show search_path").fetchone()
    connection.execute("select set_config('search_path', quote_ident(%s), true)", (config.schema,))
    yield
    connection.execute("select set_config('search_path', %s, true)", before)


def notify(connection: psycopg.Connection[Any], queue: str) -> None:
    """Heard by every listening supervisor when the connection's transaction is committed."""
    connection.execute("select pg_notify(%s, %s)", (CHANNEL, queue))


def notify_soon(connection: psycopg.Connection[Any], queues: Sequence[str]) -> bool:
    """The same at once, by a connection that is for nothing else, and without waiting for the server. False where it is still busy
    with the last time."""
    link = connection.pgconn
    if link.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
        link.consume_input()
        while not link.is_busy():
            if link.get_result() is None:
                break
        else:
            return False
    link.send_query_params(
        b"select pg_notify($1, q) from unnest($2::text[]) as q",
        [CHANNEL.encode(), _array("text", queues).encode()],
    )
    return True


class _RawJson(Loader):
    def load(self, data: Any) -> bytes:
        return bytes(data)


class _AnyTime(TimestamptzLoader):
    """Times that Python cannot hold, infinite ones among them, are the first or the last that it can."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            early = text.startswith(b"-") or text.endswith(b"BC")
            return datetime(1, 1, 1, tzinfo=UTC) if early else datetime(9999, 12, 31, tzinfo=UTC)


def _array(kind: str, values: Sequence[Any]) -> str:
    """A whole column as one parameter, in PostgreSQL's own notation: a quarter of the supervisor's database thread went into the
    driver's way of writing lists, element by element."""
    if kind in ("json", "text"):
        return "{" + ",".join([quoted(v) for v in values]) + "}"
    return "{" + ",".join(["NULL" if v is None else str(v) for v in values]) + "}"


class _Translated:
    """The driver's errors as ours, without the password."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn = dsn
        self._schema = schema

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, psycopg.Error | PoolTimeout):
            return
        text = scrub(str(error), self._dsn).strip()
        if isinstance(error, PoolTimeout):
            raise errors.PgqrsConnectionError(
                f"no connection became free: {text}; the server may be down, or raise max_connections"
            ) from error
        if isinstance(error, psycopg.errors.InvalidSchemaName):
            raise errors.SchemaError(
                f"the schema {self._schema!r} does not exist; make it first: create schema {self._schema}"
            ) from error
        if isinstance(
            error,
            psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn | psycopg.errors.UndefinedObject,
        ):
            raise errors.SchemaError(
                f"this database holds no complete pgqrs schema ({text.splitlines()[0]}); run: pgqrs install --dsn …"
                + ("" if self._schema == "public" else f" --schema {self._schema}")
            ) from error
        if _passes(error):
            raise errors.PgqrsConnectionError(f"PostgreSQL: {text}") from error
        raise errors.DatabaseError(text) from error


def _passes(error: psycopg.Error) -> bool:
    """Whether it is the server's state, or the way to it, and not what was asked: the same may succeed later, or elsewhere."""
    # Class 54, a limit of the server's (JSON nested too deeply), is the value's fault though psycopg calls it operational.
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return not (error.sqlstate or "").startswith("54")
    return error.sqlstate in PASSING
