"""Cancelling, resuming and replaying by the message's id."""

import pytest

from pgqrs import errors
from pgqrs.model.writes import Archive, Crash, Release, Settle, Write
from tests.store.given import (
    CANCELLED,
    CANCELLING,
    ERROR,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCESS,
    Consumer,
    columns,
    dump,
    failed_step,
    finish,
    ids,
    release,
    retried_step,
    step,
    when,
    wrote,
)

pytestmark = pytest.mark.fast_on("postgres")


def test_a_run_that_nobody_began_is_cancelled_at_once(flow, clock):
    [number] = flow.trigger()
    clock.advance(3)
    assert flow.store.cancel(number) == CANCELLED
    run = flow.store.run(number)
    assert (run.status, run.input, when(run.completed_at), run.started_at) == (CANCELLED, 0, clock.at(), None)
    assert flow.store.message(number).archived_at is not None
    assert flow.store.message(number).dead_reason is None
    assert flow.consumer.claim() == []


@pytest.mark.parametrize(
    "leave",
    [
        lambda c: release(c),
        lambda c: retried_step(c, 1, 60),
        lambda c: Write(c, settle=Settle(PAUSED), message=Release(60)),
        lambda c: Write(c, crash=Crash("signal", "x", None, 0, 1, 1), message=Release()),
    ],
    ids=["requeued", "waiting for a retry", "paused", "crashed"],
)
def test_a_run_that_nobody_holds_is_cancelled_at_once(leave, flow):
    claim = flow.begun()
    wrote(flow.store, leave(claim))
    assert flow.store.cancel(claim.message_id) == CANCELLED
    assert flow.store.settled(claim.message_id).status == CANCELLED
    assert flow.store.message(claim.message_id).archived_at is not None


def test_a_run_that_is_held_stops_at_its_next_step(flow, clock):
    claim = flow.begun()
    assert flow.store.cancel(claim.message_id) == CANCELLING
    run = flow.store.run(claim.message_id)
    assert (run.status, run.completed_at) == (CANCELLING, None)
    assert flow.store.message(claim.message_id).archived_at is None
    assert wrote(flow.store, Write(claim, settle=Settle(CANCELLED), message=Archive())).status == CANCELLED


def test_a_run_that_is_claimed_but_not_begun_is_asked_to_stop(flow):
    [number] = flow.trigger()
    claim = flow.consumer.claim_one()
    assert flow.store.cancel(number) == CANCELLING
    assert wrote(flow.store, flow.begin(claim)).status == CANCELLING


def test_cancelling_twice_is_one_cancel(flow):
    held, [waiting] = flow.begun().message_id, flow.trigger()
    assert [flow.store.cancel(held) for _ in range(3)] == [CANCELLING] * 3
    assert [flow.store.cancel(waiting) for _ in range(3)] == [CANCELLED] * 3


@pytest.mark.parametrize("status", [SUCCESS, ERROR, CANCELLED])
def test_a_run_that_ended_stays_as_it_is(status, flow, dsn, clock):
    claim = flow.begun()
    wrote(flow.store, finish(claim, status, b"1"))
    clock.advance(1)
    before = dump(dsn)
    assert flow.store.cancel(claim.message_id) == status
    assert dump(dsn) == before


def test_a_cancelling_run_whose_supervisor_dies_is_told_to_its_heir(flow):
    claim = flow.begun()
    flow.store.cancel(claim.message_id)
    flow.store.expire_lease(flow.consumer.supervisor_id)
    flow.store.recover(5)
    [again] = Consumer(flow.store, flow.workflow.queue_id, "heir").claim()
    assert again.status == CANCELLING


def test_cancelling_a_released_run_that_was_cancelling_ends_it(flow):
    claim = flow.begun()
    flow.store.cancel(claim.message_id)
    wrote(flow.store, release(claim))
    assert flow.store.cancel(claim.message_id) == CANCELLED


def test_a_plain_message_that_waits_is_cancelled_and_one_that_is_handled_is_not(store, queue, consumer):
    held, waiting = store.enqueue(queue, [b"1", b"2"])
    consumer.claim(1)
    assert store.cancel(waiting) == CANCELLED
    assert consumer.claim() == []
    with pytest.raises(errors.ValidationError, match="is being handled"):
        store.cancel(held)
    with pytest.raises(errors.ValidationError, match="handled or given up already"):
        store.cancel(waiting)


@pytest.mark.parametrize("act", ["cancel", "resume", "replay", "settled", "run"])
def test_what_nobody_knows_cannot_be_acted_on(act, store):
    with pytest.raises(errors.RunNotFoundError, match="the id 4711"):
        getattr(store, act)(4711)


# Resuming


def test_a_paused_run_is_resumed_at_once(flow):
    claim = flow.begun()
    wrote(flow.store, Write(claim, settle=Settle(PAUSED), message=Release(3600)))
    assert flow.consumer.claim() == []
    assert flow.store.resume(claim.message_id)
    assert flow.again().status == PAUSED


def test_what_is_not_paused_is_not_resumed(flow, dsn):
    flow.trigger()
    begun = flow.begun()
    wrote(flow.store, retried_step(begun, 1, 60))
    before = dump(dsn)
    assert [flow.store.resume(n) for n in range(1, begun.message_id + 1)] == [False] * begun.message_id
    assert dump(dsn) == before


# Replaying


def test_a_failed_run_is_queued_again_with_what_it_recorded(flow, clock):
    claim = flow.begun()
    wrote(flow.store, step(claim, "a", 0))
    wrote(flow.store, failed_step(claim, "b", 1))
    wrote(flow.store, finish(claim, ERROR, error=b'{"message": "no"}', dead="no"))
    clock.advance(6)
    flow.store.replay(claim.message_id)
    run = flow.store.run(claim.message_id)
    assert (run.status, run.output, run.error, run.crash_count, run.completed_at) == (
        QUEUED,
        None,
        None,
        0,
        None,
    )
    assert flow.store.dead() == []
    again = flow.again()
    assert (again.status, [s.name for s in again.steps], again.read_ct) == (QUEUED, ["a"], 1)


def test_a_failure_that_the_workflow_passed_is_kept(flow):
    claim = flow.begun()
    flow.store.turn(
        [failed_step(claim, "handled", 0), step(claim, "after", 1), failed_step(claim, "last", 2)]
    )
    wrote(flow.store, finish(claim, ERROR, dead="no"))
    flow.store.replay(claim.message_id)
    assert [(s.name, s.status) for s in flow.again().steps] == [("handled", "ERROR"), ("after", "SUCCESS")]


def test_what_was_open_when_the_budget_ended_is_dropped(flow):
    claim = flow.begun()
    wrote(flow.store, step(claim, "a"))
    crash = Crash("signal", "x", "b", 1, 5, 1, "SIGKILL")
    wrote(flow.store, Write(claim, crash=crash, settle=Settle(ERROR, error=b"1"), message=Archive("killed")))
    flow.store.replay(claim.message_id)
    assert [s.step_name for s in flow.store.steps(claim.message_id)] == ["a"]
    assert flow.again().crash_count == 0


def test_a_replayed_message_goes_to_the_end_of_the_queue(flow, clock):
    failed = flow.failed()
    clock.advance(1)
    [waiting] = flow.trigger()
    clock.advance(1)
    flow.store.replay(failed)
    assert ids(flow.consumer.claim()) == [waiting, failed]


def test_a_replayed_run_can_end_well(flow):
    number = flow.failed()
    flow.store.replay(number)
    claim = flow.consumer.claim_one()
    flow.store.turn([flow.begin(claim, 2), finish(claim, SUCCESS, b"1")])
    assert flow.store.run(number).status == SUCCESS
    with pytest.raises(errors.ValidationError, match="only a run in ERROR can be replayed"):
        flow.store.replay(number)


def test_only_what_failed_can_be_replayed(flow):
    [queued] = flow.trigger()
    running = flow.begun().message_id
    assert running == queued  # the oldest is begun first
    for number in (running, *flow.trigger()):
        with pytest.raises(errors.ValidationError):
            flow.store.replay(number)


def test_a_dead_plain_message_is_delivered_anew(store, queue, consumer, dsn):
    [number] = store.enqueue(queue, [b"1"])
    wrote(store, Write(consumer.claim_one(), message=Archive("no")))
    store.replay(number)
    assert columns(dsn, "pgqrs_messages", "read_ct, consumer_worker_id, dead_reason") == [(0, None, None)]
    assert ids(consumer.claim()) == [number]


def test_a_handled_plain_message_is_not_dead(store, queue, consumer):
    [number] = store.enqueue(queue, [b"1"])
    wrote(store, Write(consumer.claim_one(), message=Archive()))
    with pytest.raises(errors.ValidationError, match="not dead"):
        store.replay(number)


def test_a_running_run_is_still_running_after_a_refused_replay(flow):
    claim = flow.begun()
    with pytest.raises(errors.ValidationError):
        flow.store.replay(claim.message_id)
    assert wrote(flow.store, step(claim)).status == RUNNING


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_held_can_be_ended_at_once(flow, begun):
    claim = flow.begun() if begun else _claimed(flow)
    assert flow.store.cancel(claim.message_id, now=True) == CANCELLED
    run = flow.store.run(claim.message_id)
    assert (run.status, run.completed_at is not None) == (CANCELLED, True)
    assert flow.store.message(claim.message_id).archived_at is not None
    assert flow.store.held([claim.consumer_id]) == []


@pytest.mark.parametrize("unsure", [False, True])
def test_and_its_holder_writes_nothing_more(flow, unsure):
    claim = flow.begun()
    flow.store.cancel(claim.message_id, now=True)
    [outcome] = flow.store.turn([step(claim)], unsure=unsure).outcomes
    assert not outcome.applied
    assert flow.store.steps(claim.message_id) == []


def test_a_plain_message_that_is_held_can_be_ended_at_once(store, queue, consumer):
    [number] = store.enqueue(queue, [b"1"])
    claimed = consumer.claim_one()
    with pytest.raises(errors.ValidationError, match="--now"):
        store.cancel(number)
    assert store.cancel(number, now=True) == CANCELLED
    assert store.message(number).archived_at is not None
    assert not wrote(store, Write(claimed, message=Archive())).applied


def _claimed(flow):
    flow.trigger()
    return flow.consumer.claim_one()
