"""What is in the tables: handles to list and count, an administrator's counts and second chances."""

import asyncio

import pytest

import pgqrs
from pgqrs import WorkflowStatus
from tests.surface.given import QUEUE, a_held_message, a_pair, a_run, a_triggered, at, moment, was_heard_of

# Handles


async def test_every_table_counts_and_lists(store):
    await a_pair(store, "one")
    await store.queue("two")
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.success(1)
    handles = {
        "queues": (await store.get_queues(), pgqrs.Queues, 3),
        "workers": (await store.get_workers(), pgqrs.Workers, 2),
        "workflows": (await store.get_workflows(), pgqrs.Workflows, 1),
        "workflow_runs": (await store.get_workflow_runs(), pgqrs.WorkflowRuns, 1),
        "workflow_steps": (await store.get_workflow_steps(), pgqrs.WorkflowSteps, 1),
    }
    for handle, kind, count in handles.values():
        assert isinstance(handle, kind)
        assert await handle.count() == count
        assert len(await handle.list()) == count


async def test_empty_tables_are_empty(store):
    for get in ("get_queues", "get_workers", "get_workflows", "get_workflow_runs", "get_workflow_steps"):
        handle = await getattr(store, get)()
        assert (await handle.count(), await handle.list()) == (0, [])
    assert await (await store.get_messages()).count() == 0
    assert await (await store.get_queues()).list_metrics() == []


async def test_the_builder_gives_the_same_handles(store):
    await a_pair(store)
    tables = pgqrs.tables(store)
    assert await (await tables.queues()).count() == 1
    assert await (await tables.workers()).count() == 2
    assert await (await tables.messages()).count() == 0
    assert await (await tables.workflows()).count() == 0
    assert await (await tables.workflow_runs()).count() == 0
    assert await (await tables.workflow_steps()).count() == 0


async def test_queues_are_listed_in_the_order_of_their_making(store):
    for name in ("b", "c", "a"):
        await store.queue(name)
    queues = await store.get_queues()
    assert [(q.id, q.queue_name) for q in await queues.list()] == [(1, "b"), (2, "c"), (3, "a")]
    assert (await queues.get("c")).id == 2
    with pytest.raises(pgqrs.QueueNotFoundError, match="'d' not found"):
        await queues.get("d")


async def test_messages_are_counted_until_they_are_archived(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    await producer.enqueue_delayed(4, 600)
    messages = await store.get_messages()
    assert await messages.count() == 4
    taken = await consumer.dequeue(2)
    assert await messages.count() == 4
    await consumer.archive(taken[0].id)
    await consumer.delete(taken[1].id)
    assert await messages.count() == 2


async def test_archived_messages_are_listed_by_queue_the_last_first(store):
    producer, consumer = await a_pair(store)
    await a_pair(store, "other")
    await producer.enqueue_batch(["a", "b"])
    for message in await consumer.dequeue(2):
        await consumer.archive(message.id)
    messages = await store.get_messages()
    assert [m.payload for m in await messages.list_archived_by_queue(1)] == ["b", "a"]
    assert await messages.list_archived_by_queue(2) == []
    assert await messages.list_archived_by_queue(99) == []


async def test_a_workflow_is_found_by_its_name(store):
    await a_triggered(store, name="one")
    await a_triggered(store, name="two")
    workflows = await store.get_workflows()
    assert (await workflows.get_by_name("two")).id == 2
    assert [w.name for w in await workflows.list()] == ["one", "two"]
    with pytest.raises(pgqrs.WorkflowNotFoundError, match=r"'three'; make it: pgqrs.workflow\(\)"):
        await workflows.get_by_name("three")


async def test_runs_and_steps_are_listed_the_newest_first(store):
    await pgqrs.workflow().name("job").store(store).create()
    for n in range(3):
        message = await pgqrs.workflow().name("job").store(store).trigger(n).execute()
        run = await pgqrs.run().message(message).store(store).execute()
        await run.acquire_step(f"step {n}")
    assert [r.id for r in await (await store.get_workflow_runs()).list()] == [3, 2, 1]
    assert [s.step_name for s in await (await store.get_workflow_steps()).list()] == [
        "step 2",
        "step 1",
        "step 0",
    ]


# Metrics


async def test_a_queue_s_metrics_count_its_messages_by_where_they_are(store):
    producer, consumer = await a_pair(store)
    ids = await producer.enqueue_batch(list(range(6)))
    await producer.enqueue_delayed("later", 600)
    taken = await consumer.dequeue(3)
    await consumer.archive(taken[0].id)
    for metrics in (
        await (await store.get_queues()).metrics(QUEUE),
        await pgqrs.admin(store).queue_metrics(QUEUE),
    ):
        assert metrics.name == QUEUE
        assert (metrics.total_messages, metrics.pending_messages) == (len(ids) + 1, 4)
        assert (metrics.locked_messages, metrics.archived_messages) == (2, 1)
        assert moment(metrics.oldest_pending_message) <= moment(metrics.newest_message)


async def test_of_an_empty_queue_too(store):
    await store.queue(QUEUE)
    metrics = await (await store.get_queues()).metrics(QUEUE)
    assert (metrics.total_messages, metrics.pending_messages, metrics.locked_messages) == (0, 0, 0)
    assert (metrics.oldest_pending_message, metrics.newest_message) == (None, None)


async def test_of_a_queue_that_is_not_there_there_are_none(store):
    for call in (
        (await store.get_queues()).metrics("nowhere"),
        pgqrs.admin(store).queue_metrics("nowhere"),
        pgqrs.admin(store).worker_stats("nowhere"),
        pgqrs.admin(store).get_queue("nowhere"),
    ):
        with pytest.raises(pgqrs.QueueNotFoundError, match="nowhere"):
            await call


async def test_all_queues_are_measured_by_name(store):
    producer, _ = await a_pair(store, "b")
    await store.queue("a")
    await producer.enqueue_batch([1, 2])
    for all_metrics in (
        await (await store.get_queues()).list_metrics(),
        await pgqrs.admin(store).all_queues_metrics(),
    ):
        assert [(m.name, m.total_messages) for m in all_metrics] == [("a", 0), ("b", 2)]


async def test_the_system_is_counted_whole(store):
    producer, consumer = await a_pair(store)
    await store.queue("other")
    await consumer.poll()
    await (await store.consumer(QUEUE)).suspend()
    await producer.enqueue_batch([1, 2, 3, 4])
    taken = await consumer.dequeue(2)
    await consumer.archive(taken[0].id)
    stats = await pgqrs.admin(store).system_stats()
    assert (stats.total_queues, stats.total_workers, stats.active_workers) == (2, 3, 2)
    assert (stats.total_messages, stats.pending_messages) == (4, 2)
    assert (stats.locked_messages, stats.archived_messages) == (1, 1)
    assert stats.schema_version


async def test_the_workers_of_a_queue_are_counted_by_status_and_age(store):
    _producer, consumer = await a_pair(store)
    await consumer.poll()
    stopped = await store.consumer(QUEUE)
    await stopped.suspend()
    await stopped.shutdown()
    stats = await pgqrs.admin(store).worker_stats(QUEUE)
    assert (stats.total_workers, stats.ready_workers, stats.polling_workers, stats.stopped_workers) == (
        3,
        1,
        1,
        1,
    )
    assert (stats.suspended_workers, stats.interrupted_workers) == (0, 0)
    assert 0 <= stats.average_uptime < 60
    assert moment(stats.oldest_worker) <= moment(stats.newest_worker)
    await store.queue("empty")
    stats = await pgqrs.admin(store).worker_stats("empty")
    assert (stats.total_workers, stats.average_uptime, stats.oldest_worker) == (0, 0.0, None)


# Clearing


async def test_purging_a_queue_deletes_its_messages_and_their_runs(store):
    producer, consumer = await a_pair(store)
    other, _ = await a_pair(store, "other")
    await producer.enqueue_batch([1, 2, 3])
    await other.enqueue(1)
    [held] = await consumer.dequeue()
    [archived] = await consumer.dequeue()
    await consumer.archive(archived.id)
    assert await (await store.get_queues()).purge(QUEUE) == 3
    messages = await store.get_messages()
    assert (await messages.count(), await messages.list_archived_by_queue(1)) == (1, [])
    assert await consumer.archive(held.id) is False, "it is nobody's any more"


async def test_an_administrator_purges_as_well(store):
    run = await a_run(store)
    await (await run.acquire_step("a")).guard.success(1)
    assert await pgqrs.admin(store).purge_queue("job") == 1
    assert await (await store.get_workflow_runs()).count() == 0
    assert await (await store.get_workflow_steps()).count() == 0
    with pytest.raises(pgqrs.QueueNotFoundError):
        await pgqrs.admin(store).purge_queue("nowhere")


async def test_an_unused_queue_is_deleted(store):
    await store.queue(QUEUE)
    assert await pgqrs.admin(store).delete_queue(QUEUE) is True
    assert await (await store.get_queues()).count() == 0
    with pytest.raises(pgqrs.QueueNotFoundError, match="'tasks' not found"):
        await pgqrs.admin(store).delete_queue(QUEUE)


async def test_a_queue_with_workers_is_not(store):
    await store.queue(QUEUE)
    consumer = await store.consumer(QUEUE)
    with pytest.raises(pgqrs.ValidationError, match=r"1 worker\(s\).*Delete workers first"):
        await pgqrs.admin(store).delete_queue(QUEUE)
    await pgqrs.admin(store).delete_worker(consumer.worker_id)
    assert await pgqrs.admin(store).delete_queue(QUEUE) is True


async def test_nor_one_with_messages_even_archived_ones(store):
    await store.enqueue_many(QUEUE, [1, 2])
    await pgqrs.consume(store, QUEUE, lambda _: None)
    admin = pgqrs.admin(store)
    for worker in await admin.list_workers():
        await admin.delete_worker(worker.id)
    with pytest.raises(
        pgqrs.ValidationError, match=r"2 message\(s\), archived ones included.*Purge it first"
    ):
        await admin.delete_queue(QUEUE)
    await admin.purge_queue(QUEUE)
    assert await admin.delete_queue(QUEUE) is True


async def test_nor_one_with_a_workflow(store):
    await pgqrs.workflow().name("job").store(store).create()
    with pytest.raises(pgqrs.ValidationError, match="workflow 'job' is on it"):
        await pgqrs.admin(store).delete_queue("job")


async def test_a_queue_of_the_same_name_can_be_made_again(store):
    await store.enqueue(QUEUE, 1)
    await pgqrs.admin(store).purge_queue(QUEUE)
    await pgqrs.admin(store).delete_queue(QUEUE)
    await store.queue(QUEUE)
    assert await pgqrs.produce(store, QUEUE, 2) == 2
    assert await store.enqueue(QUEUE, 3) == 3


# What others hold


async def test_what_a_worker_holds_is_listed_and_can_be_released_at_once(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    taken = await consumer.dequeue_many_with_delay(2, 9999)
    admin = pgqrs.admin(store)
    assert await admin.get_worker_messages(consumer.worker_id) == taken
    assert await admin.release_worker_messages(consumer.worker_id) == 2
    assert await admin.get_worker_messages(consumer.worker_id) == []
    assert await admin.release_worker_messages(consumer.worker_id) == 0
    other = await store.consumer(QUEUE)
    assert sorted(m.payload for m in await other.dequeue(10)) == [1, 2, 3]


async def test_what_the_silent_hold_is_reclaimed_and_what_others_hold_is_not(store, dsn):
    producer, silent = await a_pair(store)
    living = await store.consumer(QUEUE)
    await producer.enqueue_batch([1, 2])
    await silent.dequeue_many_with_delay(1, 9999)
    await living.dequeue_many_with_delay(1, 9999)
    was_heard_of(dsn, silent.worker_id, seconds_ago=400)
    admin = pgqrs.admin(store)
    assert await admin.reclaim_messages(QUEUE, "500s") == 0
    assert await admin.reclaim_messages(QUEUE) == 1, "by default after five minutes"
    assert await admin.reclaim_messages(1) == 0, "a queue goes by its id as well"
    assert [m.payload for m in await living.dequeue(10)] == [1]


async def test_by_default_the_silent_have_five_minutes(store, dsn):
    consumer, _ = await a_held_message(store)
    admin = pgqrs.admin(store)
    was_heard_of(dsn, consumer.worker_id, seconds_ago=290)
    assert await admin.reclaim_messages(QUEUE) == 0
    was_heard_of(dsn, consumer.worker_id, seconds_ago=310)
    assert await admin.reclaim_messages(QUEUE) == 1


async def test_messages_of_a_queue_that_is_not_there_are_not_reclaimed(store):
    with pytest.raises(pgqrs.QueueNotFoundError):
        await pgqrs.admin(store).reclaim_messages("nowhere")


# The dead


async def a_spent_message(store, payload=1):
    """Its deliveries are used up, and nobody holds it."""
    producer, consumer = await a_pair(store)
    [sent] = await producer.enqueue_at([payload], at(-10_000))
    for n in range(5):
        [message] = await consumer.dequeue_at(1, 10, at(-9000 + n * 100))
    assert message.read_ct == 5
    assert await consumer.dequeue() == []
    return sent, consumer


async def test_messages_whose_deliveries_are_used_up_go_to_the_dead(store):
    sent, _ = await a_spent_message(store, {"n": 1})
    admin = pgqrs.admin(store)
    assert await admin.dlq() == [sent]
    assert await admin.dlq() == []
    [(queue, dead)] = await store.dead()
    assert (queue, dead.id, dead.payload, dead.dead_reason) == (
        QUEUE,
        sent,
        {"n": 1},
        "its deliveries are used up",
    )
    assert await (await store.get_messages()).count() == 0


async def test_those_that_somebody_holds_or_that_have_deliveries_left_do_not(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_at([1], at(-10_000))
    for n in range(4):
        await consumer.dequeue_at(1, 10, at(-9000 + n * 100))
    await consumer.dequeue()  # the fifth, held now
    await producer.enqueue(2)
    assert await pgqrs.admin(store).dlq() == []


async def test_a_dead_message_gets_another_life(store):
    sent, consumer = await a_spent_message(store, {"n": 1})
    admin = pgqrs.admin(store)
    await admin.dlq()
    replayed = await admin.replay_dlq(sent)
    assert (replayed.id, replayed.payload, replayed.read_ct, replayed.archived_at) == (
        sent,
        {"n": 1},
        0,
        None,
    )
    [again] = await consumer.dequeue()
    assert (again.id, again.read_ct) == (sent, 1)
    assert await store.dead() == []


async def test_only_the_dead_are_replayed(store):
    consumer, message = await a_held_message(store)
    admin = pgqrs.admin(store)
    with pytest.raises(pgqrs.ValidationError):
        await admin.replay_dlq(message.id)
    await consumer.archive(message.id)
    with pytest.raises(pgqrs.ValidationError):
        await admin.replay_dlq(message.id)
    with pytest.raises(pgqrs.RunNotFoundError, match="4711"):
        await admin.replay_dlq(4711)


async def test_a_run_in_error_gets_another_life_and_keeps_its_steps(store):
    message = await a_triggered(store, 1)
    run = await pgqrs.run().message(message).store(store).execute()
    await (await run.acquire_step("a")).guard.success("kept")
    await (await run.acquire_step("b")).guard.fail("broken")
    await run.fail("broken")
    consumer = await store.consumer("job")
    await pgqrs.admin(store).replay_dlq(message.id)
    [again] = await consumer.dequeue()
    run = await pgqrs.run().message(again).store(store).execute()
    assert run.status is WorkflowStatus.Queued
    await run.start()
    assert (await run.acquire_step("a")).value == "kept"
    assert (await run.acquire_step("b")).status is pgqrs.StepResultStatus.Execute


# The schema


async def test_installing_twice_is_fine_and_verifying_says_nothing(empty_dsn):
    async with pgqrs.connect(empty_dsn) as store:
        admin = pgqrs.admin(store)
        assert await admin.install() is None
        assert await admin.install() is None
        assert await admin.verify() is None
        assert await store.bootstrap() is None
        assert await (await store.get_queues()).count() == 0


async def test_verifying_an_empty_database_says_what_to_do(empty_dsn):
    async with pgqrs.connect(empty_dsn) as store:
        with pytest.raises(pgqrs.SchemaError, match="pgqrs install"):
            await pgqrs.admin(store).verify()


async def test_several_that_install_at_once_do_it_once(empty_dsn):
    stores = [await pgqrs.connect(empty_dsn) for _ in range(4)]
    await asyncio.gather(*(pgqrs.admin(store).install() for store in stores))
    await pgqrs.admin(stores[0]).verify()
    await asyncio.gather(*(store.close() for store in stores))
