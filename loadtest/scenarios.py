"""What is measured, beside what, and what is aimed at. A side is one measure: it gives a rate, or a time."""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, TextIO

from msgspec import Struct

import pgqrs
from loadtest import cpu_steps, functions, others, ours, raw
from loadtest.mark import VARIABLE, started_at
from tests.postgres_server import PostgresServer

HERE = Path(__file__).parent
PAYLOAD_BYTES = 200

Measure = Callable[[], float]


class Scenario(Struct, frozen=True):
    """`sides` in the order in which they are shown, ours first. `aims`: by the other side's name, what our ratio to it should be
    at least (of rates) or at most (of times)."""

    name: str
    unit: str
    better: Literal["more", "less"]
    sides: Mapping[str, Measure]
    aims: Mapping[str, float]
    note: str = ""


class Bench:
    """Makes every measure's fresh database. `scale` is the share of the full counts."""

    def __init__(self, server: PostgresServer, folder: Path, scale: float, peers: bool) -> None:
        self._server = server
        self._folder = folder
        self._scale = scale
        self._peers = peers
        self._numbers = itertools.count()
        self.cpu: dict[
            str, list[dict[str, float]]
        ] = {}  # CPU seconds by kind of process, of each measure of ours

    def scenarios(self) -> Iterator[Scenario]:
        yield self._drain()
        yield self._workflows("strict", 3)
        yield self._workflows("pure", 1)
        yield self._cpu_bound()
        yield self._bulk_enqueue()
        yield self._single_enqueue()
        yield self._idle_latency("PostgreSQL", self._postgres)
        yield self._sqlite_drain()
        yield self._idle_latency("SQLite", self._sqlite)

    def _count(self, full: int) -> int:
        return max(20, round(full * self._scale))

    def _postgres(self) -> str:
        return self._server.create_database(f"load_{next(self._numbers)}")

    def _sqlite(self) -> str:
        return f"sqlite://{self._folder}/{next(self._numbers)}.db"

    def _ours(self, name: str, dsn: str, target: str, fill: Callable[[pgqrs.Store], object], n: int) -> float:
        found = ours.drain(dsn, target, fill, n, server=self._server if dsn.startswith("postgres") else None)
        self.cpu.setdefault(name, []).append({k: s / n for k, s in found.cpu_s.items()})
        return n / found.seconds

    def _drain(self) -> Scenario:
        n = self._count(50_000)
        name = "no-op messages through 2 workers"
        sides: dict[str, Measure] = {
            "pgqrs": lambda: self._ours(name, self._postgres(), f"{HERE}/functions.py:noop", _noops(n), n),
            "raw claim and archive, batch 100": lambda: n / raw.claim_and_archive(*self._filled(_noops(n))),
        }
        if self._peers:
            for peer in (others.PGQUEUER, others.PGQRS_0_15):
                sides[f"{peer.name}, 2 processes, batch {peer.batch}"] = _peer(peer, self._postgres, n)
        aims = {s: 0.5 if "raw" in s else 1.0 for s in sides if s != "pgqrs"}
        return Scenario(name, "messages/s", "more", sides, aims)

    def _workflows(self, kind: str, commits: int) -> Scenario:
        n = self._count(10_000)
        flow = getattr(functions, kind)
        name = f"three no-op steps a workflow, {kind}"

        def fill(store: pgqrs.Store) -> None:
            store.trigger_many(flow, [((i,), {}) for i in range(n)])

        beside = "raw grouped writes" if commits == 1 else "raw, a commit a step, batch 100"
        sides: dict[str, Measure] = {
            "pgqrs": lambda: self._ours(name, self._postgres(), f"{HERE}/functions.py:{kind}", fill, n),
            beside: lambda: n / raw.step_writes(*self._filled(fill), commits),
        }
        return Scenario(name, "workflows/s", "more", sides, {beside: 0.4} if commits == 1 else {})

    def _cpu_bound(self) -> Scenario:
        n = self._count(2000)
        name = f"{n:,} runs of three 10 ms steps, 2 workers"

        def fill(store: pgqrs.Store) -> None:
            store.trigger_many(cpu_steps.three_cpu_steps, [((i, cpu_steps.ITERATIONS), {}) for i in range(n)])

        def engine() -> float:
            return n / self._ours(name, self._postgres(), f"{HERE}/cpu_steps.py", fill, n)

        sides = {"pgqrs": engine, "ProcessPoolExecutor, nothing recorded": lambda: _pool(n)}
        return Scenario(name, "s", "less", sides, {"ProcessPoolExecutor, nothing recorded": 1.03})

    def _bulk_enqueue(self) -> Scenario:
        n = self._count(100_000)
        payloads = [b'"%s"' % (b"x" * (PAYLOAD_BYTES - 2))] * n
        texts = ["x" * (PAYLOAD_BYTES - 2)] * n

        def engine() -> float:
            with pgqrs.connect(self._postgres()) as store:
                store.install()
                store.enqueue_many("bulk", texts[:10])
                began = time.perf_counter()
                store.enqueue_many("bulk", texts)
                return n / (time.perf_counter() - began)

        sides = {
            "pgqrs": engine,
            "COPY into the same table": lambda: n / raw.copy_in(*self._empty("bulk"), payloads),
        }
        return Scenario(
            f"{n:,} payloads of {PAYLOAD_BYTES} bytes in one call, ids returned",
            "messages/s",
            "more",
            sides,
            {"COPY into the same table": 0.5},
        )

    def _single_enqueue(self) -> Scenario:
        n = self._count(2000)
        payloads = [b'"%s"' % (b"x" * (PAYLOAD_BYTES - 2))] * n

        def engine() -> float:
            with pgqrs.connect(self._postgres()) as store:
                store.install()
                store.enqueue("single", "x")
                began = time.perf_counter()
                for _ in range(n):
                    store.enqueue("single", "x" * (PAYLOAD_BYTES - 2))
                return n / (time.perf_counter() - began)

        sides = {
            "pgqrs": engine,
            "raw insert, a transaction each": lambda: n / raw.insert_each(*self._empty("single"), payloads),
        }
        return Scenario(
            "one payload a call", "messages/s", "more", sides, {"raw insert, a transaction each": 0.9}
        )

    def _idle_latency(self, backend: str, database: Callable[[], str]) -> Scenario:
        n = self._count(200)
        found: list[float] = []

        def measure() -> float:
            found[:] = _latencies(database(), n)
            return statistics.median(found) * 1000

        sides: dict[str, Measure] = {
            "pgqrs, p50": measure,
            "pgqrs, p99": lambda: statistics.quantiles(found, n=100)[98] * 1000,
        }
        note = "p50 under 3 ms, p99 under 15 ms" if backend == "PostgreSQL" else "p50 under 10 ms"
        return Scenario(f"idle, enqueue to handler start, {backend}", "ms", "less", sides, {}, note)

    def _sqlite_drain(self) -> Scenario:
        n = self._count(50_000)
        name = "no-op messages through 2 workers, SQLite"

        def raw_loop() -> float:
            dsn, consumer = self._filled(_noops(n), self._sqlite())
            return n / raw.sqlite_claim_and_archive(dsn.removeprefix("sqlite://"), consumer)

        sides = {
            "pgqrs": lambda: self._ours(name, self._sqlite(), f"{HERE}/functions.py:noop", _noops(n), n),
            "raw sqlite3 loop, batch 100": raw_loop,
        }
        return Scenario(name, "messages/s", "more", sides, {"raw sqlite3 loop, batch 100": 0.5})

    def _filled(self, fill: Callable[[pgqrs.Store], object], dsn: str | None = None) -> tuple[str, int]:
        """A database with a backlog, and a consumer to claim it for."""
        dsn = dsn or self._postgres()
        with pgqrs.connect(dsn) as store:
            store.install()
            fill(store)
            queue = store.queues()[0].queue_name
            consumer = store.consumer(queue)
            ours.settle(dsn)
            return dsn, consumer._worker_id

    def _empty(self, queue: str) -> tuple[str, int]:
        dsn = self._postgres()
        with pgqrs.connect(dsn) as store:
            store.install()
            return dsn, store.queue(queue).id


def _noops(n: int) -> Callable[[pgqrs.Store], object]:
    return lambda store: store.enqueue_many("noop", range(n))


def _peer(peer: others.Peer, database: Callable[[], str], n: int) -> Measure:
    return lambda: n / others.drain(peer, database(), n)


def _pool(n: int) -> float:
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


def _latencies(dsn: str, n: int) -> list[float]:
    """Seconds from before each enqueue to its handler's start, one at a time, with a supervisor that had nothing to do."""
    with tempfile.TemporaryDirectory() as folder, pgqrs.connect(dsn) as store:
        seen = Path(folder) / "seen"
        seen.touch()
        store.install()
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqrs", "supervise", f"{HERE}/idle.py", "--dsn", dsn, "--workers", "1"],
            stdout=subprocess.DEVNULL,
        )
        try:
            found: list[float] = []
            with seen.open() as lines:
                store.enqueue("idle", {"path": str(seen)})
                _next_line(lines, 30.0)  # it is up
                for _ in range(n):
                    time.sleep(0.03)
                    began = time.time()
                    store.enqueue("idle", {"path": str(seen)})
                    found.append(_next_line(lines, 10.0) - began)
            return found
        finally:
            process.terminate()
            process.wait()


def _next_line(lines: TextIO, within_s: float) -> float:
    deadline = time.monotonic() + within_s
    while not (line := lines.readline()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing was handled within {within_s:g} s")
        time.sleep(0.0005)
    return float(line)
