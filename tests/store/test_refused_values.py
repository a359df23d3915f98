"""One bad value hurts its own run alone: a turn that the database refuses is replayed write by write."""

from collections import deque

import pytest

from pgqrs import errors
from pgqrs.model.turns import follows_refused
from pgqrs.model.writes import Claim
from pgqrs.store.store import COPY_MIN
from tests.store.given import RUNNING, SUCCESS, columns, execute, finish, ids, step, wrote

LONG = "n" * 300


def bad_step(claim, dialect):
    """A step that this database refuses."""
    return step(claim, None if dialect == "sqlite" else LONG)


def test_the_others_of_the_turn_are_applied(flow):
    dialect = flow.store.database.dialect
    flow.trigger(5)
    claims = [c.claim for c in flow.consumer.claim()]
    flow.store.turn([flow.begin(c) for c in claims])
    writes = [bad_step(c, dialect) if i == 2 else step(c) for i, c in enumerate(claims)]
    outcomes = flow.store.turn(writes).outcomes
    assert [o.applied for o in outcomes] == [True, True, False, True, True]
    assert [o.write for o in outcomes] == writes
    assert [bool(flow.store.steps(c.message_id)) for c in claims] == [True, True, False, True, True]


def test_the_one_that_was_refused_says_why_and_keeps_its_claim(flow):
    claim = flow.begun()
    outcome = wrote(flow.store, bad_step(claim, flow.store.database.dialect))
    assert not outcome.applied
    assert "value too long" in outcome.failure or "NOT NULL" in outcome.failure
    assert wrote(flow.store, finish(claim)).applied


def test_nothing_of_a_refused_write_is_written(flow):
    claim = flow.begun()
    import msgspec

    bad = msgspec.structs.replace(
        bad_step(claim, flow.store.database.dialect),
        settle=finish(claim).settle,
        message=finish(claim).message,
    )
    assert not wrote(flow.store, bad).applied
    assert flow.store.run(claim.message_id).status == RUNNING
    assert flow.store.message(claim.message_id).archived_at is None


def test_the_claims_of_the_turn_are_carried_out_once(flow):
    first = flow.begun()
    more = flow.trigger(3)
    turn = flow.store.turn([bad_step(first, flow.store.database.dialect)], [flow.consumer.wanted(2)])
    assert ids(turn.taken[0].messages) == more[:2]


def test_nothing_of_a_run_is_written_after_what_was_refused(flow):
    """Else it would be a success without one of its steps."""
    claim = flow.begun()
    bad = bad_step(claim, flow.store.database.dialect)
    writes = [step(claim, "a"), bad, step(claim, "b", 2), finish(claim, SUCCESS)]
    outcomes = flow.store.turn(writes).outcomes
    assert [o.write for o in outcomes] == writes
    assert [o.applied for o in outcomes] == [True, False, False, False]
    assert len({o.failure for o in outcomes[1:]}) == 1
    assert outcomes[1].failure
    assert [s.step_name for s in flow.store.steps(claim.message_id)] == ["a"]
    assert flow.store.run(claim.message_id).status == RUNNING


def test_what_is_queued_behind_a_refused_write_is_refused_with_it(flow):
    mine, other = flow.begun(), Claim(99, 1, 1)
    outcomes = flow.store.turn([bad_step(mine, flow.store.database.dialect)]).outcomes
    queued = deque([finish(other), finish(mine, SUCCESS), step(other)])
    behind = follows_refused(queued, outcomes)
    assert [(o.write, o.applied, o.failure) for o in behind] == [
        (finish(mine, SUCCESS), False, outcomes[0].failure)
    ]
    assert list(queued) == [finish(other), step(other)]


def test_nothing_queued_is_touched_where_nothing_was_refused(flow):
    claim = flow.begun()
    queued = deque([finish(claim, SUCCESS)])
    assert follows_refused(queued, flow.store.turn([step(claim)]).outcomes) == []
    assert len(queued) == 1


@pytest.mark.parametrize("value", [b'"\\u0000"', b'{"\\u0000": 1}', b"{not json", b'"\\ud800"'])
def test_what_jsonb_refuses_is_a_refusal_on_postgres(value, flow, dsn):
    if flow.store.database.dialect == "sqlite":
        return  # holds text as it is
    claim = flow.begun()
    outcome = wrote(flow.store, step(claim, output=value))
    assert not outcome.applied
    assert outcome.failure
    for beside in (0, COPY_MIN):
        with pytest.raises(errors.DatabaseError):
            flow.store.enqueue(flow.workflow.queue_id, [b"1"] * beside + [value])
    assert columns(dsn, "pgqrs_messages", "id") == [(claim.message_id,)]


def test_json_nested_too_deeply_for_the_server_is_no_loss_of_connection(flow):
    """Else a supervisor would take the database for away, and try the same turn for ever."""
    claim = flow.begun()
    outcome = wrote(flow.store, step(claim, output=b"[" * 100_000 + b"]" * 100_000))
    if flow.store.database.dialect == "postgres":
        assert "stack depth" in outcome.failure


def test_a_nul_in_a_steps_name_is_refused_or_kept(flow):
    claim = flow.begun()
    outcome = wrote(flow.store, step(claim, "a\0b"))
    assert outcome.applied == (flow.store.database.dialect == "sqlite")


def test_a_payload_that_is_no_json_hurts_nobody_else(flow, dsn):
    """SQLite holds anything: somebody's raw insert must not look like a database that is away."""
    if flow.store.database.dialect == "postgres":
        return
    execute(dsn, "insert into pgqrs_messages (queue_id, payload) values (?, '{oops')", flow.workflow.queue_id)
    flow.trigger()
    execute(dsn, "update pgqrs_messages set vt = (select min(vt) from pgqrs_messages)")
    claims = [c.claim for c in flow.consumer.claim()]
    assert len(claims) == 2
    outcomes = flow.store.turn([flow.begin(c) for c in claims]).outcomes
    assert [o.applied for o in outcomes] == [True, True]
    assert [run.input for run in flow.store.runs()] == [0, "{oops"]


def test_a_refused_enqueue_leaves_nothing(store, queue, dsn):
    if store.database.dialect == "sqlite":
        return
    with pytest.raises(errors.DatabaseError):
        store.enqueue(queue, [b"1", b"{"])
    assert columns(dsn, "pgqrs_messages", "id") == []
