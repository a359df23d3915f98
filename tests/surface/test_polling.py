"""`pgqrs.dequeue()…poll(store)` hands messages over until its worker is interrupted."""

import asyncio
import threading

import pytest

import pgqrs
from pgqrs.decorators import step, workflow
from tests.surface.given import (
    PATIENCE_S,
    QUEUE,
    a_pair,
    a_triggered,
    at,
    moment,
    seconds_from_now,
    status_is,
    until,
)

Ready, Polling, Suspended = pgqrs.WorkerStatus.Ready, pgqrs.WorkerStatus.Polling, pgqrs.WorkerStatus.Suspended


class Stop(BaseException):
    """Raised by a handler to end its poll."""


def polling(consumer):
    return pgqrs.dequeue().worker(consumer).poll_interval(5)


async def interrupted(poll, consumer):
    """Interrupts a poll and sees it end."""
    await status_is(consumer, Polling)
    await consumer.interrupt()
    with pytest.raises(pgqrs.WorkerSuspendedError):
        await asyncio.wait_for(poll, PATIENCE_S)


async def archived(store):
    return [m.payload for m in reversed(await (await store.get_messages()).list_archived_by_queue(1))]


# Handing over


async def test_each_message_is_handed_over_and_archived(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    seen = []
    poll = asyncio.create_task(polling(consumer).handle(lambda m: seen.append(m.payload)).poll(store))

    async def all_done():
        return len(await archived(store)) == 3

    await until(all_done)
    await interrupted(poll, consumer)
    assert seen == [1, 2, 3]


async def test_a_message_that_comes_later_is_handed_over_too(store):
    producer, consumer = await a_pair(store)
    came = asyncio.Event()
    poll = asyncio.create_task(polling(consumer).handle(lambda _: came.set()).poll(store))
    await status_is(consumer, Polling)
    await producer.enqueue(1)
    await asyncio.wait_for(came.wait(), PATIENCE_S)
    await interrupted(poll, consumer)


async def test_a_handler_may_be_async_or_plain(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2])
    seen = []

    async def handler(message):
        await asyncio.sleep(0)
        seen.append(message.payload)
        if len(seen) == 2:
            raise Stop

    with pytest.raises(Stop):
        await polling(consumer).handle(handler).poll(store)
    assert seen == [1, 2]
    assert await archived(store) == [1]


async def test_the_message_is_archived_only_when_its_handler_has_returned(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)

    async def handler(message):
        held = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
        assert [m.id for m in held] == [message.id]
        raise Stop

    with pytest.raises(Stop):
        await polling(consumer).handle(handler).poll(store)


async def test_a_batch_is_handed_over_as_a_list_and_archived_whole(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch(list(range(5)))
    seen = []

    def handler(messages):
        seen.append([m.payload for m in messages])
        if len(seen) == 3:
            raise Stop

    with pytest.raises(Stop):
        await polling(consumer).batch(2).handle_batch(handler).poll(store)
    assert seen == [[0, 1], [2, 3], [4]]
    assert sorted(await archived(store)) == [0, 1, 2, 3]


async def test_of_a_batch_whose_handler_fails_all_go_back(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])

    def handler(messages):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await polling(consumer).batch(3).handle_batch(handler).poll(store)
    other = await store.consumer(QUEUE)
    assert [m.payload for m in await other.dequeue(10)] == [1, 2, 3]


async def test_it_polls_a_queue_by_name_with_a_worker_of_its_own(store):
    producer, _ = await a_pair(store)
    await producer.enqueue(1)
    told = []

    async def handler(message):
        told.append(await (await store.get_workers()).get(message.consumer_worker_id))
        raise Stop

    with pytest.raises(Stop):
        await pgqrs.dequeue().from_queue(QUEUE).handle(handler).poll(store)
    assert told[0].status is Polling
    after = await (await store.get_workers()).get(told[0].id)
    assert after.status is pgqrs.WorkerStatus.Stopped


async def test_it_polls_as_of_another_time(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_delayed("later", 600)
    seen = []

    def handler(message):
        seen.append(message.payload)
        raise Stop

    with pytest.raises(Stop):
        await asyncio.wait_for(polling(consumer).at(at(700)).handle(handler).poll(store), PATIENCE_S)
    assert seen == ["later"]


async def test_a_message_is_held_for_the_default_lock_time(dsn):
    config = pgqrs.Config(dsn)
    config.default_lock_time_seconds = 200
    async with pgqrs.connect_with(config) as store:
        producer, consumer = await a_pair(store)
        await producer.enqueue(1)
        seen = []

        def handler(message):
            seen.append(seconds_from_now(message.vt))
            raise Stop

        with pytest.raises(Stop):
            await polling(consumer).handle(handler).poll(store)
        assert 190 < seen[0] <= 200


# Its end


async def test_an_interrupted_poll_raises_and_leaves_its_worker_suspended(store):
    _, consumer = await a_pair(store)
    poll = asyncio.create_task(polling(consumer).handle(print).poll(store))
    await interrupted(poll, consumer)
    assert await consumer.status() is Suspended


async def test_the_message_in_hand_is_handled_to_its_end_first(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch(["in hand", "next"])
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handler(_):
        begun.set()
        await go_on.wait()

    poll = asyncio.create_task(polling(consumer).handle(handler).poll(store))
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    await consumer.interrupt()
    go_on.set()
    with pytest.raises(pgqrs.WorkerSuspendedError):
        await asyncio.wait_for(poll, PATIENCE_S)
    assert await archived(store) == ["in hand"]
    assert await consumer.status() is Suspended


async def test_suspending_ends_a_poll_as_well(store):
    _, consumer = await a_pair(store)
    poll = asyncio.create_task(polling(consumer).handle(print).poll(store))
    await status_is(consumer, Polling)
    await consumer.suspend()
    with pytest.raises(pgqrs.WorkerSuspendedError):
        await asyncio.wait_for(poll, PATIENCE_S)
    assert await consumer.status() is Suspended


async def test_a_suspended_worker_does_not_poll_until_it_is_resumed(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    await consumer.suspend()
    with pytest.raises(pgqrs.WorkerSuspendedError, match=r"worker suspended; resume\(\) lets it poll again"):
        await polling(consumer).handle(print).poll(store)
    await consumer.resume()

    def handler(_):
        raise Stop

    with pytest.raises(Stop):
        await polling(consumer).handle(handler).poll(store)


async def test_a_stopped_worker_polls_no_more(store):
    _, consumer = await a_pair(store)
    await consumer.suspend()
    await consumer.shutdown()
    with pytest.raises(pgqrs.WorkerSuspendedError, match="stopped"):
        await polling(consumer).handle(print).poll(store)


@pytest.mark.parametrize("kind", [ValueError, Stop, KeyboardInterrupt, SystemExit, pgqrs.TransientStepError])
async def test_a_handler_s_exception_ends_the_poll_and_its_message_goes_back(store, kind):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2])
    raised = kind("no")

    def handler(_):
        raise raised

    with pytest.raises(kind) as caught:
        await polling(consumer).handle(handler).poll(store)
    assert caught.value is raised
    assert await consumer.status() is Ready
    other = await store.consumer(QUEUE)
    assert [(m.payload, m.read_ct) for m in await other.dequeue(10)] == [(1, 2), (2, 1)]


async def test_a_poll_that_is_cancelled_gives_its_message_back(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    begun = asyncio.Event()

    async def handler(_):
        begun.set()
        await asyncio.sleep(60)

    poll = asyncio.create_task(polling(consumer).handle(handler).poll(store))
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    poll.cancel()
    with pytest.raises(asyncio.CancelledError):
        await poll
    other = await store.consumer(QUEUE)
    assert [m.payload for m in await other.dequeue()] == [1]
    assert await consumer.status() is Ready


async def test_an_idle_poll_that_is_cancelled_ends_too(store):
    _, consumer = await a_pair(store)
    poll = asyncio.create_task(polling(consumer).handle(print).poll(store))
    await status_is(consumer, Polling)
    poll.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(poll, PATIENCE_S)
    assert await consumer.status() is Ready


# Meanwhile


@pytest.mark.parametrize("wait", ["async", "plain"])
async def test_while_it_handles_the_worker_is_polling_and_its_heart_beats(dsn, wait):
    config = pgqrs.Config(dsn)
    config.heartbeat_interval_seconds = 0.05
    async with pgqrs.connect_with(config) as store, pgqrs.connect(dsn) as watching:
        producer, consumer = await a_pair(store)
        await producer.enqueue(1)
        beats = []

        async def look():
            info = await (await watching.get_workers()).get(consumer.worker_id)
            assert info.status is Polling
            beats.append(moment(info.heartbeat_at))
            return len(set(beats)) >= 3

        async def handler(_):
            if wait == "async":
                await until(look)
            else:  # blocks the event loop
                thread = threading.Thread(
                    target=asyncio.run, args=(until_in_a_loop_of_its_own(dsn, consumer.worker_id, beats),)
                )
                thread.start()
                thread.join(PATIENCE_S)
            raise Stop

        with pytest.raises(Stop):
            await polling(consumer).handle(handler).poll(store)
        assert len(set(beats)) >= 3
        assert beats == sorted(beats)


async def until_in_a_loop_of_its_own(dsn, worker_id, beats):
    async with pgqrs.connect(dsn) as watching:

        async def look():
            info = await (await watching.get_workers()).get(worker_id)
            beats.append(moment(info.heartbeat_at))
            return info.status is Polling and len(set(beats)) >= 3

        await until(look)


async def test_while_it_waits_for_messages_its_heart_beats_too(dsn):
    config = pgqrs.Config(dsn)
    config.heartbeat_interval_seconds = 0.05
    async with pgqrs.connect_with(config) as store:
        _, consumer = await a_pair(store)
        poll = asyncio.create_task(polling(consumer).handle(print).poll(store))
        await status_is(consumer, Polling)
        beats = set()

        async def has_beaten():
            beats.add((await (await store.get_workers()).get(consumer.worker_id)).heartbeat_at)
            return len(beats) >= 3

        await until(has_beaten)
        await interrupted(poll, consumer)


async def test_a_message_that_is_handled_for_long_stays_held(dsn):
    config = pgqrs.Config(dsn)
    config.default_lock_time_seconds = 0.3
    async with pgqrs.connect_with(config) as store:
        producer, consumer = await a_pair(store)
        other = await store.consumer(QUEUE)
        await producer.enqueue(1)
        stolen = []

        async def handler(message):
            first = moment(message.vt)

            async def kept():
                stolen.extend(await other.dequeue())
                [held] = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
                return (moment(held.vt) - first).total_seconds() > 0.3

            await until(kept)
            raise Stop

        with pytest.raises(Stop):
            await polling(consumer).handle(handler).poll(store)
        assert stolen == []


async def test_several_polls_share_a_queue(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch(list(range(30)))
    consumers = [await store.consumer(QUEUE) for _ in range(3)]
    seen = []

    async def handler(message):
        seen.append(message.payload)
        await asyncio.sleep(0)

    polls = [asyncio.create_task(polling(c).handle(handler).poll(store)) for c in consumers]

    async def all_done():
        return len(await archived(store)) == 30

    await until(all_done)
    for poll, consumer in zip(polls, consumers, strict=True):
        await interrupted(poll, consumer)
    assert sorted(seen) == list(range(30))


# What it is told


async def test_exactly_one_handler_is_needed(store):
    _, consumer = await a_pair(store)
    for told in (
        polling(consumer),
        polling(consumer).handle(print).handle_batch(print),
        polling(consumer).handle(print).handle(print),
        polling(consumer).handle_batch(print).handle_workflow(print),
    ):
        with pytest.raises(ValueError, match="exactly one of handle"):
            await told.poll(store)
    assert await consumer.status() is Ready


async def test_a_single_message_handler_takes_no_batch(store):
    _, consumer = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="batch size = 1, got 2"):
        await polling(consumer).batch(2).handle(print).poll(store)


async def test_a_queue_or_a_worker_is_needed(store):
    with pytest.raises(ValueError, match=r"from_queue\(.*worker\(consumer\)"):
        await pgqrs.dequeue().handle(print).poll(store)
    with pytest.raises(pgqrs.QueueNotFoundError):
        await pgqrs.dequeue().from_queue("nowhere").handle(print).poll(store)


@pytest.mark.parametrize(
    "wrong",
    [lambda b: b.batch(0), lambda b: b.batch("2"), lambda b: b.poll_interval(-1), lambda b: b.at("soon")],
    ids=["no batch", "text", "negative", "no time"],
)
def test_what_makes_no_sense_is_refused_where_it_is_said(wrong):
    with pytest.raises(ValueError):
        wrong(pgqrs.dequeue())


def test_the_builder_shows_what_it_was_told():
    builder = pgqrs.dequeue().from_queue("tasks").batch(3).poll_interval(50)
    assert (builder.queue, builder.batch_size, builder.poll_interval_ms) == ("tasks", 3, 50)
    assert builder.has_worker() is False
    assert pgqrs.dequeue_builder().batch_size == 1


# Workflows


async def test_a_workflow_is_called_with_the_run_of_each_message(store):
    await a_triggered(store, {"n": 20})
    consumer = await store.consumer("job")
    seen = []

    async def job(run):
        assert isinstance(run, pgqrs.Run)
        seen.append((run.input, run.id(), run.message_id))
        await run.start()
        await run.success(run.input["input"]["n"] * 2)
        raise Stop

    with pytest.raises(Stop):
        await polling(consumer).handle_workflow(job).poll(store)
    assert seen == [({"input": {"n": 20}}, 1, 1)]


async def test_a_decorated_workflow_gets_its_input_from_the_run_and_its_message_is_archived(store):
    message = await a_triggered(store, {"n": 20})
    consumer = await store.consumer("job")

    @step
    async def double(ctx, n):
        return n * 2

    @workflow(name="job")
    async def job(ctx, input):
        return {"twice": await double(ctx, input["n"])}

    poll = asyncio.create_task(polling(consumer).handle_workflow(job).poll(store))
    assert await asyncio.wait_for(pgqrs.run().message(message).store(store).result(), PATIENCE_S) == {
        "twice": 40
    }
    await interrupted(poll, consumer)
    [kept] = await (await store.get_messages()).list_archived_by_queue(message.queue_id)
    assert (kept.id, kept.consumer_worker_id) == (message.id, consumer.worker_id)
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is pgqrs.WorkflowStatus.Success


async def test_a_workflow_that_fails_ends_the_poll_and_its_run_is_in_error(store):
    message = await a_triggered(store, 1)
    consumer = await store.consumer("job")

    @workflow(name="job")
    async def job(ctx, n):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await polling(consumer).handle_workflow(job).poll(store)
    [record] = await (await store.get_workflow_runs()).list()
    assert (record.status, record.message_id) == (pgqrs.WorkflowStatus.Error, message.id)
    with pytest.raises(pgqrs.PgqrsError, match="no"):
        await pgqrs.run().message(message).store(store).get()


async def test_a_run_that_was_interrupted_goes_on_where_it_was(store):
    await a_triggered(store, 3)
    consumer = await store.consumer("job")
    bodies = []

    @step
    async def first(ctx, n):
        bodies.append("first")
        return n + 1

    @step
    async def second(ctx, n):
        bodies.append("second")
        if bodies.count("second") == 1:
            raise Stop
        return n * 10

    @workflow(name="job")
    async def job(ctx, n):
        return await second(ctx, await first(ctx, n))

    with pytest.raises(Stop):
        await polling(consumer).handle_workflow(job).poll(store)
    poll = asyncio.create_task(polling(consumer).handle_workflow(job).poll(store))

    async def done():
        [record] = await (await store.get_workflow_runs()).list()
        return record.output == 40

    await until(done)
    await interrupted(poll, consumer)
    assert bodies == ["first", "second", "second"]


async def test_a_transient_failure_puts_the_message_off_until_its_retry(store):
    message = await a_triggered(store, 3)
    consumer = await store.consumer("job")

    @step
    async def flaky(ctx):
        raise pgqrs.TransientStepError("busy", retry_after=600)

    @workflow(name="job")
    async def job(ctx, n):
        return await flaky(ctx)

    with pytest.raises(pgqrs.TransientStepError, match="busy"):
        await polling(consumer).handle_workflow(job).poll(store)
    assert await consumer.dequeue() == []
    [again] = await consumer.dequeue_at(1, 30, at(700))
    assert (again.id, again.read_ct) == (message.id, 1)
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is pgqrs.WorkflowStatus.Running


async def test_a_message_whose_run_is_done_is_archived_without_a_call(store):
    message = await a_triggered(store, 3)
    run = await pgqrs.run().message(message).store(store).execute()
    await run.success("done by hand")
    consumer = await store.consumer("job")
    called = []
    poll = asyncio.create_task(polling(consumer).handle_workflow(called.append).poll(store))

    async def is_archived():
        return [
            m.id for m in await (await store.get_messages()).list_archived_by_queue(message.queue_id)
        ] == [message.id]

    await until(is_archived)
    await interrupted(poll, consumer)
    assert called == []


async def test_a_run_that_its_handler_leaves_open_is_archived_all_the_same(store):
    message = await a_triggered(store, 3)
    consumer = await store.consumer("job")

    async def job(run):
        await run.start()

    poll = asyncio.create_task(polling(consumer).handle_workflow(job).poll(store))

    async def is_archived():
        return await (await store.get_messages()).count() == 0

    await until(is_archived)
    await interrupted(poll, consumer)
    [record] = await (await store.get_workflow_runs()).list()
    assert (record.message_id, record.status) == (message.id, pgqrs.WorkflowStatus.Running)


async def test_a_message_whose_run_failed_is_dead(store):
    message = await a_triggered(store, 3)
    run = await pgqrs.run().message(message).store(store).execute()
    await run.fail("no")
    consumer = await store.consumer("job")
    called = []
    poll = asyncio.create_task(polling(consumer).handle_workflow(called.append).poll(store))

    async def is_dead():
        return [m.id for _, m in await store.dead()] == [message.id]

    await until(is_dead)
    await interrupted(poll, consumer)
    assert called == []


async def test_a_run_that_is_to_be_cancelled_ends_before_its_next_step_and_the_poll_goes_on(store):
    message = await a_triggered(store, 3)
    consumer = await store.consumer("job")
    bodies = []

    @step
    async def never(ctx):
        bodies.append("never")

    @workflow(name="job")
    async def job(ctx, n):
        assert await ctx.cancel() is pgqrs.WorkflowStatus.Cancelling
        await never(ctx)

    poll = asyncio.create_task(polling(consumer).handle_workflow(job).poll(store))

    async def is_archived():
        return await (await store.get_messages()).count() == 0

    await until(is_archived)
    await interrupted(poll, consumer)
    with pytest.raises(pgqrs.RunCancelledError):
        await pgqrs.run().message(message).store(store).get()
    assert bodies == []


# With a blocking store


def test_with_a_blocking_store_it_polls_in_the_calling_thread(blocking):
    blocking.queue("tasks")
    consumer = blocking.consumer("tasks")
    blocking.enqueue_many("tasks", [1, 2])
    seen = []

    def handler(message):
        seen.append((message.payload, threading.current_thread()))
        if message.payload == 2:
            consumer.interrupt()

    with pytest.raises(pgqrs.WorkerSuspendedError):
        pgqrs.dequeue().worker(consumer).handle(handler).poll(blocking)
    assert [p for p, _ in seen] == [1, 2]
    assert {t for _, t in seen} == {threading.current_thread()}
    assert consumer.status() is Suspended
