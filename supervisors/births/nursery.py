"""The nursery: a clean process with one thread. It imports the user's module once, calls
`gc.freeze()`, and forks each worker. No other module forks.

For each worker it forks twice, so that the worker becomes the supervisor's own child (the
supervisor is a subreaper). The supervisor then gets the worker's exit status and resource usage,
the worker's death signal is tied to the supervisor, and the death of the nursery kills no worker.
Workers share the nursery's memory and inherit no socket.
"""

import array
import errno
import gc
import importlib
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Container, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.flows import flow
from pgqrs.program import interpreter, targets
from supervisors.births.birth import (
    DEADLINE_S,
    LOOK_S,
    become_worker,
    catch_output,
    configure_logging,
    die_with,
)
from supervisors.births.inherited import Watch, refuse_patched
from supervisors.births.launch import (
    Child,
    Described,
    Forked,
    ForkFailed,
    Loaded,
    LoadFailed,
    News,
    Restarted,
    StartMethod,
    reap_all_but,
    why_no_process,
)
from supervisors.worker.board import BoardReader, new_board
from supervisors.worker.journal import CLOCKS
from supervisors.worker.lane_state import find_locals

# A fork takes milliseconds. A nursery that does not answer within this time is stopped, or hangs in
# a fork handler.
FORK_S = 10.0
# A nursery may die this often during its import, within this time.
DEATHS_MAX, DEATHS_WITHIN_S = 5, 30.0
# The least time for a repeated import. The limit is ten times the duration of the first, if that is more.
IMPORT_S = 30.0
# The time for functions that the user's module registered with atexit.
LEAVE_S = 1.0
MAIN = "supervisors.births.nursery:nursery_main"


class Order(Struct):
    """The first message to the nursery, on its standard input."""

    target: targets.Target
    supervisor: int
    payload_bytes_max: int
    sock: int


class Fork(Struct, frozen=True, tag=True):
    worker: int
    kind: Literal["sync", "async"]


class Nursery:
    """The supervisor's side of the nursery. If the nursery dies, this class starts a new one, and
    workers continue.
    """

    method: StartMethod = "fork"

    def __init__(self, target: targets.Target, payload_bytes_max: int) -> None:
        self._target = target
        self._payload_bytes_max = payload_bytes_max
        self._wanted: dict[int, Literal["sync", "async"]] = {}
        # When the nursery was asked for each of these workers.
        self._asked: dict[int, float] = {}
        self._loaded = False
        # The time limit of the next import.
        self._import_s = math.inf
        # When new nurseries died before they had loaded the target. None: no nursery has loaded it yet.
        self._deaths: list[float] | None = None
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = Order(self._target, os.getpid(), self._payload_bytes_max, theirs.fileno())
        try:
            # Not started by multiprocess, which would import dill and start a process that tracks
            # unused semaphores.
            self._process = interpreter.start(
                MAIN,
                msgspec.msgpack.encode(order),
                argv=sys.argv,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # so that Ctrl-C at the terminal does not reach it
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._sock = ours
        self._loaded = False
        self._started_at = CLOCKS.now_s()
        self._asked.clear()

    def load(self) -> Loaded:
        while True:
            for news in self.read():
                if isinstance(news, Loaded):
                    return news
                if isinstance(news, LoadFailed):
                    raise errors.TargetError(news.error)

    def launch(self, worker: int, kind: Literal["sync", "async"]) -> None:
        self._wanted[worker] = kind
        if self._loaded:
            self._ask(worker)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> list[News]:
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, 1024 * 1024, 3)
        except ConnectionResetError:  # it died before it read an order
            return self._restart()
        if not data:
            return self._restart()
        said = msgspec.msgpack.decode(data, type=Loaded | LoadFailed | Forked | ForkFailed)
        if isinstance(said, Loaded):
            self._loaded, self._deaths = True, []
            self._import_s = max(IMPORT_S, 10 * said.seconds)
            for worker in self._wanted:
                self._ask(worker)
        if not isinstance(said, Forked | ForkFailed):
            return [said]
        kind = self._wanted.pop(said.worker, "sync")
        self._asked.pop(said.worker, None)
        if isinstance(said, ForkFailed):
            return [said]
        try:
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pidfd = os.pidfd_open(said.pid)
        except OSError as e:
            # Closing them ends the worker.
            for fd in fds:
                os.close(fd)
            return [
                ForkFailed(
                    said.worker, f"the supervisor could not take its descriptors: {e.strerror} (ulimit -n)"
                )
            ]
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        os.set_blocking(fds[1], False)
        board = BoardReader(fds[2]) if len(fds) > 2 else None
        return [Child(said.worker, said.pid, sock, fds[1], pidfd, board, kind)]

    def reap_strangers(self, known: Container[int]) -> None:
        if not self._wanted:
            reap_all_but(lambda pid: pid in known or pid == self._process.pid)

    def look(self) -> None:
        now = CLOCKS.now_s()
        late = (
            self._asked and now - min(self._asked.values()) > FORK_S
            if self._loaded
            else now - self._started_at > self._import_s
        )
        if late and not select.select([self._sock], [], [], 0)[0]:
            self._process.kill()  # `read` will notice
            self._asked.clear()

    def _ask(self, worker: int) -> None:
        self._asked[worker] = CLOCKS.now_s()
        with suppress(OSError):  # the nursery is dead: `read` will notice, and ask again
            self._sock.send(msgspec.msgpack.encode(Fork(worker, self._wanted[worker])))

    def _restart(self) -> list[News]:
        before = self._loaded
        self._reap()
        if not before and not self._worth_another_try():
            return [LoadFailed(f"{self._target}: the process that imported it died ({self._ended})")]
        self._start()
        return [Restarted(self._ended)]

    def _worth_another_try(self) -> bool:
        """Whether to start another nursery. If the import has succeeded before, it is repeated,
        unless it fails again and again.
        """
        if self._deaths is None:
            return False
        now = CLOCKS.now_s()
        self._deaths = [d for d in self._deaths if now - d < DEATHS_WITHIN_S] + [now]
        return len(self._deaths) <= DEATHS_MAX

    def _reap(self) -> None:
        self._sock.close()
        # Not `join`, which waits for the end of a pipe that every forked worker has inherited.
        for _ in range(int(DEADLINE_S / LOOK_S)):
            if (code := self._process.poll()) is not None:
                break
            time.sleep(LOOK_S)
        self._ended = (
            f"killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"exit code {code}"
        )

    def close(self) -> None:
        """Ends the nursery as a program ends, so that the atexit functions of its module are
        called.
        """
        self._sock.close()
        if self._loaded:
            for _ in range(int(LEAVE_S / LOOK_S)):
                if self._process.poll() is not None:
                    return
                time.sleep(LOOK_S)
        self._process.kill()
        self._reap()


# Inside the nursery


def nursery_main() -> None:
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sock = socket.socket(fileno=order.sock)
    os.set_inheritable(order.sock, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(order.supervisor)
    catch_output()
    began = CLOCKS.now_s()
    watch = Watch()
    try:
        definitions = {d.name: d for d in targets.load(order.target)}
        refuse_patched()
    except errors.PgqrsError as e:
        with suppress(ConnectionError):
            sock.send(msgspec.msgpack.encode(LoadFailed(str(e))))
        return
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    described = tuple(
        Described(d.name, d.kind, d.queue, d.is_async, d.timeout_s) for d in definitions.values()
    )
    threads, makers = watch.threads()
    unknown = tuple(sentence for d in definitions.values() for sentence in d.signature.unknown())
    loaded = Loaded(described, threads, makers, CLOCKS.now_s() - began, watch.shared(), unknown)
    interpreter.hide_dsn()
    configure_logging()
    if any(d.is_async for d in definitions.values()):
        with interpreter.ours():
            # imported once here instead of in every worker
            importlib.import_module("supervisors.worker.async_worker")
    # The user's handler, or SIG_IGN, would reap the nursery's own children.
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.collect()
    find_locals()
    # Excludes the current objects from garbage collection, which would copy each of their memory pages.
    gc.freeze()
    with suppress(ConnectionError):  # the supervisor is dead, or has closed the socket
        sock.send(msgspec.msgpack.encode(loaded))
        _fork_as_ordered(sock, definitions, order, on_child)


def _fork_as_ordered(
    sock: socket.socket, definitions: dict[str, flow.Definition], order: Order, on_child: Any
) -> None:
    """Forks a worker for each order, until the supervisor is gone. Then raises ConnectionError. If
    a worker was forked at that moment, it ends by itself.
    """
    for fork in _orders(sock):
        try:
            _fork_worker(sock, fork, definitions, order, on_child)
        except ConnectionError:
            raise
        except OSError as e:
            sock.send(msgspec.msgpack.encode(ForkFailed(fork.worker, why_no_process(e))))


def _orders(sock: socket.socket) -> Iterator[Fork]:
    while data := sock.recv(65536):
        yield msgspec.msgpack.decode(data, type=Fork)


def _fork_worker(
    nursery: socket.socket,
    fork: Fork,
    definitions: dict[str, flow.Definition],
    order: Order,
    on_child: Any,
) -> None:
    with ExitStack() as held:
        theirs, ours = (held.enter_context(s) for s in socket.socketpair())
        out_read, out_write = os.pipe()
        board_fd = new_board()
        kept = [theirs.fileno(), out_read] + ([] if board_fd is None else [board_fd])
        for fd in (out_write, *kept[1:]):
            held.callback(os.close, fd)
        pid = _fork_twice()
        if pid == 0:
            try:
                for fd in (theirs.fileno(), nursery.fileno(), out_read):
                    os.close(fd)
                if on_child is not None:
                    signal.signal(signal.SIGCHLD, on_child)
                become_worker(
                    ours,
                    out_write,
                    fork.kind,
                    definitions,
                    order.supervisor,
                    order.payload_bytes_max,
                    board_fd,
                )
            finally:
                os._exit(70)
        nursery.sendmsg(
            [msgspec.msgpack.encode(Forked(fork.worker, pid))],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", kept).tobytes())],
        )


def _fork_twice() -> int:
    """Forks a process that becomes the supervisor's child. Returns its pid in the nursery, and 0 in
    the new process. Raises OSError if a fork failed.
    """
    told_read, told_write = os.pipe()
    with os.fdopen(told_read, "rb") as told:
        with os.fdopen(told_write, "wb", buffering=0) as tell:
            between = os.fork()
            if between == 0:
                try:
                    pid = os.fork()
                except OSError as e:
                    pid = -(e.errno or errno.EAGAIN)
                if pid == 0:
                    return 0
                try:
                    tell.write(pid.to_bytes(8, "big", signed=True))
                finally:
                    os._exit(0)
        os.waitpid(between, 0)
        answer = told.read(8)
    if not answer:
        raise OSError(
            "it died in the fork itself; does the module run something there (os.register_at_fork)?"
        )
    pid = int.from_bytes(answer, "big", signed=True)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid
