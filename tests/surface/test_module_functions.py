"""The functions of the module: one call each, awaited with an async store and plain with a blocking one."""

import asyncio

import pytest

import pgqrs
from tests.surface.given import QUEUE, a_pair, at, moment

pytestmark = pytest.mark.backends("sqlite", "postgres")


class Interrupted(BaseException):
    pass


async def taken_again(store, queue=QUEUE):
    """Whether a message is there for the taking."""
    consumer = await store.consumer(queue)
    return [m.payload for m in await consumer.dequeue(100)]


# A store and a queue


async def test_producing_needs_no_producer(store):
    await store.queue("tasks")
    assert await pgqrs.produce(store, "tasks", {"n": 1}) == 1
    assert await pgqrs.produce_batch(store, "tasks", [{"n": 2}, {"n": 3}]) == [2, 3]
    assert await taken_again(store) == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_producing_validates_as_a_producer_does(store):
    await store.queue("tasks")
    with pytest.raises(pgqrs.ValidationError, match="Forbidden key '__proto__'"):
        await pgqrs.produce(store, "tasks", {"__proto__": 1})
    with pytest.raises(pgqrs.ValidationError, match="String length 2000"):
        await pgqrs.produce_batch(store, "tasks", [1, "x" * 2000])
    assert await taken_again(store) == []


async def test_nothing_is_produced_on_a_queue_that_is_not_there(store):
    for call in (
        pgqrs.produce(store, "nowhere", 1),
        pgqrs.produce_batch(store, "nowhere", [1]),
        pgqrs.consume(store, "nowhere", print),
        pgqrs.consume_batch(store, "nowhere", 2, print),
    ):
        with pytest.raises(pgqrs.QueueNotFoundError, match="nowhere"):
            await call


async def test_consuming_hands_one_message_over_and_archives_it(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch([1, 2])
    seen = []
    await pgqrs.consume(store, QUEUE, lambda message: seen.append(message.payload))
    assert seen == [1]
    assert len(await (await store.get_messages()).list_archived_by_queue(1)) == 1
    assert await taken_again(store) == [2]


async def test_a_handler_may_be_async(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    seen = []

    async def one(message):
        await asyncio.sleep(0)
        seen.append(message.payload)

    async def many(messages):
        await asyncio.sleep(0)
        seen.append([m.payload for m in messages])

    await pgqrs.consume(store, QUEUE, one)
    await pgqrs.consume_batch(store, QUEUE, 10, many)
    assert seen == [1, [2, 3]]
    assert await taken_again(store) == []


async def test_a_batch_is_handed_over_whole_and_archived_whole(store):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    seen = []
    await pgqrs.consume_batch(store, QUEUE, 2, lambda messages: seen.append([m.payload for m in messages]))
    assert seen == [[1, 2]]
    assert len(await (await store.get_messages()).list_archived_by_queue(1)) == 2


async def test_where_nothing_waits_the_handler_is_not_called(store):
    await store.queue("tasks")
    called = []
    await pgqrs.consume(store, "tasks", called.append)
    await pgqrs.consume_batch(store, "tasks", 5, called.append)
    assert called == []


@pytest.mark.parametrize("kind", [ValueError, Interrupted, KeyboardInterrupt])
async def test_what_a_handler_raises_goes_on_and_its_message_is_not_archived(store, kind):
    producer, _ = await a_pair(store)
    await producer.enqueue_batch([1, 2])
    raised = kind("no")

    def fails(_):
        raise raised

    with pytest.raises(kind) as caught:
        await direct(pgqrs.consume(store, QUEUE, fails))
    assert caught.value is raised
    with pytest.raises(kind) as caught:
        await direct(pgqrs.consume_batch(store, QUEUE, 2, fails))
    assert caught.value is raised
    assert await (await store.get_messages()).list_archived_by_queue(1) == []
    assert await taken_again(store) == [1, 2]


async def test_consuming_leaves_no_worker_at_work(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    await pgqrs.consume(store, QUEUE, lambda _: None)
    mine = {producer.worker_id, consumer.worker_id}
    others = [w for w in await (await store.get_workers()).list() if w.id not in mine]
    assert [w.status for w in others] == [pgqrs.WorkerStatus.Stopped]


async def test_a_handler_may_use_the_store(store):
    producer, _ = await a_pair(store)
    await store.queue("results")
    await producer.enqueue(20)

    async def double(message):
        await pgqrs.produce(store, "results", message.payload * 2)

    await pgqrs.consume(store, QUEUE, double)
    assert await taken_again(store, "results") == [40]


# A producer, a consumer and its messages


async def test_the_functions_of_a_producer(store):
    producer, consumer = await a_pair(store)
    assert await pgqrs.enqueue(producer, 1) == 1
    assert await pgqrs.enqueue_batch(producer, [2, 3]) == [2, 3]
    assert await pgqrs.enqueue_delayed(producer, 4, 600) == 4
    assert [m.payload for m in await consumer.dequeue(10)] == [1, 2, 3]
    assert [m.payload for m in await consumer.dequeue_at(10, 5, at(700))] == [1, 2, 3, 4]


async def test_the_functions_of_a_consumer(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3, 4, 5])
    one, two, three = await pgqrs.dequeue(consumer, 3)
    assert await pgqrs.archive(consumer, one) is True
    assert await pgqrs.archive(consumer, one) is False
    assert await pgqrs.delete(consumer, two) is True
    assert await pgqrs.delete(consumer, two) is False
    assert await pgqrs.extend_vt(consumer, three, 100) is True
    [held] = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert abs((moment(held.vt) - moment(three.vt)).total_seconds() - 100) < 0.01
    four, five = await pgqrs.dequeue(consumer, batch_size=10)
    assert await pgqrs.archive_batch(consumer, [five, four]) is True
    assert await pgqrs.archive_batch(consumer, [five, one]) is False
    assert await pgqrs.archive_batch(consumer, []) is True


# The builder of messages


async def test_the_builder_sends_one_and_gives_its_id(store):
    producer, consumer = await a_pair(store)
    assert await pgqrs.enqueue().message({"n": 1}).to(QUEUE).execute(store) == 1
    assert await pgqrs.enqueue().message(None).worker(producer).execute(store) == 2
    by_nobody, by_producer = await consumer.dequeue(10)
    assert (by_nobody.payload, by_nobody.producer_worker_id) == ({"n": 1}, None)
    assert (by_producer.payload, by_producer.producer_worker_id) == (None, producer.worker_id)


async def test_the_builder_sends_many_and_gives_their_ids(store):
    _, consumer = await a_pair(store)
    assert await pgqrs.enqueue().messages([1, 2]).to(QUEUE).execute(store) == [1, 2]
    assert [m.payload for m in await consumer.dequeue(10)] == [1, 2]


async def test_the_builder_delays_and_sends_as_of_another_time(store):
    _, consumer = await a_pair(store)
    await pgqrs.enqueue().message("delayed").to(QUEUE).delay(600).execute(store)
    await pgqrs.enqueue().message("later").to(QUEUE).at(at(1000)).execute(store)
    await pgqrs.enqueue().message("last").to(QUEUE).at(at(1000)).delay("10m").execute(store)
    due = []
    for time in (500, 700, 1100, 1700):
        for message in await consumer.dequeue_at(10, 1, at(time)):
            due.append((time, message.payload))
            await consumer.archive(message.id)
    assert due == [(700, "delayed"), (1100, "later"), (1700, "last")]


async def test_the_builder_says_what_is_missing(store):
    producer, _ = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="nothing to enqueue"):
        await pgqrs.enqueue().to(QUEUE).execute(store)
    with pytest.raises(pgqrs.ValidationError, match=r"exactly one of .to\(queue\) and .worker\(producer\)"):
        await pgqrs.enqueue().message(1).execute(store)
    with pytest.raises(pgqrs.ValidationError, match="exactly one of"):
        await pgqrs.enqueue().message(1).to(QUEUE).worker(producer).execute(store)
    with pytest.raises(pgqrs.QueueNotFoundError):
        await pgqrs.enqueue().message(1).to("nowhere").execute(store)
    with pytest.raises(pgqrs.ValidationError, match="2030-01-15"):
        pgqrs.enqueue().at("tomorrow")


# Our own


async def test_the_store_sends_and_makes_the_queue_that_is_new(store):
    assert await store.enqueue("new", {"n": 1}) == 1
    assert await store.enqueue("new", 2, delay="10m") == 2
    assert await store.enqueue_many("new", [3, 4]) == [3, 4]
    assert await taken_again(store, "new") == [{"n": 1}, 3, 4]


async def test_the_limits_of_0_15_do_not_apply_there(store):
    deep = [[[[[[[["deep"]]]]]]]]
    payload = {"__proto__": "x" * 5000, "deep": deep}
    ids = await store.enqueue_many("new", [payload] * 200)
    assert len(ids) == 200
    assert (await taken_again(store, "new"))[0] == payload


async def test_but_the_limit_of_size_does(store):
    with pytest.raises(pgqrs.ValidationError, match="over the limit of 1,048,576"):
        await store.enqueue("new", "x" * (1024 * 1024 + 1))


# With a blocking store


def test_with_a_blocking_store_nothing_is_awaited(blocking):
    blocking.queue("tasks")
    producer, consumer = blocking.producer("tasks"), blocking.consumer("tasks")
    assert pgqrs.produce(blocking, "tasks", 1) == 1
    assert pgqrs.produce_batch(blocking, "tasks", [2]) == [2]
    assert pgqrs.enqueue(producer, 3) == 3
    assert pgqrs.enqueue_batch(producer, [4, 5]) == [4, 5]
    assert pgqrs.enqueue_delayed(producer, 6, 600) == 6
    assert pgqrs.enqueue().message(7).to("tasks").execute(blocking) == 7
    seen = []
    assert pgqrs.consume(blocking, "tasks", lambda m: seen.append(m.payload)) is None
    assert pgqrs.consume_batch(blocking, "tasks", 2, lambda ms: seen.extend(m.payload for m in ms)) is None
    assert seen == [1, 2, 3]
    four, five = pgqrs.dequeue(consumer, 2)
    assert pgqrs.extend_vt(consumer, four, 10)
    assert pgqrs.archive(consumer, four)
    assert pgqrs.archive_batch(consumer, [four, five]) is False
    assert pgqrs.archive_batch(consumer, []) is True
    [seven] = pgqrs.dequeue(consumer, 2)
    assert pgqrs.delete(consumer, seven)


def test_a_blocking_store_says_that_it_cannot_wait_for_an_async_handler(blocking):
    blocking.queue("tasks")
    pgqrs.produce(blocking, "tasks", 1)

    async def handler(_):
        await asyncio.sleep(0)

    with pytest.raises(pgqrs.ValidationError, match="plain functions"):
        pgqrs.consume(blocking, "tasks", handler)
    consumer = blocking.consumer("tasks")
    assert [m.payload for m in consumer.dequeue(10)] == [1], "it was given back"


@pytest.mark.parametrize("nothing", [None, "sqlite://x.db", object()])
def test_what_is_no_store_is_refused(nothing):
    with pytest.raises(TypeError, match=r"as pgqrs.connect\(\) gives it"):
        pgqrs.admin(nothing)
    with pytest.raises(TypeError, match=r"as pgqrs.connect\(\) gives it"):
        pgqrs.produce(nothing, "tasks", 1)


async def direct(coroutine):
    """Awaits it in this task: asyncio takes a KeyboardInterrupt out of any other task into the loop."""
    return await coroutine
