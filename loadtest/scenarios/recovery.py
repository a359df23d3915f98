"""`kill -9` of a worker that is in a step: how long until the step's body starts again, in another
worker.
"""

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pgqrs
from loadtest import ours
from loadtest.bench import FUNCTIONS, Bench, wait_until
from loadtest.functions import killed
from loadtest.scenario import Aim, Measure, Scenario

# The aim: resumed within 100 ms if a worker is free.
P99_MS = 100.0


def scenarios(bench: Bench) -> Iterator[Scenario]:
    n = bench.count(100)
    found: list[float] = []

    def p50() -> float:
        found[:] = _times(bench.postgres(), n)
        return statistics.median(found) * 1000

    sides: dict[str, Measure] = {
        "pgqrs, p50": p50,
        "pgqrs, p99": lambda: statistics.quantiles(found, n=100, method="inclusive")[98] * 1000,
    }
    name = f"kill -9 of a worker, to its step's next start, {n} kills"
    yield Scenario(name, "ms", "less", sides, {"pgqrs, p99": Aim(value=P99_MS)}, apart=True, chart="latency")


def _times(dsn: str, n: int) -> list[float]:
    """Returns the seconds from each kill to the second start of the killed body."""
    found = []
    with tempfile.TemporaryDirectory() as folder, pgqrs.connect(dsn) as store:
        store.install()
        with ours.supervising(dsn, f"{FUNCTIONS}/killed.py", 2):
            for number in range(n):
                starts = Path(folder) / str(number)
                handle = store.trigger(killed.to_be_killed, str(starts))
                wait_until(lambda at=starts: _starts(at) != [], "the start of a step")  # type: ignore[misc]
                [(pid, _)] = _starts(starts)
                killed_at = time.time()
                os.kill(pid, signal.SIGKILL)
                handle.result(timeout=60)
                found.append(_starts(starts)[1][1] - killed_at)
                # Waits until another worker is up again. Otherwise its start would be measured.
                time.sleep(0.2)
    return found


def _starts(file: Path) -> list[tuple[int, float]]:
    """Returns the process and the time of each start."""
    if not file.exists():
        return []
    return [(int(pid), float(at)) for pid, at in (line.split() for line in file.read_text().splitlines())]
