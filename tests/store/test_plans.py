"""Claims and fences stay flat: with 20,000 archived messages behind 1,000 live ones PostgreSQL goes by an index."""

import json as plain_json

import psycopg
import pytest

from pgqrs.config import conninfo
from pgqrs.store import sql
from tests.store.given import Consumer, execute

POSTGRES_ONLY = True
CLAIM = {"limit": 50, "read_ct_max": 5}


@pytest.fixture
def crowded(store, queue, dsn):
    consumer = Consumer(store, queue)
    execute(
        dsn,
        "insert into pgqrs_messages (queue_id, payload, vt, archived_at, consumer_worker_id, claim_no) "
        "select ?, '1', now() - interval '1 day', now(), ?, 1 from generate_series(1, 20000)",
        queue, consumer.id,
    )  # fmt: skip
    execute(
        dsn,
        "insert into pgqrs_messages (queue_id, payload, vt) select ?, '1', now() - interval '1 hour' from generate_series(1, 1000)",
        queue,
    )
    execute(
        dsn,
        "update pgqrs_messages set consumer_worker_id = ?, claim_no = 1 where id between 20001 and 20200",
        consumer.id,
    )
    execute(dsn, "analyze pgqrs_messages")
    return consumer


def plan(dsn, name, rows=None, **params):
    statement = sql.statement(name, "postgres")
    for (column, _), values in zip(statement.columns, zip(*rows or [], strict=True), strict=False):
        params[column] = list(values)
    with psycopg.connect(conninfo(dsn)) as connection:
        [[told]] = connection.execute(f"explain (format json) {statement.sql}".encode(), params).fetchall()
        connection.rollback()
    return list(nodes(told[0]["Plan"]))


def nodes(node):
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)


def scans(plan):
    """How each scan of the messages is done."""
    return [
        (n["Node Type"], n.get("Index Name"))
        for n in plan
        if n.get("Relation Name") == "pgqrs_messages" and "Scan" in n["Node Type"]
    ]


def assert_indexed(plan):
    found = scans(plan)
    assert found, plain_json.dumps(plan, indent=1)
    assert all(kind != "Seq Scan" for kind, _ in found), found


def test_a_claim_reads_the_index_of_what_is_ready(crowded, dsn):
    told = plan(
        dsn,
        "claim",
        **CLAIM,
        queue_id=crowded.queue_id,
        consumer_id=crowded.id,
        after_vt="-infinity",
        after_id=0,
    )
    assert_indexed(told)
    assert ("Index Scan", "idx_pgqrs_messages_ready") in scans(told)
    assert not [n for n in told if n["Node Type"] == "Sort"]


def test_a_claim_behind_the_watermark_reads_the_index_from_there(crowded, dsn):
    [(vt,)] = execute(dsn, "select vt from pgqrs_messages where id = 20200")
    told = plan(
        dsn, "claim", **CLAIM, queue_id=crowded.queue_id, consumer_id=crowded.id, after_vt=vt, after_id=20500
    )
    assert_indexed(told)
    [scan] = [n for n in told if n.get("Index Name") == "idx_pgqrs_messages_ready"]
    assert "ROW(" in scan["Index Cond"]


def test_what_was_claimed_before_is_found_without_reading_the_backlog(crowded, dsn):
    execute(dsn, "update pgqrs_messages set claim_no = 1 where id between 20900 and 20910")
    execute(dsn, "analyze pgqrs_messages")
    told = plan(
        dsn,
        "claim_again",
        **CLAIM,
        queue_id=crowded.queue_id,
        consumer_id=crowded.id,
        after_vt="-infinity",
        after_id=0,
    )
    assert_indexed(told)
    used = {n["Index Name"] for n in told if "Index Name" in n}
    assert "idx_pgqrs_messages_again" in used
    assert "idx_pgqrs_messages_ready" not in used


def test_a_fence_looks_each_message_up(crowded, dsn):
    claims = [(n, crowded.id, 1) for n in range(20001, 20101)]
    assert_indexed(plan(dsn, "fence", rows=claims))
    assert_indexed(plan(dsn, "archive_held", rows=[(*c, None) for c in claims]))


def test_a_fence_looks_each_message_up_though_by_the_statistics_nobody_holds_anything(crowded, dsn):
    """As autovacuum finds the table between two bursts: the index of all that is held then seems to have one entry."""
    execute(dsn, "update pgqrs_messages set consumer_worker_id = null")
    execute(dsn, "analyze pgqrs_messages")
    execute(
        dsn,
        "update pgqrs_messages set consumer_worker_id = ?, claim_no = 1 where id between 20001 and 20200",
        crowded.id,
    )
    claims = [(n, crowded.id, 1) for n in range(20001, 20021)]
    for name in ("fence", "archived_by"):
        assert scans(plan(dsn, name, rows=claims)) == [("Index Scan", "pgqrs_messages_pkey")]
    ends = [(*c, None) for c in claims]
    assert scans(plan(dsn, "archive_held", rows=ends)) == [("Index Scan", "pgqrs_messages_pkey")]


@pytest.mark.parametrize("name", ["release", "archive"])
def test_what_ends_a_claim_looks_each_message_up(name, crowded, dsn):
    row = {"release": (20001, 1.0, True), "archive": (20001, None)}[name]
    assert_indexed(plan(dsn, name, rows=[row] * 50))


def test_what_a_consumer_holds_is_found_by_its_index(crowded, dsn):
    assert_indexed(plan(dsn, "held", rows=[(crowded.id,)]))


def test_a_backlog_is_counted_on_the_index(crowded, dsn):
    assert_indexed(plan(dsn, "backlog", rows=[(crowded.queue_id,)], bound=100_000))


def test_the_dead_are_found_by_their_index(crowded, dsn):
    assert_indexed(plan(dsn, "dead", queue=None, limit=50))
