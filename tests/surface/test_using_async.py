"""`using` of an async store: what is sent belongs to the transaction of the caller's psycopg.AsyncConnection."""

import asyncio
from contextlib import asynccontextmanager

import psycopg
import pytest

import pgqrs
from pgqrs import ValidationError
from tests.surface.given import until


@pgqrs.workflow
def doubled(n: int) -> int:
    return 2 * n


@asynccontextmanager
async def opened(dsn, **options):
    async with (
        await pgqrs.connect(dsn) as store,
        await psycopg.AsyncConnection.connect(dsn, **options) as connection,
    ):
        yield store, connection


async def waiting(store):
    return sum(q.ready for q in await store.queues())


@pytest.fixture
def postgres(installed_postgres_dsn):
    return installed_postgres_dsn


async def test_what_is_sent_is_committed_or_rolled_back_with_the_rest(postgres):
    async with opened(postgres) as (store, connection):
        mine = store.using(connection)
        await mine.enqueue("tasks", {"order": 1})
        await mine.trigger(doubled, 1)
        await connection.rollback()
        assert await waiting(store) == 0
        sent = await mine.enqueue("tasks", {"order": 1})
        more = await mine.enqueue_many("tasks", [2, 3])
        handle = await mine.trigger(doubled, 21)
        assert isinstance(handle, pgqrs.RunHandle)
        with pytest.raises(pgqrs.RunNotFoundError):
            await store.run(handle.id)
        await connection.commit()
        assert sorted([sent, *more, handle.id]) == [sent, *more, handle.id]
        assert await waiting(store) == 4
        assert (await handle.record()).input == 21


async def test_a_block_of_the_caller_s_is_its_transaction(postgres):
    async with opened(postgres, autocommit=True) as (store, connection):
        mine = store.using(connection)
        async with connection.transaction():
            await mine.enqueue("tasks", 1)
            raise psycopg.Rollback
        assert await waiting(store) == 0
        async with connection.transaction():
            await mine.enqueue("tasks", 2)
        assert await waiting(store) == 1
        await mine.enqueue("tasks", 3)  # in no transaction: at once
        assert await waiting(store) == 2


async def test_it_begins_the_transaction_as_the_caller_s_connection_would(postgres):
    async with opened(postgres) as (store, connection):
        await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        await store.using(connection).enqueue("tasks", 1)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        cursor = await connection.execute("show transaction_isolation")
        assert await cursor.fetchone() == ("serializable",)
        await connection.commit()
        assert await waiting(store) == 1


async def test_tasks_that_share_a_connection_take_turns(postgres):
    async with opened(postgres) as (store, connection):
        mine = store.using(connection)

        async def asks(n):
            cursor = await connection.execute("select %s::int", (n,))
            return await cursor.fetchone()

        sent, asked = await asyncio.gather(
            asyncio.gather(*(mine.enqueue("tasks", n) for n in range(20))),
            asyncio.gather(*map(asks, range(20))),
        )
        await connection.commit()
        assert len(set(sent)) == 20
        assert asked == [(n,) for n in range(20)]
        assert await waiting(store) == 20


async def test_it_works_inside_a_pipeline(postgres):
    async with opened(postgres) as (store, connection):
        async with connection.pipeline():
            first = await connection.execute("select 1")
            await store.using(connection).enqueue("tasks", 1)
            second = await connection.execute("select 2")
            assert await second.fetchone() == (2,)
            assert await first.fetchone() == (1,)
        await connection.commit()
        assert await waiting(store) == 1


async def test_a_task_that_is_cancelled_leaves_the_connection_usable(postgres):
    """The message's insert waits for a lock that another transaction holds."""
    async with opened(postgres) as (store, connection):
        await store.queue("tasks")
        async with await psycopg.AsyncConnection.connect(postgres) as other:
            await other.execute("lock table pgqrs_messages")
            sending = asyncio.create_task(store.using(connection).enqueue("tasks", 1))

            async def it_waits():
                cursor = await other.execute("select count(*) from pg_locks where not granted")
                return await cursor.fetchone() != (0,)

            await until(it_waits)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await other.rollback()
        await connection.rollback()
        await store.using(connection).enqueue("tasks", 2)
        await connection.commit()
        assert await waiting(store) == 1


async def test_what_the_server_notifies_goes_on_to_the_caller(postgres):
    async with opened(postgres, autocommit=True) as (store, connection):
        heard = []
        connection.add_notify_handler(heard.append)
        mine = store.using(connection)
        await connection.execute("listen shipped")
        await mine.enqueue("tasks", 1)
        await connection.execute("notify shipped")
        assert [n.channel for n in heard] == ["shipped"]


async def test_the_schema_of_the_store_is_the_one_that_is_written_to(postgres):
    async with await psycopg.AsyncConnection.connect(postgres) as connection:
        await connection.execute("create schema elsewhere")
        await connection.commit()
        try:
            async with await pgqrs.connect_with(pgqrs.Config(postgres, schema="elsewhere")) as store:
                await store.install()
                await store.using(connection).enqueue("tasks", 1)
                await connection.commit()
                assert await waiting(store) == 1
        finally:
            await connection.execute("drop schema elsewhere cascade")
            await connection.commit()


async def test_each_kind_of_store_takes_its_kind_of_connection(postgres):
    async with opened(postgres) as (store, connection):
        with psycopg.connect(postgres) as blocking_connection, pgqrs.connect(postgres) as blocking:
            with pytest.raises(ValidationError, match=r"takes a psycopg.AsyncConnection, not Connection"):
                store.using(blocking_connection)
            with pytest.raises(ValidationError, match=r"takes a psycopg.Connection, not AsyncConnection"):
                blocking.using(connection)
    async with await pgqrs.connect("sqlite::memory:") as store:
        with pytest.raises(ValidationError, match="not on PostgreSQL"):
            store.using(connection)


async def test_the_caller_s_connection_stays_open_when_the_store_is_gone(postgres):
    async with await psycopg.AsyncConnection.connect(postgres) as connection:
        async with await pgqrs.connect(postgres) as store:
            await store.using(connection).enqueue("tasks", 1)
        del store
        await connection.commit()
        cursor = await connection.execute("select count(*) from pgqrs_messages")
        assert await cursor.fetchone() == (1,)
