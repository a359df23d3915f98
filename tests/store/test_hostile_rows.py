"""Rows that somebody else has spoilt hurt their own message only: claims go on, and say what is wrong."""

import pytest

from tests.store.given import execute, ids, release, step, wrote

LARGEST = 2**63 - 1


@pytest.fixture
def spoilt(flow, dsn):
    """A run with a history and an innocent one beside it, both due; their ids, and a way to spoil the first."""
    flow.trigger(2)
    claims = [c.claim for c in flow.consumer.claim()]
    flow.store.turn([flow.begin(c) for c in claims])
    flow.store.turn([step(c) for c in claims])
    flow.store.turn([release(c) for c in claims])
    return [c.message_id for c in claims]


def claimed(flow):
    found = {}
    for _ in range(4):
        found |= {c.claim.message_id: c for c in flow.consumer.claim()}
    return found


EVERYWHERE = [
    "update pgqrs_workflow_runs set attempt = -1 where message_id = 1",
    "update pgqrs_workflow_runs set crash_count = -7 where message_id = 1",
    "update pgqrs_workflow_steps set position = -3 where run_id = 1",
    "update pgqrs_workflow_steps set retry_count = -1 where run_id = 1",
]
ON_FILES = [
    "update pgqrs_workflow_runs set status = 'NONSENSE' where message_id = 1",
    "update pgqrs_workflow_runs set attempt = 'many' where message_id = 1",
    "update pgqrs_workflow_steps set position = 'first' where run_id = 1",
    "update pgqrs_workflow_steps set step_name = x'00ff' where run_id = 1",
]
HARMLESS = [
    "update pgqrs_messages set read_ct = -5 where id = 1",
    "update pgqrs_workflow_steps set output = null, error = null where run_id = 1",
    "update pgqrs_workflow_runs set started_at = null where message_id = 1",
]


@pytest.mark.parametrize("statement", EVERYWHERE)
def test_an_unreadable_run_is_named_and_others_are_claimed(statement, flow, spoilt, dsn):
    execute(dsn, statement)
    found = claimed(flow)
    assert sorted(found) == spoilt
    assert "cannot be read" in found[1].unreadable
    assert (found[2].unreadable, [s.name for s in found[2].steps]) == (None, ["a"])


@pytest.mark.parametrize("statement", ON_FILES)
def test_what_only_a_file_can_hold_is_named_too(statement, flow, spoilt, dsn):
    if dsn.startswith("postgres"):
        return  # its types keep such values out
    execute(dsn, statement)
    found = claimed(flow)
    assert found[1].unreadable
    assert found[2].unreadable is None


@pytest.mark.parametrize("statement", HARMLESS)
def test_odd_rows_that_can_be_worked_with_are(statement, flow, spoilt, dsn):
    execute(dsn, statement)
    found = claimed(flow)
    assert [found[i].unreadable for i in spoilt] == [None, None]


@pytest.mark.parametrize("time", ["-infinity", "0044-03-15 12:00:00+00 BC", "infinity"])
@pytest.mark.parametrize("column", ["vt", "started_at"])
def test_times_that_python_cannot_hold_stop_no_claim(column, time, flow, spoilt, dsn):
    if not dsn.startswith("postgres"):
        time = "not a time"
    table, key = ("pgqrs_messages", "id") if column == "vt" else ("pgqrs_workflow_runs", "message_id")
    execute(dsn, f"update {table} set {column} = ? where {key} = 1", time)
    assert 2 in claimed(flow)


def test_a_message_that_the_database_refuses_to_hand_out_is_given_up(store, queue, consumer, dsn):
    if not dsn.startswith("postgres"):
        return  # a table there gets no new constraint
    numbers = store.enqueue(queue, [b"1"] * 5)
    spoilt = f"id <> {numbers[2]} or read_ct = 0"
    execute(dsn, f"alter table pgqrs_messages add constraint theirs check ({spoilt})")
    try:
        seen = [i for _ in range(8) for i in ids(consumer.claim())]
    finally:
        execute(dsn, "alter table pgqrs_messages drop constraint theirs")
    assert sorted(seen) == [n for n in numbers if n != numbers[2]]
    [(_, dead)] = store.dead()
    assert (dead.id, "refused to hand it out" in dead.dead_reason) == (numbers[2], True)


@pytest.mark.parametrize("number", [LARGEST, -LARGEST, -1])
def test_a_number_of_a_claim_that_has_no_next_begins_anew(number, store, queue, consumer, dsn):
    numbers = store.enqueue(queue, [b"1"] * 3)
    execute(dsn, "update pgqrs_messages set claim_no = ? where id = ?", number, numbers[1])
    claims = [c.claim for c in consumer.claim()]
    assert [(c.message_id, c.claim_no) for c in claims] == [(n, 1) for n in numbers]
    assert all(o.applied for o in store.turn([release(c) for c in claims]).outcomes)


@pytest.mark.parametrize("value", ["x", 1.5, 9e300])
def test_a_number_of_a_claim_that_is_none_begins_anew_too(value, store, queue, consumer, dsn):
    if dsn.startswith("postgres"):
        return  # its types keep such values out
    store.enqueue(queue, [b"1"])
    execute(dsn, "update pgqrs_messages set claim_no = ?", value)
    [claim] = [c.claim for c in consumer.claim()]
    assert isinstance(claim.claim_no, int)
    assert wrote(store, release(claim)).applied


def test_a_spoilt_message_can_still_be_written_to(flow, spoilt, dsn):
    execute(dsn, EVERYWHERE[0])
    assert wrote(flow.store, release(claimed(flow)[1].claim)).applied
