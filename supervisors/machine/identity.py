"""Who this supervisor is, in terms that another one on the same host can check."""

import os
import socket
import sys
import uuid
from contextlib import suppress
from pathlib import Path

from pgqrs.store.store import Identity


def own_identity() -> Identity:
    """The name is new each time: a restarted supervisor is another one.

    Where Linux does not say which boot or which pid namespace this is (no `/proc`), the supervisor
    is nobody's neighbour: pids that it and others name may belong to different namespaces.
    """
    host = socket.gethostname()
    return Identity(
        name=f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        host=host,
        boot_id=_read("/proc/sys/kernel/random/boot_id") or _unknown(),
        pid_ns=_link("/proc/self/ns/pid") or _unknown(),
        pid=os.getpid(),
        pid_started=_started(os.getpid()) or NOT_KNOWN,
    )


NOT_KNOWN = 0  # as the time when a process started


def is_gone(pid: int, pid_started: int) -> bool:
    """Whether the process that had this pid, and started at this time (in clock ticks after boot),
    has certainly ended.

    A process that cannot be seen is not gone for that: `/proc` may be missing, or hide what belongs
    to other users.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    seen = _stat(pid)
    if seen is None or pid_started == NOT_KNOWN:
        return False
    state, started = seen
    return state in "ZX" or started != pid_started


def _started(pid: int) -> int | None:
    seen = _stat(pid)
    return None if seen is None else seen[1]


def _stat(pid: int) -> tuple[str, int] | None:
    """A process's state, and when it started, in clock ticks after boot. None where that cannot
    be seen."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _unknown() -> str:
    # Elsewhere than on Linux there are no pid namespaces, and the host's name is enough.
    return f"unknown-{uuid.uuid4().hex}" if sys.platform == "linux" else ""


def end_of(parent: int) -> int:
    """A descriptor that is readable once this parent of ours has ended; at once where it has done so already. Without
    pidfds (outside Linux) it is readable never, and the end of the parent's pipe has to do."""
    read, write = os.pipe()
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            pidfd = os.pidfd_open(parent)
            if os.getppid() == parent:  # and not another process that has got its number
                os.close(read)
                os.close(write)
                return pidfd
            os.close(pidfd)
        os.close(write)
    return read


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def resident_bytes(pid: int) -> int | None:
    """The memory that a process holds, what it shares with others included; None where that cannot be told."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used, without its children; 0 where that cannot be told."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0
