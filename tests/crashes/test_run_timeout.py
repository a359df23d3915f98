"""The time of a whole run, and of one delivery, with real workers."""

import time
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import limited
from tests.crashes.conftest import Proves
from tests.crashes.supervised import Supervised, connected, eventually, starts

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.backends("sqlite", "postgres")]

TARGET = str(Path(limited.__file__))
LIMIT_S = 0.6  # of those runs


@pytest.fixture
def supervised(dsn: str, tmp_path: Path):
    with connected(dsn) as store:
        store.install()
        with Supervised(dsn, tmp_path / "log", "--workers", "1", target=TARGET):
            yield store


def test_a_run_over_its_time_is_ended_and_one_within_it_is_not(
    supervised, tmp_path: Path, proves: Proves
) -> None:
    late_s = 0.0
    for flow in (limited.limited, limited.limited_async):
        within, beyond = tmp_path / f"in-{flow.__name__}", tmp_path / f"over-{flow.__name__}"
        assert supervised.trigger(flow, str(within), [0.05, 0.05]).result(20) == "done"
        began = time.monotonic()
        handle = supervised.trigger(flow, str(beyond), [0.05, 0.05, 30.0])
        with pytest.raises(pgqrs.RunFailedError, match=r"over its time limit of 0\.6 s"):
            handle.result(20)
        late_s = max(late_s, time.monotonic() - began - LIMIT_S)
        assert len(starts(beyond)) == 3, "it has no other try"
        assert handle.record().error["code"] == "TIMEOUT"
    proves(
        "a run exceeds its own `timeout` in a step",
        "the run ends there in ERROR with a TimeoutError, whatever tries the step has left; its message is dead",
        seconds=late_s,
        within=4.0,
    )


def test_the_stacks_of_a_run_killed_at_its_time_are_kept(supervised, tmp_path: Path, proves: Proves) -> None:
    handle = supervised.trigger(limited.limited, str(tmp_path / "e"), [30.0])
    with pytest.raises(pgqrs.RunFailedError):
        handle.result(20)
    assert "in sleep" in handle.record().error["traceback"]
    assert handle.record().crash["cause"] == "timeout"
    proves(
        "a run exceeds its own `timeout`, and its step must be killed",
        "its worker gets SIGTERM, and SIGKILL a second later; the stacks of its threads are recorded",
    )


def test_a_pause_beyond_the_runs_time_ends_with_it(supervised, tmp_path: Path, proves: Proves) -> None:
    began = time.monotonic()
    handle = supervised.trigger(limited.limited_pause, str(tmp_path / "e"), 3600.0)
    with pytest.raises(pgqrs.RunFailedError, match="time limit"):
        handle.result(20)
    late_s = time.monotonic() - began - LIMIT_S
    proves(
        "a run exceeds its own `timeout` while it is paused or waits for a retry",
        "a supervisor claims the run at that time and ends it, without a worker",
        seconds=late_s,
        within=4.0,
    )


def test_another_life_has_its_own_time(supervised, tmp_path: Path, proves: Proves) -> None:
    evidence = tmp_path / "e"
    handle = supervised.trigger(limited.limited, str(evidence), [0.01, 0.8])
    with pytest.raises(pgqrs.RunFailedError):
        handle.result(20)
    time.sleep(0.6)
    supervised.replay(handle.id)
    with pytest.raises(pgqrs.RunFailedError, match="time limit"):
        handle.result(20)
    assert len(starts(evidence)) == 3, "the first step was not taken again, and the second was"
    proves(
        "a run that exceeded its own `timeout` is replayed (`pgqrs replay`)",
        "the run continues after its last recorded step, with its full time",
    )


def test_a_delivery_over_its_time_is_delivered_again(supervised, tmp_path: Path, proves: Proves) -> None:
    evidence = tmp_path / "e"
    supervised.enqueue("limited-tasks", {"evidence": str(evidence)})
    eventually(lambda: evidence.exists() and len(evidence.read_text().splitlines()) >= 2)
    proves(
        "a delivery of a message exceeds its handler's `timeout`",
        "its worker is killed; the message is delivered again after a back-off, up to `max_read_ct` deliveries, and is dead then",
        charged="a delivery",
    )
