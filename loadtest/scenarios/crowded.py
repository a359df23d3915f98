"""Drains under conditions that make claims slow elsewhere: a million finished rows, and a
transaction that holds xmin.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext

import psycopg

import pgqrs
from loadtest import ours
from loadtest.bench import FUNCTIONS, Bench, noops, wait_until
from loadtest.mark import started_at
from loadtest.scenario import Aim, Measure, Scenario

ARCHIVED = 1_000_000
SLICES = 6
SLICE_S = 10.0
QUICK_SLICE_S = 2.0
# The rate in messages per second for which the backlog suffices.
RATE_MAX = 25_000


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield _with_archived(bench)
    yield from _with_xmin_held(bench)


def _with_archived(bench: Bench) -> Scenario:
    n, archived = bench.count(50_000), bench.count(ARCHIVED)
    name = f"drain of {n:,} no-op messages with {archived:,} archived rows"

    def crowded() -> float:
        template = bench.template(f"archived_{archived}", lambda dsn: fill(dsn, archived, archived=True))
        return bench.rate(bench.filled(noops(n), bench.postgres(template)), "noops.py:noop", n)

    empty = "pgqrs, empty database"
    sides: dict[str, Measure] = {
        f"pgqrs, {archived:,} archived rows": crowded,
        empty: lambda: bench.rate(bench.filled(noops(n)), "noops.py:noop", n),
    }
    return Scenario(name, "messages/s", "more", sides, {empty: Aim(ratio=0.9)}, chart="crowded")


def fill(dsn: str, count: int, archived: bool) -> None:
    """Inserts rows into the queue `noop` with one statement. A million one by one would take an
    hour.
    """
    with pgqrs.connect(dsn) as store:
        store.install()
        queue_id = store.queue("noop").id
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "insert into pgqrs_messages (queue_id, payload, archived_at, read_ct) select %s, to_jsonb(n), "
            "case when %s then now() end, case when %s then 1 else 0 end from generate_series(1, %s) n",
            (queue_id, archived, archived, count),
        )


def with_backlog(bench: Bench, count: int) -> str:
    template = bench.template(f"backlog_{count}", lambda dsn: fill(dsn, count, archived=False))
    return bench.postgres(template)


def _with_xmin_held(bench: Bench) -> Iterator[Scenario]:
    slice_s = QUICK_SLICE_S if bench.quick else SLICE_S
    seconds = slice_s * SLICES
    held, free = "pgqrs, xmin held", "pgqrs, no such transaction"
    slices: list[float] = []

    def with_it() -> float:
        slices[:] = _slices(bench, slice_s, hold=True)
        return statistics.mean(slices)

    sides: dict[str, Measure] = {
        held: with_it,
        free: lambda: statistics.mean(_slices(bench, slice_s, hold=False)),
    }
    name = f"{seconds:.0f} s of draining while another session's transaction holds xmin"
    # One round, because a round takes two minutes and consists of many measurements.
    yield Scenario(name, "messages/s", "more", sides, {free: Aim(ratio=0.8)}, rounds=1, chart="crowded")
    first = f"the first {slice_s:g} s"
    flat: dict[str, Measure] = {
        f"pgqrs, the last {slice_s:g} s": lambda: slices[-1],
        first: lambda: slices[0],
    }
    for n in range(1, SLICES - 1):
        flat[f"{n * slice_s:g} to {(n + 1) * slice_s:g} s"] = lambda n=n: slices[n]  # type: ignore[misc]
    yield Scenario(
        f"the same {seconds:.0f} s with xmin held, by the time",
        "messages/s",
        "more",
        flat,
        {first: Aim(ratio=0.8)},
        rounds=1,
        chart="crowded",
    )


def _slices(bench: Bench, slice_s: float, hold: bool) -> list[float]:
    """Returns the messages per second in each slice of time. Nothing is added or counted meanwhile,
    because each look at the queue would itself get slower with every version of a row that cannot
    be removed.
    """
    backlog = round(RATE_MAX * slice_s * SLICES)
    dsn = with_backlog(bench, backlog)
    mark = bench.folder / f"mark of {dsn.rpartition('/')[2]}"
    with psycopg.connect(dsn) if hold else nullcontext() as holder:
        if holder:
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select 1 from pgqrs_queues")
        with ours.supervising(dsn, f"{FUNCTIONS}/noops.py:noop", 2, mark):
            wait_until(mark.exists, "the first handling")
            time.sleep(slice_s * SLICES)
    rates = _rates(dsn, started_at(mark), slice_s)
    if sum(rates) * slice_s > 0.99 * backlog:
        raise RuntimeError(f"the backlog of {backlog:,} was drained too soon: raise RATE_MAX")
    return rates


def _rates(dsn: str, began: float, slice_s: float) -> list[float]:
    with psycopg.connect(dsn) as connection:
        counted: dict[int, int] = dict(
            connection.execute(
                "select floor((extract(epoch from archived_at) - %s) / %s)::int, count(*) from "
                "pgqrs_messages where archived_at is not null group by 1",
                (began, slice_s),
            ).fetchall()
        )
    return [counted.get(n, 0) / slice_s for n in range(SLICES)]
