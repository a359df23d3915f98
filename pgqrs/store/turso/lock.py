"""The lock of a Turso file: one process opens the file exclusively, or several processes share it.
Never both.

Sharing is an experimental feature of the driver. The driver does not keep exclusive and shared use
apart: each locks something that the other ignores, and a mixture has emptied files. So the first
process that opens a file also locks a file beside it, exclusively or shared, until it has closed
the database.

POSIX releases a lock when its process ends, and also when the process closes any descriptor of the
file. So each process has only one descriptor for each lock file. The lock file is never deleted.
Its content explains a refusal.

Two processes must not open a file at the same moment either. One process creates the index of a
shared file's log (`-tshm`) and then fills it. If the driver of another process reads the index in
between, it takes the file for corrupt. A second lock on the same file makes processes open the
database one after the other.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from pgqrs import errors
from pgqrs.config import TURSO_SHARED

SUFFIX = "-pgqrs"
SHARED = "shared"
POLL_S = 0.005
# The two locks, each on one byte of the lock file: holding the database, and opening it.
HOLDING, OPENING = 0, 1


class Claim:
    """The locks of this process on a file. One is held until the database is closed, and one until
    it is open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pid = os.getpid()

    def opened(self) -> None:
        """Allows the next process to open the database."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, OPENING)

    def leave(self) -> None:
        """Releases the lock after the database was closed. In a forked child this does nothing:
        closing the parent's descriptor would release a lock that the child has on the same file.
        """
        if os.getpid() == self._pid:
            os.close(self._descriptor)


def claim(path: str, shared: bool, patience_s: float) -> Claim:
    """Locks a file. Raises PgqrsConnectionError if another process has opened the file exclusively
    or in the other mode, or if it is still opening the file after `patience_s`.
    """
    descriptor = _lock_file(path)
    try:
        _wait_to_open(path, descriptor, patience_s)
        if not (_share(path, descriptor) if shared else _have(descriptor)):
            holder = os.pread(descriptor, 30, 0).decode(errors="replace").strip()
            raise errors.PgqrsConnectionError(_refusal(path, shared, holder))
    except OSError as e:
        os.close(descriptor)
        raise errors.PgqrsConnectionError(
            f"cannot open the Turso database {path}: {path}{SUFFIX}, by which its processes keep out of "
            f"each other's way, cannot be locked: {e.strerror}"
        ) from e
    except BaseException:
        os.close(descriptor)
        raise
    return Claim(descriptor)


def _wait_to_open(path: str, descriptor: int, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while not _locked(descriptor, fcntl.LOCK_EX, OPENING):
        if time.monotonic() >= until:
            raise errors.PgqrsConnectionError(
                f"cannot open the Turso database {path}: another process began to open it and has not come "
                f"to an end in {patience_s:g} s: if it is stopped, continue or end it"
            )
        time.sleep(POLL_S)


def _lock_file(path: str) -> int:
    try:
        return os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise errors.PgqrsConnectionError(
            f"cannot open the Turso database {path}: {path}{SUFFIX}, by which its "
            f"processes keep out of each other's way, cannot be made: {e.strerror}; "
            f"the folder {Path(path).parent} must exist and be writable"
        ) from e


def _have(descriptor: int) -> bool:
    if not _locked(descriptor, fcntl.LOCK_EX, HOLDING):
        return False
    _say(descriptor, str(os.getpid()))
    return True


def _share(path: str, descriptor: int) -> bool:
    if _locked(descriptor, fcntl.LOCK_EX, HOLDING):
        _say(descriptor, SHARED)
        # No other process has the file, so this index of its log is left over from killed
        # processes. The driver would trust it even if another program, such as sqlite3, has emptied
        # the log since. Without the index, the driver reads the log.
        with suppress(FileNotFoundError):
            os.unlink(path + "-tshm")
    return _locked(descriptor, fcntl.LOCK_SH, HOLDING)


def _locked(descriptor: int, how: int, byte: int) -> bool:
    try:
        fcntl.lockf(descriptor, how | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # POSIX allows both errors for a lock that is held
        return False
    return True


def _say(descriptor: int, holder: str) -> None:
    os.pwrite(descriptor, f"{holder:<20}\n".encode(), 0)


def _refusal(path: str, shared: bool, holder: str) -> str:
    if holder == SHARED:
        return (
            f"the Turso database {path} is in use by other processes, which share it with ?{TURSO_SHARED}; "
            "this DSN is without it and wants the file alone: stop them first, or use their DSN here"
        )
    whom = f"another process (pid {holder})" if holder.isdecimal() else "another process"
    if shared:
        return (
            f"the Turso database {path} is in use by {whom} that has it alone, by a DSN without "
            f"?{TURSO_SHARED}: stop it first; to share the file, restart it with the DSN that you use here"
        )
    return (
        f"the Turso database {path} is in use by {whom}, and only one can have it: while a supervisor runs "
        "on it, no other process reads, triggers or enqueues. Stop that process first. To share the file, "
        f"restart it with ?{TURSO_SHARED} (an experiment of the driver's) and use the same DSN here; or "
        "use sqlite:// or postgresql://, which many processes share"
    )
