"""pgqrs 0.15.3 in its own environment: `fill DSN COUNT`, or `drain DSN BATCH` in one process."""

import asyncio
import sys

import psycopg

import pgqrs


async def fill(dsn, count):
    """Straight into its table: its own producers are limited to so many messages a second."""
    store = await pgqrs.connect(dsn)
    await pgqrs.admin(store).install()
    await store.queue("noop")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "insert into pgqrs_messages (queue_id, payload) select q.id, '1' from pgqrs_queues q, generate_series(1, %s)",
            (count,),
        )
        connection.execute("vacuum analyze")


async def drain(dsn, batch):
    store = await pgqrs.connect(dsn)
    consumer = await store.consumer("noop")
    print("ready", flush=True)
    sys.stdin.readline()
    while messages := await consumer.dequeue(batch):
        await consumer.archive_many([m.id for m in messages])


command, dsn, number = sys.argv[1:]
asyncio.run({"fill": fill, "drain": drain}[command](dsn, int(number)))
