"""The copy of an S3 object on this machine: a SQLite file, of which object version it is a copy, and whose it is.

A folder of a cache belongs to one process, by a lock that dies with it; that process's stores share the copy. Nothing of it is
needed but what was written in Local mode and not synced yet: all else is fetched again.
"""

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgqrs import errors
from pgqrs.config import Config, DurabilityMode
from pgqrs.store import sql
from pgqrs.store.bucket import Fetched, S3Object, Version
from pgqrs.store.sqlite import open_file

FOLDERS_MAX = 64  # of the default cache, for as many processes on this machine that use one object
HEADER = b"SQLite format 3\0"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Replica:
    """`lock` is held around whatever changes the file or the fields; `writing` while a transaction is open under it."""

    def __init__(self, key: tuple[object, ...], config: Config) -> None:
        self.key = key
        self.object = S3Object(config.dsn)
        name = _folder_name(self.object)
        self.folder, self._locked = _claimed_folder(name, self.object, config)
        self.hinted = _default_cache() / name / "hint"
        self.path = str(self.folder / "pgqrs.db")
        self.lock = threading.RLock()
        self.writing = False
        self.users = 0
        self.stale = False  # the object is not what the file is a copy of, or may not be
        self.contact = self.put_at = float("-inf")
        self.etag: str | None = None  # of the version that the file was, before what was written here alone
        self.dirty = False  # written in Local mode and not synced
        self._remember_from_disk()
        self._prepare_file(config.connection_timeout_seconds)

    # What survives the process

    def _remember_from_disk(self) -> None:
        with suppress(OSError, ValueError, KeyError):
            noted = json.loads((self.folder / "replica.json").read_text())
            self.dirty = bool(noted["dirty"])
            # After a power cut the file may be an older one than the note says: only Local mode waits for the disk.
            self.etag = noted["etag"] if noted["boot"] == _boot_id() != "" else None

    def note(self) -> None:
        """Never before the file is what it says: too old a note costs a download, too young a one an update."""
        text = json.dumps({"etag": self.etag, "dirty": self.dirty, "boot": _boot_id(), "of": self.object.dsn})
        new = self.folder / "replica.json.new"
        with new.open("w") as file:
            file.write(text)
            if self.dirty:
                file.flush()
                os.fsync(file.fileno())
        new.replace(self.folder / "replica.json")

    def _prepare_file(self, patience_s: float) -> None:
        try:
            connection = open_file(self.path, patience_s)
            connection.execute("pragma journal_mode = wal")
            connection.close()
        except errors.PgqrsConnectionError:
            if self.dirty or not Path(self.path).is_file():
                raise
            for left in self.folder.glob("pgqrs.db*"):
                left.unlink()
            self.etag = None
            self._prepare_file(patience_s)

    # From S3 and to it. The caller holds the lock, and `writer` is in no transaction unless said.

    def catch_up(self, writer: sqlite3.Connection) -> None:
        """Makes the file what the object is. Where that has gone, the file stays, and the next PUT makes it again.

        Raises ConflictError, and changes nothing, where that would cost writes of Local mode that were not synced.
        """
        found = self.object.fetch(unless=self.etag)
        if isinstance(found, Fetched):
            self.take_over(writer, found)
        elif found is None and self.etag is not None:
            self.etag = None
            self.note()
        self.stale = False
        self.contact = time.monotonic()

    def take_over(self, writer: sqlite3.Connection, found: Fetched) -> None:
        if self.dirty:
            raise errors.ConflictError(
                f"conflict: the copy of {self.object.dsn} in {self.folder} has unsynced writes of Local mode, and somebody else has "
                "written the object since. To keep theirs, remove that folder; to keep yours, remove the object and sync()"
            )
        leases = _leases(writer)
        fetched = self.folder / "fetched.db"
        fetched.write_bytes(_without_wal(self.object.dsn, found.body))
        image = open_file(str(fetched), 0.0)
        try:
            [(wanted,)] = writer.execute("pragma page_size")
            if image.execute("pragma page_size").fetchone()[0] != wanted:
                image.execute(f"pragma page_size = {wanted}")
                image.execute("vacuum")
            image.backup(writer)
        finally:
            image.close()
            fetched.unlink()
        _keep(writer, leases)
        self.settled(found.version)

    def publish(self, writer: sqlite3.Connection, expected: str | None) -> Version:
        """PUTs what the writer sees, its open transaction included. Raises what S3Object.put does."""
        try:
            version = self.object.put(_image(writer), expected)
        except errors.PgqrsError:
            self.stale = True
            raise
        self.contact = self.put_at = time.monotonic()
        return version

    def settled(self, version: Version) -> None:
        """The file is a copy of this version, to be said once it is."""
        self.etag, self.dirty = version.etag, False
        self.note()

    # Between the processes of one machine and user

    def hint(self) -> None:
        """Says that the object has something new. Never fails."""
        with suppress(OSError):
            self.hinted.parent.mkdir(parents=True, exist_ok=True)
            self.hinted.write_text(str(time.time_ns()))

    def last_hint(self) -> int | None:
        """Changes with each hint."""
        try:
            return self.hinted.stat().st_mtime_ns
        except OSError:
            return None

    def close(self) -> None:
        os.close(self._locked)


# Shared by all stores of a process. A finalizer may run in the middle of any of this, in the same thread: hence the kind of lock.
_lock = threading.RLock()
_open: dict[tuple[object, ...], Replica] = {}


def lend(config: Config) -> Replica:
    """This process's copy of an object in a cache folder, to be given back once."""
    local = config.s3_mode is DurabilityMode.Local
    cache = config.s3_cache_dir and os.path.realpath(config.s3_cache_dir)
    key = (
        os.getpid(), config.dsn, os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL"), cache, local and not cache,
    )  # fmt: skip
    with _lock:
        replica = _open.get(key)
        if replica is None:
            replica = _open[key] = Replica(key, config)
        replica.users += 1
        return replica


def give_back(replica: Replica) -> None:
    """The last one leaves the folder to other processes."""
    with _lock:
        replica.users -= 1
        if not replica.users:
            del _open[replica.key]
            replica.close()


# The folder


def _folder_name(of: S3Object) -> str:
    digest = hashlib.sha256(f"{of.endpoint} {of.bucket}/{of.key}".encode()).hexdigest()[:16]
    return re.sub(r"[^\w.-]+", "_", f"{of.bucket}-{of.key}")[-60:] + f"-{digest}"


def _claimed_folder(name: str, of: S3Object, config: Config) -> tuple[Path, int]:
    """A folder that is this process's alone, and the descriptor that says so. With a cache folder of the user's choice it is one
    in there. In the default cache, Durable mode takes the first that is free: it only saves a download. Local mode takes the one
    that holds what was not synced."""
    if config.s3_cache_dir is not None:
        folders = [Path(config.s3_cache_dir) / name]
    elif config.s3_mode is DurabilityMode.Local:
        folders = [_default_cache() / name / "local"]
    else:
        folders = [_default_cache() / name / str(n) for n in range(1, FOLDERS_MAX + 1)]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locked = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise errors.ConfigError(
                f"the S3 cache folder {folder} cannot be used: {e.strerror}; set s3_cache_dir to one that can"
            ) from e
        try:
            fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(locked, 20).decode(errors="replace").strip() or "?"
            os.close(locked)
            continue
        os.ftruncate(locked, 0)
        os.pwrite(locked, str(os.getpid()).encode(), 0)
        return folder, locked
    raise errors.PgqrsConnectionError(
        f"the S3 cache folder {folder} of {of.dsn} is in use by another process (pid {holder}), and only one can have it: give each "
        "process an s3_cache_dir of its own"
        + (", or leave it out" if config.s3_mode is DurabilityMode.Durable else "")
    )


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pgqrs" / "s3"


def _boot_id() -> str:
    """ "" where nobody can tell one boot from the next."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


# The file's bytes


def _image(connection: sqlite3.Connection) -> bytes:
    """The database as a file, the connection's own open transaction included: SQLite copies the pages as that connection sees
    them. Marked as one without a WAL, so that whoever fetches it needs no second file."""
    image = bytearray(connection.serialize())
    image[18:20] = b"\1\1"
    return bytes(image)


def _without_wal(dsn: str, body: bytes) -> bytes:
    if not body.startswith(HEADER):
        raise errors.DatabaseError(f"{dsn} is no SQLite database: name another key, or remove the object")
    image = bytearray(body)
    image[18:20] = b"\1\1"
    return bytes(image)


def _leases(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    with suppress(sqlite3.OperationalError):  # not installed yet
        return connection.execute(sql.statement("leases", "sqlite").sql).fetchall()
    return []


def _keep(connection: sqlite3.Connection, leases: list[tuple[Any, ...]]) -> None:
    """Renewals that no PUT has carried yet: where the row is there still, nobody has taken the lease's end for granted."""
    with suppress(sqlite3.OperationalError):
        for row in leases:
            connection.execute(
                sql.statement("keep_lease", "sqlite").sql,
                dict(zip(("id", "name", "until"), row, strict=True)),
            )
