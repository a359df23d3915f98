"""Workers without a nursery: each a fresh interpreter. For systems without fork, and libraries that do not survive one."""

import os
import socket
import sys
from collections.abc import Container
from typing import Any, Literal

from pgqrs import targets
from supervisors.birth import become_worker, catch_output, configure_logging
from supervisors.launch import Child, Loaded, News, StartMethod, reap_all_but
from supervisors.nursery import Nursery


class SpawnLauncher:
    """Each worker a fresh interpreter that imports the target by itself."""

    method: StartMethod = "spawn"

    def __init__(self, target: targets.Target, payload_bytes_max: int) -> None:
        self._target = target
        self._payload_bytes_max = payload_bytes_max
        self._born: list[News] = []
        self._wake_read, self._wake_write = os.pipe()

    def load(self) -> Loaded:
        nursery = Nursery(self._target, self._payload_bytes_max)
        try:
            return nursery.load()
        finally:
            nursery.close()

    def launch(self, worker: int, kind: Literal["sync", "async"]) -> None:
        from multiprocess import get_context
        from multiprocess.connection import Connection

        ours, theirs = socket.socketpair()
        out_read, out_write = os.pipe()
        carried = Connection(theirs.detach()), Connection(out_write, readable=False)
        process = get_context("spawn").Process(
            target=spawned_main,
            args=(*carried, self._target, kind, os.getpid(), self._payload_bytes_max),
            daemon=True,
        )
        with _importable_main():
            process.start()
        for c in carried:
            c.close()
        ours.setblocking(False)
        os.set_blocking(out_read, False)
        assert process.pid is not None
        self._born.append(Child(worker, process.pid, ours, out_read, os.pidfd_open(process.pid)))
        os.write(self._wake_write, b".")

    def fileno(self) -> int:
        return self._wake_read

    def read(self) -> list[News]:
        os.read(self._wake_read, 4096)
        born, self._born = self._born, []
        return born

    def reap_strangers(self, known: Container[int]) -> None:
        if not self._born:
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
