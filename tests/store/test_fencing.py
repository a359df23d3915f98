"""A write by someone who no longer owns the message changes nothing, whatever it is and however ownership ended."""

import pytest

from pgqrs.model.writes import Archive, Begin, Crash, Release, Settle, Step, Write
from tests.store.given import (
    CANCELLED,
    ERROR,
    PAUSED,
    RUNNING,
    SUCCESS,
    Consumer,
    dump,
    finish,
    release,
    step,
    wrote,
)

pytestmark = pytest.mark.fast_on("postgres")

CRASH = Crash("signal", "killed", "a", 0, 1, 7, signal="SIGKILL")
LATE = {
    "begin": lambda c: Write(c, begin=Begin(1, 9)),
    "a step": lambda c: step(c, "late"),
    "the same step": lambda c: step(c, "a", output=b'"other"'),
    "a failed step": lambda c: Write(
        c, step=Step(1, "late", ERROR, error=b"1", retry_count=1, retry_in_s=1.0)
    ),
    "a crash": lambda c: Write(c, crash=CRASH),
    "settle SUCCESS": lambda c: Write(c, settle=Settle(SUCCESS, b"1")),
    "settle ERROR": lambda c: Write(c, settle=Settle(ERROR, error=b"1")),
    "settle PAUSED": lambda c: Write(c, settle=Settle(PAUSED)),
    "release": lambda c: Write(c, message=Release()),
    "release later, charged": lambda c: Write(c, message=Release(60.0, refund=False)),
    "archive": lambda c: Write(c, message=Archive()),
    "bury": lambda c: Write(c, message=Archive("dead")),
    "all in one": lambda c: Write(
        c, Begin(1, 9), Step(1, "late", SUCCESS, b"1"), CRASH, Settle(SUCCESS), Archive()
    ),
}


def taken_over(flow, claim):
    second = Consumer(flow.store, flow.workflow.queue_id, "second")
    wrote(flow.store, release(claim))
    assert second.claim_one().message_id == claim.message_id


def taken_again_by_the_same(flow, claim):
    wrote(flow.store, release(claim))
    assert flow.consumer.claim_one() != claim


def released(flow, claim):
    wrote(flow.store, release(claim))


def paused(flow, claim):
    wrote(flow.store, Write(claim, settle=Settle(PAUSED), message=Release(60.0)))


def archived(flow, claim):
    wrote(flow.store, finish(claim, SUCCESS, b"7"))


def buried(flow, claim):
    wrote(flow.store, finish(claim, ERROR, error=b"7", dead="gone"))


def recovered(flow, claim):
    flow.store.expire_lease(flow.consumer.supervisor_id)
    assert flow.store.recover(5) == 1


def retired(flow, claim):
    assert flow.store.retire(flow.consumer.supervisor_id, 5) == 1


def cancelled_after_its_release(flow, claim):
    wrote(flow.store, release(claim))
    assert flow.store.cancel(claim.message_id) == CANCELLED


def replayed(flow, claim):
    buried(flow, claim)
    flow.store.replay(claim.message_id)


LOST = [
    taken_over, taken_again_by_the_same, released, paused, archived, buried, recovered, retired,
    cancelled_after_its_release, replayed,
]  # fmt: skip


@pytest.mark.parametrize("lose", LOST, ids=lambda f: f.__name__)
def test_a_late_write_of_any_kind_changes_nothing_and_says_so(lose, flow, dsn, clock):
    claim = flow.begun()
    assert wrote(flow.store, step(claim, "a")).applied
    lose(flow, claim)
    clock.advance(3)
    before = dump(dsn)
    late = [make(claim) for make in LATE.values()]
    outcomes = [wrote(flow.store, w) for w in late] + flow.store.turn(late).outcomes
    assert dump(dsn) == before
    assert [(o.write, o.applied, o.failure) for o in outcomes] == [(w, False, None) for w in late * 2]


def test_the_claim_that_took_over_is_not_hurt_by_a_late_write_beside_it(flow, dsn):
    claim = flow.begun()
    wrote(flow.store, release(claim))
    new = flow.consumer.claim_one()
    for what, make in LATE.items():
        outcomes = flow.store.turn(
            [make(claim), flow.begin(new, 2), step(new, "mine", output=b'"kept"')]
        ).outcomes
        assert [o.applied for o in outcomes] == [False, True, True], what
        assert [(s.step_name, s.output) for s in flow.store.steps(claim.message_id)] == [("mine", "kept")], (
            what
        )
        assert flow.store.run(claim.message_id).status == RUNNING, what


@pytest.mark.parametrize("what", ["all in one", "archive"])
@pytest.mark.parametrize("wrong", ["message_id", "consumer_id", "claim_no"])
def test_each_of_a_claims_three_numbers_counts(wrong, what, flow, dsn):
    import msgspec

    claim = flow.begun()
    forged = msgspec.structs.replace(claim, **{wrong: getattr(claim, wrong) + 1})
    before = dump(dsn)
    assert not wrote(flow.store, LATE[what](forged)).applied
    assert dump(dsn) == before


def test_a_claims_number_never_goes_back(flow):
    numbers = []
    flow.trigger()
    for _ in range(4):
        claim = flow.consumer.claim_one()
        numbers.append(claim.claim_no)
        wrote(flow.store, release(claim))
    claim = flow.consumer.claim_one()
    wrote(flow.store, flow.begin(claim))
    wrote(flow.store, finish(claim, ERROR, error=b"1", dead="gone"))
    flow.store.replay(claim.message_id)
    numbers += [claim.claim_no, flow.consumer.claim_one().claim_no]
    assert numbers == sorted(set(numbers))


def test_a_checkpoint_that_is_recorded_never_changes(flow, dsn):
    claim = flow.begun()
    wrote(flow.store, step(claim, "a", output=b'"first"', pid=1, seconds=1.0))
    before = dump(dsn)["pgqrs_workflow_steps"]
    for again in (
        step(claim, "a", output=b'"second"', pid=2),
        Write(claim, step=Step(5, "a", ERROR, error=b"1")),
        Write(claim, crash=CRASH),
    ):
        assert wrote(flow.store, again).applied  # the claim is live; only the record stands
        assert dump(dsn)["pgqrs_workflow_steps"] == before


def test_in_one_turn_only_the_live_claims_are_written(flow, dsn):
    flow.trigger(6)
    claims = [c.claim for c in flow.consumer.claim()]
    flow.store.turn([flow.begin(c) for c in claims])
    flow.store.turn([release(c, 60.0) for c in claims[::2]])
    outcomes = flow.store.turn([finish(c, SUCCESS, b"1") for c in claims]).outcomes
    assert [o.applied for o in outcomes] == [False, True] * 3
    assert [o.status for o in outcomes] == [None, SUCCESS] * 3


def test_in_one_turn_only_the_live_claims_are_archived(consumer, store, queue):
    messages = store.enqueue(queue, [b"1"] * 6)
    claims = [c.claim for c in consumer.claim()]
    store.turn([release(c, 60.0) for c in claims[::2]])
    reasons = [None, None, "why"] * 2
    writes = [Write(c, message=Archive(reason)) for c, reason in zip(claims, reasons, strict=True)]
    outcomes = store.turn(writes).outcomes
    assert [(o.write, o.applied) for o in outcomes] == list(zip(writes, [False, True] * 3, strict=True))
    found = [store.message(m) for m in messages]
    assert [m.archived_at is not None for m in found] == [False, True] * 3
    assert [m.dead_reason for m in found] == [None, None, None, None, None, "why"]


# A commit whose outcome nobody saw


def test_an_end_that_was_committed_unseen_counts_as_applied_when_asked_again(flow, dsn):
    claim = flow.begun()
    end = finish(claim, SUCCESS, b"7")
    wrote(flow.store, end)
    before = dump(dsn)
    again = wrote(flow.store, end, unsure=True)
    assert (again.applied, again.status) == (True, SUCCESS)
    assert dump(dsn) == before


def test_without_doubt_the_same_end_is_late(flow):
    claim = flow.begun()
    end = finish(claim, SUCCESS, b"7")
    wrote(flow.store, end)
    assert not wrote(flow.store, end).applied


def test_a_release_that_was_committed_unseen_is_not_applied_twice(flow, dsn):
    claim = flow.begun()
    wrote(flow.store, release(claim))
    before = dump(dsn)
    assert not wrote(flow.store, release(claim), unsure=True).applied
    assert dump(dsn) == before


def test_what_was_lost_stays_lost_in_doubt_as_well(flow, dsn):
    claim = flow.begun()
    taken_over(flow, claim)
    before = dump(dsn)
    assert not wrote(flow.store, finish(claim), unsure=True).applied
    assert dump(dsn) == before


def test_steps_committed_unseen_are_written_once(flow, dsn):
    claim = flow.begun()
    writes = [flow.begin(claim), step(claim, "a"), step(claim, "b", 1)]
    flow.store.turn(writes)
    before = dump(dsn)
    assert [o.applied for o in flow.store.turn(writes, unsure=True).outcomes] == [True] * 3
    assert dump(dsn) == before
