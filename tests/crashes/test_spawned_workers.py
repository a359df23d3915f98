"""Workers that are spawned instead of forked, as where there is no fork: the same promises, each worker an interpreter of its own."""

import errno
import os
import signal
from pathlib import Path

import pytest

import pgqrs
from pgqrs.program.targets import Source, Target
from supervisors.births.launch import ForkFailed
from supervisors.births.spawning import SpawnLauncher
from tests.crashes import pipeline
from tests.crashes.supervised import Supervised, alive, eventually, kill, starts

pytestmark = [pytest.mark.slow, pytest.mark.processes]

SPAWN = ("--start-method", "spawn", "--workers", "2")


def test_a_spawned_worker_that_dies_is_replaced_and_its_run_goes_on(sqlite_dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        others = [store.trigger(pipeline.three_steps, str(tmp_path / f"{n}"), 0.0) for n in range(10)]
        with Supervised(sqlite_dsn, tmp_path / "log", *SPAWN, "--burst") as supervisor:
            [_, begun] = eventually(lambda: (s := starts(tmp_path / "e"))[1:] and s)
            kill(begun.pid)
            assert run.result(20) == ["first", "slow", "last"]
            assert supervisor.wait(20) == 0, supervisor.said()
        again = starts(tmp_path / "e")
        assert [s.step for s in again] == ["first", "slow", "slow", "last"]
        assert again[2].pid != begun.pid
        assert all(other.result(0) == ["first", "slow", "last"] for other in others)
        assert run.steps()[1].crash["signal"] == "SIGKILL"
    assert "start method spawn" in supervisor.said()
    assert not any(alive(s.pid) for s in again)


def test_spawned_workers_drain(sqlite_dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        run = store.trigger(pipeline.long_run, str(tmp_path / "e"), 1.0)
        with Supervised(sqlite_dsn, tmp_path / "log", *SPAWN) as supervisor:
            eventually(lambda: len(starts(tmp_path / "e")) == 2)
            supervisor.signal(signal.SIGTERM)
            assert supervisor.wait(20) == 0, supervisor.said()
        assert run.result(0) == "last"


def test_a_worker_that_cannot_be_spawned_is_told_and_leaves_nothing(monkeypatch) -> None:
    def refused(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    launcher = SpawnLauncher(Target((Source(pipeline.__name__),)), 1000)
    try:
        monkeypatch.setattr("subprocess._fork_exec", refused)
        before = os.listdir("/proc/self/fd")
        launcher.launch(2, "sync")
        [told] = launcher.read()
        assert isinstance(told, ForkFailed)
        assert told.worker == 2
        assert "Resource temporarily unavailable (ulimit -u" in told.error
        assert os.listdir("/proc/self/fd") == before
    finally:
        launcher.close()
