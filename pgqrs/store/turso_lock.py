"""Which way a Turso file is open: for one process alone, or shared by several through the driver's experiment. Never both.

The driver itself does not keep them apart: each way locks what the other does not look at, and a mixture has emptied files. So
whoever opens one first locks a file beside it, for itself or together with others of its way, and keeps that lock until it has
closed the database. POSIX drops a lock with its process, however that ends, and with any descriptor of the file that its process
closes: hence one descriptor for each file and process. The lock file itself stays; what it says is of use to who is refused.
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
# Who comes first to a shared file has it alone for a moment, in which it removes a file.
ALONE_S, POLL_S = 0.5, 0.005


class Claim:
    """The lock of this process on a file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pid = os.getpid()

    def leave(self) -> None:
        """To be called when the database is closed. In a forked child it does nothing: the parent's lock is not the child's, but to
        close its descriptor would take a lock that the child has on the same file."""
        if os.getpid() == self._pid:
            os.close(self._descriptor)


def claim(path: str, shared: bool) -> Claim:
    """Raises PgqrsConnectionError where another process has the file in the other way, or alone."""
    descriptor = _lock_file(path)
    try:
        until = time.monotonic() + ALONE_S
        while not (_share(path, descriptor) if shared else _have(descriptor)):
            if not shared or time.monotonic() >= until:
                holder = os.pread(descriptor, 30, 0).decode(errors="replace").strip()
                raise errors.PgqrsConnectionError(_refusal(path, shared, holder))
            time.sleep(POLL_S)
    except OSError as e:
        os.close(descriptor)
        raise errors.PgqrsConnectionError(
            f"cannot open the Turso database {path}: {path}{SUFFIX}, by which its processes keep out of each other's way, cannot be "
            f"locked: {e.strerror}"
        ) from e
    except BaseException:
        os.close(descriptor)
        raise
    return Claim(descriptor)


def _lock_file(path: str) -> int:
    try:
        return os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise errors.PgqrsConnectionError(
            f"cannot open the Turso database {path}: {path}{SUFFIX}, by which its processes keep out of each other's way, cannot be "
            f"made: {e.strerror}; the folder {Path(path).parent} must exist and be writable"
        ) from e


def _have(descriptor: int) -> bool:
    if not _locked(descriptor, fcntl.LOCK_EX):
        return False
    _say(descriptor, str(os.getpid()))
    return True


def _share(path: str, descriptor: int) -> bool:
    if _locked(descriptor, fcntl.LOCK_EX):
        _say(descriptor, SHARED)
        # Nobody else has the file, so this index of its log is of processes that were killed. The driver would believe it, even
        # where somebody else, such as sqlite3, has emptied the log since. Without it, it reads the log.
        with suppress(FileNotFoundError):
            os.unlink(path + "-tshm")
    return _locked(descriptor, fcntl.LOCK_SH)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.lockf(descriptor, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either for "somebody has it"
        return False
    return True


def _say(descriptor: int, holder: str) -> None:
    os.pwrite(descriptor, f"{holder:<20}\n".encode(), 0)


def _refusal(path: str, shared: bool, holder: str) -> str:
    if holder == SHARED:
        return (
            f"the Turso database {path} is in use by other processes, which share it with ?{TURSO_SHARED}; this DSN is without it and "
            "wants the file alone: stop them first, or use their DSN here"
        )
    whom = f"another process (pid {holder})" if holder.isdecimal() else "another process"
    if shared:
        return (
            f"the Turso database {path} is in use by {whom} that has it alone, by a DSN without ?{TURSO_SHARED}: stop it first; to "
            "share the file, restart it with the DSN that you use here"
        )
    return (
        f"the Turso database {path} is in use by {whom}, and only one can have it: while a supervisor runs on it, no other process "
        f"reads, triggers or enqueues. Stop that process first. To share the file, restart it with ?{TURSO_SHARED} (an experiment of "
        "the driver's) and use the same DSN here; or use sqlite:// or postgresql://, which many processes share"
    )
