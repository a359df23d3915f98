"""How the supervisor tells the death of a worker: whose SIGKILL it was."""

import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from supervisors import wire
from supervisors.births.launch import Child
from supervisors.core import events
from supervisors.loop.pipes import Pipes


class Scene:
    """Pipes with real processes for workers, on a machine where the kernel has just killed one process for want of memory."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.told: list[events.Event] = []
        self.pipes = Pipes(self.selector, self.told.append, lambda *_: None)
        self.pipes._oom._count_now = lambda: 1  # type: ignore[method-assign]
        self.pipes._oom._seen = 0
        self.ends: list[socket.socket] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def worker(self, n: int) -> int:
        """Its pid. It does not heed SIGTERM."""
        process = subprocess.Popen(
            ["sleep", "60"],
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        )
        self.processes.append(process)  # else the next one would bury it
        ours, its = socket.socketpair()
        ours.setblocking(False)
        self.ends.append(its)
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        os.close(writable)
        self.pipes.adopt(Child(n, process.pid, ours, readable, os.pidfd_open(process.pid)))
        return process.pid

    def death(self) -> events.Exited:
        while not (found := [e for e in self.told if isinstance(e, events.Exited)]):
            for key, _ in self.selector.select(10):
                key.data()
        self.told.clear()
        return found[0]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.pipes.close()
    scene.selector.close()
    for end in scene.ends:
        end.close()


def killed(scene: Scene, n: int) -> None:
    scene.pipes.kill(n, force=True)


def unreadable(scene: Scene, n: int) -> None:
    scene.ends[n - 1].send(b"no frame at all")


def unread(scene: Scene, n: int) -> None:
    for _ in range(3):
        scene.pipes.send(n, wire.Execute(1, 1, "f", "workflow", b" " * 3_000_000, 1, ()))


@pytest.mark.parametrize("kill", [killed, unreadable, unread])
def test_who_was_killed_by_us_did_not_want_memory(
    scene: Scene, kill: Callable[[Scene, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the kernel has counted is left for the one that it took."""
    monkeypatch.setattr("supervisors.loop.pipes.OUTBOX_BYTES_MAX", 5_000_000)
    scene.worker(1)
    other = scene.worker(2)
    kill(scene, 1)
    ours = scene.death()
    assert (ours.worker, ours.signal, ours.oom) == (1, "SIGKILL", False)
    os.kill(other, signal.SIGKILL)
    its = scene.death()
    assert (its.worker, its.signal, its.oom) == (2, "SIGKILL", True)


def test_a_polite_end_is_no_kill(scene: Scene) -> None:
    """Who is asked to end and is killed by another before it does was not killed by us."""
    worker = scene.worker(1)
    scene.pipes.kill(1, force=False)
    os.kill(worker, signal.SIGKILL)
    death = scene.death()
    assert (death.signal, death.oom) == ("SIGKILL", True)
