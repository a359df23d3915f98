"""What waits for messages or results waits for a database that is away as well."""

import asyncio
from pathlib import Path

import pytest

import pgqrs
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.slow


def test_polls_iterators_and_waits_outlive_a_restart_of_the_server(tmp_path: Path) -> None:
    with PostgresServer.start() as server:
        asyncio.run(outliving(server, server.create_database("outage")))


async def outliving(server: PostgresServer, dsn: str) -> None:
    store = await pgqrs.connect(dsn)
    await store.install()
    for queue in ("polled", "iterated", "flow"):
        await store.queue(queue)
    handled: list[int] = []

    async def handle(message: pgqrs.QueueMessage) -> None:
        handled.append(message.payload)

    async def iterate() -> None:
        async with store.consume_iter("iterated", 50) as messages:
            async for message in messages:
                handled.append(message.payload)
                await messages.archive(message.id)

    poll = asyncio.create_task(
        pgqrs.dequeue().from_queue("polled").poll_interval(50).handle(handle).poll(store)
    )
    iteration = asyncio.create_task(iterate())
    run = await store.trigger("nobody_runs_it")
    wait = asyncio.create_task(run.result(30))
    await send(store, 1)
    await until(lambda: sorted(handled) == [1, 1])
    await archived(store, 1)  # else it would be delivered again

    await asyncio.to_thread(server.restart)

    await send(store, 2)
    await until(lambda: sorted(handled) == [1, 1, 2, 2])
    await run.cancel()
    with pytest.raises(pgqrs.RunCancelledError):
        await wait
    assert not poll.done()
    assert not iteration.done()
    await archived(store, 2)
    for task in (poll, iteration):
        task.cancel()
    await asyncio.gather(poll, iteration, return_exceptions=True)
    await store.close()


async def send(store: pgqrs.Store, number: int) -> None:
    for queue in ("polled", "iterated"):
        await pgqrs.produce(store, queue, number)


async def archived(store: pgqrs.Store, count: int) -> None:
    """Of each queue."""
    for queue in ("polled", "iterated"):
        for _ in range(400):
            if (await pgqrs.admin(store).queue_metrics(queue)).archived_messages == count:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail(f"{queue}: not archived within 20 s")


async def until(holds) -> None:  # type: ignore[no-untyped-def]
    for _ in range(400):
        if holds():
            return
        await asyncio.sleep(0.05)
    pytest.fail("not within 20 s")
