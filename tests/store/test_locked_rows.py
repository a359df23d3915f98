"""Another session has locked a row and does not let go: what is to be written there is put off, and all else goes on."""

import time
from contextlib import contextmanager

import psycopg
import pytest

from pgqrs.config import conninfo
from pgqrs.model.writes import Archive, Write
from tests.store.given import SUCCESS, Consumer, finish, ids, step, wrote

pytestmark = pytest.mark.fast_on("postgres")

POSTGRES_ONLY = True
BRIEF_S = 3.0  # far below the time for which a session that was left open holds its locks


@contextmanager
def locked(dsn, statement, *params):
    with psycopg.connect(conninfo(dsn)) as session:
        session.execute(statement, params)
        yield
        session.rollback()


def message_of(claim):
    return "select 1 from pgqrs_messages where id = %s for update", claim.message_id


def run_of(claim):
    return "select 1 from pgqrs_workflow_runs where message_id = %s for update", claim.message_id


def step_of(claim):
    return (
        "select 1 from pgqrs_workflow_steps where run_id = (select id from pgqrs_workflow_runs where message_id = %s) for update",
        claim.message_id,
    )


@pytest.fixture
def claims(flow):
    flow.trigger(5)
    claims = [c.claim for c in flow.consumer.claim()]
    flow.store.turn([flow.begin(c) for c in claims])
    flow.store.turn([step(c, "open", 0) for c in claims])
    return claims


def takes(turn):
    began = time.monotonic()
    done = turn()
    assert time.monotonic() - began < BRIEF_S
    return done


def again(claim):
    return Write(claim, step=step(claim, "open", 0).step, settle=finish(claim).settle, message=Archive())


@pytest.mark.parametrize("row", [message_of, run_of])
def test_only_the_writes_to_a_locked_row_are_put_off(row, flow, claims, dsn):
    writes = [finish(c, output=b"7") for c in claims]
    with locked(dsn, *row(claims[2])):
        turn = takes(lambda: flow.store.turn(writes))
        assert turn.put_off == [writes[2]]
        assert sorted(o.write.claim.message_id for o in turn.outcomes) == [
            c.message_id for c in claims if c is not claims[2]
        ]
        assert all(o.applied and o.status is SUCCESS for o in turn.outcomes)
    assert wrote(flow.store, writes[2]).status is SUCCESS


def test_a_locked_step_puts_off_its_own_write(flow, claims, dsn):
    writes = [step(c, "open", 0, b"2") for c in claims]
    with locked(dsn, *step_of(claims[0])):
        turn = takes(lambda: flow.store.turn(writes))
    assert turn.put_off == [writes[0]]
    assert len(turn.outcomes) == 4


@pytest.mark.parametrize("row", [message_of, run_of])
def test_later_writes_of_the_same_claim_wait_with_it(row, flow, claims, dsn):
    locked_one, other = claims[:2]
    writes = [step(locked_one, "a", 1), step(other, "a", 1), finish(locked_one), finish(other)]
    with locked(dsn, *row(locked_one)):
        turn = takes(lambda: flow.store.turn(writes))
    assert [w for w in writes if w in turn.put_off] == turn.put_off
    assert {w.claim for w in turn.put_off} <= {locked_one}
    assert finish(locked_one) in turn.put_off
    for write in turn.put_off:
        assert wrote(flow.store, write).applied
    assert flow.store.run(locked_one.message_id).status is SUCCESS


def test_what_handlers_ended_is_put_off_too(store, queue, consumer, dsn):
    store.enqueue(queue, [b"1"] * 3)
    held = [c.claim for c in consumer.claim()]
    writes = [Write(c, message=Archive()) for c in held]
    with locked(dsn, *message_of(held[1])):
        turn = takes(lambda: store.turn(writes))
    assert turn.put_off == [writes[1]]
    assert [o.applied for o in turn.outcomes] == [True, True]


def test_a_lost_claim_is_not_put_off(store, queue, consumer, other, dsn):
    store.enqueue(queue, [b"1"])
    lost = consumer.claim_one()
    store.expire_lease(consumer.supervisor_id)
    store.recover(5)
    other.claim()
    with locked(dsn, *message_of(lost)):
        turn = takes(lambda: store.turn([Write(lost, message=Archive())]))
    assert ([o.applied for o in turn.outcomes], turn.put_off) == ([False], [])


def test_the_turns_claims_are_made_all_the_same(flow, claims, dsn):
    new = flow.trigger(2)
    with locked(dsn, *run_of(claims[0])):
        turn = takes(lambda: flow.store.turn([finish(claims[0])], [flow.consumer.wanted()]))
    assert (len(turn.put_off), ids(turn.taken[0].messages)) == (1, new)


def test_a_refused_value_beside_a_locked_row_hurts_its_own_run_only(flow, claims, dsn):
    writes = [finish(claims[0]), step(claims[1], "bad", 1, b"{not json"), finish(claims[2])]
    with locked(dsn, *run_of(claims[0])):
        turn = takes(lambda: flow.store.turn(writes))
    assert turn.put_off == [writes[0]]
    assert {o.write.claim: o.applied for o in turn.outcomes} == {claims[1]: False, claims[2]: True}
    assert all(o.failure for o in turn.outcomes if not o.applied)


def test_a_table_that_is_locked_whole_is_given_up_within_seconds(flow, claims, dsn):
    writes = [finish(c) for c in claims]
    with locked(dsn, "lock table pgqrs_workflow_runs in exclusive mode"):
        turn = takes(lambda: flow.store.turn(writes))
    assert turn.put_off == writes


# What dead supervisors held


def test_a_locked_message_of_a_dead_supervisor_holds_up_no_other(store, queue, consumer, dsn):
    numbers = store.enqueue(queue, [b"1"] * 3)
    held = [c.claim for c in consumer.claim()]
    store.expire_lease(consumer.supervisor_id)
    heir = Consumer(store, queue, "heir")
    with locked(dsn, *message_of(held[1])):
        assert takes(lambda: store.recover(5)) == 2
        assert ids(heir.claim()) == [numbers[0], numbers[2]]
    assert store.recover(5) == 1
    assert ids(heir.claim()) == [numbers[1]]
    assert store.recover(5) == 0


def test_what_a_retiring_supervisor_cannot_give_back_is_recovered_later(store, queue, consumer, dsn):
    numbers = store.enqueue(queue, [b"1"])
    claim = consumer.claim_one()
    with locked(dsn, *message_of(claim)):
        assert takes(lambda: store.retire(consumer.supervisor_id, 5)) == 0
    assert store.recover(5) == 1
    assert ids(Consumer(store, queue, "heir").claim()) == numbers


def test_a_lease_is_renewed_beside_a_locked_consumer(store, consumer, dsn):
    with locked(dsn, "select 1 from pgqrs_workers where id = %s for update", consumer.id):
        assert takes(lambda: store.renew_lease(consumer.supervisor_id, 15))
