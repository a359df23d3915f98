"""Cancelling a run that its caller drives by hand. A run that was started has a driver, so it is CANCELLING until that driver
reaches the end of the run or the beginning of its next step, whether its message is claimed or not."""

import asyncio

import pytest

import pgqrs
from pgqrs.model.states import WorkflowStatus
from tests.surface.given import a_run, a_triggered, until

pytestmark = pytest.mark.backends("sqlite", "postgres")

CANCELLING, CANCELLED = WorkflowStatus.Cancelling, WorkflowStatus.Cancelled


async def a_started_run(store, paused=False):
    run = await a_run(store)
    await run.start()
    if paused:
        await run.pause("later", 600)
    assert await run.cancel() is CANCELLING
    assert await status(store) is CANCELLING
    return run


async def status(store):
    [record] = await (await store.get_workflow_runs()).list()
    return record.status


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
async def test_a_run_that_was_started_is_cancelling_and_cannot_be_started_again(store, paused):
    run = await a_started_run(store, paused)
    with pytest.raises(pgqrs.ValidationError, match="CANCELLING"):
        await run.start()
    assert await run.cancel() is CANCELLING
    assert await status(store) is CANCELLING


async def test_its_next_step_ends_it(store):
    run = await a_started_run(store)
    with pytest.raises(
        pgqrs.RunCancelledError, match=f"run {run.message_id} was cancelled before its step 'pay'"
    ):
        await run.acquire_step("pay")
    assert await status(store) is CANCELLED


async def test_a_step_under_way_is_recorded_and_then_its_end_is_a_cancelled_one(store):
    run = await a_run(store)
    await run.start()
    step = await run.acquire_step("pay")
    await run.cancel()
    await step.guard.success("paid")
    await run.success("done")
    assert await status(store) is CANCELLED
    handle = await store.run(run.message_id)
    assert [(s.step_name, s.output) for s in await handle.steps()] == [("pay", "paid")]


@pytest.mark.parametrize("boundary", ["step", "end"])
async def test_nobody_takes_its_message_afterwards(store, boundary):
    run = await a_started_run(store)
    if boundary == "step":
        with pytest.raises(pgqrs.RunCancelledError):
            await run.acquire_step("pay")
    else:
        await run.success(1)
    assert await (await store.get_messages()).count() == 0


async def test_the_message_of_a_consumer_stays_with_it(store):
    await a_triggered(store)
    consumer = await store.consumer("job")
    [message] = await consumer.dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    await run.start()
    assert await run.cancel() is CANCELLING
    await run.success(1)
    assert await consumer.archive(message.id)


async def test_one_that_was_not_started_is_cancelled_at_once(store):
    run = await a_run(store)
    assert await run.cancel() is CANCELLED
    assert await (await store.get_messages()).count() == 0


async def test_one_whose_claim_was_given_back_has_no_driver_and_is_cancelled_at_once(store):
    await a_triggered(store)
    consumer = await store.consumer("job")
    [message] = await consumer.dequeue()
    run = await pgqrs.run().message(message).store(store).execute()
    await run.start()
    await consumer.release_messages([message.id])
    assert await run.cancel() is CANCELLED


async def test_a_handle_ends_what_has_lost_its_driver(store):
    run = await a_started_run(store)
    handle = await store.run(run.message_id)
    assert await handle.cancel() is CANCELLED
    assert await handle.status is CANCELLED


async def test_a_poll_ends_it_that_takes_it_after_its_driver_died(store):
    await a_started_run(store)
    consumer = await store.consumer("job")
    stepped = []

    async def handler(run):
        stepped.append(await run.acquire_step("pay"))

    poll = asyncio.create_task(pgqrs.dequeue().worker(consumer).handle_workflow(handler).poll(store))

    async def ended():
        return await status(store) is CANCELLED

    await until(ended)
    await consumer.interrupt()
    with pytest.raises(pgqrs.PgqrsError, match="suspended"):
        await poll
    assert stepped == []


def test_a_blocking_run_does_the_same(blocking):
    run = pgqrs.admin(blocking).create_workflow("job", 1)
    run.start()
    assert run.cancel() is CANCELLING
    assert blocking.run(run.message_id).status is CANCELLING
    with pytest.raises(pgqrs.RunCancelledError):
        run.acquire_step("pay")
    assert blocking.run(run.message_id).status is CANCELLED
