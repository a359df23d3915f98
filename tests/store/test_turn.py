"""What each kind of write does to its run, its steps and its message, alone and together with others."""

import pytest
from msgspec.structs import replace

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Archive, Begin, Crash, Release, Settle, Step, Write
from tests.store.given import (
    CANCELLED,
    CANCELLING,
    ERROR,
    PAUSED,
    RUNNING,
    SUCCESS,
    columns,
    dump,
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


def crash(count: int = 1, step: str | None = "a") -> Crash:
    return Crash("signal", "worker was killed", step, 0, count, 77, "SIGKILL", None, 1.5, 4096)


def message_row(dsn):
    [row] = columns(
        dsn, "pgqrs_messages", "consumer_worker_id, read_ct, dead_reason, archived_at is not null"
    )
    return row


# Begin


def test_begin_makes_the_run_with_its_input(flow, clock):
    flow.trigger()
    claim = flow.consumer.claim_one()
    clock.advance(2)
    outcome = wrote(flow.store, flow.begin(claim))
    run = flow.store.run(claim.message_id)
    assert (outcome.applied, outcome.status) == (True, RUNNING)
    assert (run.status, run.input, run.attempt, run.workflow) == (RUNNING, 0, 1, "flow")
    assert (when(run.started_at), when(run.created_at), when(run.completed_at)) == (
        clock.at(),
        clock.at(),
        None,
    )


def test_the_first_run_has_the_id_1(flow):
    assert flow.store.run(flow.begun().message_id).id == 1


def test_a_second_begin_keeps_the_first_start_and_counts_the_attempt(flow, clock):
    claim = flow.begun()
    began = clock.at()
    wrote(flow.store, Write(claim, settle=Settle(PAUSED, error=b'"wait"'), message=Release()))
    clock.advance(6)
    wrote(flow.store, flow.begin(flow.consumer.claim_one(), attempt=2))
    run = flow.store.run(claim.message_id)
    assert (run.status, run.attempt, when(run.started_at), run.error) == (RUNNING, 2, began, None)
    assert when(run.updated_at) == clock.at()


def test_a_payload_without_an_input_shows_as_it_is(flow):
    flow.store.enqueue(flow.workflow.queue_id, [b'{"other": 1}'])
    claim = flow.consumer.claim_one()
    assert wrote(flow.store, flow.begin(claim)).applied
    assert flow.store.run(claim.message_id).input == {"other": 1}


# Steps


def test_a_step_is_recorded_with_what_it_took(flow, clock):
    claim = flow.begun()
    clock.advance(30)
    full = step(claim, "a", 0, b'{"x": [1, null, "\xc3\xa9"]}', seconds=12.5, cpu_seconds=3.25, pid=77)
    assert wrote(flow.store, full).status == RUNNING
    [recorded] = flow.store.steps(claim.message_id)
    assert (recorded.status, recorded.output, recorded.error) == (SUCCESS, {"x": [1, None, "é"]}, None)
    assert (recorded.position, recorded.pid, recorded.cpu_seconds, recorded.retry_count) == (0, 77, 3.25, 0)
    assert (when(recorded.started_at), when(recorded.completed_at)) == (clock.at(-12.5), clock.at())


def test_a_step_that_took_no_time_that_a_clock_can_show_is_recorded(flow, clock):
    claim = flow.begun()
    wrote(flow.store, step(claim, seconds=1.234e-07, cpu_seconds=1e-300))
    [recorded] = flow.store.steps(claim.message_id)
    assert when(recorded.started_at) == clock.at()


def test_a_steps_null_is_a_result(flow):
    claim = flow.begun()
    wrote(flow.store, step(claim, output=b"null"))
    wrote(flow.store, release(claim))
    assert flow.again().steps[0].output == b"null"


def test_steps_read_back_in_the_order_that_the_run_took_them(flow):
    claim = flow.begun()
    names = ["z", "a", "m", "a#2", "b"]
    flow.store.turn([step(claim, n, i) for i, n in reversed(list(enumerate(names)))])
    assert [s.step_name for s in flow.store.steps(claim.message_id)] == names
    wrote(flow.store, release(claim))
    assert [(s.name, s.position) for s in flow.again().steps] == [(n, i) for i, n in enumerate(names)]


def test_a_retry_overwrites_the_failure_and_success_ends_it(flow, clock):
    claim = flow.begun()
    wrote(flow.store, retried_step(claim, 1, 10))
    [failed] = flow.store.steps(claim.message_id)
    assert (failed.status, failed.retry_count, when(failed.retry_at)) == (ERROR, 1, clock.at(10))
    clock.advance(10)
    claim = flow.consumer.claim_one()
    wrote(flow.store, step(claim, "a", retry_count=1))
    [done] = flow.store.steps(claim.message_id)
    assert (done.status, done.retry_count, when(done.retry_at), done.error) == (SUCCESS, 1, None, None)


def test_many_steps_of_many_runs_go_in_one_turn(flow):
    flow.trigger(50)
    claims = [c.claim for c in flow.consumer.claim(50)]
    writes = [flow.begin(c) for c in claims]
    writes += [step(c, f"s{i}", i, b"%d" % c.message_id) for i in range(4) for c in claims]
    assert all(o.applied and o.status == RUNNING for o in flow.store.turn(writes).outcomes)
    for c in claims:
        assert [s.output for s in flow.store.steps(c.message_id)] == [c.message_id] * 4


# Crashes


def test_a_crash_is_noted_on_the_run_and_on_the_open_step(flow):
    claim = flow.begun()
    wrote(flow.store, Write(claim, crash=crash(), message=Release()))
    run = flow.store.run(claim.message_id)
    [open_step] = flow.store.steps(claim.message_id)
    assert (run.status, run.crash_count, run.crash["signal"]) == (RUNNING, 1, "SIGKILL")
    assert (open_step.status, open_step.crash_count, open_step.crash["cause"]) == (RUNNING, 1, "signal")
    assert (open_step.pid, open_step.cpu_seconds, open_step.peak_rss_bytes) == (77, 1.5, 4096)


def test_the_next_claim_knows_of_the_crash_and_replays_no_open_step(flow):
    claim = flow.begun()
    wrote(flow.store, Write(claim, crash=crash(3), message=Release()))
    again = flow.again()
    assert (again.status, again.attempt, again.crash_count, again.steps) == (RUNNING, 1, 3, ())


def test_crashes_of_a_step_add_up(flow):
    claim = flow.begun()
    for count in (1, 2):
        wrote(flow.store, Write(claim, crash=crash(count)))
    assert flow.store.steps(claim.message_id)[0].crash_count == 2
    assert flow.store.run(claim.message_id).crash_count == 2


def test_a_crash_between_steps_is_noted_on_the_run_alone(flow):
    claim = flow.begun()
    wrote(flow.store, Write(claim, crash=crash(1, step=None)))
    assert flow.store.steps(claim.message_id) == []
    assert flow.store.run(claim.message_id).crash_count == 1


def test_a_checkpoint_forgives_the_crashes_before_it(flow):
    claim = flow.begun()
    wrote(flow.store, Write(claim, crash=crash(4)))
    wrote(flow.store, step(claim))
    assert flow.store.run(claim.message_id).crash_count == 4
    wrote(flow.store, replace(step(claim), forgives=True))
    run = flow.store.run(claim.message_id)
    assert run.crash_count == 0
    assert run.crash is not None  # what happened stays to be seen


def test_a_crash_leaves_the_attempts_of_a_failing_step_as_they_were(flow, clock):
    claim = flow.begun()
    wrote(flow.store, retried_step(claim, 2, 1.0))
    clock.advance(1)
    claim = flow.consumer.claim_one()
    wrote(flow.store, Write(claim, crash=crash(), message=Release()))
    assert [(s.status, s.retry_count) for s in flow.again().steps] == [("RETRY", 2)]


# Settling


@pytest.mark.parametrize("status", [SUCCESS, ERROR, CANCELLED])
def test_a_run_that_ends_has_a_result_and_a_time(status, flow, clock):
    claim = flow.begun()
    clock.advance(5)
    outcome = wrote(flow.store, Write(claim, settle=Settle(status, b"[1]", b'{"e": 2}'), message=Archive()))
    run = flow.store.run(claim.message_id)
    assert outcome.status == run.status == status
    assert (run.output, run.error, when(run.completed_at)) == ([1], {"e": 2}, clock.at())


def test_a_run_that_ended_does_not_end_again(flow):
    claim = flow.begun()
    wrote(flow.store, Write(claim, settle=Settle(SUCCESS, b"1")))
    outcome = wrote(flow.store, Write(claim, settle=Settle(ERROR, error=b"2")))
    assert outcome.status == SUCCESS
    assert flow.store.run(claim.message_id).output == 1


def test_a_paused_run_says_why_and_until_when(flow, clock):
    claim = flow.begun()
    wrote(flow.store, Write(claim, settle=Settle(PAUSED, error=b'"lunch"'), message=Release(600)))
    run = flow.store.run(claim.message_id)
    assert (run.status, run.error, when(run.due_at)) == (PAUSED, "lunch", clock.at(600))


# Releasing and archiving


def test_a_release_keeps_the_place_in_the_queue(flow):
    first, _, third = flow.trigger(3)
    claims = [c.claim for c in flow.consumer.claim(2)]
    wrote(flow.store, release(claims[0]))
    assert ids(flow.consumer.claim()) == [first, third]


def test_a_release_with_a_delay_is_due_then_and_not_before(flow, clock):
    claim = flow.begun()
    wrote(flow.store, release(claim, 10))
    clock.advance(9.999)
    assert flow.consumer.claim() == []
    clock.advance(0.001)
    assert ids(flow.consumer.claim()) == [claim.message_id]


@pytest.mark.parametrize(("refund", "left"), [(True, 0), (False, 1)])
def test_a_release_gives_the_delivery_back_or_not(refund, left, flow, dsn):
    wrote(flow.store, release(flow.begun(), refund=refund))
    assert message_row(dsn) == (None, left, None, False)


def test_a_refund_never_goes_below_nothing(flow, dsn):
    from tests.store.given import execute

    claim = flow.begun()
    execute(dsn, "update pgqrs_messages set read_ct = 0")
    wrote(flow.store, release(claim))
    assert message_row(dsn)[1] == 0


def test_a_pause_without_an_end_is_far_away_on_every_database(flow):
    claim = flow.begun()
    assert wrote(flow.store, release(claim, 100 * 365 * 86_400.0)).applied
    assert flow.store.run(claim.message_id).due_at[:4] == "2124"


def test_a_crash_that_is_written_again_counts_once_in_its_step(flow):
    """A turn whose end was not seen is repeated, and the run is still ours."""
    claim = flow.begun()
    wrote(flow.store, Write(claim, crash=crash(1)))
    assert wrote(flow.store, Write(claim, crash=crash(1)), unsure=True).applied
    [open_step] = flow.store.steps(claim.message_id)
    assert (open_step.crash_count, flow.store.run(claim.message_id).crash_count) == (1, 1)


def test_an_archived_message_keeps_its_consumer_and_is_never_claimed(flow, dsn):
    claim = flow.begun()
    wrote(flow.store, Write(claim, message=Archive()))
    assert message_row(dsn) == (flow.consumer.id, 1, None, True)
    assert flow.consumer.claim() == []


def test_a_buried_message_says_why(flow, dsn):
    wrote(flow.store, Write(flow.begun(), message=Archive("it was too much")))
    assert message_row(dsn) == (flow.consumer.id, 1, "it was too much", True)


# Together


def test_a_write_may_have_every_part_at_once(flow, dsn):
    flow.trigger()
    claim = flow.consumer.claim_one()
    everything = Write(
        claim, Begin(flow.workflow.id, 3), Step(0, "a", SUCCESS, b"1"), crash(2), Settle(ERROR), Archive("x")
    )
    outcome = wrote(flow.store, everything)
    run = flow.store.run(claim.message_id)
    assert (outcome.applied, outcome.status) == (True, ERROR)
    assert (run.attempt, run.crash_count, run.status) == (3, 2, ERROR)
    assert flow.store.steps(claim.message_id)[0].output == 1
    assert message_row(dsn)[2:] == ("x", True)


def test_a_whole_run_may_go_in_one_turn(flow):
    flow.trigger()
    claim = flow.consumer.claim_one()
    turn = flow.store.turn(
        [flow.begin(claim), step(claim), step(claim, "b", 1), finish(claim, SUCCESS, b"9")]
    )
    assert [o.status for o in turn.outcomes] == [SUCCESS] * 4
    assert json(flow.store.settled(claim.message_id).output) == 9


@pytest.mark.parametrize("status", [SUCCESS, ERROR, CANCELLED])
def test_a_run_that_ends_in_the_turn_in_which_it_begins_is_whole(status, flow, clock):
    flow.trigger(2)
    alone, together = (c.claim for c in flow.consumer.claim())
    end = Settle(status, b"[1]", b'{"e": 2}')
    flow.store.turn([flow.begin(alone, 3)])
    flow.store.turn([Write(alone, settle=end, message=Archive())])
    flow.store.turn([flow.begin(together, 3), Write(together, settle=end, message=Archive())])
    one, other = (flow.store.run(c.message_id) for c in (alone, together))
    same = (
        "status",
        "output",
        "error",
        "attempt",
        "created_at",
        "started_at",
        "updated_at",
        "completed_at",
    )
    assert [getattr(one, f) for f in same] == [getattr(other, f) for f in same]
    assert (other.status, other.output, other.attempt) == (status, [1], 3)


@pytest.mark.parametrize("status", [WorkflowStatus.Running, WorkflowStatus.Paused])
def test_a_run_that_only_leaves_in_the_turn_in_which_it_begins_has_not_ended(status, flow):
    flow.trigger()
    claim = flow.consumer.claim_one()
    leaves = Write(claim, settle=Settle(status, error=b'"later"'), message=Release(5.0))
    assert [o.status for o in flow.store.turn([flow.begin(claim), leaves]).outcomes] == [status] * 2
    assert flow.store.run(claim.message_id).completed_at is None


def test_what_was_to_be_cancelled_and_begins_and_ends_in_one_turn_is_cancelled(flow, cancelling):
    turn = flow.store.turn([flow.begin(cancelling, 2), finish(cancelling, SUCCESS, b"1")])
    assert [o.status for o in turn.outcomes] == [CANCELLED] * 2
    assert flow.store.run(cancelling.message_id).output is None


def test_outcomes_come_in_the_order_of_the_writes(flow):
    flow.trigger(4)
    claims = [c.claim for c in flow.consumer.claim()]
    writes = [finish(claims[2]), flow.begin(claims[0]), release(claims[3]), flow.begin(claims[1])]
    assert [o.write for o in flow.store.turn(writes).outcomes] == writes


def test_what_a_turn_releases_its_claims_can_have(flow):
    claim = flow.begun()
    turn = flow.store.turn([release(claim)], [flow.consumer.wanted()])
    assert ids(turn.taken[0].messages) == [claim.message_id]


def test_a_plain_message_has_no_run_and_no_status(consumer, store, queue):
    store.enqueue(queue, [b"1"])
    outcome = wrote(store, Write(consumer.claim_one(), message=Archive()))
    assert (outcome.applied, outcome.status) == (True, None)


def test_a_turn_of_nothing_does_nothing(flow, dsn):
    before = dump(dsn)
    turn = flow.store.turn([])
    assert (turn.outcomes, turn.taken) == ([], [])
    assert dump(dsn) == before


# A run that was asked to be cancelled


@pytest.fixture
def cancelling(flow):
    claim = flow.begun()
    assert flow.store.cancel(claim.message_id) == CANCELLING
    return claim


def test_every_write_hears_that_the_run_is_to_be_cancelled(flow, cancelling):
    writes = [flow.begin(cancelling, 2), step(cancelling), Write(cancelling, crash=crash())]
    assert [wrote(flow.store, w).status for w in writes] == [CANCELLING] * 3


def test_a_cancelled_run_that_comes_to_its_end_is_cancelled_without_a_result(flow, cancelling):
    assert wrote(flow.store, finish(cancelling, SUCCESS, b"1")).status == CANCELLED
    assert flow.store.run(cancelling.message_id).output is None


def test_a_cancelled_run_that_fails_first_is_an_error(flow, cancelling):
    assert wrote(flow.store, finish(cancelling, ERROR, error=b"1", dead="no")).status == ERROR


@pytest.mark.parametrize(
    "leave",
    [
        lambda c: retried_step(c, 1, 600),
        lambda c: Write(c, settle=Settle(PAUSED), message=Release(600)),
        lambda c: Write(c, step=failed_step(c, retry_count=1, retry_in_s=600.0).step, message=Release(600)),
        lambda c: Write(c, crash=crash(), message=Release(600)),
    ],
    ids=["to retry", "to pause", "killed at its time limit", "to back off"],
)
def test_a_cancelled_run_does_not_wait_out_a_delay_first(leave, flow, cancelling):
    assert wrote(flow.store, leave(cancelling)).status == CANCELLING
    again = flow.again()
    assert (again.claim.message_id, again.status) == (cancelling.message_id, CANCELLING)
