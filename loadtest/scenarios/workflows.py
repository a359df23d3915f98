"""Workflows of three no-op steps, strict and pure, beside raw writes to the same tables and beside
peers.
"""

from collections.abc import Iterator

from loadtest import others, raw
from loadtest.bench import Bench, consumer_of_only_queue, runs
from loadtest.functions import noops as functions
from loadtest.scenario import Aim, Measure, Scenario
from loadtest.scenarios.drains import peer_rate

PEERS = {others.ABSURD: 20.0, others.DBOS: 40.0, others.PGQRS_0_15: 20.0, others.CELERY: None}


def scenarios(bench: Bench) -> Iterator[Scenario]:
    n = bench.count(10_000)
    yield _strict(bench, n)
    yield _pure(bench, n)


def _strict(bench: Bench, n: int) -> Scenario:
    name = f"{n:,} workflows of three no-op steps, strict"
    beside = "raw, a commit a step, batch 100"
    sides: dict[str, Measure] = {
        "pgqrs": lambda: _ours(bench, "strict", n),
        beside: lambda: _raw(bench, n, commits=3),
    }
    aims: dict[str, Aim] = {}
    if bench.peers:
        for peer, aim in PEERS.items():
            sides[peer.label("steps")] = peer_rate(bench, peer, "steps", n)
            aims[peer.label("steps")] = Aim(ratio=aim)
    return Scenario(name, "workflows/s", "more", sides, aims, chart="workflows")


def _pure(bench: Bench, n: int) -> Scenario:
    name = f"{n:,} workflows of three no-op steps, pure"
    strict, beside = "pgqrs, strict", "raw grouped writes"
    sides: dict[str, Measure] = {
        "pgqrs": lambda: _ours(bench, "pure", n),
        strict: lambda: _ours(bench, "strict", n),
        beside: lambda: _raw(bench, n, commits=1),
    }
    aims = {strict: Aim(ratio=1.4), beside: Aim(ratio=0.4)}
    return Scenario(name, "workflows/s", "more", sides, aims, chart="workflows")


def _ours(bench: Bench, kind: str, n: int) -> float:
    return bench.rate(bench.filled(runs(getattr(functions, kind), n)), f"noops.py:{kind}", n)


def _raw(bench: Bench, n: int, commits: int) -> float:
    dsn = bench.filled(runs(functions.strict, n))
    return n / raw.step_writes(dsn, consumer_of_only_queue(dsn), commits)
