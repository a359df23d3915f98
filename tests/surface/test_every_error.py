"""Every error is raised by a real call, as its own type, and says what to do."""

import asyncio
import builtins
import re

import pytest

import pgqrs
from pgqrs import errors
from tests.store.given import execute
from tests.surface.given import QUEUE, a_held_message, a_pair, a_run, a_triggered, at

pytestmark = pytest.mark.backends("sqlite", "postgres")

# By error: a call that raises it, and the part of its text that helps.
RAISED = {}


def raises(kind, text):
    def register(call):
        RAISED[f"{kind.__name__}: {call.__name__}"] = (kind, text, call)
        return call

    return register


@raises(errors.PgqrsConnectionError, r"folder .* must exist and be writable")
async def connecting_to_a_folder_that_is_not_there(store):
    await pgqrs.connect("sqlite:///no/such/folder/x.db")


@raises(errors.PgqrsConnectionError, "was closed; connect again")
async def using_a_closed_store(store):
    await store.close()
    await store.queue("tasks")


@raises(errors.ConfigError, r"a DSN begins with one of postgresql://, postgres://, sqlite://")
async def connecting_to_an_unknown_scheme(store):
    await pgqrs.connect("mysql://h/d")


@raises(errors.ConfigError, "1 to 63 letters, digits, '_' and '\\$', the first of them no digit")
async def choosing_an_odd_schema(store):
    pgqrs.Config("pg://h/d", schema="1a")


@raises(errors.ConfigError, "cache dir cannot be empty")
async def choosing_a_blank_cache_dir(store):
    pgqrs.Config("s3://b/k").s3_cache_dir = " "


@raises(errors.QueueNotFoundError, r"make it with store.queue\('nowhere'\)")
async def producing_on_a_queue_that_is_not_there(store):
    await store.producer("nowhere")


@raises(errors.QueueNotFoundError, "see: pgqrs queues")
async def deleting_a_queue_that_is_not_there(store):
    await pgqrs.admin(store).delete_queue("nowhere")


@raises(errors.QueueAlreadyExistsError, "use it, or choose another name")
async def making_a_queue_twice(store):
    await store.queue("tasks")
    await store.queue("tasks")


@raises(errors.ArgumentError, "the id of a run is a whole number, not '4711'")
async def looking_for_a_run_by_text(store):
    await store.run("4711")


@raises(errors.WorkerNotFoundError, "Worker 4711 not found; see: pgqrs workers --all")
async def looking_for_a_worker_that_is_not_there(store):
    await (await store.get_workers()).get(4711)


@raises(errors.MessageNotFoundError, "no message has the id|nothing was written")
async def running_a_message_that_was_purged(store):
    message = await a_triggered(store)
    await pgqrs.admin(store).purge_queue("job")
    await pgqrs.run().message(message).store(store).execute()


@raises(errors.MessageNotFoundError, "was deleted; nothing was written")
async def driving_a_run_whose_message_was_purged(store):
    run = await a_run(store)
    await pgqrs.admin(store).purge_queue("job")
    await run.start()


@raises(errors.WorkflowNotFoundError, r"make it: pgqrs.workflow\(\).name\('job'\).store\(…\).create\(\)")
async def looking_for_a_workflow_that_is_not_there(store):
    await (await store.get_workflows()).get_by_name("job")


@raises(errors.WorkflowNotFoundError, "is known once it was supervised, or made")
async def triggering_a_workflow_that_is_not_there(store):
    await pgqrs.workflow().name("job").store(store).trigger(1).execute()


@raises(errors.WorkflowAlreadyExistsError, "'job' already exists; trigger it")
async def making_a_workflow_twice(store):
    await a_triggered(store)
    await pgqrs.workflow().name("job").store(store).create()


@raises(errors.RunNotFoundError, "no run or message has the id 4711; see: pgqrs runs")
async def looking_for_a_run_that_is_not_there(store):
    await store.run(4711)


@raises(errors.SerializationError, "turn it into text, numbers, lists or dicts first")
async def sending_what_is_no_json(store):
    producer, _ = await a_pair(store)
    await producer.enqueue({"a": object()})


@raises(errors.SerializationError, r"the result of step 'a' cannot be stored as JSON")
async def ending_a_step_with_what_is_no_json(store):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.success(object())


@raises(
    errors.RateLimitedError,
    "retry after 1s; or raise Config.max_enqueue_per_second, where None switches the limit off",
)
async def sending_too_fast(store):
    store.config.max_enqueue_per_second = 1
    store.config.max_enqueue_burst = 1
    producer, _ = await a_pair(store)
    await producer.enqueue(1)
    await producer.enqueue(2)


@raises(errors.RateLimitedError, "send fewer at a time, or raise Config.max_enqueue_burst")
async def sending_too_many_at_once(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch([1] * 51)


@raises(errors.ValidationError, "raise Config.max_string_length")
async def sending_too_long_a_text(store):
    producer, _ = await a_pair(store)
    await producer.enqueue("x" * 2000)


@raises(errors.ValidationError, "flatten the payload, or raise Config.max_object_depth")
async def sending_too_deep_a_payload(store):
    producer, _ = await a_pair(store)
    await producer.enqueue([[[[[[1]]]]]])


@raises(errors.ValidationError, "rename it, or change Config.forbidden_keys")
async def sending_a_forbidden_key(store):
    producer, _ = await a_pair(store)
    await producer.enqueue({"constructor": 1})


@raises(
    errors.ValidationError,
    "store the bulk elsewhere and pass its address, or raise Config.max_payload_size_bytes",
)
async def sending_too_big_a_payload(store):
    producer, _ = await a_pair(store)
    await producer.enqueue(["x" * 1000] * 1100)


@raises(errors.ValidationError, "terminal SUCCESS")
async def starting_a_run_that_ended(store):
    run = await a_run(store)
    await run.success(1)
    await run.start()


@raises(errors.ValidationError, "give it another life with replay: pgqrs replay 1")
async def starting_a_run_that_failed(store):
    run = await a_run(store)
    await run.fail("no")
    await run.start()


@raises(errors.ValidationError, r"Delete workers first")
async def deleting_a_queue_in_use(store):
    await a_pair(store)
    await pgqrs.admin(store).delete_queue(QUEUE)


@raises(errors.ValidationError, r"use handle_batch\(\)")
async def handling_a_batch_one_by_one(store):
    _, consumer = await a_pair(store)
    await pgqrs.dequeue().worker(consumer).batch(2).handle(print).poll(store)


@raises(errors.ValidationError, "give date, time and offset, such as 2030-01-15T10:30:00Z")
async def saying_an_odd_time(store):
    _, consumer = await a_pair(store)
    await consumer.dequeue_at(1, 30, "tomorrow")


@raises(errors.ValidationError, "a timedelta, or text such as")
async def saying_an_odd_duration(store):
    consumer, message = await a_held_message(store)
    await consumer.extend_vt(message.id, "a while")


@raises(errors.TimeoutError, "run 1 is still QUEUED after 10ms; is a supervisor running for its workflow?")
async def waiting_for_nothing(store):
    await pgqrs.workflow().name("job").store(store).create()
    handle = await store.trigger("job", 1)
    await handle.result(timeout=0.01)


@raises(errors.StateTransitionError, r"from ready to stopped: .*call suspend\(\) first")
async def stopping_a_worker_that_is_ready(store):
    _, consumer = await a_pair(store)
    await consumer.shutdown()


@raises(errors.StateTransitionError, r"from suspended to polling: .*resume\(\) a suspended one")
async def polling_with_a_suspended_worker(store):
    _, consumer = await a_pair(store)
    await consumer.suspend()
    await consumer.poll()


@raises(errors.WorkerSuspendedError, r"resume\(\) lets it poll again, unless it was stopped")
async def polling_while_suspended(store):
    _, consumer = await a_pair(store)
    await consumer.suspend()
    await pgqrs.dequeue().worker(consumer).handle(print).poll(store)


@raises(errors.StepNotReadyError, r"retry scheduled for 20\d\d-")
async def trying_a_step_too_early(store):
    run = await a_run(store)
    await (await run.acquire_step("a", at(0))).guard.fail_transient("CODE", "text", 30)
    await run.acquire_step("a", at(10))


@raises(errors.RetriesExhaustedError, r"Step failed after 0 attempts: .*broken")
async def trying_a_step_that_failed_for_good(store):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.fail("broken")
    await run.acquire_step("a")


@raises(errors.ClaimLostError, r"Dequeue it again, with a longer vt, or extend_vt\(\) in time")
async def driving_a_run_that_somebody_else_has_claimed(store):
    await a_triggered(store)
    one, other = await store.consumer("job"), await store.consumer("job")
    [message] = await one.dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    await other.dequeue_at(1, 30, at(100))
    await run.start()


@raises(errors.RunCancelledError, "was cancelled")
async def waiting_for_a_run_that_was_cancelled(store):
    await pgqrs.workflow().name("job").store(store).create()
    handle = await store.trigger("job", 1)
    await handle.cancel()
    await handle.result()


@raises(errors.RunFailedError, "run 1 failed: .*broken; its steps: pgqrs run 1")
async def waiting_for_a_run_that_failed(store):
    await pgqrs.workflow().name("job").store(store).create()
    handle = await store.trigger("job", 1)
    [message] = await (await store.consumer("job")).dequeue()
    await (await pgqrs.run().message(message).store(store).execute()).fail("broken")
    await handle.result()


@raises(errors.PgqrsError, "Workflow run 1 failed: .*broken.*; its steps: pgqrs run 1")
async def asking_for_the_result_of_a_run_that_failed(store):
    message = await a_triggered(store)
    await (await pgqrs.run().message(message).store(store).execute()).fail("broken")
    await pgqrs.run().message(message).store(store).result()


@raises(errors.SchemaError, "run: pgqrs install")
async def verifying_an_incomplete_schema(store):
    execute(store.config.dsn, "alter table pgqrs_workers rename to was_pgqrs_workers")
    try:
        await (await store.get_workers()).list()
    finally:
        execute(store.config.dsn, "alter table was_pgqrs_workers rename to pgqrs_workers")


@raises(errors.TargetError, "name at least one workflow or handler: store.workers")
async def running_workers_for_nothing(store):
    async with store.workers():
        pass


@pytest.mark.parametrize("kind,text,call", RAISED.values(), ids=RAISED)
async def test_a_call_raises_its_own_error_which_says_what_to_do(store, kind, text, call):
    with pytest.raises(pgqrs.PgqrsError) as raised:
        await call(store)
    assert type(raised.value) is kind
    assert re.search(text, str(raised.value)), str(raised.value)


# What only user code raises, by what takes it for its meaning (test_decorators.py), or what needs processes.
RAISED_BY_USERS = {errors.TransientStepError, errors.PausedError}
ELSEWHERE = {
    errors.MapError: "tests/maps",
    errors.InternalError: "test_connecting.py: a store in a forked child",
    errors.ConflictError: "tests/s3",
    errors.DatabaseError: "tests/store/test_refused_values.py",
    errors.ReplayMismatchError: "tests/test_flow.py",
    errors.StepError: "tests/test_errors.py",
    errors.WorkerCrashed: "tests/crashes",
    errors.WrongThreadError: "tests/test_flow.py",
    errors.SupervisorError: "tests/supervisors",
}


def all_errors():
    return {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.PgqrsError)}


def test_no_error_is_left_out():
    shown = {kind for kind, _, _ in RAISED.values()} | RAISED_BY_USERS | set(ELSEWHERE)
    assert all_errors() == shown


PUBLISHED = [
    "PgqrsError",
    "PgqrsConnectionError",
    "QueueNotFoundError",
    "WorkerNotFoundError",
    "QueueAlreadyExistsError",
    "MessageNotFoundError",
    "SerializationError",
    "ConfigError",
    "RateLimitedError",
    "ValidationError",
    "TimeoutError",
    "InternalError",
    "StateTransitionError",
    "TransientStepError",
    "RetriesExhaustedError",
    "StepNotReadyError",
    "PausedError",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_error_can_be_raised_by_a_user(name):
    kind = getattr(pgqrs, name)
    with pytest.raises(pgqrs.PgqrsError, match=r"^the message$") as raised:
        raise kind("the message")
    raised.value.retry_after = 5
    raised.value.anything = "at all"
    assert (type(raised.value), raised.value.retry_after, raised.value.anything) == (kind, 5, "at all")


def test_an_error_that_python_has_too_is_both():
    assert issubclass(pgqrs.TimeoutError, builtins.TimeoutError)
    assert issubclass(pgqrs.SerializationError, TypeError)
    assert issubclass(pgqrs.ValidationError, ValueError)


async def test_a_user_s_transient_error_says_when_to_try_again(store):
    error = pgqrs.TransientStepError("busy")
    assert (error.code, error.retry_after) == (None, None)
    error.code, error.retry_after = "BUSY", 30
    assert (error.code, error.retry_after) == ("BUSY", 30)


@pytest.mark.parametrize("kind", sorted(all_errors(), key=lambda e: e.__name__), ids=lambda e: e.__name__)
def test_each_is_an_exception_of_ours_with_a_sentence_of_its_own(kind):
    assert issubclass(kind, pgqrs.PgqrsError)
    assert not issubclass(kind, asyncio.CancelledError)
    assert kind.__doc__
    assert kind is errors.PgqrsError or kind.__doc__ != errors.PgqrsError.__doc__
