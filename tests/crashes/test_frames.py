"""What comes through a worker's pipe is cut short at any byte, or is no frame at all."""

import os
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import torn_flow
from tests.crashes.conftest import Proves
from tests.crashes.supervised import Supervised, starts

pytestmark = pytest.mark.slow

LAST_BYTE = 340  # beyond all that the run sends after its first step
EVERY = int(os.environ.get("PGQRS_TEST_TORN_EVERY", "7"))  # bytes; 1 for each of them


FLOWS = {
    "a board": torn_flow.__file__,
    "no board": str(Path(torn_flow.__file__).with_name("torn_without_board.py")),
}


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest) -> str:
    return FLOWS[request.param]


def test_a_frame_may_be_torn_at_any_byte(sqlite_dsn: str, tmp_path: Path, flow: str, proves: Proves) -> None:
    offsets = [*range(0, LAST_BYTE, EVERY), LAST_BYTE]
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        runs = [store.trigger(torn_flow.torn, str(tmp_path / f"{n}"), n) for n in offsets]
        options = ("--workers", "2", "--lanes", "1", "--burst")
        target = f"{flow}:torn"
        with Supervised(sqlite_dsn, tmp_path / "log", *options, target=target) as supervisor:
            assert supervisor.wait(100) == 0, supervisor.said()
        assert "Traceback" not in supervisor.said(), supervisor.said()
        deaths = 0
        for n, run in zip(offsets, runs, strict=True):
            assert run.result(0) == ["begun", "went on"]
            seen = [s.step for s in starts(tmp_path / f"{n}")]
            assert seen == sorted(seen), "no step after a later one"
            sent = len((tmp_path / f"{n}.sent").read_text())
            assert seen.count("begin") == (1 if sent else 2), f"{n} bytes: what came whole is recorded"
            assert seen.count("go_on") <= 2 - (sent > 1), f"{n} bytes: what came whole is recorded"
            deaths += (tmp_path / f"{n}.sent.died").exists()
        assert not (tmp_path / f"{offsets[-1]}.sent.died").exists(), "to the very end of what it sends"
    assert deaths > len(offsets) * 0.2
    proves(
        "a worker dies in the middle of a frame, at any byte",
        "whole frames before it count, and the steps recorded by them do not run again; the torn frame is dropped",
        charged="the run on the CPU, if there was one: one crash",
    )


@pytest.mark.parametrize("what", torn_flow.GARBAGE)
def test_a_worker_that_sends_garbage_is_killed_and_its_run_goes_on(
    sqlite_dsn: str, tmp_path: Path, what: str, flow: str, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(torn_flow.babbling, str(tmp_path / "e"), what)
        target = f"{flow}:babbling"
        with Supervised(
            sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst", target=target
        ) as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert run.result(0) == what
        assert run.steps()[1].crash_count == 1
    assert [s.step for s in starts(tmp_path / "e")] == ["go_on", "babble", "babble"]
    assert "Traceback" not in supervisor.said(), supervisor.said()
    proves(
        "a worker sends bytes that are no frame",
        "the worker is killed; its run continues after its last checkpoint",
        charged="the run on the CPU: one crash",
    )
