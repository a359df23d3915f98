"""SQLite in one S3 object. A transaction ends with a conditional PUT of the whole file, and then
commits in the local copy.

The PUT is the commit. So the object is never behind what a caller was told, and the local file is
never ahead of the object. If the process dies between the two, the local copy is an older version.
The note beside it says so, and the next process fetches the object. In Local mode only `sync` sends
a PUT.
"""

import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from pgqrs import errors
from pgqrs.config import Config, DurabilityMode
from pgqrs.model.states import SyncState
from pgqrs.store import sql
from pgqrs.store.s3.bucket import Fetched, Version, new_marker
from pgqrs.store.s3.cache import is_of_the_disk
from pgqrs.store.s3.replica import give_back, lend
from pgqrs.store.sqlite import Connection, SqliteDatabase, SqliteTransaction, open_file

# How long an answer of S3 counts as current. A poller therefore asks S3 at most twenty times a
# second. A process that handles a queue alone never asks, because its last PUT is younger.
FRESH_S = 0.05
# How often the renewals of an idle supervisor are uploaded: several times within FORGOTTEN_S of
# conflicts.py.
IDLE_PUT_S = 8 * 3600.0
# `follow` asks again within a second anyway, and an outage of S3 should be noticed soon.
NEWS_PATIENCE_S = 3.0
# How long closing a store waits for a request in progress.
CLOSE_S = 3.0


class S3Database(SqliteDatabase):
    """A SQLite database in S3. `following` means that `follow` is called regularly, so that no
    other call asks S3 for a newer version.
    """

    def __init__(
        self, config: Config, clock: Callable[[], datetime] | None = None, following: bool = False
    ) -> None:
        self._durable = config.s3_mode is DurabilityMode.Durable
        self._following = following
        # Whether the local copy is known to be based on the object.
        self._based = self._durable
        # The supervisor whose lease `passing` renews, and how long the renewal may wait.
        self._deferred: tuple[int, float] | None = None
        super().__init__(config, clock)

    def _opened(self, config: Config) -> Connection:
        self._replica = lend(config)
        self._lent = weakref.finalize(self, give_back, self._replica)
        self._lent.atexit = False
        self._lock = self._replica.lock
        try:
            self._patience_s = config.connection_timeout_seconds
            self._reading = threading.RLock()
            self._open_copy()
            if self._durable:
                with self._alone(), self._translated():
                    if not self._replica.writing:
                        self._replica.catch_up(self._writer)
        except BaseException:
            self._lent()
            raise
        return self._writer

    def _open_copy(self) -> None:
        self._copy = self._replica.generation
        self._writer = open_file(self._replica.path, self._patience_s)
        self._reader = open_file(self._replica.path, self._patience_s)
        if self._durable:
            self._writer.execute("pragma synchronous = normal")  # S3 has what the disk may lose

    def _acquire(self) -> None:
        try:
            super()._acquire()
        except errors.PgqrsConnectionError as e:
            raise errors.PgqrsConnectionError(
                f"{e}: it waits for S3, or holds the transaction open between two calls of its own"
            ) from None
        try:
            self._mend_copy()
        except BaseException:
            self._lock.release()
            raise

    def _mend_copy(self) -> None:
        """Recreates the local copy if its files were removed or replaced. The caller holds the lock."""
        if not self._lent.alive or self._replica.writing:
            return
        with self._translated():
            self._replica.mend(self._durable)
            if self._copy == self._replica.generation:
                return
            with self._reading:
                self._writer.close()
                self._reader.close()
                self._open_copy()
                self._connection = self._writer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with super()._translated():
            try:
                yield
            except sqlite3.OperationalError as e:
                if is_of_the_disk(e):
                    raise self._replica.unusable(e) from e
                raise

    def absent(self) -> bool:
        """Whether there was no object when S3 last answered."""
        return self._durable and self._replica.etag is None

    # Transactions

    @contextmanager
    def _within(self, connection: Connection, begin: str, at: datetime | None) -> Iterator[SqliteTransaction]:
        if connection is not self._writer:
            with super()._within(connection, begin, at) as tx:
                yield tx
            return
        if self._replica.writing:
            raise errors.InternalError("a transaction on S3 cannot hold another of the same thread")
        self._catch_up()
        self._replica.writing = True
        try:
            self._before = self._changes()
            with super()._within(connection, begin, at) as tx:
                yield tx
        finally:
            self._replica.writing = False

    def _commit(self, connection: Connection) -> None:
        if connection is not self._writer or self._changes() == self._before:
            connection.execute("commit")
            return
        replica = self._replica
        if not self._durable:
            if not replica.dirty:
                replica.dirty = True
                replica.note()  # on disk before the first unsynced write, which `snapshot` must not undo
            connection.execute("commit")
            return
        if self._may_wait():
            connection.execute("commit")
            return
        version = replica.publish(self._writer, replica.etag)
        connection.execute("commit")
        replica.settled(version)

    def _changes(self) -> tuple[int, int]:
        """Returns a value that changes when the writer has changed a row."""
        [(schema,)] = self._writer.execute("pragma schema_version")
        return self._writer.total_changes, schema

    def _may_wait(self) -> bool:
        """Whether this transaction's writes can be uploaded together with later ones. This holds
        only for writes in `passing`: for a limited time, and for a longer time while the lease
        protects no messages.
        """
        if self._deferred is None:
            return False
        supervisor_id, within_s = self._deferred
        waited_s = time.monotonic() - self._replica.put_at
        if waited_s < within_s:
            return True
        [(held,)] = self._writer.execute(sql.statement("anything_held", "sqlite").sql, {"id": supervisor_id})
        return not held and waited_s < IDLE_PUT_S

    @contextmanager
    def passing(self, supervisor_id: int, within_s: float) -> Iterator[SqliteTransaction]:
        """Yields a transaction that renews this supervisor's lease. Its writes need not be in S3 at
        once.
        """
        with self._alone():
            self._deferred = supervisor_id, within_s
            try:
                with self.transaction() as tx:
                    yield tx
            finally:
                self._deferred = None

    @contextmanager
    def reading(self) -> Iterator[SqliteTransaction]:
        """Yields a transaction that reads what S3 reported at most FRESH_S ago, or what this
        process has committed since. Never waits for a PUT in progress.
        """
        self._refuse_fork()
        if self._lock.acquire(blocking=False):
            try:
                self._mend_copy()
                with self._translated():
                    self._catch_up()
            finally:
                self._lock.release()
        with self._reading, self._translated(), self._within(self._reader, "begin", None) as tx:
            yield tx

    def _catch_up(self) -> None:
        replica = self._replica
        if not self._durable or replica.writing or not self._lent.alive:
            return
        old = not self._following and time.monotonic() - replica.contact > FRESH_S
        if replica.stale or old:
            replica.catch_up(self._writer)

    def hint(self, queues: Iterable[str]) -> None:
        self._replica.hint()

    def last_hint(self) -> object:
        """Returns a value that changes when a process of this machine has written new messages."""
        return self._replica.last_hint()

    def follow(self) -> None:
        """Fetches what others have written. Does nothing while a write of this process is in
        progress, because the write checks the version itself. The lock is free during the request,
        so that a silent S3 does not block operations that need no answer. Raises
        PgqrsConnectionError.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._mend_copy()
            replica, known = self._replica, self._replica.etag
            if replica.writing or time.monotonic() - replica.contact <= FRESH_S:
                return
        finally:
            self._lock.release()
        found = replica.object.fetch(unless=known, patience_s=NEWS_PATIENCE_S)
        with self._alone():
            if known == replica.etag and not replica.writing:
                with self._translated():
                    replica.caught_up(self._writer, found)

    @property
    def put_at(self) -> float:
        """The time at which the last PUT of this process ended, in monotonic seconds."""
        return self._replica.put_at

    def wait(self, seconds: float) -> None:
        """Waits between two calls. Raises PgqrsConnectionError if `sever` ends the wait."""
        self._replica.object.wait(seconds)

    def sever(self) -> None:
        """Ends all waits for S3 on this object, in all threads of this process. Each raises
        PgqrsConnectionError.
        """
        self._replica.object.sever()

    def prepare(self) -> None:
        pass  # the local file is private to this process, and in WAL mode already

    def data_version(self) -> object:
        with self._reading, self._translated():
            return self._copy, self._reader.execute("pragma data_version").fetchone()[0]

    def close(self) -> None:
        """Closes the store. Waits at most CLOSE_S for a request to S3."""
        if not self._lock.acquire(timeout=CLOSE_S):
            self.sever()
            self._lock.acquire()
        try:
            with self._reading:
                self._writer.close()
                self._reader.close()
                self._lent()
        finally:
            self._lock.release()

    # Operations of the caller: see pgqrs.clients.s3

    def snapshot(self) -> None:
        self._refuse_fork()
        with self._alone(), self._translated():
            replica = self._replica
            if replica.dirty:
                raise errors.PgqrsError(
                    f"snapshot() would undo unsynced writes to {self.dsn}: sync() them first, or remove "
                    f"{replica.folder} once no store is open on it"
                )
            found = replica.object.fetch(unless=replica.etag if self._based else None)
            if found is None:
                raise errors.PgqrsError(
                    f"there is no object {self.dsn} to take a snapshot of: sync() makes it"
                )
            if isinstance(found, Fetched):
                replica.take_over(self._writer, found)
            replica.contact, replica.stale = time.monotonic(), False
            self._based = True

    def sync(self) -> None:
        self._refuse_fork()
        with self._alone(), self._translated():
            replica = self._replica
            there = replica.object.look() if replica.sent or (self._based and not replica.dirty) else None
            self._recognise(there)
            expected = replica.etag if self._based else None
            if there is not None and there.etag == expected and not replica.dirty:
                return
            marker = new_marker()
            if not self._durable:
                replica.will_send(marker)
            try:
                version = replica.publish(self._writer, expected, marker)
            except errors.ConflictError as e:
                raise errors.ConflictError(
                    f"conflict: sync() found that {self.dsn} has been written by somebody else, or was "
                    "there before this store was connected; theirs is kept. "
                    + (
                        f"What was written here stays in {replica.folder}: remove that folder to give it up"
                        if replica.dirty
                        else "snapshot() takes it"
                    )
                ) from e
            replica.settled(version)
            self._based = True

    def state(self) -> SyncState:
        self._refuse_fork()
        with self._alone(), self._translated():
            replica = self._replica
            there = replica.object.look()
            if there is None:
                return SyncState.RemoteMissingDirty if replica.dirty else SyncState.RemoteMissingClean
            [(tables,)] = self._writer.execute("select count(*) from sqlite_master")
            if not tables:
                return SyncState.LocalMissing
            self._recognise(there)
            same = self._based and there.etag == replica.etag
            if replica.dirty:
                return SyncState.LocalChanges if same else SyncState.ConcurrentChanges
            return SyncState.InSync if same else SyncState.RemoteChanges

    def _recognise(self, there: Version | None) -> None:
        """Recognizes that `there` is the version that a `sync` with unknown outcome wrote. Later
        local writes are then based on it.
        """
        if there is not None and there.marker in self._replica.sent:
            self._replica.etag = there.etag
            self._based = True
