"""Workers without a nursery: each worker is a fresh interpreter. This serves systems without fork,
and libraries that do not survive a fork.
"""

import os
import socket
import sys
from collections.abc import Container
from contextlib import ExitStack
from typing import Literal

import msgspec
from msgspec import Struct

from pgqrs.program import interpreter, targets
from supervisors.births.birth import become_worker, catch_output, configure_logging
from supervisors.births.launch import (
    Child,
    ForkFailed,
    Loaded,
    News,
    StartMethod,
    reap_all_but,
    why_no_process,
)
from supervisors.births.nursery import Nursery

MAIN = "supervisors.births.spawning:spawned_main"


class Order(Struct):
    """The first message to a spawned worker, on its standard input. `sock` and `output` are
    descriptors.
    """

    target: targets.Target
    kind: Literal["sync", "async"]
    supervisor: int
    payload_bytes_max: int
    sock: int
    output: int


class SpawnLauncher:
    """Starts each worker as a fresh interpreter that imports the target itself."""

    method: StartMethod = "spawn"

    def __init__(self, target: targets.Target, payload_bytes_max: int) -> None:
        self._target = target
        self._payload_bytes_max = payload_bytes_max
        self._news: list[News] = []
        self._wake_read, self._wake_write = os.pipe()

    def load(self) -> Loaded:
        """Imports the target. Threads and shared objects are not reported, because no worker is forked."""
        nursery = Nursery(self._target, self._payload_bytes_max)
        try:
            return msgspec.structs.replace(nursery.load(), threads=0, thread_makers=(), shared=())
        finally:
            nursery.close()

    def launch(self, worker: int, kind: Literal["sync", "async"]) -> None:
        try:
            self._news.append(self._spawn(worker, kind))
        except OSError as e:
            self._news.append(ForkFailed(worker, why_no_process(e)))
        os.write(self._wake_write, b".")

    def _spawn(self, worker: int, kind: Literal["sync", "async"]) -> Child:
        with ExitStack() as unless_born, ExitStack() as in_any_case:
            ours, theirs = socket.socketpair()
            unless_born.callback(ours.close)
            in_any_case.callback(theirs.close)
            out_read, out_write = os.pipe()
            unless_born.callback(os.close, out_read)
            in_any_case.callback(os.close, out_write)
            fds = theirs.fileno(), out_write
            order = Order(self._target, kind, os.getpid(), self._payload_bytes_max, *fds)
            process = interpreter.start(MAIN, msgspec.msgpack.encode(order), argv=sys.argv, pass_fds=fds)
            # A placeholder: `Child.reap` waits for the process, not this object, which is
            # dropped here.
            process.returncode = 0
            ours.setblocking(False)
            os.set_blocking(out_read, False)
            child = Child(worker, process.pid, ours, out_read, os.pidfd_open(process.pid), kind=kind)
            unless_born.pop_all()
        return child

    def fileno(self) -> int:
        return self._wake_read

    def read(self) -> list[News]:
        os.read(self._wake_read, 4096)
        news, self._news = self._news, []
        return news

    def reap_strangers(self, known: Container[int]) -> None:
        if not self._news:
            reap_all_but(known.__contains__)

    def look(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)


def spawned_main() -> None:
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    for fd in (order.sock, order.output):
        os.set_inheritable(fd, False)
    catch_output()
    definitions = {d.name: d for d in targets.load(order.target)}
    interpreter.hide_dsn()
    configure_logging()
    become_worker(
        socket.socket(fileno=order.sock),
        order.output,
        order.kind,
        definitions,
        order.supervisor,
        order.payload_bytes_max,
    )
