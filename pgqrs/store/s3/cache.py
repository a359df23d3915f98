"""The local folders with copies of S3 objects. A folder belongs to one process. The process holds a
lock, which ends with the process.
"""

import fcntl
import hashlib
import os
import re
import sqlite3
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from pgqrs import errors
from pgqrs.config import Config, DurabilityMode
from pgqrs.store.s3.bucket import S3Object

# In the default cache: the most processes on this machine that can use one object.
FOLDERS_MAX = 64


class Lock(Struct, frozen=True):
    descriptor: int
    pid: int


def claimed_folder(of: S3Object, config: Config) -> tuple[Path, Lock]:
    """Locks a folder for this process, until the process leaves it or dies.

    A configured cache folder has one folder per object. In the default cache, Durable mode uses the
    first free folder, because the content of a folder only saves a download. Local mode uses the
    folder with the unsynced writes.

    Raises ConfigError if no folder can be used, and PgqrsConnectionError if other processes use
    them all.
    """
    for folder in _candidates(of, config):
        try:
            # private, because access to the bucket may be restricted
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise errors.ConfigError(unusable(folder, of.dsn, e.strerror)) from e
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "?"
            os.close(descriptor)
            continue
        except OSError as e:
            os.close(descriptor)
            raise errors.ConfigError(unusable(folder, of.dsn, e.strerror)) from e
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as e:
            os.close(descriptor)
            raise errors.ConfigError(unusable(folder, of.dsn, e.strerror)) from e
        return folder, Lock(descriptor, os.getpid())
    raise errors.PgqrsConnectionError(
        f"the S3 cache folder {folder} of {of.dsn} is in use by another process (pid {holder}), and only "
        "one can have it: give each process an s3_cache_dir (PGQRS_S3_CACHE_DIR) of its own"
        + (", or leave it out" if config.s3_cache_dir and config.s3_mode is DurabilityMode.Durable else "")
    )


def leave_folder(lock: Lock) -> None:
    """Unlocks a folder. Forked children have the descriptor too, so closing it is not enough, and
    children must not unlock it.
    """
    if os.getpid() == lock.pid:
        with suppress(OSError):
            fcntl.flock(lock.descriptor, fcntl.LOCK_UN)
    os.close(lock.descriptor)


def is_in_use(cache_dir: Path) -> bool:
    """Whether a process has locked a folder inside this s3_cache_dir."""
    for lock in cache_dir.glob("*/lock"):
        with suppress(FileNotFoundError), lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def is_held(lock: Lock, folder: Path) -> bool:
    """Whether the folder at this path is still the one that was locked."""
    try:
        return os.path.samestat(os.fstat(lock.descriptor), os.stat(folder / "lock"))
    except OSError:
        return False


def unusable(folder: Path, dsn: str, why: object) -> str:
    return (
        f"the S3 cache folder {folder}, in which the local copy of {dsn} is kept, cannot be used: {why}; "
        "make room there, or name another with XDG_CACHE_HOME, PGQRS_S3_CACHE_DIR or s3_cache_dir"
    )


def is_of_the_disk(error: BaseException | None) -> bool:
    """Whether SQLite's error comes from the disk or the folder, and not from the file's content."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    )


def hint_file(of: S3Object) -> Path | None:
    """Returns the file that a process touches after it has written new messages. All processes of a
    machine use the same file, whichever cache folder they have. Returns None if there is no home
    folder.
    """
    cache = _default_cache()
    return None if cache is None else cache / _name(of) / "hint"


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _candidates(of: S3Object, config: Config) -> list[Path]:
    if config.s3_cache_dir is not None:
        return [Path(config.s3_cache_dir) / _name(of)]
    cache = _default_cache()
    if cache is None:
        raise errors.ConfigError(
            "there is no home folder for the S3 cache: set s3_cache_dir, PGQRS_S3_CACHE_DIR or XDG_CACHE_HOME"
        )
    if config.s3_mode is DurabilityMode.Local:
        return [cache / _name(of) / "local"]
    return [cache / _name(of) / str(n) for n in range(1, FOLDERS_MAX + 1)]


def _name(of: S3Object) -> str:
    digest = hashlib.sha256(f"{of.endpoint} {of.bucket}/{of.key}".encode()).hexdigest()[:16]
    return re.sub(r"[^\w.-]+", "_", f"{of.bucket}-{of.key}", flags=re.A)[-60:] + f"-{digest}"


def _default_cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "pgqrs" / "s3"
    except RuntimeError:  # a container's user without a home folder
        return None
