"""SQLite kept as one object of S3. A transaction ends in a conditional PUT of the whole file; then the local copy commits.

In this order the object is never behind what a caller was told, and the local file never ahead of the object: the PUT is the
commit. A process that dies between the two leaves a copy of an older version, which its note says, and the next start fetches the
object. In Local mode only `sync` PUTs.
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

# What S3 said is taken for true so long. Whoever polls asks it twenty times a second at most, and whoever works off a queue alone
# never: his last PUT is younger than that.
FRESH_S = 0.05
# The renewals of a supervisor that holds nothing go up this often: within FORGOTTEN_S of conflicts.py, several times.
IDLE_PUT_S = 8 * 3600.0
NEWS_PATIENCE_S = (
    3.0  # `follow` asks again in a second anyway, and somebody wants to know soon that S3 is away
)
CLOSE_S = 3.0  # that a store which is closed waits for a request under way


class S3Database(SqliteDatabase):
    """`following`: somebody calls `follow` regularly, so that nothing else asks S3 for news."""

    def __init__(
        self, config: Config, clock: Callable[[], datetime] | None = None, following: bool = False
    ) -> None:
        self._durable = config.s3_mode is DurabilityMode.Durable
        self._following = following
        self._based = self._durable  # whether what we hold is known to come from the object
        self._deferred: tuple[int, float] | None = (
            None  # whose lease `passing` renews, and for how long it may wait
        )
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
            self._writer.execute("pragma synchronous = normal")  # what the disk loses, S3 has

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
        """Makes the copy again where its files were removed or replaced under us. The caller holds the lock."""
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
        """Whether there was no object when S3 was last asked."""
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
                replica.note()  # before the first write of its kind, and on disk: `snapshot` must not undo it
            connection.execute("commit")
            return
        if self._may_wait():
            connection.execute("commit")
            return
        version = replica.publish(self._writer, replica.etag)
        connection.execute("commit")
        replica.settled(version)

    def _changes(self) -> tuple[int, int]:
        """Differs once the writer has changed something: an update that matches no row has not."""
        [(schema,)] = self._writer.execute("pragma schema_version")
        return self._writer.total_changes, schema

    def _may_wait(self) -> bool:
        """Whether this transaction's writes can go up with the next: those of `passing`, and for a while only, or while there is
        nothing that a lease protects."""
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
        """A transaction whose writes need not be in S3 at once: the renewal of this supervisor's lease."""
        with self._alone():
            self._deferred = supervisor_id, within_s
            try:
                with self.transaction() as tx:
                    yield tx
            finally:
                self._deferred = None

    @contextmanager
    def reading(self) -> Iterator[SqliteTransaction]:
        """What S3 said at most FRESH_S ago, or what this process has committed. Never waits for a PUT under way."""
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
        """Changes when a process of this machine has put something new on a queue."""
        return self._replica.last_hint()

    def follow(self) -> None:
        """Fetches what others have written, unless a write of ours is under way, which finds out by itself. Nobody waits for the
        lock meanwhile: an S3 that says nothing must not be in the way of what needs no answer. Raises PgqrsConnectionError."""
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
        """When the last PUT of this process ended, in monotonic seconds."""
        return self._replica.put_at

    def wait(self, seconds: float) -> None:
        """A pause between two calls. Raises PgqrsConnectionError where `sever` ends it."""
        self._replica.object.wait(seconds)

    def sever(self) -> None:
        """Ends what waits for S3 in this process and on this object, in whatever thread, with PgqrsConnectionError."""
        self._replica.object.sever()

    def prepare(self) -> None:
        pass  # the local file is ours, and in WAL mode already

    def data_version(self) -> object:
        with self._reading, self._translated():
            return self._copy, self._reader.execute("pragma data_version").fetchone()[0]

    def close(self) -> None:
        """Waits for nobody who waits for S3 for longer than CLOSE_S."""
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

    # What the caller has in hand: see pgqrs.clients.s3

    def snapshot(self) -> None:
        self._refuse_fork()
        with self._alone(), self._translated():
            replica = self._replica
            if replica.dirty:
                raise errors.PgqrsError(
                    f"snapshot() would undo unsynced writes to {self.dsn}: sync() them first, or remove {replica.folder} once no store "
                    "is open on it"
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
                    f"conflict: sync() found that {self.dsn} has been written by somebody else, or was there before this store was "
                    "connected; theirs is kept. "
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
        """What a `sync` of unknown outcome wrote after all is ours, and what was written here since goes on top of it."""
        if there is not None and there.marker in self._replica.sent:
            self._replica.etag = there.etag
            self._based = True
