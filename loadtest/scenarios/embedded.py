"""SQLite: drains and workflows beside raw sqlite3 loops over the same tables, and several workers
beside one.
"""

from collections.abc import Iterator

from loadtest import raw_sqlite
from loadtest.bench import Bench, consumer_of_only_queue, noops, runs
from loadtest.functions import noops as functions
from loadtest.scenario import Aim, Measure, Scenario

RAW = "raw sqlite3 loop, batch 100"


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield _drain(bench)
    yield _workflows(bench)
    yield _more_workers(bench)


def _drain(bench: Bench) -> Scenario:
    n = bench.count(50_000)
    name = f"SQLite, drain of {n:,} no-op messages, 2 workers"

    def raw_loop() -> float:
        dsn = bench.filled(noops(n), bench.sqlite())
        return n / raw_sqlite.claim_and_archive(path_of(dsn), consumer_of_only_queue(dsn))

    sides: dict[str, Measure] = {"pgqrs": lambda: _ours(bench, n, 2), RAW: raw_loop}
    return Scenario(name, "messages/s", "more", sides, {RAW: Aim(ratio=0.5)}, chart="sqlite")


def _ours(bench: Bench, n: int, workers: int) -> float:
    return bench.rate(bench.filled(noops(n), bench.sqlite()), "noops.py:noop", n, workers)


def _workflows(bench: Bench) -> Scenario:
    n = bench.count(5_000)
    name = f"SQLite, {n:,} workflows of three no-op steps, strict, 2 workers"
    fill = runs(functions.strict, n)

    def raw_loop() -> float:
        dsn = bench.filled(fill, bench.sqlite())
        return n / raw_sqlite.step_writes(path_of(dsn), consumer_of_only_queue(dsn))

    beside = "raw sqlite3 loop, a commit a step, batch 100"
    sides: dict[str, Measure] = {
        "pgqrs": lambda: bench.rate(bench.filled(fill, bench.sqlite()), "noops.py:strict", n),
        beside: raw_loop,
    }
    return Scenario(name, "workflows/s", "more", sides, {beside: Aim(ratio=0.5)}, chart="sqlite")


def _more_workers(bench: Bench) -> Scenario:
    n = bench.count(50_000)
    name = f"SQLite, drain of {n:,} no-op messages, 4 workers and 1"
    four, one = "pgqrs, 4 workers", "pgqrs, 1 worker"
    sides: dict[str, Measure] = {
        four: lambda: _ours(bench, n, 4),
        one: lambda: _ours(bench, n, 1),
    }
    return Scenario(name, "messages/s", "more", sides, {one: Aim(ratio=1.0)}, chart="sqlite")


def path_of(dsn: str) -> str:
    return dsn.removeprefix("sqlite://")
