"""A task can be cancelled in any call: nothing is half done, no message is claimed by nobody, and the store goes on."""

import asyncio
import random
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager

import psycopg
import pytest

import pgqrs
from pgqrs.config import sqlite_path
from pgqrs.store import open_database
from tests.store.given import TABLES, dump
from tests.surface.given import PATIENCE_S, QUEUE, a_pair, until

CANCELLED_MAX_S = 3.0  # a call that was begun is ended, which takes a moment


@asynccontextmanager
async def blocked(dsn):
    """Another session holds what every write needs, for the length of the block."""
    if dsn.startswith("sqlite"):
        connection = sqlite3.connect(sqlite_path(dsn), isolation_level=None)
        connection.execute("begin immediate")
        try:
            yield Blocked(connection.rollback)
        finally:
            connection.close()
        return
    if not dsn.startswith("postgres"):
        with another_writer(dsn) as release:
            yield Blocked(release)
        return
    other = psycopg.connect(dsn)
    other.execute(f"lock table {', '.join(TABLES)} in access exclusive mode")
    try:
        yield Blocked(other.rollback)
    finally:
        other.close()


@contextmanager
def another_writer(dsn):
    """A thread of this process, for no other process can have the file."""
    entered, release = threading.Event(), threading.Event()

    def write():
        with closing(open_database(pgqrs.Config(dsn))) as database, database.transaction():
            entered.set()
            release.wait(60)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(write)
        assert entered.wait(10)

        def end():
            release.set()
            done.result(10)

        try:
            yield end
        finally:
            end()


class Blocked:
    def __init__(self, release):
        self.release = release


async def waits(dsn, task):
    """Until the task's call waits for the other session. SQLite does not tell."""
    if not dsn.startswith("postgres"):
        await asyncio.sleep(0.05)
    else:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching:

            async def is_waiting():
                cursor = await watching.execute(
                    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
                )
                return (await cursor.fetchone())[0] > 0

            await until(is_waiting)
    assert not task.done(), f"it was to wait, and ended: {task}"


# Blocked calls

CALLS = {
    "enqueue": lambda g: g.producer.enqueue(9),
    "enqueue_batch": lambda g: g.producer.enqueue_batch([8, 9]),
    "enqueue_delayed": lambda g: g.producer.enqueue_delayed(9, 60),
    "store.enqueue": lambda g: g.store.enqueue(QUEUE, 9),
    "store.enqueue_many": lambda g: g.store.enqueue_many("new", [9]),
    "produce": lambda g: pgqrs.produce(g.store, QUEUE, 9),
    "dequeue": lambda g: g.consumer.dequeue(),
    "dequeue_many_with_delay": lambda g: g.consumer.dequeue_many_with_delay(2, 60),
    "archive": lambda g: g.consumer.archive(g.message.id),
    "archive_many": lambda g: g.consumer.archive_many([g.message.id]),
    "delete": lambda g: g.consumer.delete(g.message.id),
    "extend_vt": lambda g: g.consumer.extend_vt(g.message.id, 60),
    "release_messages": lambda g: g.consumer.release_messages([g.message.id]),
    "heartbeat": lambda g: g.consumer.heartbeat(),
    "suspend": lambda g: g.consumer.suspend(),
    "queue": lambda g: g.store.queue("new"),
    "producer": lambda g: g.store.producer(QUEUE),
    "consumer": lambda g: g.store.consumer(QUEUE),
    "consume": lambda g: pgqrs.consume(g.store, QUEUE, print),
    "anext": lambda g: anext(g.store.consume_iter(QUEUE)),
    "poll": lambda g: pgqrs.dequeue().from_queue(QUEUE).handle(print).poll(g.store),
    "create": lambda g: pgqrs.workflow().name("new").store(g.store).create(),
    "trigger": lambda g: pgqrs.workflow().name("job").store(g.store).trigger(1).execute(),
    "execute": lambda g: pgqrs.run().message(g.triggered).store(g.store).execute(),
    "start": lambda g: g.run.start(),
    "success": lambda g: g.run.success(1),
    "fail": lambda g: g.run.fail("no"),
    "pause": lambda g: g.run.pause("later", 60),
    "cancel": lambda g: g.run.cancel(),
    "acquire_step": lambda g: g.run.acquire_step("b"),
    "guard.success": lambda g: g.guard.success(1),
    "guard.fail": lambda g: g.guard.fail("no"),
    "purge_queue": lambda g: pgqrs.admin(g.store).purge_queue(QUEUE),
    "release_worker_messages": lambda g: pgqrs.admin(g.store).release_worker_messages(g.consumer.worker_id),
    "create_workflow": lambda g: pgqrs.admin(g.store).create_workflow("new", 1),
}


class Given:
    """A store with something of everything."""

    @classmethod
    async def of(cls, store):
        given = cls()
        given.store = store
        given.producer, given.consumer = await a_pair(store)
        await given.producer.enqueue_batch([1, 2, 3])
        [given.message] = await given.consumer.dequeue()
        await pgqrs.workflow().name("job").store(store).create()
        message = await pgqrs.workflow().name("job").store(store).trigger(1).execute()
        given.run = await pgqrs.run().message(message).store(store).execute()
        given.guard = (await given.run.acquire_step("a")).guard
        given.triggered = await pgqrs.workflow().name("job").store(store).trigger(1).execute()
        return given


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_who_is_cancelled_while_it_waits_for_the_database_has_changed_nothing(store, dsn, call):
    given = await Given.of(store)
    before = dump(dsn)
    async with blocked(dsn):
        task = asyncio.ensure_future(call(given))
        await waits(dsn, task)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < CANCELLED_MAX_S
    assert dump(dsn) == before
    assert await given.consumer.archive(given.message.id) is True
    assert [m.payload for m in await given.consumer.dequeue(10)] == [2, 3]


async def test_a_timeout_ends_a_call_that_waits_as_well(store, dsn):
    given = await Given.of(store)
    async with blocked(dsn):
        for call in (given.producer.enqueue, given.consumer.archive, given.run.success):
            began = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(call(1), 0.1)
            assert time.monotonic() - began < CANCELLED_MAX_S


async def test_a_call_that_is_cancelled_before_it_began_is_never_made(store, dsn):
    given = await Given.of(store)
    before = dump(dsn)
    tasks = [asyncio.ensure_future(call(given)) for call in CALLS.values()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert dump(dsn) == before


async def test_meanwhile_the_event_loop_goes_on(store, dsn):
    given = await Given.of(store)
    async with blocked(dsn) as other:
        task = asyncio.ensure_future(given.producer.enqueue(1))
        ticks = 0
        began = time.monotonic()
        while time.monotonic() - began < 0.2:
            await asyncio.sleep(0.001)
            ticks += 1
        assert ticks > 20
        assert not task.done()
        other.release()
        assert await asyncio.wait_for(task, PATIENCE_S)


# At any moment


async def cut_short(coroutine, after_s):
    """What it gave, or None where it was cancelled first."""
    task = asyncio.ensure_future(coroutine)
    then = time.monotonic() + after_s
    while time.monotonic() < then:  # noqa: ASYNC110 - an event loop's timers know whole milliseconds only
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


class Moments:
    """Random ones, about as often before a call has ended as after, however fast the machine is."""

    def __init__(self):
        self.random = random.Random(1)
        self.usual_s = 0.002
        self.cut = 0
        self.ended = 0

    async def cut_short(self, coroutine):
        found = await cut_short(coroutine, self.usual_s * self.random.uniform(0.1, 1.5))
        self.usual_s *= 1.1 if found is None else 0.9
        self.cut += found is None
        self.ended += found is not None
        return found


async def test_dequeuing_is_cancelled_at_two_hundred_moments_and_no_message_is_held_by_nobody(store):
    moments = Moments()
    _, consumer = await a_pair(store)
    sent = await store.enqueue_many(QUEUE, list(range(300)))
    returned = []
    for _ in range(200):
        returned += [m.id for m in await moments.cut_short(consumer.dequeue(1)) or ()]
    assert moments.cut > 20
    assert moments.ended > 20
    held = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert sorted(m.id for m in held) == sorted(returned)
    other = await store.consumer(QUEUE)
    rest = await other.dequeue(1000)
    assert sorted([m.id for m in rest] + returned) == sent
    assert {m.read_ct for m in rest} == {1}, "a delivery that nobody saw is not charged"


async def test_so_is_dequeuing_by_many_tasks_at_once(store):
    moments = Moments()
    _, consumer = await a_pair(store)
    sent = await store.enqueue_many(QUEUE, list(range(200)))
    results = await asyncio.gather(
        *(cut_short(consumer.dequeue(1), moments.random.random() * 0.1) for _ in range(100))
    )
    returned = [m.id for messages in results for m in messages or ()]
    held = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert sorted(m.id for m in held) == sorted(returned)
    rest = await (await store.consumer(QUEUE)).dequeue(1000)
    assert sorted([m.id for m in rest] + returned) == sent


async def test_iterating_is_cancelled_at_many_moments_and_no_message_is_held_by_nobody(store):
    moments = Moments()
    await store.queue(QUEUE)
    sent = await store.enqueue_many(QUEUE, list(range(100)))
    done = []

    async def take_one(messages):
        message = await anext(messages)
        done.append(message.id)
        return message

    async with store.consume_iter(QUEUE) as messages:
        for _ in range(50):
            await moments.cut_short(take_one(messages))
        [worker] = await (await store.get_workers()).list()
        held = await pgqrs.admin(store).get_worker_messages(worker.id)
        assert sorted(m.id for m in held) == sorted(done)
    rest = await (await store.consumer(QUEUE)).dequeue(1000)
    assert [m.id for m in rest] == sent, "what it held is given back"


async def test_consuming_is_cancelled_at_many_moments_and_nothing_is_lost_or_left_held(store):
    moments = Moments()
    await store.queue(QUEUE)
    sent = await store.enqueue_many(QUEUE, list(range(60)))
    for _ in range(60):
        await moments.cut_short(done(pgqrs.consume(store, QUEUE, lambda _: None)))
    archived = [m.id for m in await (await store.get_messages()).list_archived_by_queue(1)]
    rest = [m.id for m in await (await store.consumer(QUEUE)).dequeue(1000)]
    assert sorted(archived + rest) == sent
    at_work = [w for w in await (await store.get_workers()).list() if w.name.startswith("__ephemeral__")]
    assert {w.status for w in at_work} <= {pgqrs.WorkerStatus.Stopped}


@pytest.mark.parametrize("way", ["poll", "consume"])
async def test_a_message_is_given_back_even_by_who_is_cancelled_then(dsn, way):
    """The handler has failed, and the cancellation comes while the message goes back."""
    config = pgqrs.Config(dsn)
    config.max_read_ct = 1000
    moments, tasks = Moments(), []

    def fails(_):
        asyncio.get_running_loop().call_later(moments.random.random() * 0.005, tasks[-1].cancel)
        raise ValueError("no")

    async with pgqrs.connect_with(config) as store:
        _, consumer = await a_pair(store)
        await store.enqueue(QUEUE, 1)
        for _ in range(25):
            handling = (
                pgqrs.dequeue().worker(consumer).handle(fails).poll(store)
                if way == "poll"
                else pgqrs.consume(store, QUEUE, fails)
            )
            tasks.append(asyncio.ensure_future(handling))
            with pytest.raises((ValueError, asyncio.CancelledError)):
                await tasks[-1]
            metrics = await pgqrs.admin(store).queue_metrics(QUEUE)
            assert (metrics.pending_messages, metrics.locked_messages) == (1, 0)


async def test_a_poll_is_cancelled_at_many_moments_and_nothing_is_left_held(store):
    moments = Moments()
    _, consumer = await a_pair(store)
    sent = await store.enqueue_many(QUEUE, list(range(200)))
    for _ in range(25):
        await cut_short(
            pgqrs.dequeue().worker(consumer).handle(lambda _: None).poll(store),
            moments.random.random() * 0.03,
        )
        assert await pgqrs.admin(store).get_worker_messages(consumer.worker_id) == []
        assert await consumer.status() is pgqrs.WorkerStatus.Ready
    archived = [m.id for m in await (await store.get_messages()).list_archived_by_queue(1)]
    rest = [m.id for m in await (await store.consumer(QUEUE)).dequeue(1000)]
    assert sorted(archived + rest) == sent


async def test_enqueuing_is_cancelled_at_many_moments_and_sends_once_or_not_at_all(store):
    moments = Moments()
    _, consumer = await a_pair(store)
    ids, cut = [], []
    for n in range(100):
        sent = await moments.cut_short(store.enqueue(QUEUE, n))
        (cut if sent is None else ids).append(n)
    stored = [m.payload for m in await consumer.dequeue(1000)]
    assert len(stored) == len(set(stored))
    assert set(ids) <= set(stored) <= set(ids) | set(cut)
    assert len(cut) > 10
    assert len(ids) > 10


async def test_connecting_is_cancelled_at_many_moments_and_leaves_nothing_open(dsn, store):
    moments = Moments()
    for _ in range(20):
        opened = await moments.cut_short(pgqrs.connect(dsn))
        if opened is not None:
            await opened.close()
    async with blocked(dsn):
        pass  # nobody else holds anything
    await store.queue(QUEUE)


async def test_registering_is_cancelled_at_many_moments_and_the_store_goes_on(store):
    moments = Moments()
    await store.queue(QUEUE)
    made = [await moments.cut_short(store.consumer(QUEUE)) for _ in range(30)]
    made.append(await store.consumer(QUEUE))  # on a slow machine all the others were cut short
    assert await (await store.get_workers()).count() >= len([m for m in made if m]) > 0
    await store.enqueue(QUEUE, 1)
    assert len(await (await store.consumer(QUEUE)).dequeue()) == 1


async def test_waiting_for_a_result_can_be_cancelled(store):
    await pgqrs.workflow().name("job").store(store).create()
    handle = await store.trigger("job", 1)
    message = await pgqrs.workflow().name("job").store(store).trigger(1).execute()
    for waiting in (handle.result(), pgqrs.run().message(message).store(store).result()):
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, CANCELLED_MAX_S)
    assert await handle.status is pgqrs.WorkflowStatus.Queued


async def test_a_group_of_tasks_of_which_one_fails_leaves_nothing_held(store):
    _, consumer = await a_pair(store)
    sent = await store.enqueue_many(QUEUE, list(range(20)))

    async def fails():
        await asyncio.sleep(0.005)
        raise ValueError("no")

    returned = []

    async def takes():
        returned.extend(await consumer.dequeue())

    async def all_of_them():
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(takes())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup, match="unhandled"):
        await all_of_them()
    held = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert sorted(m.id for m in held) == sorted(m.id for m in returned)
    assert len(await (await store.consumer(QUEUE)).dequeue(100)) == len(sent) - len(returned)


# Waiting for a connection


async def test_who_gets_no_connection_in_time_is_told(installed_postgres_dsn):
    config = pgqrs.Config(installed_postgres_dsn, max_connections=2)
    config.connection_timeout_seconds = 0.3
    async with pgqrs.connect_with(config) as store:
        producer, _ = await a_pair(store)
        async with blocked(installed_postgres_dsn) as other:
            busy = [asyncio.ensure_future(producer.enqueue(n)) for n in range(2)]
            await waits(installed_postgres_dsn, busy[1])
            began = time.monotonic()
            with pytest.raises(pgqrs.PgqrsConnectionError, match=r"raise max_connections"):
                await producer.enqueue(3)
            assert 0.2 < time.monotonic() - began < 2.0
            other.release()
            assert sorted(await asyncio.gather(*busy)) == [1, 2]
        assert await producer.enqueue(4) >= 3


async def test_who_waits_too_long_for_a_file_is_told(installed_sqlite_dsn):
    config = pgqrs.Config(installed_sqlite_dsn)
    config.connection_timeout_seconds = 0.3
    async with pgqrs.connect_with(config) as store:
        producer, _ = await a_pair(store)
        async with blocked(installed_sqlite_dsn):
            began = time.monotonic()
            with pytest.raises(pgqrs.PgqrsConnectionError, match="locked"):
                await producer.enqueue(1)
            assert 0.2 < time.monotonic() - began < 2.0
            tasks = [producer.enqueue(n) for n in range(3)]
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(e) for e in ended} == {pgqrs.PgqrsConnectionError}
        assert await producer.enqueue(2) == 1


async def test_many_tasks_make_progress_together(store):
    await store.queue(QUEUE)
    finished = []

    async def work(n):
        producer = await store.producer(QUEUE)
        consumer = await store.consumer(QUEUE)
        await producer.enqueue(n)
        taken = []

        async def has_taken():
            taken.extend(await consumer.dequeue())
            return bool(taken)

        await until(has_taken)
        assert await consumer.archive(taken[0].id) is True
        finished.append(taken[0].payload)

    await asyncio.wait_for(asyncio.gather(*(work(n) for n in range(60))), 30)
    assert sorted(finished) == list(range(60))


async def test_who_waits_on_a_server_keeps_nobody_else_waiting(installed_postgres_dsn):
    async with pgqrs.connect(installed_postgres_dsn) as store:
        producer, consumer = await a_pair(store)
        await producer.enqueue(1)
        [message] = await consumer.dequeue()
        other = psycopg.connect(installed_postgres_dsn)
        other.execute("select * from pgqrs_messages where id = %s for update", (message.id,))
        archiving = asyncio.ensure_future(consumer.archive(message.id))
        await waits(installed_postgres_dsn, archiving)
        ids = await asyncio.wait_for(asyncio.gather(*(producer.enqueue(n) for n in range(40))), PATIENCE_S)
        assert len(ids) == 40
        assert not archiving.done()
        other.rollback()
        assert await asyncio.wait_for(archiving, PATIENCE_S) is True
        other.close()


async def test_a_store_that_is_closed_while_others_wait_lets_them_go(store, dsn):
    given = await Given.of(store)
    tasks = [asyncio.ensure_future(given.producer.enqueue(n)) for n in range(10)]
    await store.close()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    assert {type(e) for e in ended} <= {int, pgqrs.PgqrsConnectionError}
    async with pgqrs.connect(dsn) as again:
        assert await (await again.get_messages()).count() == 5 + sum(isinstance(e, int) for e in ended)


async def done(coroutine):
    """True, of what gives nothing."""
    await coroutine
    return True


async def test_what_a_cancelled_call_had_sent_already_is_taken_back(store):
    """Committed or not: who was told that it was cancelled may send it again."""
    producer, _ = await a_pair(store)
    sent = 0
    for n in range(60):
        for call in (producer.enqueue(n), store.enqueue(QUEUE, n), pgqrs.produce(store, QUEUE, n)):
            task = asyncio.create_task(call)
            await asyncio.sleep(0.0005 * (n % 4))
            task.cancel()
            try:
                await task
                sent += 1
            except asyncio.CancelledError:
                pass
    assert (await pgqrs.admin(store).queue_metrics(QUEUE)).pending_messages == sent
