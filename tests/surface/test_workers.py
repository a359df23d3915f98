"""A producer or a consumer is a worker: a row with a status, which changes in known ways only, and a heartbeat."""

import asyncio

import pytest

import pgqrs
from pgqrs.model.states import WORKER_TRANSITIONS
from tests.surface.given import QUEUE, a_held_message, a_pair, moment, seconds_from_now, was_heard_of

Ready, Polling, Suspended, Interrupted, Stopped = pgqrs.WorkerStatus

# How a new consumer gets into each status.
WAYS = {
    Ready: [],
    Polling: ["poll"],
    Suspended: ["suspend"],
    Interrupted: ["poll", "interrupt"],
    Stopped: ["suspend", "shutdown"],
}

# By call: from which status to which, and why not from another.
CALLS = {
    "poll": ({Ready: Polling, Polling: Polling}, Polling, "must be Ready to poll"),
    "complete_poll": ({Polling: Ready}, Ready, "must be Polling to complete a poll"),
    "interrupt": ({Polling: Interrupted}, Interrupted, "must be in Polling state to be interrupted"),
    "suspend": (
        {Ready: Suspended, Polling: Suspended, Interrupted: Suspended},
        Suspended,
        "must be Ready, Polling, or Interrupted to suspend",
    ),
    "resume": ({Suspended: Ready}, Ready, "must be Suspended to resume"),
    "shutdown": ({Suspended: Stopped}, Stopped, "must be in Suspended state to shut down"),
}

ALLOWED = [(call, was, becomes) for call, (ways, _, _) in CALLS.items() for was, becomes in ways.items()]
REFUSED = [
    (call, was, target, why) for call, (ways, target, why) in CALLS.items() for was in WAYS if was not in ways
]


async def a_consumer_that_is(store, status):
    _, consumer = await a_pair(store)
    for call in WAYS[status]:
        await getattr(consumer, call)()
    assert await consumer.status() is status
    return consumer


# Which status may follow which


@pytest.mark.parametrize("call,was,becomes", ALLOWED, ids=[f"{w.name}-{c}-{b.name}" for c, w, b in ALLOWED])
async def test_what_is_allowed_happens(store, call, was, becomes):
    consumer = await a_consumer_that_is(store, was)
    assert await getattr(consumer, call)() is None
    assert await consumer.status() is becomes
    assert (await (await store.get_workers()).get(consumer.worker_id)).status is becomes


@pytest.mark.parametrize("call,was,target,why", REFUSED, ids=[f"{w.name}-{c}" for c, w, _, _ in REFUSED])
async def test_any_other_is_refused_naming_from_to_and_why(store, call, was, target, why):
    consumer = await a_consumer_that_is(store, was)
    with pytest.raises(pgqrs.StateTransitionError) as refused:
        await getattr(consumer, call)()
    assert f"from {was.value} to {target.value}: " in str(refused.value)
    assert why in str(refused.value)
    assert await consumer.status() is was


def test_the_calls_above_are_all_the_ways_that_there_are():
    reached = {(was, becomes) for _, was, becomes in ALLOWED if was is not becomes}
    assert reached == {(was, becomes) for was, ways in WORKER_TRANSITIONS.items() for becomes in ways}
    assert len(ALLOWED) + len(REFUSED) == len(CALLS) * len(WAYS)


@pytest.mark.parametrize("call,was,becomes", ALLOWED, ids=[f"{w.name}-{c}-{b.name}" for c, w, b in ALLOWED])
async def test_producers_live_the_same_life(store, call, was, becomes):
    producer, _ = await a_pair(store)
    for way in WAYS[was]:
        await getattr(producer, way)()
    await getattr(producer, call)()
    assert await producer.status() is becomes


async def test_of_two_who_stop_a_worker_at_once_one_is_told(store):
    consumer = await a_consumer_that_is(store, Suspended)
    ended = await asyncio.gather(*(consumer.shutdown() for _ in range(4)), return_exceptions=True)
    assert [type(e) for e in ended].count(pgqrs.StateTransitionError) == 3
    assert await consumer.status() is Stopped


@pytest.mark.parametrize("status", [Suspended, Interrupted, Stopped])
async def test_a_worker_that_is_not_ready_takes_nothing(store, status):
    consumer = await a_consumer_that_is(store, status)
    await store.enqueue(QUEUE, 1)
    assert await consumer.dequeue() == []


@pytest.mark.parametrize("status", [Ready, Polling])
async def test_a_ready_or_polling_one_does(store, status):
    consumer = await a_consumer_that_is(store, status)
    await store.enqueue(QUEUE, 1)
    assert len(await consumer.dequeue()) == 1


async def test_a_suspended_worker_still_ends_what_it_holds(store):
    consumer, message = await a_held_message(store)
    await consumer.suspend()
    assert await consumer.archive(message.id) is True


async def test_who_still_holds_messages_is_not_shut_down(store):
    consumer, message = await a_held_message(store)
    await consumer.suspend()
    with pytest.raises(pgqrs.StateTransitionError, match="still holds 1 messages; archive or release"):
        await consumer.shutdown()
    await consumer.release_messages([message.id])
    await consumer.shutdown()
    assert await consumer.status() is Stopped


# Heartbeats


async def test_a_heartbeat_advances(store):
    _, consumer = await a_pair(store)
    workers = await store.get_workers()
    first = (await workers.get(consumer.worker_id)).heartbeat_at
    assert abs(seconds_from_now(first)) < 5
    await asyncio.sleep(0.01)
    await consumer.heartbeat()
    assert moment((await workers.get(consumer.worker_id)).heartbeat_at) > moment(first)


async def test_health_is_a_matter_of_the_last_heartbeat(store, dsn):
    _, consumer = await a_pair(store)
    was_heard_of(dsn, consumer.worker_id, seconds_ago=100)
    assert await consumer.is_healthy(101) is True
    assert await consumer.is_healthy("99s") is False
    await consumer.heartbeat()
    assert await consumer.is_healthy(30) is True


@pytest.mark.parametrize("call", ["status", "heartbeat", "is_healthy", "suspend", "dequeue"])
async def test_a_worker_that_was_deleted_is_told_so(store, call):
    _, consumer = await a_pair(store)
    await pgqrs.admin(store).delete_worker(consumer.worker_id)
    arguments = [30] if call == "is_healthy" else []
    with pytest.raises(pgqrs.WorkerNotFoundError, match=f"Worker {consumer.worker_id} not found"):
        await getattr(consumer, call)(*arguments)


async def test_the_silent_ones_are_counted_as_stale(store, dsn):
    producer, consumer = await a_pair(store)
    stopped = await store.consumer(QUEUE)
    await stopped.suspend()
    await stopped.shutdown()
    await consumer.poll()
    for worker in (consumer, stopped):
        was_heard_of(dsn, worker.worker_id, seconds_ago=100)
    workers = await store.get_workers()
    [stats] = await workers.health_stats(60)
    assert (stats.queue_name, stats.total_workers, stats.stale_workers) == (QUEUE, 3, 1)
    assert (stats.ready_workers, stats.polling_workers, stats.stopped_workers) == (1, 1, 1)
    [stats] = await workers.health_stats(600)
    assert stats.stale_workers == 0
    assert await producer.status() is Ready


async def test_health_is_told_by_queue_or_of_all(store):
    await a_pair(store, "one")
    await a_pair(store, "two")
    admin = pgqrs.admin(store)
    by_queue = await admin.worker_health_stats(60, group_by_queue=True)
    assert {(s.queue_name, s.total_workers) for s in by_queue} == {("one", 2), ("two", 2)}
    [of_all] = await admin.worker_health_stats(60)
    assert (of_all.queue_name, of_all.total_workers, of_all.ready_workers) == ("Global", 4, 4)


async def test_of_no_workers_the_health_is_told_too(store):
    [of_all] = await pgqrs.admin(store).worker_health_stats(60)
    assert (of_all.queue_name, of_all.total_workers) == ("Global", 0)
    assert await (await store.get_workers()).health_stats() == []


# The table of workers


async def test_the_newest_is_listed_first(store):
    producer, consumer = await a_pair(store)
    workers = await store.get_workers()
    assert await workers.count() == 2
    assert [w.id for w in await workers.list()] == [consumer.worker_id, producer.worker_id]
    assert await pgqrs.admin(store).list_workers() == await workers.list()


async def test_a_worker_s_record_tells_what_it_is(store):
    _, consumer = await a_pair(store)
    info = await (await store.get_workers()).get(consumer.worker_id)
    assert (info.id, info.status, info.queue_id, info.queue_name) == (consumer.worker_id, Ready, 1, QUEUE)
    assert info.name


async def test_a_worker_that_is_not_there_is_not_found(store):
    with pytest.raises(pgqrs.WorkerNotFoundError, match="Worker 4711 not found"):
        await (await store.get_workers()).get(4711)
    with pytest.raises(pgqrs.WorkerNotFoundError, match="Worker 4711 not found"):
        await pgqrs.admin(store).delete_worker(4711)


async def test_the_stale_are_purged_whatever_their_status(store, dsn):
    producer, consumer = await a_pair(store)
    was_heard_of(dsn, consumer.worker_id, seconds_ago=100)
    workers = await store.get_workers()
    assert await workers.purge_stale(200) == 0
    assert await workers.purge_stale(50) == 1
    assert [w.id for w in await workers.list()] == [producer.worker_id]


async def test_but_not_while_they_hold_messages(store, dsn):
    consumer, message = await a_held_message(store)
    was_heard_of(dsn, consumer.worker_id, seconds_ago=100)
    workers = await store.get_workers()
    await workers.purge_stale(50)
    assert (await workers.get(consumer.worker_id)).held == 1
    await consumer.archive(message.id)
    assert await workers.purge_stale(50) == 1


async def test_of_the_old_only_those_that_stopped_are_purged(store, dsn):
    producer, consumer = await a_pair(store)
    await consumer.suspend()
    await consumer.shutdown()
    for worker in (producer, consumer):
        was_heard_of(dsn, worker.worker_id, seconds_ago=100)
    admin = pgqrs.admin(store)
    assert await admin.purge_old_workers("200s") == 0
    assert await admin.purge_old_workers("50s") == 1
    assert [w.id for w in await admin.list_workers()] == [producer.worker_id]


async def test_a_worker_is_deleted_unless_it_holds_messages(store):
    consumer, message = await a_held_message(store)
    admin = pgqrs.admin(store)
    with pytest.raises(pgqrs.ValidationError, match=r"holds 1 message.*release_worker_messages"):
        await admin.delete_worker(consumer.worker_id)
    assert await admin.release_worker_messages(consumer.worker_id) == 1
    assert await admin.delete_worker(consumer.worker_id) is True
    other = await store.consumer(QUEUE)
    assert [m.id for m in await other.dequeue()] == [message.id]


async def test_an_archived_message_survives_its_worker(store):
    consumer, message = await a_held_message(store)
    await consumer.archive(message.id)
    assert await pgqrs.admin(store).delete_worker(consumer.worker_id) is True
    assert len(await (await store.get_messages()).list_archived_by_queue(message.queue_id)) == 1


# Under a name of the caller's choice


async def test_a_worker_can_have_a_name_which_is_its_own(store):
    await store.queue(QUEUE)
    admin = pgqrs.admin(store)
    producer = await pgqrs.Producer.new_producer(admin, QUEUE, "sender")
    consumer = await pgqrs.Consumer.new_consumer(admin, QUEUE, "taker")
    assert {w.name for w in await admin.list_workers()} == {"sender", "taker"}
    await producer.enqueue(1)
    assert [m.payload for m in await consumer.dequeue()] == [1]
    for again in (
        pgqrs.Producer.new_producer(admin, QUEUE, "taker"),
        pgqrs.Consumer.new_consumer(admin, QUEUE, "taker"),
    ):
        with pytest.raises(pgqrs.ValidationError, match="Worker taker is already active"):
            await again
