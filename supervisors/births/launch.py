"""Creates worker processes: the interface of a launcher, and the news that it reports.

On Linux a nursery forks workers. On other systems, and for libraries that start threads during
their import, each worker is spawned.
"""

import ctypes
import errno
import os

# os.wait4 imports it at the first death of a worker, when no descriptor may be left for the import.
import resource  # noqa: F401
import signal
import socket
import sys
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Literal, Protocol

from msgspec import Struct

from pgqrs.model.states import Kind
from supervisors.worker.board import BoardReader

StartMethod = Literal["fork", "spawn"]
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Makes a worker print the stacks of its threads.
STACKS_SIGNAL = signal.SIGUSR1


# Messages from the nursery


class Described(Struct, frozen=True, array_like=True):
    name: str
    kind: Kind
    queue: str
    is_async: bool
    timeout_s: float | None = None


class Loaded(Struct, frozen=True, tag=True):
    """News: the target was imported. The message has its functions. It also names the imports that
    left threads behind, because a fork does not copy threads. `shared` and `unknown` are warnings:
    objects that all workers would share, and annotations that cannot be resolved.
    """

    functions: tuple[Described, ...]
    threads: int
    thread_makers: tuple[str, ...]
    seconds: float
    shared: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class LoadFailed(Struct, frozen=True, tag=True):
    error: str


class Forked(Struct, frozen=True, tag=True):
    """News: a worker was forked. The message carries three descriptors of the worker: its pipe, its
    output and, if there is one, its board.
    """

    worker: int
    pid: int


class ForkFailed(Struct, frozen=True, tag=True):
    worker: int
    error: str


class Child(Struct, eq=False):
    """A worker process, as the supervisor handles it."""

    worker: int
    pid: int
    sock: socket.socket
    output_fd: int
    pidfd: int
    board: BoardReader | None = None
    kind: Literal["sync", "async"] = "sync"

    def kill(self, force: bool) -> None:
        """Kills the whole process group, including subprocesses."""
        number = signal.SIGKILL if force else signal.SIGTERM
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def dump(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, STACKS_SIGNAL)

    def reap(self) -> tuple[str | None, int | None, float, int]:
        """Reaps a dead worker and kills the rest of its group. Returns (signal, exit code, CPU
        seconds, peak memory in bytes).
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            # Another process reaped it. Nothing is known except that it ended.
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
    """News: the nursery died, and a new one was started. The new nursery has a new descriptor."""

    how: str


def why_no_process(error: OSError) -> str:
    hint = " (ulimit -u, or the pids of a control group)" if error.errno == errno.EAGAIN else ""
    return f"{error.strerror or error}{hint}"


News = Loaded | LoadFailed | ForkFailed | Restarted | Child


class Launcher(Protocol):
    """Creates worker processes. Call `load` first. After `launch`, `fileno` becomes readable when
    `read` has news.
    """

    method: StartMethod

    def load(self) -> Loaded:
        """Imports the target, and returns its functions. Raises TargetError with the cause."""

    def launch(self, worker: int, kind: Literal["sync", "async"]) -> None: ...

    def fileno(self) -> int: ...

    def read(self) -> list[News]: ...

    def look(self) -> None:
        """Ends a helper process that should have answered by now, and replaces it as if it had
        died. The loop calls this regularly.
        """

    def reap_strangers(self, known: Container[int]) -> None:
        """Reaps dead children of this process that are neither in `known` nor new workers. A worker
        started them, and they became children of this process when the worker died.
        """

    def close(self) -> None: ...


def become_subreaper() -> None:
    """Makes the kernel give this process the orphans among its descendants as children. Call it
    only in a process that does nothing but supervise.
    """
    if sys.platform == "linux":
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap_all_but(known: Callable[[int], bool]) -> None:
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        # A known process is reaped by its owner, and the other dead ones become visible then.
        if ended is None or known(ended.si_pid):
            return
        with suppress(ChildProcessError):
            os.waitpid(ended.si_pid, 0)


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
