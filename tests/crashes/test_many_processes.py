"""A step that forks without end, and so do its children: in a control group with few processes."""

from pathlib import Path

import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.control_groups import ProcessesGroup
from tests.crashes.supervised import Supervised, starts

pytestmark = pytest.mark.slow

PROCESSES_MAX = 80


def test_a_step_that_forks_without_end_is_ended_with_all_that_it_forked(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store, ProcessesGroup(PROCESSES_MAX) as group:
        store.install()
        run = store.trigger(pipeline.multiplying, str(tmp_path / "e"))
        others = [store.trigger(pipeline.three_steps, str(tmp_path / f"{n}"), 0.01) for n in range(10)]
        options = ("--workers", "2", "--burst")
        with Supervised(sqlite_dsn, tmp_path / "log", *options, within=group.within) as supervisor:
            assert supervisor.wait(60) == 0, supervisor.said()
        assert run.result(0) == ["first", "stopped", "last"], supervisor.said()
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "multiply", "last"]
        assert "Traceback" not in supervisor.said(), supervisor.said()
        assert all(other.result(0) == ["first", "slow", "last"] for other in others)
        assert all(other.record().crash_count == 0 for other in others)
    # And nothing that it forked is left: a group with a process in it cannot be removed.
    proves(
        "a step forks without end, and so do its children, until no more processes are allowed",
        "the step is killed at its time limit with all that it forked, as a TimeoutError; the supervisor and the other runs continue",
        charged="nobody",
    )
