"""What has waited longest for another claim goes first: what library consumers let lapse, and what was claimed before."""

import pytest

from pgqrs.model.turns import Want
from pgqrs.store import consuming
from tests.store.given import Consumer, Flow, ids, release, step, when, wrote

pytestmark = pytest.mark.fast_on("postgres")


def claim(consumer, limit, first, after=None, lapsed=False):
    wanted = Want(consumer.queue_id, consumer.id, limit, 5, after, lapsed, False, first)
    [taken] = consumer.store.turn((), [wanted]).taken
    return taken


def lapse(store, queue, clock, count=1):
    """What a library consumer took and did not end in time."""
    worker = consuming.register(store.database, f"library {count}", queue)
    taken = consuming.dequeue(store.database, worker, queue, count, 1.0, 5)
    clock.advance(2)
    return [m.id for m in taken]


def test_a_retry_that_is_due_comes_before_an_older_backlog(store, queue, consumer, clock):
    [failed] = store.enqueue(queue, [b"1"])
    wrote(store, release(consumer.claim_one(), 2.0, refund=False))
    backlog = store.enqueue(queue, [b"2"] * 20)
    clock.advance(3)
    assert ids(claim(consumer, 4, first=2).messages) == [failed, *backlog[:3]]


def test_a_retry_whose_time_is_to_come_is_left(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"])
    wrote(store, release(consumer.claim_one(), 2.0))
    backlog = store.enqueue(queue, [b"2"] * 20)
    clock.advance(1)
    assert ids(claim(consumer, 4, first=2).messages) == backlog[:4]


def test_retries_take_no_more_than_their_share_of_a_claim(store, queue, consumer, clock):
    backlog = store.enqueue(queue, [b"2"] * 20)
    retries = store.enqueue(queue, [b"1"] * 6, delay_s=1)
    clock.advance(1)
    for c in consumer.claim(26):
        if c.claim.message_id in retries:
            wrote(store, release(c.claim, 1.0))
        else:
            wrote(store, release(c.claim))
    fresh = store.enqueue(queue, [b"3"] * 5)
    clock.advance(2)
    taken = claim(consumer, 10, first=5)
    assert ids(taken.messages)[:5] == backlog[:5]
    assert len(taken.messages) == 10
    assert fresh


def test_the_watermark_of_what_is_new_does_not_move_past_the_backlog(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"])
    wrote(store, release(consumer.claim_one(), 2.0))
    backlog = store.enqueue(queue, [b"2"] * 9)
    clock.advance(3)
    after, seen = None, []
    for _ in range(5):
        taken = claim(consumer, 2, first=1, after=after)
        after = taken.after
        seen += ids(taken.messages)
    assert sorted(seen) == [1, *backlog]


def test_what_lapsed_comes_before_a_backlog(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"])
    lapsed = lapse(store, queue, clock)
    backlog = store.enqueue(queue, [b"2"] * 20)
    assert ids(claim(consumer, 4, first=2, lapsed=True).messages) == lapsed + backlog[:3]


def test_what_lapsed_takes_no_more_than_its_share_unless_there_is_room(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"] * 6)
    lapsed = lapse(store, queue, clock, 6)
    [new] = store.enqueue(queue, [b"2"])
    taken = ids(claim(consumer, 4, first=2, lapsed=True).messages)
    assert new in taken
    assert len([i for i in taken if i in lapsed]) == 3


# A supervisor takes what a library consumer let lapse


@pytest.fixture
def lapsed_run(store, clock):
    flow = Flow(store)
    claim = flow.begun()
    wrote(store, step(claim, "paid", 0, b"7"))
    wrote(store, release(claim))
    assert lapse(store, flow.workflow.queue_id, clock) == [claim.message_id]
    return flow, claim


def test_a_lapsed_run_comes_with_its_history(lapsed_run):
    flow, _ = lapsed_run
    [claimed] = flow.consumer.claim()
    assert [(s.name, s.output) for s in claimed.steps] == [("paid", b"7")]


def test_the_claim_number_of_a_lapsed_message_grows(lapsed_run):
    flow, claim = lapsed_run
    [claimed] = flow.consumer.claim()
    assert claimed.claim.claim_no == claim.claim_no + 2
    assert not wrote(flow.store, step(claim, "late", 1)).applied


def test_two_supervisors_never_take_the_same_lapsed_message(
    store, queue, consumer, other, clock, open_another, dsn
):
    """The second one does not wait for the first, either."""
    if not dsn.startswith("postgres"):
        return
    store.enqueue(queue, [b"1"] * 2)
    first, second = lapse(store, queue, clock, 2)
    with open_another().database.transaction() as tx:
        asked = {"queue_id": queue, "read_ct_max": 5, "limit": 1}
        assert [r[0] for r in tx.run("claim_lapsed", consumer_id=consumer.id, **asked)] == [first]
        assert ids(claim(other, 1, first=1, lapsed=True).messages) == [second]


# The heartbeat


def test_only_a_supervisors_own_consumers_beat(store, queue, consumer, other, clock):
    clock.advance(5)
    store.renew_lease(consumer.supervisor_id, 15)
    beats = {w.id: when(w.heartbeat_at) for w in store.workers()}
    assert beats == {consumer.id: clock.at(), other.id: clock.at(-5)}


# What supervisors of the past leave


def test_the_consumers_of_a_dead_supervisor_are_purged_and_keep_no_queue(store, queue, consumer, clock):
    from pgqrs.store import administering

    another = Consumer(store, store.ensure_queue("second"), "b")
    for dead in (consumer, another):
        store.expire_lease(dead.supervisor_id)
    store.recover(5)
    clock.advance(100)
    administering.delete_queue(store.database, "tasks")
    assert [w.id for w in store.workers(stopped=True)] == [another.id]
    assert administering.purge_workers(store.database, 50, stale=False) == 1


def test_the_consumers_of_a_live_supervisor_are_not_purged(store, queue, consumer, clock):
    from pgqrs import errors
    from pgqrs.store import administering

    clock.advance(10)
    assert administering.purge_workers(store.database, 5, stale=True) == 0
    with pytest.raises(errors.ValidationError, match="still assigned"):
        administering.delete_queue(store.database, "tasks")
