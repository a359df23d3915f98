"""Two real connections under READ COMMITTED: whoever comes second waits for the first, or is put off, and then sees what it did.

PostgreSQL only: on SQLite a transaction that writes has the database to itself.
"""

import psycopg
import pytest

from pgqrs.model.writes import Archive, Release, Write
from pgqrs.store import sql, turns
from pgqrs.store import store as stores
from tests.store.given import (
    CANCELLED,
    CANCELLING,
    ERROR,
    RUNNING,
    SUCCESS,
    Blocked,
    Consumer,
    Flow,
    columns,
    dump,
    finish,
    ids,
    release,
    step,
    wrote,
)

pytestmark = pytest.mark.fast_on("postgres")

POSTGRES_ONLY = True


@pytest.fixture(autouse=True)
def patient_for_locks(monkeypatch):
    """A turn puts off what is locked for longer than a moment. Here, what can wait is to wait."""
    monkeypatch.setattr(sql, "LOCK_WAIT_MS", 10_000)
    sql.statement.cache_clear()
    yield
    sql.statement.cache_clear()


@pytest.fixture
def second(open_another):
    return open_another()


class PutOff:
    """A turn whose writes somebody else's open transaction keeps from being made."""

    def __init__(self, turn):
        self._turn = turn
        assert (first := turn()).put_off
        assert not first.outcomes

    def turn(self):
        """Once the other transaction has ended."""
        done = self._turn()
        assert not done.put_off
        return done

    def result(self):
        return self.turn().outcomes[0]


def apply(tx, *writes):
    return turns.carry_out(tx, writes).outcomes


def take(tx, consumer, limit=10):
    return turns.carry_out(tx, wanted=[consumer.wanted(limit)]).taken[0].messages


def test_a_checkpoint_that_waited_for_a_takeover_is_not_written(flow, second, dsn):
    claim = flow.begun()
    heir = Consumer(flow.store, flow.workflow.queue_id, "heir")
    with second.database.transaction() as tx:
        apply(tx, release(claim))
        assert take(tx, heir)[0].claim.message_id == claim.message_id
        late = PutOff(lambda: flow.store.turn([step(claim, "late")]))
    assert not late.result().applied
    assert flow.store.steps(claim.message_id) == []


def test_a_handlers_end_that_waited_for_a_takeover_is_not_written(flow, second, dsn, monkeypatch):
    monkeypatch.setattr(sql, "LOCK_WAIT_MS", 200)  # it waits twice, for nothing
    sql.statement.cache_clear()
    claim = flow.begun()
    heir = Consumer(flow.store, flow.workflow.queue_id, "heir")
    with second.database.transaction() as tx:
        apply(tx, release(claim))
        assert take(tx, heir)[0].claim.message_id == claim.message_id
        late = PutOff(lambda: flow.store.turn([Write(claim, message=Archive())]))
    assert not late.result().applied
    assert flow.store.message(claim.message_id).archived_at is None


def test_a_run_begins_though_somebody_has_locked_its_workflow(flow, second):
    flow.trigger()
    claim = flow.consumer.claim_one()
    with psycopg.connect(second.database.dsn) as somebody:
        somebody.execute("select 1 from pgqrs_workflows for update")
        assert wrote(flow.store, flow.begin(claim)).applied


def test_a_checkpoint_that_waited_for_a_recovery_is_not_written(flow, second, dsn, clock):
    claim = flow.begun()
    clock.advance(16)
    with second.database.transaction() as tx:
        stores._release_all(tx, flow.consumer.supervisor_id, 5, "")
        late = PutOff(lambda: flow.store.turn([finish(claim, SUCCESS, b"1")]))
    assert not late.result().applied
    assert flow.store.run(claim.message_id).status == RUNNING


def test_a_takeover_that_waited_for_a_checkpoint_finds_it_recorded(flow, second, dsn, clock):
    claim = flow.begun()
    heir = Consumer(second, flow.workflow.queue_id, "heir", lease_s=60)
    clock.advance(16)
    with flow.store.database.transaction() as tx:
        [outcome] = apply(tx, step(claim, "in time"))
        assert second.recover(5) == 0
    assert outcome.applied
    assert second.recover(5) == 1
    [claimed] = heir.claim()
    assert [s.name for s in claimed.steps] == ["in time"]


def test_a_recovery_that_waited_for_an_end_leaves_it_ended(flow, second, dsn, clock):
    claim = flow.begun()
    clock.advance(16)
    with flow.store.database.transaction() as tx:
        apply(tx, finish(claim, SUCCESS, b"1"))
        assert second.recover(5) == 0
    assert second.recover(5) == 0
    assert flow.store.settled(claim.message_id).status == SUCCESS
    assert flow.store.message(claim.message_id).archived_at is not None


def test_a_claim_passes_over_what_somebody_is_writing(flow, second, dsn):
    first = flow.begun()
    flow.trigger(2)
    heir = Consumer(second, flow.workflow.queue_id, "heir")
    with flow.store.database.transaction() as tx:
        apply(tx, release(first))
        assert ids(heir.claim()) == [first.message_id + 1, first.message_id + 2]
    assert ids(heir.claim()) == [first.message_id]


def test_two_claims_at_once_do_not_meet(flow, second, dsn):
    triggered = flow.trigger(10)
    with flow.store.database.transaction() as tx:
        mine = ids(take(tx, flow.consumer, 4))
        theirs = ids(Consumer(second, flow.workflow.queue_id, "heir").claim(10))
    assert mine + theirs == triggered


def test_of_two_ends_under_the_same_claim_one_counts(flow, second, dsn):
    claim = flow.begun()
    with flow.store.database.transaction() as tx:
        apply(tx, finish(claim, SUCCESS, b"1"))
        late = PutOff(lambda: second.turn([finish(claim, ERROR, error=b"2", dead="no")]))
    assert not late.result().applied
    assert flow.store.settled(claim.message_id).output == b"1"


def test_two_turns_over_the_same_messages_in_opposite_orders_do_not_deadlock(flow, second, dsn):
    flow.trigger(20)
    claims = [c.claim for c in flow.consumer.claim(20)]
    with flow.store.database.transaction() as tx:
        apply(tx, *[flow.begin(c) for c in claims])
        backwards = PutOff(lambda: second.turn([step(c) for c in reversed(claims)]))
        apply(tx, *[step(c, "b", 1) for c in reversed(claims)])
    assert all(o.applied for o in backwards.turn().outcomes)


# What callers do, beside a supervisor


def test_a_cancel_that_waited_for_a_begin_asks_the_run_to_stop(flow, second, dsn):
    flow.trigger()
    claim = flow.consumer.claim_one()
    with flow.store.database.transaction() as tx:
        apply(tx, flow.begin(claim))
        cancel = Blocked(dsn, lambda: second.cancel(claim.message_id))
    assert cancel.result() == CANCELLING
    assert flow.store.run(claim.message_id).status == CANCELLING


def test_a_cancel_that_waited_for_the_end_says_how_it_ended(flow, second, dsn):
    claim = flow.begun()
    with flow.store.database.transaction() as tx:
        apply(tx, finish(claim, SUCCESS, b"1"))
        cancel = Blocked(dsn, lambda: second.cancel(claim.message_id))
    assert cancel.result() == SUCCESS


def test_a_cancel_that_waited_for_a_release_ends_the_run_at_once(flow, second, dsn):
    claim = flow.begun()
    with flow.store.database.transaction() as tx:
        apply(tx, release(claim))
        cancel = Blocked(dsn, lambda: second.cancel(claim.message_id))
    assert cancel.result() == CANCELLED
    assert flow.consumer.claim() == []


def test_an_end_that_waited_for_a_cancel_is_cancelled(flow, second, dsn):
    claim = flow.begun()
    with second.database.transaction() as tx:
        m = stores._locked(tx, claim.message_id)
        tx.run("set_run_status", run_id=m.run_id, status="CANCELLING", done=False)
        end = PutOff(lambda: flow.store.turn([finish(claim, SUCCESS, b"1")]))
    assert end.result().status == CANCELLED
    assert flow.store.run(claim.message_id).output is None


def test_a_checkpoint_that_waited_for_a_cancel_hears_of_it(flow, second, dsn):
    claim = flow.begun()
    with second.database.transaction() as tx:
        m = stores._locked(tx, claim.message_id)
        tx.run("set_run_status", run_id=m.run_id, status="CANCELLING", done=False)
        late = PutOff(lambda: flow.store.turn([step(claim)]))
    assert late.result().status == CANCELLING


def test_of_two_replays_at_once_the_second_is_refused(flow, second, dsn):
    from pgqrs import errors

    run = flow.failed()
    with flow.store.database.transaction() as tx:
        m = stores._locked(tx, run)
        tx.run("revive_run", run_id=m.run_id)
        tx.run("revive_message", id=run)

        def again():
            with pytest.raises(errors.ValidationError, match="only a run in ERROR"):
                second.replay(run)

        late = Blocked(dsn, again)
    late.result()


def test_a_late_release_that_waited_for_a_takeover_does_not_free_the_heirs_message(flow, second, dsn):
    claim = flow.begun()
    heir = Consumer(flow.store, flow.workflow.queue_id, "heir")
    with second.database.transaction() as tx:
        apply(tx, release(claim))
        take(tx, heir)
        late = PutOff(lambda: flow.store.turn([Write(claim, message=Release(0.0, refund=False))]))
    assert not late.result().applied
    assert columns(dsn, "pgqrs_messages", "id, consumer_worker_id, read_ct") == [
        (claim.message_id, heir.id, 1)
    ]


def test_a_lease_renewed_while_somebody_recovers_it_is_lost(flow, second, dsn):
    with second.database.transaction() as tx:
        tx.run("expire_lease", id=flow.consumer.supervisor_id)
        stores._release_all(tx, flow.consumer.supervisor_id, 5, "")
        renewal = Blocked(dsn, lambda: flow.store.renew_lease(flow.consumer.supervisor_id, 15))
    assert renewal.result() is False


def test_two_recoveries_at_once_take_each_message_once(store, second, dsn, clock):
    flow = Flow(store)
    flow.trigger(5)
    flow.consumer.claim()
    clock.advance(16)
    with store.database.transaction() as tx:
        assert tx.run("expired_supervisors") == [(flow.consumer.supervisor_id,)]
        assert second.recover(5) == 0
        assert stores._release_all(tx, flow.consumer.supervisor_id, 5, "") == 5
    assert second.recover(5) == 0
    assert set(dump(dsn)["pgqrs_supervisors"]) == set()


def test_a_recovery_leaves_a_supervisor_alone_that_is_claiming_and_finds_what_it_took_later(
    flow, second, dsn, clock
):
    [number] = flow.trigger()
    with flow.store.database.transaction() as tx:
        assert ids(take(tx, flow.consumer)) == [number]
        clock.advance(15)
        assert second.recover(5) == 0
    assert second.recover(5) == 1


def test_a_claim_that_waited_for_a_recovery_of_its_supervisor_takes_nothing(flow, second, dsn):
    flow.trigger()
    with second.database.transaction() as tx:
        tx.run("lock_supervisor", id=flow.consumer.supervisor_id)
        stores._release_all(tx, flow.consumer.supervisor_id, 5, "")
        claim = Blocked(dsn, flow.consumer.claim)
    assert claim.result() == []


def test_a_retirement_waits_for_a_claim_under_way_and_gives_back_what_it_took(flow, second, dsn):
    [number] = flow.trigger()
    with flow.store.database.transaction() as tx:
        assert ids(take(tx, flow.consumer)) == [number]
        retirement = Blocked(dsn, lambda: second.retire(flow.consumer.supervisor_id, 5))
    assert retirement.result() == 1


def test_a_lease_is_renewed_while_a_claim_is_under_way(flow, second):
    with flow.store.database.transaction() as tx:
        take(tx, flow.consumer)
        assert second.renew_lease(flow.consumer.supervisor_id, 15)
