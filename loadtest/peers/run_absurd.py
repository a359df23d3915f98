"""Absurd 0.5.1. Its workers use their own loop. Tasks are spawned by its SQL function, all in one
transaction.
"""

import sys
import time

import absurdctl
import psycopg
from absurd_sdk import Absurd

QUEUE = "load"


def fill(dsn, count, work):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
        Absurd(connection, QUEUE).create_queue()
        connection.execute(
            "select count(*) from generate_series(1, %s) n, absurd.spawn_task(%s, %s, to_jsonb(n), '{}')",
            (int(count), QUEUE, work),
        )
        connection.execute("vacuum analyze")


def drain(dsn, batch, work):
    app = Absurd(dsn, QUEUE)

    @app.register_task("noop")
    def noop(params, ctx):
        return params

    @app.register_task("steps")
    def steps(params, ctx):
        first = ctx.step("first", lambda: params)
        second = ctx.step("second", lambda: first)
        return ctx.step("third", lambda: second)

    ready()
    app.start_worker(batch_size=int(batch))


def wait(dsn, count, work):
    with psycopg.connect(dsn, autocommit=True) as connection:
        ready()
        left = f"select exists (select 1 from absurd.t_{QUEUE} where state <> 'completed')"
        while connection.execute(left).fetchone()[0]:
            time.sleep(0.1)
        [ended] = connection.execute(
            f"select extract(epoch from max(completed_at)) from absurd.r_{QUEUE}"
        ).fetchone()
        print(float(ended), flush=True)


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


command, *rest = sys.argv[1:]
{"fill": fill, "drain": drain, "wait": wait}[command](*rest)
