"""A step does what it can to end or to deceive its supervisor."""

import time
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import hostile_flow
from tests.crashes.conftest import Proves
from tests.crashes.supervised import Supervised, eventually

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", [way.__name__ for way in hostile_flow.WAYS])
def test_a_hostile_step_ends_its_own_worker_and_run_at_most(
    sqlite_dsn: str, tmp_path: Path, way: str, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        attack = store.trigger(hostile_flow.hostile, way, 1)
        with Supervised(
            sqlite_dsn, tmp_path / "log", "--workers", "2", target=hostile_flow.__file__
        ) as supervisor:
            eventually(lambda: attack.status != "QUEUED", 30, supervisor.said)
            rounds, longest_s = 0, 0.0
            while not attack.status.terminal or rounds < 3:
                assert rounds < 60, supervisor.said()[-3000:]
                began = time.monotonic()
                run = store.trigger(hostile_flow.innocent, rounds)
                assert run.result(20) == rounds + 2
                longest_s = max(longest_s, time.monotonic() - began)
                rounds += 1
                time.sleep(0.2)
            assert supervisor.process.poll() is None, supervisor.said()[-3000:]
        assert supervisor.process.returncode == 0, supervisor.said()[-3000:]
    said = supervisor.log.read_bytes()
    assert b"Traceback" not in said, said[-3000:]
    assert b"\x1b" not in said
    proves(
        "a step writes arbitrary bytes into its worker's pipe, output or board",
        "the supervisor survives and other runs end; the worker is killed for what it sent, with the reason in a note",
        charged="the run on the CPU: one crash each time",
        seconds=longest_s,
        within=15.0,
    )
