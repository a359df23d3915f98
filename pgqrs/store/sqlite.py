"""SQLite 3.40 or newer in WAL mode: one connection, one transaction at a time, synchronous=full."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pgqrs import errors
from pgqrs.config import Config, sqlite_path
from pgqrs.store import sql
from pgqrs.store.calls import current, interruptible
from pgqrs.store.database import Row, refused_value
from pgqrs.store.encoding import plain
from pgqrs.store.sql import Dialect

VERSION_MIN = (3, 40)
BUSY_POLL_S = 0.005
BUSY_SLICE_MS = 50
# Errors caused by a value: a constraint, a text or number that is too large, an unsupported type.
OF_VALUES = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)
LOCKED_BY = (
    "; somebody else holds it for longer than we wait: another process that is writing, or has it open "
    "with turso://. Wait for its end, or stop it"
)


class Cursor(Protocol):
    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


class Connection(Protocol):
    """The methods of a driver's connection that pgqrs uses. The connection never begins a
    transaction itself.
    """

    @property
    def in_transaction(self) -> bool: ...

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class SqliteDatabase:
    """A database in a SQLite file. It is also the base class of the databases that store SQLite's
    format differently, `turso` and `s3`.
    """

    dialect: Dialect = "sqlite"

    def __init__(self, config: Config, clock: Callable[[], datetime] | None = None) -> None:
        self.dsn = config.dsn
        self.options = "--dsn …"
        # "store" or "supervisor", for error messages
        self.holder = "store"
        self._clock = clock or _utc_now
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._use_wal = config.sqlite_use_wal
        self._patience_s = config.connection_timeout_seconds
        # The open file, if other processes can see it.
        self._file: File | None = None
        self._connection = self._opened(config)

    def _opened(self, config: Config) -> Connection:
        path = sqlite_path(config.dsn)
        connection = open_file(path, config.connection_timeout_seconds)
        self._file = None if path == ":memory:" else File(path)
        return connection

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.dsn)

    def _is_busy(self, error: Exception) -> bool:
        """Whether an error means that another connection is writing."""
        return is_locked(error)

    def transaction(self, at: datetime | None = None) -> AbstractContextManager["SqliteTransaction"]:
        return self._begun("begin immediate", at)

    single = transaction

    def reading(self) -> AbstractContextManager["SqliteTransaction"]:
        return self._begun("begin")

    @contextmanager
    def _begun(self, begin: str, at: datetime | None = None) -> Iterator["SqliteTransaction"]:
        self._refuse_fork()
        with self._alone(), self._translated(), self._within(self._connection, begin, at) as tx:
            self._refuse_lost_file()
            yield tx

    def _refuse_lost_file(self) -> None:
        if self._file is not None:
            self._file.refuse_if_gone(self.holder)

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise errors.InternalError(
                "this store was opened before a fork; connect again in the child process"
            )

    @contextmanager
    def _within(
        self, connection: Connection, begin: str, at: datetime | None
    ) -> Iterator["SqliteTransaction"]:
        try:
            # Inside the try: a signal's exception may arrive just after the transaction has begun.
            self._begin(connection, begin)
            with interruptible(connection.interrupt):
                yield SqliteTransaction(connection, at or self._clock())
            self._commit(connection)
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise

    def _commit(self, connection: Connection) -> None:
        connection.execute("commit")

    def _alone(self) -> "_Alone":
        """Waits until no other thread of this process uses the connection. The time limit is the
        same as the one for waiting for other processes.
        """
        return _Alone(self)

    def _acquire(self) -> None:
        if self._lock.acquire(blocking=False):
            return
        call = current()
        until = time.monotonic() + self._patience_s
        slice_s = self._patience_s if call is None else BUSY_SLICE_MS / 1000
        while not self._lock.acquire(timeout=min(slice_s, threading.TIMEOUT_MAX)):
            if call is not None:
                call.go_on()
            if time.monotonic() >= until:
                raise errors.PgqrsConnectionError(
                    f"{self.dsn} is locked: somebody else in this process "
                    f"has not ended a transaction for {self._patience_s:g} s"
                )

    def _begin(self, connection: Connection, begin: str) -> None:
        call = current()
        if call is None or begin == "begin":
            connection.execute(begin)
            return
        # SQLite's own wait for another writer cannot be interrupted. A caller that may leave waits
        # in slices.
        until = time.monotonic() + self._patience_s
        connection.execute(f"pragma busy_timeout = {BUSY_SLICE_MS}")
        try:
            while True:
                call.go_on()
                try:
                    connection.execute(begin)
                    return
                except Exception as e:
                    if not self._is_busy(e) or time.monotonic() >= until:
                        raise
        finally:
            connection.execute(f"pragma busy_timeout = {int(self._patience_s * 1000)}")

    def prepare(self) -> None:
        """Switches the file to WAL mode, in which readers and the writer do not block each other.
        The mode is stored in the file, so it is set only at the installation.
        """
        until = time.monotonic() + self._patience_s
        with self._lock, self._translated():
            if not self._use_wal or self._connection.execute("pragma journal_mode").fetchone()[0] == "wal":
                return
            while True:
                try:
                    self._connection.execute("pragma journal_mode = wal")
                    return
                except sqlite3.OperationalError:
                    # This statement does not wait for other connections as others do. Concurrent
                    # installs meet here.
                    if time.monotonic() >= until:
                        raise
                    time.sleep(BUSY_POLL_S)

    def now(self) -> datetime:
        return self._clock()

    def data_version(self) -> object:
        """Returns a value that changes when another connection has committed."""
        with self._lock, self._translated():
            return self._connection.execute("pragma data_version").fetchone()[0]

    def hint(self, queues: Iterable[str]) -> None:
        pass  # listeners watch data_version

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class File:
    """An open database file. If the file was removed or replaced, nobody else sees what is written
    to it.
    """

    def __init__(self, path: str) -> None:
        # Absolute, because the process may change its working directory.
        self._path = os.path.abspath(path)
        self._opened = self._there()

    def refuse_if_gone(self, holder: str) -> None:
        """Raises SchemaError if the file was removed or replaced. A later try would not help."""
        if self._there() != self._opened:
            raise errors.SchemaError(
                f"the database file {self._path} was removed or replaced while this {holder} had it open: "
                "nobody else sees what is done in the old one; "
                f"{'connect' if holder == 'store' else 'start the supervisor'} again"
            )

    def _there(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino


class _Alone:
    """Locks the connection around a transaction. This and `_Translated` are classes, because
    entering a generator takes several times as long.
    """

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database._acquire()

    def __exit__(self, *_: object) -> None:
        self._database._lock.release()


class SqliteTransaction:
    dialect: Dialect = "sqlite"

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self._now = text_time(now)

    def run(self, statement: str, rows: Iterable[Row] | None = None, **params: Any) -> list[Row]:
        params = sql.askable(params)
        if rows is not None:
            params["rows"] = msgspec.json.encode([plain(row) for row in rows]).decode()
        for name, value in params.items():
            if isinstance(value, datetime):
                params[name] = text_time(value)
        params["now"] = self._now
        return self._connection.execute(sql.statement(statement, "sqlite").sql, params).fetchall()

    def script(self, sql: str) -> None:
        for one in _statements(sql):
            self._connection.execute(one)


def text_time(value: datetime) -> str:
    """Returns a time as the tables store it: in UTC, sortable as text, in milliseconds.

    SQLite's strftime writes milliseconds. A clock with more digits could make the rounded `{now +
    0}` up to half a millisecond later than `{now}`.
    """
    # strftime takes twenty times as long
    return value.astimezone(UTC).isoformat(" ", "milliseconds")[:-6]


def _utc_now() -> datetime:
    return datetime.now(UTC)


def open_file(path: str, patience_s: float) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < VERSION_MIN:
        raise errors.PgqrsConnectionError(
            f"pgqrs needs SQLite {'.'.join(map(str, VERSION_MIN))} "
            f"or newer; this Python has {sqlite3.sqlite_version}"
        )
    make_private(path)
    try:
        connection = sqlite3.connect(path, timeout=patience_s, isolation_level=None, check_same_thread=False)
        connection.text_factory = _text
        connection.execute("pragma foreign_keys = on")
        connection.execute("pragma synchronous = full")
        connection.execute("select 1 from sqlite_master")  # SQLite reads the file only here
    except sqlite3.DatabaseError as e:
        told = f"cannot open the SQLite database {path}: {e}"
        if is_locked(e):
            told += LOCKED_BY
        elif isinstance(e, sqlite3.OperationalError):
            folder = Path(path).absolute()
            told += (
                f"; {folder} is a folder: name a file in it"
                if folder.is_dir()
                else f"; this process may not read and write {folder}: look "
                "at its owner and mode, and whether its disk is read-only"
                if folder.exists() and not os.access(folder, os.R_OK | os.W_OK)
                else f"; the folder {folder.parent} must exist and be writable"
            )
        raise errors.PgqrsConnectionError(told) from e
    return connection


def _text(raw: bytes) -> str:
    """Decodes text that may not be UTF-8, because another program wrote it. Such a row must not
    make the whole statement fail. An error is raised if the text is encoded again.
    """
    return raw.decode("utf-8", "surrogateescape")


def make_private(path: str, mode: int = 0o600) -> bool:
    """Creates a file that only its owner can read, because payloads and results are private.
    SQLite's files beside a database (-wal, -shm) get the mode of the database.

    Returns False if the file exists already, in which case its mode stays, or if it cannot be
    created. In the latter case, opening the file will report the reason.
    """
    if path == ":memory:":
        return False
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    except OSError:
        return False
    return True


def translated(dsn: str) -> AbstractContextManager[None]:
    return _Translated(dsn)


class _Translated:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise _in_our_words(self._dsn, error) from error


def _in_our_words(dsn: str, error: sqlite3.Error) -> errors.PgqrsError:
    said = str(error)
    if isinstance(error, sqlite3.OperationalError):
        if lacks_schema(said):
            return no_schema(dsn, said)
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            return refused_value(said)  # something that the statement cannot use, such as malformed JSON
        return errors.PgqrsConnectionError(
            f"SQLite database {dsn}: {said}{LOCKED_BY if is_locked(error) else ''}"
        )
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return errors.PgqrsConnectionError(
            f"SQLite database {dsn}: {said}; the file is damaged, "
            "or was overwritten: restore it from a backup"
        )
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in said:
        return errors.PgqrsConnectionError(f"the store on {dsn} was closed")
    if isinstance(error, OF_VALUES):
        return refused_value(said)
    return errors.DatabaseError(said)


def is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


def lacks_schema(said: str) -> bool:
    return "no such table: pgqrs" in said or "no such column" in said


def no_schema(dsn: str, said: str) -> errors.SchemaError:
    return errors.SchemaError(
        f"{dsn} holds no complete pgqrs schema ({said}); run: pgqrs install --dsn {dsn}"
    )


def _statements(script: str) -> Iterator[str]:
    """Splits a script where SQLite sees the end of a statement. (`executescript` would first
    commit.)
    """
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        yield pending
