"""`store.consume_iter(queue)` yields messages as they come; its worker lives as long as it does."""

import asyncio
import time

import pytest

import pgqrs
from tests.surface.given import PATIENCE_S, QUEUE, a_pair, until

pytestmark = pytest.mark.backends("sqlite", "postgres")


async def the_iterator_s_worker(store, *others):
    [worker] = [
        w for w in await (await store.get_workers()).list() if w.id not in {o.worker_id for o in others}
    ]
    return worker


async def test_it_yields_messages_in_order_and_they_are_archived_through_it(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    seen = []
    async with store.consume_iter(QUEUE) as messages:
        async for message in messages:
            seen.append(message.payload)
            assert await messages.archive(message.id) is True
            assert await messages.archive(message.id) is False
            if len(seen) == 3:
                break
    assert seen == [1, 2, 3]
    assert len(await (await store.get_messages()).list_archived_by_queue(1)) == 3


async def test_a_message_can_be_deleted_through_it(store):
    producer, _ = await a_pair(store)
    await producer.enqueue(1)
    async with store.consume_iter(QUEUE) as messages:
        message = await anext(messages)
        assert await messages.delete(message.id) is True
        assert await messages.delete(message.id) is False
    assert await (await store.get_messages()).list_archived_by_queue(1) == []


async def test_it_waits_for_what_comes_later(store):
    producer, _ = await a_pair(store)
    async with store.consume_iter(QUEUE, poll_interval_ms=5) as messages:
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await producer.enqueue("late")
        assert (await asyncio.wait_for(waiting, PATIENCE_S)).payload == "late"


async def test_it_looks_again_after_its_poll_interval(store):
    producer, _ = await a_pair(store)
    async with store.consume_iter(QUEUE, poll_interval_ms=300) as messages:
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await producer.enqueue(1)
        await asyncio.wait_for(waiting, PATIENCE_S)
        assert time.monotonic() - began > 0.1


async def test_its_worker_is_ephemeral_and_stopped_when_the_block_is_left(store):
    producer, consumer = await a_pair(store)
    async with store.consume_iter(QUEUE):
        worker = await the_iterator_s_worker(store, producer, consumer)
        assert worker.status in (pgqrs.WorkerStatus.Ready, pgqrs.WorkerStatus.Polling)
        assert worker.name.startswith("__ephemeral__")
    assert (await the_iterator_s_worker(store, producer, consumer)).status is pgqrs.WorkerStatus.Stopped


async def test_also_when_it_is_left_by_an_exception(store):
    producer, consumer = await a_pair(store)
    with pytest.raises(ValueError, match="no"):
        async with store.consume_iter(QUEUE):
            raise ValueError("no")
    assert (await the_iterator_s_worker(store, producer, consumer)).status is pgqrs.WorkerStatus.Stopped


async def test_what_it_still_holds_then_goes_back(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2])
    async with store.consume_iter(QUEUE) as messages:
        await messages.archive((await anext(messages)).id)
        assert (await anext(messages)).payload == 2
        assert await consumer.dequeue() == []
    assert [m.payload for m in await consumer.dequeue(10)] == [2]


async def test_closing_it_ends_the_loop_and_twice_is_fine(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2])
    messages = store.consume_iter(QUEUE)
    seen = []
    async for message in messages:
        seen.append(message.payload)
        await messages.archive(message.id)
        await messages.close()
    await messages.close()
    assert seen == [1]
    assert (await the_iterator_s_worker(store, producer, consumer)).status is pgqrs.WorkerStatus.Stopped


async def test_a_closed_one_is_not_opened_again(store):
    await a_pair(store)
    messages = store.consume_iter(QUEUE)
    await messages.close()
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
    with pytest.raises(pgqrs.ValidationError, match="is closed; make another"):
        async with messages:
            pass


async def test_it_can_be_used_without_a_block(store):
    producer, _ = await a_pair(store)
    await producer.enqueue(1)
    messages = store.consume_iter(QUEUE)
    async for message in messages:
        assert message.payload == 1
        break
    await messages.close()


async def test_waiting_for_the_next_message_can_be_cancelled_and_goes_on_after(store):
    producer, _ = await a_pair(store)
    async with store.consume_iter(QUEUE, poll_interval_ms=5) as messages:
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await producer.enqueue(1)
        assert (await asyncio.wait_for(anext(messages), PATIENCE_S)).payload == 1


async def test_several_iterators_share_a_queue(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch(list(range(20)))
    seen = []

    async def work():
        async with store.consume_iter(QUEUE, poll_interval_ms=5) as messages:
            async for message in messages:
                seen.append(message.payload)
                await messages.archive(message.id)

    tasks = [asyncio.create_task(work()) for _ in range(3)]

    async def all_done():
        return await (await store.get_messages()).count() == 0

    await until(all_done)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(seen) == list(range(20))
    consumers = [w for w in await (await store.get_workers()).list() if w.name.startswith("__ephemeral__")]
    assert {w.status for w in consumers} == {pgqrs.WorkerStatus.Stopped}


async def test_a_queue_that_is_not_there_is_told_when_it_is_opened(store):
    with pytest.raises(pgqrs.QueueNotFoundError, match="nowhere"):
        async with store.consume_iter("nowhere"):
            pass
    with pytest.raises(pgqrs.QueueNotFoundError, match="nowhere"):
        await anext(store.consume_iter("nowhere"))


@pytest.mark.parametrize("interval", [-1, 0.5, "10"])
async def test_a_poll_interval_is_a_whole_number_of_milliseconds(store, interval):
    with pytest.raises(pgqrs.ValidationError, match="poll_interval_ms is a whole number"):
        store.consume_iter(QUEUE, poll_interval_ms=interval)


def test_the_blocking_one_is_a_plain_iterator(blocking):
    blocking.enqueue_many("tasks", [1, 2, 3])
    seen = []
    with blocking.consume_iter("tasks") as messages:
        for message in messages:
            seen.append(message.payload)
            assert messages.delete(message.id) if message.payload == 1 else messages.archive(message.id)
            if len(seen) == 3:
                messages.close()
    assert seen == [1, 2, 3]
    assert {w.status for w in blocking.get_workers().list()} == {pgqrs.WorkerStatus.Stopped}
