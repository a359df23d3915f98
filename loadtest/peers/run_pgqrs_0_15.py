"""pgqrs 0.15.3: several tasks in each process, each with a consumer of its own, claim a hundred
messages at a time.
"""

import asyncio
import os
import sys

import psycopg

import pgqrs

BATCH = 100


async def fill(dsn, count, work):
    """Inserts straight into the table, because the rate of its own producers is limited."""
    store = await pgqrs.connect(dsn)
    await pgqrs.admin(store).install()
    if work == "steps":
        await pgqrs.workflow().name(work).store(store).create()
    else:
        await store.queue(work)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "insert into pgqrs_messages (queue_id, payload) select q.id, '{\"input\": 1}' "
            "from pgqrs_queues q, generate_series(1, %s) where q.queue_name = %s",
            (int(count), work),
        )
        connection.execute("vacuum analyze")


async def drain(dsn, tasks, work):
    store = await pgqrs.connect(dsn)
    consumers = [await store.consumer(work) for _ in range(int(tasks))]
    print("ready", flush=True)
    sys.stdin.readline()
    each = steps if work == "steps" else noops
    await asyncio.gather(*(each(store, consumer) for consumer in consumers))
    # Its threads sometimes crash an interpreter that exits normally.
    os._exit(0)


async def noops(store, consumer):
    while messages := await consumer.dequeue(BATCH):
        await consumer.archive_many([m.id for m in messages])


async def steps(store, consumer):
    while messages := await consumer.dequeue(BATCH):
        for message in messages:
            run = await pgqrs.run().message(message).store(store).execute()
            await run.start()
            value = run.input
            for name in ("first", "second", "third"):
                step = await run.acquire_step(name)
                await step.guard.success(value)
            await run.success(value)
        await consumer.archive_many([m.id for m in messages])


command, *rest = sys.argv[1:]
asyncio.run({"fill": fill, "drain": drain}[command](*rest))
