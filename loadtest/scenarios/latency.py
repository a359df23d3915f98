"""The time from before an enqueue to its handler's start: one at a time on an idle system, and at
steady rates.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pgqrs
from loadtest import ours
from loadtest.bench import FUNCTIONS, Bench, wait_until
from loadtest.scenario import Aim, Measure, Scenario

# Messages per second.
RATES = (200, 1000, 5000)
# The interval at which messages of a steady rate are sent.
GROUP_S = 0.01


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield _idle(bench, "PostgreSQL", bench.postgres, 3.0, 15.0)
    yield _idle(bench, "SQLite", bench.sqlite, 10.0, None)
    for rate in RATES:
        yield _steady(bench, rate)


def _idle(
    bench: Bench, backend: str, database: Callable[[], str], p50_ms: float, p99_ms: float | None
) -> Scenario:
    n = bench.count(200)
    name = f"idle, enqueue to handler start, {backend}"
    sides, aims = _percentiles(lambda: _one_by_one(database(), n), p50_ms, p99_ms)
    return Scenario(name, "ms", "less", sides, aims, apart=True, chart="latency")


def _steady(bench: Bench, rate: int) -> Scenario:
    seconds = bench.seconds(10.0, 2.0)
    sides, _ = _percentiles(lambda: _at_rate(bench.postgres(), rate, seconds), None, None)
    name = f"{rate:,} messages a second, 2 workers, enqueue to handler start"
    return Scenario(name, "ms", "less", sides, apart=True, chart="latency")


def _percentiles(
    take: Callable[[], list[float]], p50_ms: float | None, p99_ms: float | None
) -> tuple[dict[str, Measure], dict[str, Aim]]:
    found: list[float] = []

    def p50() -> float:
        found[:] = take()
        return statistics.median(found) * 1000

    sides: dict[str, Measure] = {
        "pgqrs, p50": p50,
        "pgqrs, p99": lambda: statistics.quantiles(found, n=100)[98] * 1000,
    }
    return sides, {"pgqrs, p50": Aim(value=p50_ms), "pgqrs, p99": Aim(value=p99_ms)}


def _one_by_one(dsn: str, n: int) -> list[float]:
    with _Timed(dsn, workers=1) as timed:
        for sent in range(n):
            time.sleep(0.03)
            timed.enqueue(1)
            wait_until(lambda so_far=sent: len(timed.seen()) > so_far, "the handling of a message")  # type: ignore[misc]
        return timed.seen()


def _at_rate(dsn: str, rate: int, seconds: float) -> list[float]:
    """Sends messages in groups at fixed times. Delays count: each message's time is measured from
    when it was due.
    """
    with _Timed(dsn, workers=2) as timed:
        began = time.time()
        sent = 0
        while sent < rate * seconds:
            due = began + sent / rate
            time.sleep(max(0.0, due - time.time()))
            many = max(1, round(rate * GROUP_S))
            timed.enqueue(many, due)
            sent += many
        wait_until(lambda: len(timed.seen()) >= sent, f"the handling of {sent:,} messages", 60.0)
        return timed.seen()


class _Timed:
    """A running supervisor, whose handler writes the age of each message into a file."""

    def __init__(self, dsn: str, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "ages"
        self._file.touch()
        self._store = pgqrs.connect(dsn).open()
        self._store.install()
        self._supervising = ours.supervising(dsn, f"{FUNCTIONS}/timed.py", workers)
        self._first = 0

    def __enter__(self) -> "_Timed":
        self._supervising.__enter__()
        for _ in range(20):
            self.enqueue(1)
        wait_until(lambda: len(self.seen()) == 20, "the first handling")
        self._first = 20
        return self

    def __exit__(self, *error: object) -> None:
        self._supervising.__exit__(None, None, None)
        self._store.close()
        self._folder.cleanup()

    def enqueue(self, many: int, due: float | None = None) -> None:
        payload = {"path": str(self._file), "due": due or time.time()}
        if many == 1:
            self._store.enqueue("timed", payload)
        else:
            self._store.enqueue_many("timed", [payload] * many)

    def seen(self) -> list[float]:
        """The ages in seconds."""
        return [float(line) for line in self._file.read_text().split()[self._first :]]
