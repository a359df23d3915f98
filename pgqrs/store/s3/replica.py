"""The local copy of an S3 object: a SQLite file, and a note that says of which version the file is
a copy.

A cache folder belongs to one process, and the stores of this process share the copy. Only unsynced
writes of Local mode exist nowhere else. Everything else can be fetched again.
"""

import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pgqrs import errors
from pgqrs.config import Config, DurabilityMode, s3_object
from pgqrs.store import sql
from pgqrs.store.s3 import cache
from pgqrs.store.s3.bucket import Fetched, S3Object, Unchanged, Version, endpoint
from pgqrs.store.sqlite import open_file

HEADER = b"SQLite format 3\0"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The most markers of PUTs with unknown outcome. A program without a network may retry forever.
SENT_MAX = 16

# Ids to skip when an object is recreated from a copy that may be old: others may have used these ids.
IDS_SKIPPED = 1_000_000


class Replica:
    """The local copy. `lock` is held for every change of the file or the fields. `writing` is set
    while a transaction is open under this lock.
    """

    def __init__(self, key: tuple[object, ...], config: Config) -> None:
        self.key = key
        self.object = S3Object(config.dsn)
        self._config = config
        self._hints = cache.hint_file(self.object)
        # Counts the files of this copy. A connection to an older file must be opened again.
        self.generation = 0
        self.lock = threading.RLock()
        self.writing = False
        self.users = 0
        # Whether the object differs, or may differ, from the version that the file is a copy of.
        self.stale = False
        self.contact = self.put_at = float("-inf")
        # Of the version that the file was a copy of, before unsynced local writes.
        self.etag: str | None = None
        # The stamp of that version. See `publish`.
        self.stamp = 0
        # Whether there are unsynced writes of Local mode.
        self.dirty = False
        # The markers of PUTs of Local mode that may have been executed, or may be later.
        self.sent: list[str] = []
        self._claim()

    def _claim(self) -> None:
        self.folder, self._locked = cache.claimed_folder(self.object, self._config)
        self.path = str(self.folder / "pgqrs.db")
        try:
            self._remember_from_disk()
            self._prepare_file(self._config.connection_timeout_seconds)
            self._file = _inode(self.path)
        except BaseException:
            self.close()
            raise

    # If another program removed, moved or replaced the folder

    def mend(self, durable: bool) -> None:
        """If the opened file was removed or replaced, creates it again, or uses another folder. The
        content is then fetched from S3. The caller holds the lock, and no transaction is open.

        Raises SchemaError in Local mode, because the lost file may have held unsynced writes.
        """
        held = cache.is_held(self._locked, self.folder)
        if held and _inode(self.path) == self._file:
            return
        if not durable or self.dirty or self.sent:
            lost = " What was written in Local mode and not synced went with it." if self.dirty else ""
            raise errors.SchemaError(
                f"the S3 cache folder {self.folder}, with the copy of {self.object.dsn}, was removed or "
                f"replaced while this store had it open.{lost} Put it back if you can, and connect again"
            )
        if held:
            with self._on_disk():
                self._forget_file()
        self.close()
        self.etag, self.stamp, self.stale = None, 0, True
        self._claim()
        self.generation += 1

    def _forget_file(self) -> None:
        for left in self.folder.glob("pgqrs.db*"):
            left.unlink(missing_ok=True)

    # State that survives the process

    def _remember_from_disk(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads((self.folder / "replica.json").read_text())
            self.dirty = bool(noted["dirty"])
            self.sent = [str(marker) for marker in noted["sent"]]
            self.stamp = int(noted["stamp"])
            # After a power failure the file may be older than the note says: only Local mode waits
            # for the disk.
            self.etag = noted["etag"] if noted["boot"] == _boot_id() != "" else None

    def note(self) -> None:
        """Writes the note. Call it only when the file is already the noted version: a note that is
        too old costs a download, and one that is too new would cost an update.
        """
        noted = {
            "etag": self.etag,
            "stamp": self.stamp,
            "dirty": self.dirty,
            "sent": self.sent,
            "boot": _boot_id(),
            "of": self.object.dsn,
        }
        new = self.folder / "replica.json.new"
        with self._on_disk():
            with new.open("w") as file:
                file.write(json.dumps(noted))
                if self.dirty:
                    file.flush()
                    os.fsync(file.fileno())
            new.replace(self.folder / "replica.json")
            if self.dirty:
                cache.sync_folder(self.folder)

    def _prepare_file(self, patience_s: float) -> None:
        """Creates the file if there is none, or if it is damaged. If the file does not match the
        note, it is not a copy of the noted version: another program has removed the file or its
        log.
        """
        try:
            with closing(open_file(self.path, patience_s)) as connection:
                connection.execute("pragma journal_mode = wal")
                stamp = _stamp(connection)
        except (errors.PgqrsConnectionError, sqlite3.DatabaseError) as e:
            cause = e.__cause__ if isinstance(e, errors.PgqrsConnectionError) else e
            if cache.is_of_the_disk(cause):
                raise self.unusable(cause) from e
            if self.dirty or not Path(self.path).is_file():
                raise
            with self._on_disk():
                self._forget_file()
            self.etag = None
            self._prepare_file(patience_s)
            return
        if not stamp or stamp != self.stamp:
            self.etag = None

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise self.unusable(e.strerror) from e

    def unusable(self, why: object) -> errors.PgqrsConnectionError:
        return errors.PgqrsConnectionError(cache.unusable(self.folder, self.object.dsn, why))

    # Transfers from and to S3. The caller holds the lock. `writer` is in no transaction unless documented.

    def catch_up(self, writer: sqlite3.Connection) -> None:
        """Updates the file to the object. If the object has been removed, the file stays, and the
        next PUT creates the object again. This is not done with a copy that an earlier process
        left.

        Raises ConflictError, and changes nothing, if unsynced writes of Local mode would be lost.
        """
        self.caught_up(writer, self.object.fetch(unless=self.etag))

    def caught_up(self, writer: sqlite3.Connection, found: Fetched | Unchanged | None) -> None:
        """Updates the file like `catch_up`, with the result of a `fetch`."""
        if isinstance(found, Fetched):
            self.take_over(writer, found)
        elif found is None:
            if self.contact == float("-inf") and not self.dirty:
                _empty(writer)
            if self.etag is not None:
                _skip_ids(writer)
                self.etag = None
                self.note()
        self.stale = False
        self.contact = time.monotonic()

    def take_over(self, writer: sqlite3.Connection, found: Fetched) -> None:
        if self.dirty:
            raise errors.ConflictError(
                f"conflict: the copy of {self.object.dsn} in {self.folder} has unsynced writes of Local "
                "mode, and somebody else has written the object since. To keep theirs, remove that folder; "
                "to keep yours, remove the object and sync()"
            )
        leases = _leases(writer)
        fetched = self.folder / "fetched.db"
        with self._on_disk():
            fetched.write_bytes(_without_wal(self.object.dsn, found.body))
        try:
            with closing(_opened_image(self.object.dsn, fetched, found.checked)) as image:
                [(wanted,)] = writer.execute("pragma page_size")
                if image.execute("pragma page_size").fetchone()[0] != wanted:
                    image.execute(f"pragma page_size = {wanted}")
                    image.execute("vacuum")
                image.backup(writer)
        finally:
            fetched.unlink(missing_ok=True)
        _keep(writer, leases)
        self.stamp = _stamp(writer)
        self.settled(found.version)

    def publish(self, writer: sqlite3.Connection, expected: str | None, marker: str | None = None) -> Version:
        """PUTs the database as the writer sees it, including its open transaction. Each version
        gets a stamp that no other version has. The stamp tells the next process whether the file
        matches its note. Raises the errors of S3Object.put.
        """
        stamp = random.randrange(1, 2**31)
        writer.execute(f"pragma user_version = {stamp}")
        # until `settled`, whatever happens in between
        self.stale = True
        version = self.object.put(_image(writer), expected, marker)
        self.stamp = stamp
        self.contact = self.put_at = time.monotonic()
        return version

    def settled(self, version: Version) -> None:
        """Notes that the file is a copy of this version. Call it only when this is true."""
        local = self.dirty or bool(self.sent)
        self.etag, self.stale, self.dirty, self.sent = version.etag, False, False, []
        try:
            self.note()
        except errors.PgqrsConnectionError:
            if local:  # the old note says that there is something to sync
                raise

    def will_send(self, marker: str) -> None:
        """Notes the marker of a PUT of Local mode before the PUT. If the outcome stays unknown, or
        this process dies, the written version can be recognized.
        """
        self.sent = [*self.sent, marker][-SENT_MAX:]
        self.note()

    # Between the processes of one machine and user

    def hint(self) -> None:
        """Signals that the object has something new. Never fails."""
        with suppress(OSError):
            if self._hints is not None:
                self._hints.parent.mkdir(parents=True, exist_ok=True)
                self._hints.write_text(str(time.time_ns()))

    def last_hint(self) -> int | None:
        """Returns a value that changes with each hint."""
        try:
            return None if self._hints is None else self._hints.stat().st_mtime_ns
        except OSError:
            return None

    def close(self) -> None:
        cache.leave_folder(self._locked)


# Shared by all stores of a process. The lock is reentrant, because a finalizer may run at any
# point, in the same thread.
_lock = threading.RLock()
_open: dict[tuple[object, ...], Replica] = {}


def lend(config: Config) -> Replica:
    """Returns this process's copy of an object in a cache folder. The caller must call `give_back`
    once.
    """
    local = config.s3_mode is DurabilityMode.Local
    folder = config.s3_cache_dir and os.path.realpath(config.s3_cache_dir)
    key = (os.getpid(), endpoint(), *s3_object(config.dsn), folder, local and not folder)
    with _lock:
        replica = _open.get(key)
        if replica is None:
            replica = _open[key] = Replica(key, config)
        replica.users += 1
        return replica


def give_back(replica: Replica) -> None:
    """Releases the copy. The last user releases the folder for other processes."""
    with _lock:
        replica.users -= 1
        if not replica.users:
            del _open[replica.key]
            replica.close()


def _boot_id() -> str:
    """Returns the id of the machine's boot, or "" if it is unknown."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


# The file's bytes


def _image(connection: sqlite3.Connection) -> bytes:
    """Returns the database as a file, including the open transaction of this connection. The file
    is marked as one without a WAL, so that a reader needs no second file.
    """
    image = bytearray(connection.serialize())
    image[18:20] = b"\1\1"
    return bytes(image)


def _without_wal(dsn: str, body: bytes) -> bytes:
    if not body.startswith(HEADER):
        raise errors.PgqrsConnectionError(
            f"{dsn} is no SQLite database: name another key, or remove the object"
        )
    image = bytearray(body)
    image[18:20] = b"\1\1"
    return bytes(image)


def _opened_image(dsn: str, path: Path, checked: bool) -> sqlite3.Connection:
    """Opens a fetched file. If it has no checksum of pgqrs, another program wrote it, and it is
    checked first.
    """
    try:
        image = open_file(str(path), 0.0)
        if not checked and (told := image.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
            image.close()
            raise sqlite3.DatabaseError(told)
    except (errors.PgqrsConnectionError, sqlite3.DatabaseError) as e:
        raise errors.PgqrsConnectionError(
            f"{dsn} is a damaged SQLite database: {e}; put a whole one there, or remove the object"
        ) from e
    return image


def _empty(writer: sqlite3.Connection) -> None:
    [(tables,)] = writer.execute("select count(*) from sqlite_master")
    if tables:
        with closing(sqlite3.connect(":memory:")) as nothing:
            nothing.backup(writer)


def _skip_ids(writer: sqlite3.Connection) -> None:
    with suppress(sqlite3.OperationalError):  # not installed yet
        writer.execute(sql.statement("skip_ids", "sqlite").sql, {"count": IDS_SKIPPED})


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _stamp(connection: sqlite3.Connection) -> int:
    [(stamp,)] = connection.execute("pragma user_version")
    return int(stamp)


def _leases(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    with suppress(sqlite3.OperationalError):  # not installed yet
        return connection.execute(sql.statement("leases", "sqlite").sql).fetchall()
    return []


def _keep(connection: sqlite3.Connection, leases: list[tuple[Any, ...]]) -> None:
    """Restores renewals that no PUT has uploaded yet, if the row of the supervisor still exists.
    Then nobody has taken over its lease.
    """
    with suppress(sqlite3.OperationalError):
        for row in leases:
            connection.execute(
                sql.statement("keep_lease", "sqlite").sql,
                dict(zip(("id", "name", "until"), row, strict=True)),
            )
