"""A step's result is recorded once; a failure is final, or waits for its next try by the clock that it is given."""

from datetime import UTC, datetime, timedelta

import pytest

import pgqrs
from pgqrs import StepResultStatus, WorkflowStatus
from tests.surface.given import a_run, a_triggered, at, moment

pytestmark = pytest.mark.backends("sqlite", "postgres")

Execute, Skipped = StepResultStatus.Execute, StepResultStatus.Skipped


async def the_step(store, name="a"):
    [record] = [s for s in await (await store.get_workflow_steps()).list() if s.step_name == name]
    return record


# Acquiring and ending


async def test_a_new_step_is_to_be_executed(store):
    run = await a_run(store)
    acquired = await run.acquire_step("a")
    assert (acquired.status, acquired.value) == (Execute, None)
    assert isinstance(acquired.guard, pgqrs.StepGuard)
    record = await the_step(store)
    assert (record.run_id, record.step_name, record.status) == (run.id(), "a", WorkflowStatus.Running)


@pytest.mark.parametrize("value", [None, 0, "text", [1, {"a": None}], {"k": "v"}, True], ids=repr)
async def test_one_that_succeeded_is_skipped_and_its_value_is_given(store, value):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.success(value)
    again = await run.acquire_step("a")
    assert (again.status, again.value, again.guard) == (Skipped, value, None)
    record = await the_step(store)
    assert (record.status, record.output, record.error) == (WorkflowStatus.Success, value, None)


async def test_also_in_another_execution_of_the_run(store):
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    await (await run.acquire_step("a")).guard.success(5)
    later = await pgqrs.run().message(message).store(store).execute()
    assert (await later.acquire_step("a")).value == 5


async def test_the_builder_acquires_it_too(store):
    run = await a_run(store)
    acquired = await pgqrs.step().run(run).name("a").execute()
    assert acquired.status is Execute
    await acquired.guard.success(5)
    assert (await pgqrs.step().run(run).id("a").execute()).value == 5


async def test_a_step_that_was_begun_and_not_ended_is_executed_again(store):
    run = await a_run(store)
    await run.acquire_step("a")
    assert (await run.acquire_step("a")).status is Execute
    assert await (await store.get_workflow_steps()).count() == 1


async def test_the_first_result_stands(store):
    run = await a_run(store)
    guard = (await run.acquire_step("a")).guard
    await guard.success("first")
    await guard.success("second")
    await guard.fail("too late")
    assert (await run.acquire_step("a")).value == "first"


async def test_steps_of_a_run_go_by_their_names(store):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.success(1)
    await (await run.acquire_step("b")).guard.success(2)
    assert [(await run.acquire_step(name)).value for name in ("a", "b")] == [1, 2]
    assert {s.step_name for s in await (await store.get_workflow_steps()).list()} == {"a", "b"}


async def test_steps_of_different_runs_do_not_mix(store):
    await pgqrs.workflow().name("job").store(store).create()
    runs = []
    for _ in range(2):
        message = await pgqrs.workflow().name("job").store(store).trigger().execute()
        runs.append(await pgqrs.run().message(message).store(store).execute())
    await (await runs[0].acquire_step("a")).guard.success(1)
    assert (await runs[1].acquire_step("a")).status is Execute


async def test_a_step_can_be_ended_without_its_guard(store):
    run = await a_run(store)
    await run.acquire_step("a")
    await run.complete_step("a", {"n": 1})
    assert (await run.acquire_step("a")).value == {"n": 1}
    await run.complete_step("never acquired", 2)
    assert (await run.acquire_step("never acquired")).value == 2


async def test_a_result_that_cannot_be_stored_is_refused_and_the_step_stays_open(store):
    run = await a_run(store)
    guard = (await run.acquire_step("a")).guard
    with pytest.raises(pgqrs.SerializationError, match="the result of step 'a'"):
        await guard.success(object())
    assert (await the_step(store)).status is WorkflowStatus.Running


async def test_what_a_step_result_and_a_guard_are_shows(store):
    run = await a_run(store)
    acquired = await run.acquire_step("a")
    assert repr(acquired) == "StepResult(StepResultStatus.Execute, None)"
    assert repr(acquired.guard) == "StepGuard('a' of run 1)"


# Failing for good


@pytest.mark.parametrize(
    "fail", [lambda r, g: g.fail("broken"), lambda r, g: r.fail_step("a", "broken")], ids=["guard", "run"]
)
async def test_a_permanent_failure_is_final(store, fail):
    run = await a_run(store)
    await fail(run, (await run.acquire_step("a")).guard)
    record = await the_step(store)
    assert (record.status, record.retry_at) == (WorkflowStatus.Error, None)
    assert record.error == {"is_transient": False, "code": "NON_RETRYABLE", "message": "broken"}
    for time in (None, at(10), at(1_000_000)):
        with pytest.raises(pgqrs.RetriesExhaustedError, match="broken"):
            await run.acquire_step("a", time)


async def test_a_failure_does_not_touch_the_run(store):
    run = await a_run(store)
    await run.start()
    await (await run.acquire_step("a")).guard.fail("broken")
    assert (await run.refresh()).status is WorkflowStatus.Running


# Failing for a while


async def test_a_transient_failure_waits_for_its_retry(store):
    run = await a_run(store)
    guard = (await run.acquire_step("a", at(0))).guard
    await guard.fail_transient("TIMEOUT", "slow today", 30)
    record = await the_step(store)
    assert record.status is WorkflowStatus.Error
    assert abs((moment(record.retry_at) - moment(at(30))).total_seconds()) < 0.01
    error = dict(record.error)
    assert error.pop("retry_after")
    assert error == {"is_transient": True, "code": "TIMEOUT", "message": "slow today"}
    with pytest.raises(pgqrs.StepNotReadyError) as refused:
        await run.acquire_step("a", at(29))
    assert moment(refused.value.retry_at) == moment(record.retry_at)
    assert (await run.acquire_step("a", at(31))).status is Execute


async def test_without_a_retry_after_its_error_has_none(store):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.fail_transient("CODE", "text")
    assert (await the_step(store)).error == {"is_transient": True, "code": "CODE", "message": "text"}


async def test_by_the_clock_on_the_wall_it_waits_too(store):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.fail_transient("CODE", "text", 600)
    with pytest.raises(pgqrs.StepNotReadyError, match="retry scheduled for"):
        await run.acquire_step("a")
    await (await run.acquire_step("b")).guard.fail_transient("CODE", "text", 0)
    assert (await run.acquire_step("b")).status is Execute


@pytest.mark.parametrize("after", [30, 30.0, timedelta(seconds=30), "30s"], ids=repr)
async def test_a_retry_after_is_any_duration(store, after):
    run = await a_run(store)
    await (await run.acquire_step("a", at(0))).guard.fail_transient("CODE", "text", after)
    assert abs((moment((await the_step(store)).retry_at) - moment(at(30))).total_seconds()) < 0.01


async def test_the_default_back_off_doubles_from_one_second_give_or_take_a_quarter(store):
    run = await a_run(store)
    now = 0.0
    for wait_s in (1, 2, 4):
        await (await run.acquire_step("a", at(now))).guard.fail_transient("CODE", "text")
        waited = (moment((await the_step(store)).retry_at) - moment(at(now))).total_seconds()
        assert max(1.0, wait_s * 0.75) - 0.01 <= waited <= wait_s * 1.25 + 0.01
        now += 100


async def test_after_three_retries_it_has_failed_for_good(store):
    run = await a_run(store)
    for tried in range(4):
        acquired = await run.acquire_step("a", at(tried * 100))
        assert acquired.status is Execute
        await acquired.guard.fail_transient("CODE", f"try {tried}", 10)
    record = await the_step(store)
    assert (record.retry_at, record.error["message"]) == (None, "try 3")
    with pytest.raises(pgqrs.RetriesExhaustedError, match="try 3"):
        await run.acquire_step("a", at(1_000_000))


async def test_a_retry_that_succeeds_is_recorded_like_any_other(store):
    run = await a_run(store)
    await (await run.acquire_step("a", at(0))).guard.fail_transient("CODE", "text", 10)
    await (await run.acquire_step("a", at(20))).guard.success("at last")
    record = await the_step(store)
    assert (record.status, record.output, record.error, record.retry_at) == (
        WorkflowStatus.Success,
        "at last",
        None,
        None,
    )
    assert record.retry_count == 1


async def test_while_it_is_tried_again_it_is_running(store):
    run = await a_run(store)
    await (await run.acquire_step("a", at(0))).guard.fail_transient("CODE", "text", 10)
    await run.acquire_step("a", at(20))
    record = await the_step(store)
    assert (record.status, record.error, record.retry_at) == (WorkflowStatus.Running, None, None)


async def test_a_transient_failure_does_not_touch_the_message(store):
    await a_triggered(store)
    consumer = await store.consumer("job")
    [message] = await consumer.dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    await run.start()
    await (await run.acquire_step("a")).guard.fail_transient("CODE", "text", 600)
    assert await pgqrs.admin(store).get_worker_messages(consumer.worker_id) == [message]
    assert (await run.refresh()).status is WorkflowStatus.Running


async def test_a_step_is_failed_for_a_while_by_a_dict_too(store):
    run = await a_run(store)
    await run.acquire_step("a")
    error = {"is_transient": True, "code": "BUSY", "message": "later", "retry_after": 30}
    await run.fail_step("a", error, at(0))
    record = await the_step(store)
    assert (record.error["code"], record.error["is_transient"]) == ("BUSY", True)
    assert abs((moment(record.retry_at) - moment(at(30))).total_seconds()) < 0.01


async def test_a_dict_that_says_nothing_of_transience_is_final(store):
    run = await a_run(store)
    await run.fail_step("a", {"message": "no"})
    assert (await the_step(store)).error == {"is_transient": False, "code": "NON_RETRYABLE", "message": "no"}


# Whose clock


async def test_the_run_s_time_is_its_steps(store):
    run = await a_run(store)
    early = run.with_time(at(0))
    await (await early.acquire_step("a")).guard.fail_transient("CODE", "text", 30)
    assert abs((moment((await the_step(store)).retry_at) - moment(at(30))).total_seconds()) < 0.01
    with pytest.raises(pgqrs.StepNotReadyError):
        await run.with_time(at(29)).acquire_step("a")
    assert (await run.with_time(at(31)).acquire_step("a")).status is Execute


async def test_the_builder_s_time_is_the_step_s(store):
    run = await a_run(store)
    acquired = await pgqrs.step().run(run).name("a").with_time(at(0)).execute()
    await acquired.guard.fail_transient("CODE", "text", 30)
    with pytest.raises(pgqrs.StepNotReadyError):
        await pgqrs.step().run(run).name("a").with_time(at(29)).execute()
    assert (await pgqrs.step().run(run).name("a").with_time(at(31)).execute()).status is Execute
    with pytest.raises(ValueError, match="2030-01-15"):
        pgqrs.step().with_time("soon")


@pytest.mark.parametrize(
    "same", ["2030-01-15T10:30:00Z", "2030-01-15T10:30:00+00:00", "2030-01-15T12:30:00+02:00", datetime(2030, 1, 15, 10, 30, tzinfo=UTC)],
    ids=str,
)  # fmt: skip
async def test_a_time_is_iso_8601_text_or_a_datetime_with_its_zone(store, same):
    run = await a_run(store)
    await (await run.acquire_step("a", same)).guard.fail_transient("CODE", "text", 30)
    assert moment((await the_step(store)).retry_at) == datetime(2030, 1, 15, 10, 30, 30, tzinfo=UTC)


@pytest.mark.parametrize("time", ["soon", "2030-01-15T10:30:00", datetime(2030, 1, 15)], ids=str)  # noqa: DTZ001
async def test_any_other_is_refused(store, time):
    run = await a_run(store)
    with pytest.raises(pgqrs.ValidationError, match="Invalid ISO 8601 timestamp"):
        await run.acquire_step("a", time)
