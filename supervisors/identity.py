"""Who this supervisor is, in terms that another one on the same host can check."""

import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path

from pgqrs.store.store import Identity


def own_identity() -> Identity:
    """The name is new each time: a restarted supervisor is another one."""
    host = socket.gethostname()
    return Identity(
        name=f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        host=host,
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        pid_ns=_link("/proc/self/ns/pid"),
        pid=os.getpid(),
        pid_started=started(os.getpid()) or 0,
    )


def started(pid: int) -> int | None:
    """When a process started, in clock ticks after boot: with the pid it names one process. None: there is none, or it
    is only a zombie."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


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
