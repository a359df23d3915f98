"""Maps whose programs, supervisors and workers are killed: each item is recorded once, in its place."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import Supervised, eventually
from tests.maps import mapped

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.backends("sqlite", "postgres")]

ITEMS = 300


def bodies(evidence: Path) -> Counter[int]:
    return Counter(map(int, evidence.read_text().split())) if evidence.exists() else Counter()


def test_a_program_that_is_killed_and_run_again_does_nothing_twice(dsn: str, tmp_path: Path) -> None:
    """Only what was on a CPU repeats."""
    command = [sys.executable, "-m", "tests.maps.mapped", dsn, str(tmp_path)]
    kills = 0
    for upto in (40, 120, 220):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
            eventually(lambda upto=upto: len(bodies(tmp_path / "evidence")) >= upto)
            os.kill(program.pid, signal.SIGKILL)
        kills += 1
    last = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert last.returncode == 0, last.stderr
    assert last.stdout.endswith("done\n")
    ran = bodies(tmp_path / "evidence")
    assert set(ran) == set(range(ITEMS))
    # A result that was not recorded yet repeats as well: a supervisor gathers for a tenth of a second.
    assert sum(ran.values()) - ITEMS <= kills * 2 * 15, ran.most_common(5)


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_random_kills_lose_no_item_and_record_none_twice(dsn: str, tmp_path: Path, victim: str) -> None:
    rng = random.Random(victim)
    evidence = tmp_path / "evidence"
    options = ("--workers", "2", "--lease", "2s")

    def supervised(n: int) -> Supervised:
        return Supervised(dsn, tmp_path / f"log{n}", *options, target=str(Path(mapped.__file__)))

    with pgqrs.connect(dsn) as store:
        store.install()
        items = [(n, str(evidence), 0.01) for n in range(ITEMS)]
        job = store.starmap(mapped.noted, items)
        supervisors = [supervised(0)]
        kills = 0
        try:
            began = time.monotonic()
            while not job.progress.is_over:
                assert time.monotonic() - began < 60, (job.progress, supervisors[-1].said())
                time.sleep(rng.uniform(0.1, 0.3))
                if victim == "worker":
                    for pid in supervisors[-1].workers()[-1:]:
                        _kill(pid)
                        kills += 1
                elif kills < 6:
                    supervisors[-1].process.kill()
                    supervisors[-1].wait()
                    supervisors.append(supervised(len(supervisors)))
                    kills += 1
                    eventually(lambda: job.progress.is_over or len(supervisors[-1].workers()) >= 2)
            assert [o.value for o in job.outcomes()] == [n * n for n in range(ITEMS)]
            assert sorted(o.index for o in job) == list(range(ITEMS))
        finally:
            for supervisor in supervisors:
                supervisor.__exit__()
        assert store.messages is not None
    ran = bodies(evidence)
    assert set(ran) == set(range(ITEMS))
    if victim == "worker":
        assert sum(ran.values()) - ITEMS <= kills, "a kill repeats the item that was on the CPU"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
