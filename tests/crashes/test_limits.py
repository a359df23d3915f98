"""Steps that get stuck, run out of something, or leave something behind."""

import os
import signal
import time
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.supervised import PIPELINE, Supervised, alive, eventually, starts, zombies

pytestmark = pytest.mark.slow

TIMEOUT_S, KILL_GRACE_S = 0.4, 1.0


@pytest.mark.parametrize("how", ["in C", "stopped"])
def test_a_step_that_no_signal_reaches_is_killed_at_its_time_limit(
    sqlite_dsn: str, tmp_path: Path, how: str, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(pipeline.stuck, str(tmp_path / "e"), how)
        others = [store.trigger(pipeline.three_steps, str(tmp_path / f"{n}"), 0.0) for n in range(10)]
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "2") as supervisor:
            stuck = eventually(lambda: starts(tmp_path / "e")[1:])[0]
            eventually(lambda: not alive(stuck.pid), what=supervisor.said)
            took_s = time.time() - stuck.at
            assert run.result(10) == "timed out"
            assert all(other.result(10) == ["first", "slow", "last"] for other in others)
        step = run.steps()[1]
        assert step.error["type"] == "builtins.TimeoutError"
        if how == "in C":
            assert "in hold_the_gil" in step.error["traceback"], "it was asked where it was"
        assert run.record().crash_count == 0
    proves(
        "a step hangs where no signal handler runs: in C with the GIL held, or stopped (SIGSTOP)",
        "its worker is killed at its `timeout`, after at most a second of grace; the workflow gets `TimeoutError`",
        charged="a retry",
        seconds=took_s,
        within=TIMEOUT_S + KILL_GRACE_S + 1.0,
    )


def test_a_step_out_of_address_space_fails_and_its_worker_goes_on(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(pipeline.limited, str(tmp_path / "e"))
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert run.result(0) == -1
        assert run.steps()[1].error["type"] == "builtins.MemoryError"
    seen = starts(tmp_path / "e")
    assert [s.step for s in seen] == ["first", "out_of_address_space", "last"]
    assert len({s.pid for s in seen}) == 1, "the same worker"
    proves("a step reaches RLIMIT_AS", "the step gets `MemoryError`, as in any process; the worker continues")


def test_an_exception_in_a_finalizer_harms_nothing(sqlite_dsn: str, tmp_path: Path, proves: Proves) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(pipeline.unruly, str(tmp_path / "e"))
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert run.result(0) == ["first", "collected", "last"]
    assert "raised while it was collected" in supervisor.said()
    assert len({s.pid for s in starts(tmp_path / "e")}) == 1
    proves(
        "`__del__` raises an exception",
        "the exception is printed with the id of its run, and nothing else happens",
    )


def test_a_child_that_holds_a_dead_workers_descriptors_hides_its_death_for_no_time(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    delays = []
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        target = f"{PIPELINE}:leaving_a_child"
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "2", target=target) as supervisor:
            for n in range(5):
                eventually(lambda: len(supervisor.workers()) == 2)
                evidence = tmp_path / f"e{n}"
                run = store.trigger(pipeline.leaving_a_child, str(evidence))
                assert run.result(10) == "last", supervisor.said()
                again = [s for s in starts(evidence) if s.step == "leave_a_child"][1]
                delays.append(again.at - float(Path(f"{evidence}.died").read_text()))
                child = int(Path(f"{evidence}.child").read_text())
                # A session of its own: no group that dies with the worker. It is whoever started it that must end it.
                os.kill(child, signal.SIGKILL)
            eventually(lambda: zombies(supervisor.pid) == 0, timeout=5, what="all who died are reaped")
    proves(
        "a worker dies and leaves a process in a session of its own that holds its descriptors",
        "the supervisor notices the death at once; that process is not killed",
        charged="the run on the CPU: one crash",
        seconds=sorted(delays)[len(delays) // 2],
        within=0.1,
    )
