"""Enqueueing: many messages in one call, one per call, and from many producers while consumers
drain.
"""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import psycopg

import pgqrs
from loadtest import ours, raw
from loadtest.bench import FUNCTIONS, Bench, wait_until
from loadtest.scenario import Aim, Measure, Scenario

PAYLOAD_BYTES = 200
TEXT = "x" * (PAYLOAD_BYTES - 2)
PRODUCERS = 8


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield _bulk(bench)
    yield _single(bench)
    yield _fan_in(bench)


def _bulk(bench: Bench) -> Scenario:
    n = bench.count(100_000)
    beside = "COPY into the same table"

    def engine() -> float:
        with pgqrs.connect(bench.postgres()) as store:
            store.install()
            store.enqueue_many("bulk", [TEXT] * 10)
            began = time.perf_counter()
            store.enqueue_many("bulk", [TEXT] * n)
            return n / (time.perf_counter() - began)

    sides: dict[str, Measure] = {
        "pgqrs": engine,
        beside: lambda: n / raw.copy_in(*_empty(bench), _payloads(n)),
    }
    name = f"enqueue of {n:,} payloads of {PAYLOAD_BYTES} bytes in one call, ids returned"
    return Scenario(name, "messages/s", "more", sides, {beside: Aim(ratio=0.5)}, chart="enqueue")


def _single(bench: Bench) -> Scenario:
    n = bench.count(2000)
    beside = "raw insert, a transaction each"

    def engine() -> float:
        with pgqrs.connect(bench.postgres()) as store:
            store.install()
            store.enqueue("single", "x")
            began = time.perf_counter()
            for _ in range(n):
                store.enqueue("single", TEXT)
            return n / (time.perf_counter() - began)

    sides: dict[str, Measure] = {
        "pgqrs": engine,
        beside: lambda: n / raw.insert_each(*_empty(bench), _payloads(n)),
    }
    return Scenario(
        "enqueue, one payload a call", "messages/s", "more", sides, {beside: Aim(ratio=0.9)}, chart="enqueue"
    )


def _payloads(n: int) -> list[bytes]:
    return [b'"%s"' % TEXT.encode()] * n


def _empty(bench: Bench) -> tuple[str, int]:
    dsn = bench.postgres()
    with pgqrs.connect(dsn) as store:
        store.install()
        return dsn, store.queue("raw").id


def _fan_in(bench: Bench) -> Scenario:
    each = bench.count(2000)
    n = each * PRODUCERS
    handled, sent = "pgqrs, handled", "pgqrs, enqueued"
    sending: list[float] = []

    def measure() -> float:
        dsn = bench.postgres()
        with pgqrs.connect(dsn) as store:
            store.install()
            store.queue("noop")
        with ours.supervising(dsn, f"{FUNCTIONS}/noops.py:noop", 2):
            began = _produce(dsn, each)
            wait_until(lambda: ours.ends(dsn)[1] == n, f"the handling of {n:,} messages", 120.0)
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                "select extract(epoch from max(enqueued_at)) from pgqrs_messages"
            ).fetchone()
        assert row is not None, "an aggregate has a row"
        sending[:] = [n / (float(row[0]) - began)]
        return n / (ours.ends(dsn)[0] - began)

    sides: dict[str, Measure] = {handled: measure, sent: lambda: sending[0]}
    name = f"fan-in: {PRODUCERS} producers, one payload a call, while 2 workers drain"
    return Scenario(name, "messages/s", "more", sides, apart=True, chart="enqueue")


def _produce(dsn: str, each: int) -> float:
    """Returns when the producers, all connected, began, in epoch seconds."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PRODUCERS + 1)
    producers = [
        context.Process(target=_producer, args=(dsn, each, barrier), daemon=True) for _ in range(PRODUCERS)
    ]
    for producer in producers:
        producer.start()
    barrier.wait(60)
    began = time.time()
    for producer in producers:
        producer.join()
    if any(producer.exitcode for producer in producers):
        raise RuntimeError("a producer failed")
    return began


def _producer(dsn: str, count: int, barrier: Barrier) -> None:
    with pgqrs.connect(dsn) as store:
        barrier.wait(60)
        for n in range(count):
            store.enqueue("noop", n)
