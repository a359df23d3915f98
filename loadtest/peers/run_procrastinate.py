"""Procrastinate 3.10.0: async tasks in workers that end when they have caught up with the queue."""

import asyncio
import sys

import psycopg
from procrastinate import App, PsycopgConnector


def app_of(dsn):
    app = App(connector=PsycopgConnector(conninfo=dsn))

    @app.task(name="noop")
    async def noop(n):
        pass

    return app, noop


async def fill(dsn, count, work):
    app, noop = app_of(dsn)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await noop.batch_defer_async(*({"n": n} for n in range(int(count))))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("vacuum analyze")


async def drain(dsn, concurrency, work):
    app, _ = app_of(dsn)
    async with app.open_async():
        print("ready", flush=True)
        sys.stdin.readline()
        await app.run_worker_async(wait=False, concurrency=int(concurrency))


command, *rest = sys.argv[1:]
asyncio.run({"fill": fill, "drain": drain}[command](*rest))
