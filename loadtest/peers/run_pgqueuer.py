"""PgQueuer 1.6.0 in its drain mode, which ends when the queue is empty."""

import asyncio
import sys

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode


async def fill(dsn, count, work):
    count = int(count)
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for n in range(0, count, 1000):
        many = min(1000, count - n)
        await queries.enqueue(["noop"] * many, [b"1"] * many, [0] * many)
    await connection.execute("vacuum analyze")
    await connection.close()


async def drain(dsn, batch, work):
    connection = await asyncpg.connect(dsn)
    queue = PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint("noop")
    async def noop(job):
        pass

    print("ready", flush=True)
    sys.stdin.readline()
    await queue.run(batch_size=int(batch), mode=QueueExecutionMode.drain)
    await connection.close()


command, *rest = sys.argv[1:]
asyncio.run({"fill": fill, "drain": drain}[command](*rest))
