"""Makes worker processes: what a launcher is, and what it has news of.

On Linux a nursery does it, elsewhere and for libraries that start threads while they are imported each worker is spawned.
"""

import ctypes
import errno
import os
import resource  # noqa: F401  # os.wait4 imports it at the first death, when there may be no descriptor for that
import signal
import socket
import sys
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Literal, Protocol

from msgspec import Struct

from supervisors.worker.board import BoardReader

StartMethod = Literal["fork", "spawn"]
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STACKS_SIGNAL = signal.SIGUSR1  # makes a worker write down where its threads are


# What the nursery says


class Described(Struct, frozen=True, array_like=True):
    name: str
    kind: Literal["workflow", "handler"]
    queue: str
    is_async: bool
    timeout_s: float | None = None


class Loaded(Struct, frozen=True, tag=True):
    """The module is imported: what it holds, and which imports left threads behind (a fork does not copy those). As sentences:
    what all workers would share that they should not, and which annotations no call can be read by."""

    functions: tuple[Described, ...]
    threads: int
    thread_makers: tuple[str, ...]
    seconds: float
    shared: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class LoadFailed(Struct, frozen=True, tag=True):
    error: str


class Forked(Struct, frozen=True, tag=True):
    """A worker is there; with this come its pipe, its output and, where there is one, its board, as descriptors."""

    worker: int
    pid: int


class ForkFailed(Struct, frozen=True, tag=True):
    worker: int
    error: str


class Child(Struct, eq=False):
    """A worker process as the supervisor holds it."""

    worker: int
    pid: int
    sock: socket.socket
    output_fd: int
    pidfd: int
    board: BoardReader | None = None
    kind: Literal["sync", "async"] = "sync"

    def kill(self, force: bool) -> None:
        """The whole process group, so that its subprocesses go along."""
        number = signal.SIGKILL if force else signal.SIGTERM
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def dump(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, STACKS_SIGNAL)

    def reap(self) -> tuple[str | None, int | None, float, int]:
        """(signal, exit code, CPU seconds, peak memory in bytes) of a dead worker, after its group was killed with it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:  # another reaped it: its end is all that is known
            return None, None, 0.0, 0
        code = os.waitstatus_to_exitcode(status)
        cpu_s, rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        return (signal.Signals(-code).name, None, cpu_s, rss) if code < 0 else (None, code, cpu_s, rss)

    def close(self) -> None:
        self.sock.close()
        os.close(self.output_fd)
        os.close(self.pidfd)
        if self.board is not None:
            self.board.close()


class Restarted(Struct, frozen=True):
    """The nursery died and there is a new one, behind a new descriptor."""

    how: str


def why_no_process(error: OSError) -> str:
    hint = " (ulimit -u, or the pids of a control group)" if error.errno == errno.EAGAIN else ""
    return f"{error.strerror or error}{hint}"


News = Loaded | LoadFailed | ForkFailed | Restarted | Child


class Launcher(Protocol):
    """`load` first. Then `launch` asks for a worker, and `fileno` becomes readable when `read` has news of it."""

    method: StartMethod

    def load(self) -> Loaded:
        """Imports the target and says what it holds. Raises TargetError with what went wrong."""

    def launch(self, worker: int, kind: Literal["sync", "async"]) -> None: ...

    def fileno(self) -> int: ...

    def read(self) -> list[News]: ...

    def look(self) -> None:
        """Now and then: what should have answered and has not is ended, and is replaced as if it had died."""

    def reap_strangers(self, known: Container[int]) -> None:
        """Reaps dead children of this process that are neither known nor about to be: what workers started, and left to their
        reaper when they died."""

    def close(self) -> None: ...


def become_subreaper() -> None:
    """Orphaned grandchildren become this process's children. Only for a process that is a supervisor and nothing else."""
    if sys.platform == "linux":
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap_all_but(known: Callable[[int], bool]) -> None:
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or known(
            ended.si_pid
        ):  # which will be reaped in its turn, and shows the others then
            return
        with suppress(ChildProcessError):
            os.waitpid(ended.si_pid, 0)


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
