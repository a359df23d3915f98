"""A fresh database for each measurement, and the cost of pgqrs beside its rate."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

import pgqrs
from loadtest import ours
from pgqrs.clients.blocking import Store
from tests.postgres_server import PostgresServer

FUNCTIONS = Path(__file__).parent / "functions"
Fill = Callable[[Store], object]


class Bench:
    """`scale` is the share of the full counts."""

    def __init__(self, server: PostgresServer, folder: Path, scale: float, peers: bool) -> None:
        self.server = server
        self.folder = folder
        self.scale = scale
        self.peers = peers
        # The cost of each measurement of pgqrs, per message or run.
        self.costs: dict[str, list[dict[str, float]]] = {}
        self._numbers = itertools.count()
        self._last: str | None = None

    @property
    def quick(self) -> bool:
        return self.scale < 1

    def count(self, full: int, least: int = 20) -> int:
        return max(least, round(full * self.scale))

    def seconds(self, full: float, quick: float) -> float:
        return quick if self.quick else full

    def postgres(self, template: str | None = None) -> str:
        """Returns an empty database, or a copy of a template. The previous one is dropped, because
        a million rows take half a gigabyte.
        """
        if self._last:
            self.server.drop_database(self._last)
        self._last = f"load_{next(self._numbers)}"
        return self.server.create_database(self._last, template)

    def template(self, name: str, fill: Callable[[str], object]) -> str:
        """Returns the name of a database to copy, filled and settled on first use."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            known = connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone()
        if not known:
            dsn = self.server.create_database(name)
            fill(dsn)
            settle(dsn)
        return name

    def sqlite(self) -> str:
        return f"sqlite://{self.folder}/{next(self._numbers)}.db"

    def filled(self, fill: Fill, dsn: str | None = None) -> str:
        """Returns a database with a backlog, after the work that filling left behind is done."""
        dsn = dsn or self.postgres()
        with pgqrs.connect(dsn) as store:
            store.install()
            fill(store)
        settle(dsn)
        return dsn

    def drained(
        self, dsn: str, target: str, count: int, workers: int = 2, lanes: int | None = None
    ) -> ours.Drained:
        """Drains the backlog of `dsn` with a supervisor."""
        server = None if dsn.startswith("sqlite") else self.server
        options = ["--lanes", str(lanes)] if lanes else []
        found = ours.drain(dsn, f"{FUNCTIONS}/{target}", count, workers, server, *options)
        self.cost = {kind: spent / count for kind, spent in found.spent.items()}
        return found

    def rate(self, dsn: str, target: str, count: int, workers: int = 2) -> float:
        return count / self.drained(dsn, target, count, workers).seconds


def noops(n: int) -> Fill:
    return lambda store: store.enqueue_many("noop", range(n))


def runs(flow: Callable[..., object], n: int, *arguments: object) -> Fill:
    return lambda store: store.trigger_many(flow, [((i, *arguments), {}) for i in range(n)])


def settle(dsn: str) -> None:
    """Does the work that filling has left behind, so that it does not happen during a
    measurement.
    """
    if not dsn.startswith("sqlite"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")


def consumer_of_only_queue(dsn: str) -> int:
    """Returns a consumer to claim for in a raw loop."""
    with pgqrs.connect(dsn) as store:
        return store.consumer(store.queues()[0].queue_name)._worker_id


def wait_until(ready: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not happen within {within_s:g} s")
        time.sleep(0.02)
