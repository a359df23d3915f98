"""Taking messages: which, in what order, how many, and with what history."""

import msgspec
import pytest

from pgqrs.model.writes import RecordedStep, Settle, Write
from tests.store.given import (
    ERROR,
    PAUSED,
    RUNNING,
    SUCCESS,
    Consumer,
    execute,
    failed_step,
    finish,
    ids,
    json,
    release,
    retried_step,
    step,
    when,
    wrote,
)

pytestmark = pytest.mark.fast_on("postgres")


def claim_after(consumer, after, limit=10):
    [taken] = consumer.store.turn((), [consumer.wanted(limit, after=after)]).taken
    return ids(taken.messages), taken.after


def test_the_oldest_come_first_and_no_more_than_asked_for(store, queue, consumer):
    numbers = store.enqueue(queue, [b"1"] * 7)
    assert [ids(consumer.claim(3)) for _ in range(4)] == [numbers[:3], numbers[3:6], numbers[6:], []]


def test_what_is_due_earlier_comes_before_a_lower_id(store, queue, consumer, clock):
    [late] = store.enqueue(queue, [b"1"], delay_s=2)
    [early] = store.enqueue(queue, [b"2"], delay_s=1)
    [now] = store.enqueue(queue, [b"3"])
    clock.advance(3)
    [newest] = store.enqueue(queue, [b"4"])
    assert [ids(consumer.claim(2)) for _ in range(2)] == [[now, early], [late, newest]]


def test_a_claim_is_noted_on_the_message(store, queue, consumer, clock, dsn):
    [number] = store.enqueue(queue, [b"1"])
    clock.advance(4)
    [claimed] = consumer.claim()
    message = store.message(number)
    assert (claimed.claim.consumer_id, claimed.claim.claim_no, claimed.read_ct) == (consumer.id, 1, 1)
    assert (message.consumer_worker_id, message.read_ct) == (consumer.id, 1)
    assert when(message.dequeued_at) == clock.at()


def test_a_claim_without_a_limit_takes_nothing(store, queue, consumer):
    store.enqueue(queue, [b"1"])
    assert consumer.claim(0) == []


def test_nobody_takes_from_another_queue(store, queue, consumer):
    store.enqueue(store.ensure_queue("other"), [b"1"])
    assert consumer.claim() == []


def test_what_is_held_is_not_claimed_again(store, queue, consumer, other, clock):
    store.enqueue(queue, [b"1"] * 3)
    assert len(consumer.claim()) == 3
    clock.advance(10)
    assert other.claim() == consumer.claim() == []


def test_what_a_0_15_client_holds_is_left_to_it_even_when_its_vt_has_passed(
    store, queue, consumer, clock, dsn
):
    store.enqueue(queue, [b"1"])
    execute(dsn, "update pgqrs_messages set consumer_worker_id = 999, read_ct = 1")
    clock.advance(3600)
    assert Consumer(store, queue, "later").claim() == []


def test_a_message_whose_deliveries_are_used_up_is_never_claimed(store, queue, consumer):
    store.enqueue(queue, [b"1"])
    for n in range(1, 4):
        [claimed] = consumer.claim(read_ct_max=3)
        assert claimed.read_ct == n
        wrote(store, release(claimed.claim, refund=False))
    assert consumer.claim(read_ct_max=3) == []
    assert len(consumer.claim(read_ct_max=4)) == 1


def test_two_queues_are_claimed_from_in_one_turn(store, queue, consumer):
    second = Consumer(store, store.ensure_queue("second"), "b")
    mine, theirs = store.enqueue(queue, [b"1"]), store.enqueue(second.queue_id, [b"2"])
    taken = store.turn((), [consumer.wanted(), second.wanted()]).taken
    assert [ids(t.messages) for t in taken] == [mine, theirs]


# The watermark


def test_claims_behind_the_watermark_go_on_where_the_last_ended(store, queue, consumer):
    numbers = store.enqueue(queue, [b"1"] * 9)
    after, seen = None, []
    for _ in range(4):
        got, after = claim_after(consumer, after, 3)
        seen.append(got)
    assert seen == [numbers[:3], numbers[3:6], numbers[6:], []]


def test_a_claim_that_found_nothing_keeps_the_watermark(store, queue, consumer):
    store.enqueue(queue, [b"1"])
    _, after = claim_after(consumer, None)
    assert claim_after(consumer, after) == ([], after)


def test_what_was_released_behind_the_watermark_takes_a_look_at_the_whole_queue(store, queue, consumer):
    numbers = store.enqueue(queue, [b"1"] * 3)
    claims = [c.claim for c in consumer.claim(2)]
    _, after = claim_after(consumer, None)
    wrote(store, release(claims[0]))
    assert claim_after(consumer, after)[0] == []
    assert claim_after(consumer, None)[0] == [numbers[0]]


def test_what_comes_later_lies_before_the_watermark(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"] * 2)
    _, after = claim_after(consumer, None)
    clock.advance(1)
    new = store.enqueue(queue, [b"2"])
    assert claim_after(consumer, after)[0] == new


def test_of_the_same_instant_the_id_decides(store, queue, consumer):
    numbers = store.enqueue(queue, [b"1"] * 4)
    _, after = claim_after(consumer, None, 2)
    assert claim_after(consumer, after)[0] == numbers[2:]


def test_a_delayed_message_becomes_due_ahead_of_the_watermark(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"])
    [later] = store.enqueue(queue, [b"2"], delay_s=5)
    _, after = claim_after(consumer, None)
    clock.advance(6)
    assert claim_after(consumer, after)[0] == [later]


# History


def test_a_fresh_message_has_no_history(flow):
    flow.trigger()
    [claimed] = flow.consumer.claim()
    assert (claimed.status, claimed.attempt, claimed.crash_count, claimed.steps) == (None, 0, 0, ())


def test_a_claim_brings_what_the_run_has_recorded(flow):
    claim = flow.begun()
    wrote(flow.store, step(claim, "a", 0, b'{"x": "\xc3\xa9"}'))
    wrote(flow.store, failed_step(claim, "b", 1))
    wrote(flow.store, release(claim))
    again = flow.again()
    assert (again.status, again.attempt) == (RUNNING, 1)
    assert [(s.name, s.position, s.status, json(s.output), json(s.error)) for s in again.steps] == [
        ("a", 0, "SUCCESS", {"x": "é"}, None),
        ("b", 1, "ERROR", None, {"message": "no"}),
    ]


def test_a_failure_that_will_be_retried_is_told_apart_from_a_final_one(flow, clock):
    claim = flow.begun()
    wrote(flow.store, failed_step(claim, "final", 1))
    wrote(flow.store, retried_step(claim, 2, 5, name="flaky"))
    clock.advance(5)
    told = {s.name: (s.status, s.retry_count) for s in flow.again().steps}
    assert told == {"final": ("ERROR", 0), "flaky": ("RETRY", 2)}


def test_a_pause_is_part_of_the_history(flow):
    claim = flow.begun()
    wrote(
        flow.store,
        Write(claim, step=step(claim, "pause").step, settle=Settle(PAUSED), message=release(claim).message),
    )
    again = flow.again()
    assert (again.status, [s.name for s in again.steps]) == (PAUSED, ["pause"])


def test_each_message_of_a_claim_has_its_own_history(flow):
    flow.trigger(3)
    claims = [c.claim for c in flow.consumer.claim()]
    flow.store.turn([flow.begin(c) for c in claims])
    flow.store.turn([step(c, f"s{c.message_id}", 0, b"%d" % c.message_id) for c in claims[1:]])
    flow.store.turn([release(c) for c in claims])
    assert [[s.name for s in c.steps] for c in flow.consumer.claim()] == [[], ["s2"], ["s3"]]


def test_a_run_that_ended_without_its_message_says_so_to_whoever_claims_it(flow, dsn):
    claim = flow.begun()
    wrote(flow.store, Write(claim, settle=Settle(SUCCESS, b"1"), message=release(claim).message))
    assert flow.again().status == SUCCESS


def test_a_long_history_comes_whole(flow):
    claim = flow.begun()
    flow.store.turn([step(claim, f"s{n:04}", n, b'"%s"' % (b"x" * 1000)) for n in range(1000)])
    wrote(flow.store, release(claim))
    steps = flow.again().steps
    assert [s.position for s in steps] == list(range(1000))
    assert sum(len(s.output) for s in steps) == 1000 * 1002


def test_steps_that_0_15_recorded_come_in_their_order(flow, dsn):
    claim = flow.begun()
    run_id = flow.store.run(claim.message_id).id
    for name in ("z", "a"):
        execute(
            dsn,
            "insert into pgqrs_workflow_steps (run_id, step_name, status, output) values (?, ?, 'SUCCESS', '1')",
            run_id,
            name,
        )
    wrote(flow.store, release(claim))
    assert flow.again().steps == (
        RecordedStep("z", 0, "SUCCESS", b"1", None, 0),
        RecordedStep("a", 1, "SUCCESS", b"1", None, 0),
    )


# What the database says that we hold


def test_held_is_what_was_claimed_and_has_not_ended(store, queue, consumer, other):
    store.enqueue(queue, [b"1"] * 5)
    claims = [c.claim for c in consumer.claim(4)]
    theirs = [c.claim for c in other.claim()]
    wrote(store, release(claims[0], 60))
    wrote(store, finish(claims[1]))
    assert sorted(store.held([consumer.id]), key=str) == sorted(claims[2:], key=str)
    assert store.held([other.id]) == theirs
    assert len(store.held([consumer.id, other.id])) == 3
    assert store.held([]) == []


def test_a_backlog_is_what_could_be_claimed_now(store, queue, consumer, clock):
    store.enqueue(queue, [b"1"] * 5)
    store.enqueue(queue, [b"1"], delay_s=60)
    consumer.claim(2)
    store.enqueue(store.ensure_queue("another"), [b"1"])
    assert store.backlog([queue]) == 3
    assert store.backlog([queue, queue + 1]) == 4
    assert store.backlog([]) == 0


def test_a_claimed_message_can_be_shown_while_it_is_held(flow):
    flow.trigger()
    claimed = flow.consumer.claim()[0]
    assert msgspec.json.decode(claimed.payload) == flow.store.message(claimed.claim.message_id).payload


@pytest.mark.parametrize("status", [SUCCESS, ERROR])
def test_an_ended_run_is_never_claimed(status, flow):
    wrote(flow.store, finish(flow.begun(), status))
    assert flow.consumer.claim() == []
