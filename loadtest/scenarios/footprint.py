"""The resources of a supervisor: CPU while nothing happens, and memory."""

import time
from collections.abc import Iterator

import pgqrs
from loadtest import ours, processes
from loadtest.bench import FUNCTIONS, Bench
from loadtest.counters import counting
from loadtest.scenario import Aim, Measure, Scenario
from loadtest.scenarios.crowded import with_backlog

BACKLOG = 1_000_000
SETTLING_S = 3.0
WORKERS = 2


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield from _idle(bench)
    yield _backlog(bench)
    yield _private(bench)


def _idle(bench: Bench) -> Iterator[Scenario]:
    seconds = bench.seconds(30.0, 10.0)
    found: dict[str, float] = {}

    def measure() -> float:
        dsn = bench.postgres()
        with pgqrs.connect(dsn) as store:
            store.install()
        with ours.supervising(dsn, f"{FUNCTIONS}/noops.py:noop", WORKERS) as process:
            time.sleep(SETTLING_S)
            counted = counting(bench.server, dsn)
            cpu = processes.cpu_seconds_over(process.pid, bench.server.process.pid, seconds)
            found.update({kind: 100 * s / seconds for kind, s in cpu.items()})
            found.update({kind: n / seconds for kind, n in counted().items()})
        return found["supervisor"]

    shares: dict[str, Measure] = {
        "pgqrs, supervisor": measure,
        "pgqrs, workers": lambda: found.get("workers", 0.0),
        "PostgreSQL": lambda: found.get("PostgreSQL", 0.0),
    }
    aims = {"pgqrs, supervisor": Aim(value=1.0)}
    yield Scenario("idle supervisor of one queue", "% of a core", "less", shares, aims, apart=True)

    def counted_of(kind: str) -> float:
        if kind not in found:
            raise RuntimeError(f"this PostgreSQL does not tell its {kind}")
        return found[kind]

    asked: dict[str, Measure] = {
        "pgqrs, statements": lambda: counted_of("statements"),
        "pgqrs, fsyncs of WAL": lambda: counted_of("fsyncs of WAL"),
    }
    yield Scenario(
        "idle supervisor of one queue",
        "a second",
        "less",
        asked,
        {"pgqrs, statements": Aim(value=5.0)},
        apart=True,
    )


def _backlog(bench: Bench) -> Scenario:
    n = bench.count(BACKLOG)

    def measure() -> float:
        dsn = with_backlog(bench, n)
        with ours.supervising(dsn, f"{FUNCTIONS}/noops.py:noop", WORKERS) as process:
            time.sleep(bench.seconds(10.0, SETTLING_S))
            return processes.resident_bytes(process.pid) / 1e6

    name = f"memory of a supervisor at work on a backlog of {n:,}"
    return Scenario(name, "MB", "less", {"pgqrs": measure}, {"pgqrs": Aim(value=100.0)}, apart=True)


def _private(bench: Bench) -> Scenario:
    def measure() -> float:
        """Returns the most of any child except the nursery, which holds the memory that they
        share.
        """
        dsn = bench.postgres()
        with pgqrs.connect(dsn) as store:
            store.install()
        with ours.supervising(dsn, f"{FUNCTIONS}/preloaded.py", WORKERS) as process:
            time.sleep(SETTLING_S * 2)
            held = sorted(processes.private_bytes(pid) for pid in processes.children(process.pid))
            if len(held) < WORKERS:
                raise RuntimeError(f"only {len(held)} of {WORKERS} workers were up")
            return held[WORKERS - 1] / 1e6

    name = "private memory of an idle worker, 200 MB preloaded"
    return Scenario(name, "MB", "less", {"pgqrs": measure}, {"pgqrs": Aim(value=5.0)}, apart=True)
