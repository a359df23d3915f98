"""Turso: a database in SQLite's format and dialect, with a driver written in Rust. A file belongs
to one process, or to several that share it by an experimental feature of the driver (`lock.py`).

The driver locks a file against other processes, including sqlite3. The driver loses this lock as
soon as the process opens the file a second time and closes it, because POSIX releases all locks
with any descriptor. So all stores of a process share one connection that writes and one that reads.
A fork would share them too, so a forked process is refused. Programs that the process executes,
such as a supervisor's nursery, do not inherit the descriptors.
"""

import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from pgqrs import errors
from pgqrs.config import TURSO_SHARED, Config, turso_file
from pgqrs.store.database import refused_value
from pgqrs.store.sqlite import (
    BUSY_POLL_S,
    Connection,
    Cursor,
    File,
    SqliteDatabase,
    SqliteTransaction,
    lacks_schema,
    make_private,
    no_schema,
)
from pgqrs.store.turso import lock as turso_lock

# The driver has one class for most errors. Texts that begin like this mean that the file is unavailable.
OUT_OF_REACH = ("Locking error", "I/O error", "Completion error")
OF_VALUES = ("malformed JSON", "unexpected parameter value")
# Internal errors that the driver converts to one of those classes. Their names say more: a damaged
# file is not the fault of a statement.
OF_THE_FILE = ("Corrupt", "NotAdb", "DatabaseFull")
LOCKED = "locked by another process"


class TursoDatabase(SqliteDatabase):
    def _opened(self, config: Config) -> Connection:
        named, shared = turso_file(config.dsn)
        # The driver would keep a separate log for each name of a file.
        self._path = os.path.realpath(named)
        self._shared = lend(self._path, shared, config.connection_timeout_seconds)
        self._lock = self._shared.lock
        self._lent = weakref.finalize(self, give_back, self._shared)
        self._lent.atexit = False
        # The file may have been opened before by another store of this process.
        self._file = self._shared.file
        return self._shared.writer

    @contextmanager
    def reading(self) -> Iterator[SqliteTransaction]:
        self._refuse_fork()
        with self._shared.reading, self._translated(), self._within(self._shared.reader, "begin", None) as tx:
            self._refuse_lost_file()
            yield tx

    def _translated(self) -> AbstractContextManager[None]:
        if not self._lent.alive:
            raise errors.PgqrsConnectionError(f"the store on {self.dsn} was closed")
        return _translated(self.dsn)

    def _is_busy(self, error: Exception) -> bool:
        return "database is locked" in str(error)

    def prepare(self) -> None:
        pass  # Turso supports no journal except a WAL

    def data_version(self) -> object:
        """Returns a value that changes when any connection has committed. The driver has no such
        pragma, so this uses the size and time of its log.
        """
        with suppress(FileNotFoundError):
            log = os.stat(f"{self._path}-wal")
            return log.st_mtime_ns, log.st_size
        return None

    def close(self) -> None:
        self._lent()


class OpenFile:
    """An open file, its connections, and the locks under which this process uses them."""

    def __init__(
        self,
        key: tuple[object, ...],
        claim: turso_lock.Claim,
        writer: "OneConnection",
        reader: "OneConnection",
    ) -> None:
        self.key, self.claim = key, claim
        self.file = File(str(key[1]))
        self.writer, self.lock = writer, threading.RLock()
        self.reader, self.reading = reader, threading.RLock()
        self.users = 0


class OneConnection:
    """Holds the only reference to the driver's connection. The connection ends with its last
    reference, and not with its `close`. Transactions and tracebacks therefore refer to this object.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    @property
    def in_transaction(self) -> bool:
        return bool(self._driver.in_transaction)

    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        cursor: Cursor = self._driver.execute(sql, parameters)
        return cursor

    def interrupt(self) -> None:
        self._driver.interrupt()

    def close(self) -> None:
        driver, self._driver = self._driver, None
        driver.close()


# Reentrant, because a finalizer may run inside any of the functions below, in the same thread.
_lock = threading.RLock()
_open: dict[tuple[object, ...], OpenFile] = {}


def lend(path: str, shared: bool, patience_s: float) -> OpenFile:
    """Returns this process's connections to a file, which is identified by its real path. The
    caller must call `give_back` once. Raises PgqrsConnectionError.
    """
    key = (os.getpid(), path, shared)
    with _lock:
        if (os.getpid(), path, not shared) in _open:
            raise errors.PgqrsConnectionError(
                f"this process has the Turso database {path} open by a "
                f"DSN {'without' if shared else 'with'} ?{TURSO_SHARED}: "
                "close those stores first, or use the same DSN for all"
            )
        file = _open.get(key)
        if file is None:
            if Path(path).is_dir():
                raise errors.PgqrsConnectionError(
                    f"cannot open the Turso database {path}: it is a folder: name a file in it"
                )
            # Imported first: without the driver, no file is created.
            _driver()
            _make_private(path)
            claim = turso_lock.claim(path, shared, patience_s)
            try:
                file = _open[key] = OpenFile(key, claim, *_connect(path, shared, patience_s))
                claim.opened()
            except BaseException:
                claim.leave()
                raise
        file.users += 1
        return file


def _make_private(path: str) -> None:
    """Creates a new file that only its owner can read. (The driver would follow the umask.) Files
    beside it get the same mode.
    """
    make_private(path)
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        for suffix in ("-wal", turso_lock.SUFFIX):
            make_private(path + suffix, mode)


def give_back(file: OpenFile) -> None:
    """Releases the connections. The last user closes them."""
    with _lock:
        file.users -= 1
        if file.users:
            return
        del _open[file.key]
    for connection in (file.reader, file.writer):
        with suppress(Exception):
            connection.close()
    file.claim.leave()


def _connect(path: str, shared: bool, patience_s: float) -> tuple[OneConnection, OneConnection]:
    turso = _driver()
    until = time.monotonic() + patience_s
    while True:
        try:
            # Like turso.connect, but without its second connection, which would open the file again.
            database = turso.py_turso_database_open(
                turso.PyTursoDatabaseConfig(
                    path=path,
                    experimental_features="multiprocess_wal" if shared else None,
                    vfs=None,
                    encryption=None,
                )
            )
            writer, reader = (
                _prepared(turso.Connection(database.connect(), isolation_level=None), patience_s)
                for _ in range(2)
            )
            return writer, reader
        except Exception as e:
            # With several processes, opening the file may collide with a writer.
            if isinstance(e, turso.OperationalError | turso.Busy) and time.monotonic() < until:
                time.sleep(BUSY_POLL_S)
                continue
            raise errors.PgqrsConnectionError(_why_not(path, e)) from e.with_traceback(None)


def _prepared(driver: Any, patience_s: float) -> OneConnection:
    connection = OneConnection(driver)
    connection.execute("pragma foreign_keys = on").fetchall()
    connection.execute("pragma synchronous = full").fetchall()
    connection.execute(f"pragma busy_timeout = {int(patience_s * 1000)}").fetchall()
    connection.execute("select 1 from sqlite_master").fetchall()
    return connection


def _why_not(path: str, error: Exception) -> str:
    if LOCKED in str(error):
        return (
            f"the Turso database {path} is in use by another program, such as sqlite3 or a process with "
            "sqlite://, and nothing else may have it open meanwhile: stop that first"
        )
    return f"cannot open the Turso database {path}: {error}"


@contextmanager
def _translated(dsn: str) -> Iterator[None]:
    turso = _driver()
    try:
        yield
    except turso.Error as e:
        e.with_traceback(None)  # its frames refer to the driver's connection
        if lacks_schema(str(e)):
            raise no_schema(dsn, str(e)) from e
        if (
            isinstance(e, turso.OperationalError)
            or str(e).startswith(OUT_OF_REACH)
            or type(e.__context__).__name__ in OF_THE_FILE
        ):
            raise errors.PgqrsConnectionError(f"Turso database {dsn}: {e}") from e
        if isinstance(e, turso.IntegrityError | turso.DataError) or any(t in str(e) for t in OF_VALUES):
            raise refused_value(str(e)) from e
        raise errors.DatabaseError(str(e)) from e
    except Exception as e:
        if not _is_native(e):
            raise
        # Errors that the driver does not convert to its own classes: a full disk, an unwritable file.
        e.with_traceback(None)
        raise errors.PgqrsConnectionError(f"Turso database {dsn}: {_plainly(e)}") from e


def _is_native(error: Exception) -> bool:
    """Whether an error comes from the driver's native code, whose classes share no base."""
    return type(error).__module__ == "turso"


def _plainly(error: Exception) -> str:
    said = str(error)
    reason = next((words for name, words in REASONS.items() if name in said), "")
    return f"{said} ({reason})" if reason else said


REASONS = {
    "StorageFull": "no space left on the disk: make room, and it goes on",
    "FileTooLarge": "the file may not grow: a limit of its process or its file system",
    "QuotaExceeded": "the disk quota is used up",
    "ReadOnlyFilesystem": "the file system is read-only",
    "PermissionDenied": "the file, or its folder, may not be written",
}


def _driver() -> Any:
    try:
        import turso.lib
    except ImportError:
        raise errors.ConfigError(
            "a turso:// database takes a package that is not installed: pip install 'pgqrs[turso]'"
        ) from None
    return turso.lib
