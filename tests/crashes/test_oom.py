"""The kernel's out-of-memory killer takes a worker: a control group with little memory, and a step that wants much."""

from pathlib import Path

import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.control_groups import MemoryGroup
from tests.crashes.supervised import Supervised, starts

pytestmark = pytest.mark.slow

GROUP_BYTES = 400_000_000
GREED_BYTES = 2_000_000_000


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_named_so(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store, MemoryGroup(GROUP_BYTES) as group:
        store.install()
        run = store.trigger(pipeline.greedy_run, str(tmp_path / "e"), GREED_BYTES, 1)
        others = [store.trigger(pipeline.three_steps, str(tmp_path / f"{n}"), 0.01) for n in range(10)]
        options = ("--workers", "2", "--burst")
        with Supervised(sqlite_dsn, tmp_path / "log", *options, within=group.within) as supervisor:
            assert supervisor.wait(60) == 0, supervisor.said()
        assert run.result(0) == ["first", "satisfied", "last"]
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "greedy", "greedy", "last"]
        step = run.steps()[1]
        assert (step.crash["cause"], step.crash["signal"], step.crash_count) == ("oom", "SIGKILL", 1)
        assert "was killed by the kernel for want of memory" in supervisor.said()
        assert "Traceback" not in supervisor.said(), supervisor.said()
        assert all(other.result(0) == ["first", "slow", "last"] for other in others)
        assert all(other.record().crash_count == 0 for other in others)
    proves(
        "a control group is out of memory, and the kernel's out-of-memory killer kills a worker",
        "the kernel kills a worker rather than the supervisor; the record names the lack of memory; the run continues after its last checkpoint",
        charged="the run on the CPU: one crash",
    )


def test_a_step_that_is_always_too_greedy_is_given_up_and_the_reason_says_why(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store, MemoryGroup(GROUP_BYTES) as group:
        store.install()
        run = store.trigger(pipeline.greedy_run, str(tmp_path / "e"), GREED_BYTES, 100)
        options = ("--workers", "1", "--burst")
        with Supervised(sqlite_dsn, tmp_path / "log", *options, within=group.within) as supervisor:
            assert supervisor.wait(60) == 0, supervisor.said()
        assert [s.step for s in starts(tmp_path / "e")] == ["first", *["greedy"] * 5]
        assert run.record().error["code"] == "CRASHED"
        assert "by the kernel for want of memory" in run.record().error["message"]
    proves(
        "the kernel's out-of-memory killer kills a run's workers five times without a checkpoint in between",
        "the run ends in ERROR, and the reason names the memory",
    )
