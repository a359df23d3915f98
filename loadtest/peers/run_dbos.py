"""DBOS 3.4.0: processes with executor ids of their own on one queue, which is polled every 20
ms.
"""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
from dbos import DBOS, DBOSClient

QUEUE = "load"
VERSION = "1"


@DBOS.workflow()
def noop(n):
    return n


@DBOS.step()
def first(n):
    return n


@DBOS.step()
def second(n):
    return n


@DBOS.step()
def third(n):
    return n


@DBOS.workflow()
def steps(n):
    return third(second(first(n)))


def launch(dsn, at_once, executor):
    DBOS(
        config={
            "name": "load",
            "system_database_url": dsn,
            "application_version": VERSION,
            "executor_id": executor,
            "log_level": "ERROR",
            "max_executor_threads": at_once,
        }
    )
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=at_once, polling_interval_sec=0.02)


def fill(dsn, count, work):
    # Creates the schema.
    launch(dsn, 1, "filler")
    DBOS.destroy()
    client = DBOSClient(system_database_url=dsn)
    options = {"queue_name": QUEUE, "workflow_name": work, "app_version": VERSION}
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda n: client.enqueue(options, n), range(int(count))):
            pass
    client.destroy()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze")


def drain(dsn, at_once, work):
    ready()
    launch(dsn, int(at_once), f"process {os.getpid()}")
    threading.Event().wait()


def wait(dsn, count, work):
    with psycopg.connect(dsn, autocommit=True) as connection:
        ready()
        left = "select exists (select 1 from dbos.workflow_status where name = %s and status <> 'SUCCESS')"
        while connection.execute(left, (work,)).fetchone()[0]:
            time.sleep(0.1)
        # Processes work as soon as they are launched, so the clock starts with the first workflow.
        times = connection.execute(
            "select min(started_at_epoch_ms) / 1000.0, max(completed_at) "
            "/ 1000.0 from dbos.workflow_status where name = %s",
            (work,),
        ).fetchone()
        print(*map(float, times), flush=True)


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    {"fill": fill, "drain": drain, "wait": wait}[command](*rest)
