"""Runs that need the CPU, beside a process pool that records nothing. Many short pairs, because a
machine's speed drifts.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from loadtest.bench import Bench, runs
from loadtest.functions import cpu_steps
from loadtest.mark import VARIABLE, started_at
from loadtest.scenario import Aim, Measure, Scenario

POOL = "ProcessPoolExecutor, nothing recorded"
PAIRS, RUNS = 15, 400
QUICK_PAIRS, QUICK_RUNS = 5, 60


def scenarios(bench: Bench) -> Iterator[Scenario]:
    pairs, n = (QUICK_PAIRS, QUICK_RUNS) if bench.quick else (PAIRS, RUNS)
    name = f"{n:,} runs of three 10 ms steps, 2 workers, {pairs} pairs"

    def ours() -> float:
        dsn = bench.filled(runs(cpu_steps.three_cpu_steps, n, cpu_steps.ITERATIONS))
        return bench.drained(dsn, "cpu_steps.py", n).seconds

    sides: dict[str, Measure] = {"pgqrs": ours, POOL: lambda: _pool(n)}
    aims = {POOL: Aim(ratio=1.03, ratio_bound=1.05)}
    yield Scenario(name, "s", "less", sides, aims, rounds=pairs, chart="cpu-bound")


def _pool(n: int) -> float:
    """Returns the seconds from the start of the first body."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        os.environ[VARIABLE] = str(mark)
        try:
            with ProcessPoolExecutor(2) as pool:
                for _ in pool.map(cpu_steps.three_steps, range(n), [cpu_steps.ITERATIONS] * n):
                    pass
                return time.time() - started_at(mark)
        finally:
            del os.environ[VARIABLE]
