"""Identifies this supervisor so that another one on the same host can check whether it is alive."""

import os
import socket
import sys
import uuid
from contextlib import suppress
from pathlib import Path

from pgqrs.store.store import Identity


def own_identity() -> Identity:
    """Returns this supervisor's identity. Its name is new at each start, because a restarted
    supervisor is another supervisor.

    If Linux does not reveal the boot or the pid namespace (no `/proc`), this supervisor counts as
    on a host of its own: pids of other supervisors may belong to other namespaces.
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


# An unknown start time of a process.
NOT_KNOWN = 0


def is_gone(pid: int, pid_started: int) -> bool:
    """Whether the process with this pid and this start time (in clock ticks since boot) has
    certainly ended.

    A process that cannot be seen counts as alive: `/proc` may be missing, or may hide processes of
    other users.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it belongs to another user
    seen = _stat(pid)
    if seen is None or pid_started == NOT_KNOWN:
        return False
    state, started = seen
    return state in "ZX" or started != pid_started


def _started(pid: int) -> int | None:
    seen = _stat(pid)
    return None if seen is None else seen[1]


def _stat(pid: int) -> tuple[str, int] | None:
    """Returns a process's state and its start time in clock ticks since boot, or None if unknown."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _unknown() -> str:
    # Other systems than Linux have no pid namespaces, and the host's name is enough.
    return f"unknown-{uuid.uuid4().hex}" if sys.platform == "linux" else ""


def end_of(parent: int) -> int:
    """Returns a descriptor that becomes readable when this parent process ends, or if it has ended
    already. Without pidfds (outside Linux) the descriptor never becomes readable, and the
    supervisor depends on the end of the parent's pipe.
    """
    read, write = os.pipe()
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            pidfd = os.pidfd_open(parent)
            # It is not another process with the same number.
            if os.getppid() == parent:
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
    """Returns the memory that a process holds, including shared memory, or None if unknown."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that a process has used, without its children, or 0 if unknown."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0
