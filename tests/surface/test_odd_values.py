"""What hardly anybody passes is answered or refused alike on every backend, and never by a driver's error."""

import pytest

import pgqrs
from pgqrs import StepResultStatus, WorkflowStatus
from tests.surface.given import QUEUE, a_pair, a_run, a_triggered, at

pytestmark = pytest.mark.backends("sqlite", "turso", "postgres")

# Ids


@pytest.mark.parametrize(
    "huge", [2**31, 2**63 - 1, 2**63, 2**70, -1, -(2**63) - 1], ids=["32", "63", "64", "70", "-1", "-64"]
)
async def test_of_an_id_that_no_message_can_have_nobody_is_the_owner(store, huge):
    _, consumer = await a_pair(store)
    assert await consumer.archive(huge) is False
    assert await consumer.archive_many([huge]) == [False]
    assert await consumer.delete(huge) is False
    assert await consumer.delete_many([huge]) == [False]
    assert await consumer.extend_vt(huge, 1) is False
    assert await consumer.release_messages([huge]) == 0
    assert await consumer.release_with_visibility(huge, at(1)) is False


@pytest.mark.parametrize("huge", [2**63, 2**70, -1], ids=["64", "70", "-1"])
async def test_nor_is_there_anything_else_of_such_an_id(store, huge):
    admin = pgqrs.admin(store)
    with pytest.raises(pgqrs.WorkerNotFoundError):
        await (await store.get_workers()).get(huge)
    with pytest.raises(pgqrs.WorkerNotFoundError):
        await admin.delete_worker(huge)
    with pytest.raises(pgqrs.RunNotFoundError):
        await store.run(huge)
    with pytest.raises(pgqrs.RunNotFoundError):
        await admin.replay_dlq(huge)
    assert await admin.get_worker_messages(huge) == []
    assert await admin.release_worker_messages(huge) == 0
    assert await (await store.get_messages()).list_archived_by_queue(huge) == []


# Names

ODD_NAMES = {"nul": "a\0", "half a pair": "a\ud800", "too long": "x" * 256}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
async def test_a_name_that_nothing_can_have_names_nothing(store, name):
    admin = pgqrs.admin(store)
    for call in (
        store.producer(name),
        store.consumer(name),
        admin.get_queue(name),
        admin.delete_queue(name),
        admin.purge_queue(name),
        admin.queue_metrics(name),
        pgqrs.produce(store, name, 1),
    ):
        with pytest.raises((pgqrs.QueueNotFoundError, pgqrs.ValidationError)):
            await call
    with pytest.raises((pgqrs.WorkflowNotFoundError, pgqrs.ValidationError)):
        await pgqrs.workflow().name(name).store(store).trigger(1).execute()


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
async def test_and_nothing_is_made_under_it(store, name):
    run = await a_run(store)
    for call in (
        store.queue(name),
        store.enqueue(name, 1),
        pgqrs.workflow().name(name).store(store).create(),
        run.acquire_step(name),
        run.complete_step(name, 1),
        run.fail_step(name, "no"),
    ):
        with pytest.raises(pgqrs.ValidationError):
            await call
    assert await (await store.get_workflow_steps()).count() == 0


@pytest.mark.parametrize("name", ["a\0", "a\ud800"], ids=["nul", "half a pair"])
async def test_nor_does_a_worker_have_it(store, name):
    await store.queue(QUEUE)
    with pytest.raises(pgqrs.ValidationError):
        await pgqrs.Consumer.new_consumer(pgqrs.admin(store), QUEUE, name)


@pytest.mark.parametrize(
    "name", ["x" * 255, "é" * 255, "a step, with: everything'\"%s {x} "], ids=["long", "wide", "odd"]
)
async def test_any_other_text_names_a_step(store, name):
    run = await a_run(store)
    await (await run.acquire_step(name)).guard.success(1)
    assert (await run.acquire_step(name)).value == 1


# Texts of errors

ODD_TEXTS = {
    "nul": "before \0 after",
    "half a pair": "before \ud800 after",
    "long": "before " + "x" * 2_000_000 + " after",
    "empty": "",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
async def test_an_error_s_text_may_be_anything(store, text):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.fail(text)
    await (await run.acquire_step("b")).guard.fail_transient("CODE", text, 60)
    await run.fail_step("c", text)
    steps = await (await store.get_workflow_steps()).list()
    assert {s.status for s in steps} == {WorkflowStatus.Error}
    assert all(s.error["message"].startswith(text[:7]) for s in steps)
    await run.fail(text)
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is WorkflowStatus.Error
    assert str(record.error).startswith(text[:7])


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
async def test_so_may_the_text_of_a_pause(store, text):
    run = await a_run(store)
    await run.pause(text, 60)
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is WorkflowStatus.Paused
    assert record.error["message"].startswith(text[:7])


# Times


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-02:00", "9999-12-31T23:59:59Z"]
)
async def test_a_time_at_the_edge_of_the_calendar_is_refused_or_works_but_nothing_gets_lost(store, time):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue(1)
    try:
        messages = await consumer.dequeue_at(1, 30, time)
    except pgqrs.ValidationError:
        messages = []
    held = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert held == messages
    assert all(m.vt for m in messages)
    assert messages or [m.id for m in await consumer.dequeue()] == [sent]


async def test_a_very_large_batch_is_what_there_is(store):
    await a_pair(store)
    await store.enqueue_many(QUEUE, [1] * 1500)
    consumer = await store.consumer(QUEUE)
    taken = await consumer.dequeue(2**40)
    assert len(taken) == 1500
    assert await consumer.archive_many([m.id for m in taken]) == [True] * 1500


async def test_the_same_id_twice_is_answered_twice(store):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue(1)
    await consumer.dequeue()
    assert await consumer.archive_many([sent, sent]) == [True, True]
    assert len(await (await store.get_messages()).list_archived_by_queue(1)) == 1


async def test_a_step_of_another_run_of_the_same_name_is_another(store):
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    again = await pgqrs.workflow().name("job").store(store).trigger().execute()
    other = await pgqrs.run().message(again).store(store).execute()
    await (await run.acquire_step("a")).guard.fail("no")
    assert (await other.acquire_step("a")).status is StepResultStatus.Execute
