"""Workers without a nursery: each a fresh interpreter. For systems without fork, and libraries that do not survive one."""

import os
import socket
import sys
from collections.abc import Container
from contextlib import ExitStack
from typing import Any, Literal

from pgqrs import targets
from supervisors.birth import become_worker, catch_output, configure_logging
from supervisors.launch import (
    Child,
    ForkFailed,
    Loaded,
    News,
    StartMethod,
    reap_all_but,
    why_no_process,
)
from supervisors.nursery import Nursery


class SpawnLauncher:
    """Each worker a fresh interpreter that imports the target by itself."""

    method: StartMethod = "spawn"

    def __init__(self, target: targets.Target, payload_bytes_max: int) -> None:
        self._target = target
        self._payload_bytes_max = payload_bytes_max
        self._news: list[News] = []
        self._wake_read, self._wake_write = os.pipe()

    def load(self) -> Loaded:
        nursery = Nursery(self._target, self._payload_bytes_max)
        try:
            return nursery.load()
        finally:
            nursery.close()

    def launch(self, worker: int, kind: Literal["sync", "async"]) -> None:
        try:
            self._news.append(self._spawn(worker, kind))
        except OSError as e:
            self._news.append(ForkFailed(worker, why_no_process(e)))
        os.write(self._wake_write, b".")

    def _spawn(self, worker: int, kind: Literal["sync", "async"]) -> Child:
        from multiprocess import get_context
        from multiprocess.connection import Connection

        with ExitStack() as unless_born:
            ours, theirs = socket.socketpair()
            unless_born.callback(ours.close)
            out_read, out_write = os.pipe()
            unless_born.callback(os.close, out_read)
            with Connection(theirs.detach()) as pipe, Connection(out_write, readable=False) as output:
                process = get_context("spawn").Process(
                    target=spawned_main,
                    args=(pipe, output, self._target, kind, os.getpid(), self._payload_bytes_max),
                    daemon=True,
                )
                with _importable_main():
                    process.start()
            ours.setblocking(False)
            os.set_blocking(out_read, False)
            assert process.pid is not None
            child = Child(worker, process.pid, ours, out_read, os.pidfd_open(process.pid))
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


class _importable_main:
    """A spawned child imports the parent's `__main__` again, which for us is a command line it has no use for."""

    def __enter__(self) -> None:
        self._main = sys.modules["__main__"]
        sys.modules["__main__"] = type(sys)("__main__")

    def __exit__(self, *_: object) -> None:
        sys.modules["__main__"] = self._main


def spawned_main(
    sock: Any,
    output: Any,
    target: targets.Target,
    kind: Literal["sync", "async"],
    supervisor: int,
    payload_bytes_max: int,
) -> None:
    pipe = socket.socket(fileno=os.dup(sock.fileno()))
    sock.close()
    out = os.dup(output.fileno())
    output.close()
    catch_output()
    definitions = {d.name: d for d in targets.load(target)}
    configure_logging()
    become_worker(pipe, out, kind, definitions, supervisor, payload_bytes_max)
