"""A workflow is made, triggered and run by hand: its run goes through known states only."""

import asyncio
import json

import pytest

import pgqrs
from pgqrs import WorkflowStatus
from tests import sample_workflows as sample
from tests.store.given import execute
from tests.surface.given import PATIENCE_S, a_run, a_triggered, at, moment

pytestmark = pytest.mark.backends("sqlite", "postgres")

Queued, Running, Paused = WorkflowStatus.Queued, WorkflowStatus.Running, WorkflowStatus.Paused
Success, Error = WorkflowStatus.Success, WorkflowStatus.Error
Cancelling, Cancelled = WorkflowStatus.Cancelling, WorkflowStatus.Cancelled


# Making and triggering


async def test_a_workflow_is_made_with_a_queue_of_its_name(store):
    record = await pgqrs.workflow().name("job").store(store).create()
    assert isinstance(record, pgqrs.WorkflowRecord)
    [queue] = await (await store.get_queues()).list()
    assert (record.id, record.name, record.queue_id) == (1, "job", queue.id)
    assert queue.queue_name == "job"
    assert await (await store.get_workflows()).get_by_name("job") == record


async def test_a_workflow_is_made_once(store):
    await pgqrs.workflow().name("job").store(store).create()
    with pytest.raises(pgqrs.WorkflowAlreadyExistsError, match="'job' already exists; trigger it"):
        await pgqrs.workflow().name("job").store(store).create()


async def test_it_takes_a_queue_that_is_there(store):
    queue = await store.queue("job")
    assert (await pgqrs.workflow().name("job").store(store).create()).queue_id == queue.id


@pytest.mark.parametrize(
    "input", [None, 0, "", [], {}, {"input": 1}, {"a": [1, {"b": None}]}, "text", 1.5], ids=repr
)
async def test_a_trigger_s_message_shows_the_input_itself(store, input):
    message = await a_triggered(store, input)
    assert isinstance(message, pgqrs.QueueMessage)
    assert message.payload == input
    assert (message.id, message.read_ct, message.consumer_worker_id) == (1, 0, None)
    consumer = await store.consumer("job")
    [taken] = await consumer.dequeue()
    assert (taken.id, taken.payload) == (message.id, input)


async def test_what_is_stored_is_the_input_in_a_field_of_that_name(store, dsn):
    await a_triggered(store, {"a": 1})
    [(payload,)] = execute(dsn, "select cast(payload as text) from pgqrs_messages")
    assert json.loads(payload) == {"input": {"a": 1}}


async def test_only_a_known_workflow_is_triggered(store):
    with pytest.raises(pgqrs.WorkflowNotFoundError, match="'job'"):
        await pgqrs.workflow().name("job").store(store).trigger(1).execute()


async def test_an_input_is_validated_as_a_payload_is(store):
    await pgqrs.workflow().name("job").store(store).create()
    with pytest.raises(pgqrs.ValidationError, match="constructor"):
        await pgqrs.workflow().name("job").store(store).trigger({"constructor": 1}).execute()
    with pytest.raises(pgqrs.SerializationError, match="object"):
        await pgqrs.workflow().name("job").store(store).trigger(object()).execute()


@pytest.mark.parametrize(
    "unfinished,missing",
    [
        (lambda s: pgqrs.workflow().store(s).create(), "name"),
        (lambda s: pgqrs.workflow().name("job").create(), "store"),
        (lambda s: pgqrs.workflow().store(s).trigger(1).execute(), "name"),
        (lambda s: pgqrs.workflow().name("job").trigger(1).execute(), "store"),
        (lambda s: pgqrs.run().store(s).execute(), "message"),
        (lambda s: pgqrs.run().store(s).result(), "message"),
        (lambda s: pgqrs.run().store(s).get(), "message"),
        (lambda s: pgqrs.run().message(1).execute(), "store"),
        (lambda s: pgqrs.step().name("a").execute(), "run"),
        (lambda s: pgqrs.step().run(1).execute(), "name"),
    ],
)
async def test_an_unfinished_builder_says_what_is_missing(store, unfinished, missing):
    with pytest.raises(
        (ValueError, pgqrs.PgqrsError), match=rf"(?i){missing} is required.*call .{missing}\("
    ):
        await unfinished(store)


async def test_admin_makes_triggers_and_runs_in_one_call(store):
    run = await pgqrs.admin(store).create_workflow("job", {"a": 1})
    assert isinstance(run, pgqrs.Run)
    assert (run.id(), run.message_id, run.input) == (1, 1, {"input": {"a": 1}})
    with pytest.raises(pgqrs.WorkflowAlreadyExistsError):
        await pgqrs.admin(store).create_workflow("job", 2)


# A run


async def test_a_message_s_run_is_made_once(store):
    message = await a_triggered(store, {"a": 1})
    made = await asyncio.gather(*(pgqrs.run().message(message).store(store).execute() for _ in range(5)))
    assert {run.id() for run in made} == {1}
    [record] = await (await store.get_workflow_runs()).list()
    assert (record.id, record.message_id, record.status) == (1, message.id, Queued)
    assert record.input == {"input": {"a": 1}}


async def test_a_message_of_a_plain_queue_has_no_run(store):
    await store.enqueue("tasks", 1)
    [message] = await (await store.consumer("tasks")).dequeue()
    with pytest.raises(pgqrs.WorkflowNotFoundError, match="carries no workflow"):
        await pgqrs.run().message(message).store(store).execute()


async def test_its_result_is_what_it_succeeded_with(store):
    message = await a_triggered(store, {"n": 20})
    run = await pgqrs.run().message(message).store(store).execute()
    assert await pgqrs.run().message(message).store(store).get() is None
    await run.start()
    assert await pgqrs.run().message(message).store(store).get() is None
    await run.success({"twice": 40})
    assert await pgqrs.run().message(message).store(store).get() == {"twice": 40}
    assert await pgqrs.run().message(message).store(store).result() == {"twice": 40}


async def test_before_there_is_a_run_there_is_no_result(store):
    message = await a_triggered(store)
    assert await pgqrs.run().message(message).store(store).get() is None


async def test_a_result_is_waited_for(store):
    message = await a_triggered(store)
    waiting = asyncio.create_task(pgqrs.run().message(message).store(store).result())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    run = await pgqrs.run().message(message).store(store).execute()
    await run.success([1, 2])
    assert await asyncio.wait_for(waiting, PATIENCE_S) == [1, 2]


async def test_waiting_for_a_result_can_be_given_up(store):
    message = await a_triggered(store)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(pgqrs.run().message(message).store(store).result(), 0.05)
    assert await pgqrs.run().message(message).store(store).get() is None


@pytest.mark.parametrize("look", ["result", "get"])
async def test_a_run_that_failed_raises_its_stored_error(store, look):
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    await run.fail("the disk is full")
    with pytest.raises(pgqrs.PgqrsError, match="the disk is full"):
        await getattr(pgqrs.run().message(message).store(store), look)()


@pytest.mark.parametrize("look", ["result", "get"])
async def test_a_run_that_was_cancelled_raises_too(store, look):
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    await run.cancel()
    with pytest.raises(pgqrs.RunCancelledError):
        await getattr(pgqrs.run().message(message).store(store), look)()


# Its states

# How a new run gets into each state.
WAYS = {
    Queued: [],
    Running: ["start"],
    Paused: ["start", "pause"],
    Success: ["start", "success"],
    Error: ["start", "fail"],
    Cancelling: ["start", "cancel"],
    Cancelled: ["cancel"],
}
CALLS = {
    "start": lambda run: run.start(),
    "success": lambda run: run.success("result"),
    "complete": lambda run: run.complete("result"),
    "fail": lambda run: run.fail("error"),
    "pause": lambda run: run.pause("later", 600),
    "cancel": lambda run: run.cancel(),
}


async def a_run_that_is(store, status):
    """Unless it is to be cancelled at once, its message is held by somebody, so that cancelling it takes two steps."""
    message = await a_triggered(store, {"n": 1})
    if status is not Cancelled:
        [message] = await (await store.consumer("job")).dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    for call in WAYS[status]:
        await CALLS[call](run)
    assert (await run.refresh()).status is status
    return run


AFTER = {
    "start": {Queued: Running, Running: Running, Paused: Running},
    "success": {Running: Success, Queued: Success, Paused: Success, Success: Success, Cancelling: Cancelled},
    "complete": {Running: Success, Queued: Success, Paused: Success, Success: Success, Cancelling: Cancelled},
    "fail": {Running: Error, Queued: Error, Paused: Error, Error: Error, Cancelling: Error},
    "pause": {Running: Paused, Queued: Paused, Paused: Paused},
    "cancel": {
        Queued: Cancelling, Running: Cancelling, Paused: Cancelling, Cancelling: Cancelling,
        Success: Success, Error: Error, Cancelled: Cancelled,
    },
}  # fmt: skip
ALLOWED = [(call, was, becomes) for call, ways in AFTER.items() for was, becomes in ways.items()]
REFUSED = [(call, was) for call, ways in AFTER.items() for was in WAYS if was not in ways]


@pytest.mark.parametrize("call,was,becomes", ALLOWED, ids=[f"{w.name}-{c}-{b.name}" for c, w, b in ALLOWED])
async def test_what_is_allowed_happens(store, call, was, becomes):
    run = await a_run_that_is(store, was)
    await CALLS[call](run)
    assert (await run.refresh()).status is becomes
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is becomes


@pytest.mark.parametrize("call,was", REFUSED, ids=lambda v: getattr(v, "name", v))
async def test_anything_else_is_refused_naming_the_state(store, call, was):
    run = await a_run_that_is(store, was)
    with pytest.raises(pgqrs.ValidationError, match=was.value):
        await CALLS[call](run)
    assert (await run.refresh()).status is was


@pytest.mark.parametrize("was", [Success, Error, Cancelled])
async def test_starting_a_run_that_ended_names_its_terminal_state(store, was):
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    for call in WAYS[was]:
        await CALLS[call](run)
    with pytest.raises(pgqrs.ValidationError, match=f"terminal {was.value}"):
        await run.start()
    assert (await run.refresh()).status is was


async def test_starting_one_that_is_being_cancelled_names_that(store):
    run = await a_run_that_is(store, Cancelling)
    with pytest.raises(pgqrs.ValidationError, match="CANCELLING"):
        await run.start()


async def test_starting_one_that_runs_changes_nothing(store):
    run = await a_run(store)
    await run.start()
    [before] = await (await store.get_workflow_runs()).list()
    await run.start()
    assert await (await store.get_workflow_runs()).list() == [before]


async def test_the_first_result_stands(store):
    run = await a_run(store)
    await run.success("first")
    await run.success("second")
    assert (await run.refresh()).output == "first"


async def test_complete_is_another_name_for_success(store):
    run = await a_run(store)
    await run.complete({"a": 1})
    [record] = await (await store.get_workflow_runs()).list()
    assert (record.status, record.output, record.error) == (Success, {"a": 1}, None)


async def test_a_pause_keeps_its_text_in_the_run_s_error(store):
    run = await a_run(store)
    await run.pause("wait for the approval", 600)
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is Paused
    assert record.error["message"] == "wait for the approval"


async def test_starting_a_paused_run_resumes_it_at_once_whatever_the_resume_time(store):
    run = await a_run(store)
    await run.pause("tomorrow", 86_400)
    await run.start()
    [record] = await (await store.get_workflow_runs()).list()
    assert (record.status, record.error) == (Running, None)


async def test_a_pause_does_not_touch_the_message(store):
    await a_triggered(store)
    consumer = await store.consumer("job")
    [message] = await consumer.dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    await run.pause("later", 600)
    assert await pgqrs.admin(store).get_worker_messages(consumer.worker_id) == [message]
    await run.start()
    await run.success(1)
    assert await consumer.archive(message.id) is True


async def test_a_run_shows_what_it_was_last_seen_as_and_refresh_looks_again(store):
    message = await a_triggered(store)
    one = await pgqrs.run().message(message).store(store).execute()
    other = await pgqrs.run().message(message).store(store).execute()
    await one.success(7)
    assert (one.status, one.output) == (Success, 7)
    assert other.status is Queued
    fresh = await other.refresh()
    assert (fresh.status, fresh.output, fresh.id()) == (Success, 7, one.id())


async def test_a_run_can_be_told_the_time(store):
    run = await a_run(store, 5)
    assert run.current_time is None
    timed = run.with_time("2030-01-15T10:30:00+02:00")
    assert moment(timed.current_time) == moment("2030-01-15T08:30:00+00:00")
    assert (timed.id(), timed.input, run.current_time) == (run.id(), run.input, None)
    assert (await timed.refresh()).current_time == timed.current_time
    with pytest.raises(ValueError, match="2030-01-15"):
        run.with_time("soon")


@pytest.mark.parametrize(
    "result", [object(), float("nan"), "half \ud800", "nul \0"], ids=["object", "nan", "half", "nul"]
)
async def test_a_result_that_cannot_be_stored_is_refused_and_the_run_goes_on(store, result):
    run = await a_run(store)
    await run.start()
    with pytest.raises(pgqrs.SerializationError, match="the result of the run"):
        await run.success(result)
    assert (await run.refresh()).status is Running


async def test_an_error_is_text(store):
    run = await a_run(store)
    with pytest.raises(TypeError, match="an error is text"):
        await run.fail({"code": 1})
    await run.fail("no")
    [record] = await (await store.get_workflow_runs()).list()
    assert (record.status, record.error) == (Error, "no")


# Cancelling


async def test_what_nobody_holds_is_cancelled_at_once(store):
    run = await a_run(store)
    assert await run.cancel() is Cancelled
    assert (await run.refresh()).status is Cancelled


async def test_what_somebody_holds_is_cancelled_before_its_next_step(store):
    run = await a_run_that_is(store, Running)
    assert await run.cancel() is Cancelling
    with pytest.raises(pgqrs.RunCancelledError, match="before its step 'next'"):
        await run.acquire_step("next")
    assert (await run.refresh()).status is Cancelled
    assert await (await store.get_workflow_steps()).count() == 0


async def test_a_run_that_ended_stays_as_it_ended(store):
    run = await a_run(store)
    await run.success(1)
    assert await run.cancel() is Success
    assert (await run.refresh()).output == 1


async def test_a_cancelled_run_takes_no_step(store):
    run = await a_run(store)
    await run.cancel()
    with pytest.raises((pgqrs.ValidationError, pgqrs.RunCancelledError, pgqrs.ClaimLostError)):
        await run.acquire_step("a")
    assert await (await store.get_workflow_steps()).count() == 0


# Who may write


async def test_once_somebody_else_has_claimed_the_message_nothing_is_written(store):
    await a_triggered(store, 1)
    one, other = await store.consumer("job"), await store.consumer("job")
    [message] = await one.dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    await run.start()
    [again] = await other.dequeue_at(1, 30, at(100))
    assert again.id == message.id
    for write in (
        run.success(1),
        run.fail("no"),
        run.pause("p", 1),
        run.acquire_step("a"),
        run.complete_step("a", 1),
    ):
        with pytest.raises(pgqrs.ClaimLostError, match="nothing was written"):
            await write
    theirs = await pgqrs.run().message(again).store(store).execute()
    assert theirs.id() == run.id()
    await theirs.success("theirs")
    assert (await run.refresh()).output == "theirs"


# Decorated functions, by the async store


@pgqrs.workflow
def double(n: int) -> int:
    return n * 2


async def test_a_decorated_function_is_triggered_and_looked_at_by_its_handle(store):
    handle = await store.trigger(double, 4)
    assert handle.id == 1
    assert await handle.status is Queued
    assert (await handle.record()).workflow == "double"
    assert await handle.steps() == []
    with pytest.raises(pgqrs.TimeoutError, match="still QUEUED"):
        await handle.result(timeout=0.01)
    assert await (await store.run(handle.id)).status is Queued
    assert [r.message_id for r in await store.runs("double")] == [1]


async def test_its_run_can_be_driven_by_hand_and_the_handle_has_the_result(store):
    handle = await store.trigger(double, 4)
    [message] = await (await store.consumer("double")).dequeue()
    assert message.payload == 4
    run = await pgqrs.run().message(message).store(store).execute()
    await run.success(8)
    assert await handle.result(timeout=PATIENCE_S) == 8


async def test_a_handle_cancels_and_resumes(store):
    handle = await store.trigger(double, 4)
    [message] = await (await store.consumer("double")).dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    assert await handle.resume() is False
    await run.pause("wait", 600)
    assert await handle.status is Paused
    assert await handle.resume() is True
    assert await handle.cancel() is Cancelling
    other = await store.trigger(double, 5)
    assert await other.cancel() is Cancelled
    with pytest.raises(pgqrs.RunCancelledError):
        await other.result()


@pytest.mark.processes
async def test_workers_run_it_for_the_length_of_a_block(store):
    async with store.workers(sample.double, processes=1):
        handle = await store.trigger(sample.double, 21)
        assert await handle.result(timeout=30) == 42
    assert await handle.status is Success
