"""The cost of one more: a message with more workers, a step in longer workflows. CPU of all
processes, including PostgreSQL.
"""

from collections.abc import Iterator

from loadtest import ours
from loadtest.bench import Bench, noops, runs
from loadtest.functions import noops as functions
from loadtest.scenario import Aim, Measure, Scenario

GROWTH = 1.2
WORKERS = 2


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield _workers(bench)
    yield _steps(bench)


def _workers(bench: Bench) -> Scenario:
    n = bench.count(50_000)
    name = f"CPU of a message, {n:,} no-op messages"

    def with_workers(workers: int) -> float:
        found = bench.drained(bench.filled(noops(n)), "noops.py:noop", n, workers)
        return _cpu_us(found, n)

    one = "pgqrs, 1 worker"
    sides: dict[str, Measure] = {"pgqrs, 8 workers": lambda: with_workers(8), one: lambda: with_workers(1)}
    return Scenario(name, "µs", "less", sides, {one: Aim(ratio=GROWTH)}, chart="growth")


def _steps(bench: Bench) -> Scenario:
    """Each length has the same number of runs under way, because they share the cost of a
    supervisor's turn.
    """
    lanes = 2 if bench.quick else 16
    in_all = 1000 * WORKERS * lanes
    name = f"CPU of a step, by the steps of a workflow, {lanes} lanes a worker"

    def of_length(steps: int) -> float:
        dsn = bench.filled(runs(functions.many_steps, in_all // steps, steps))
        found = bench.drained(dsn, "noops.py:many_steps", in_all // steps, WORKERS, lanes)
        return _cpu_us(found, in_all)

    ten, hundred = "pgqrs, 10 steps", "pgqrs, 100 steps"
    sides: dict[str, Measure] = {
        "pgqrs, 1,000 steps": lambda: of_length(1000),
        hundred: lambda: of_length(100),
        ten: lambda: of_length(10),
    }
    aims = {ten: Aim(ratio=GROWTH), hundred: Aim(ratio=GROWTH)}
    return Scenario(name, "µs", "less", sides, aims, chart="growth")


def _cpu_us(found: ours.Drained, count: int) -> float:
    return sum(s for kind, s in found.spent.items() if kind.startswith("CPU")) / count * 1e6
