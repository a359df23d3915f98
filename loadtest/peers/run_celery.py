"""Celery 5.7.0: prefork children, no result backend; three steps are a chain."""

import os
import signal
import subprocess
import sys
import time

import redis
from celery import Celery, chain

QUEUE = "load"
IDLE = "idle"

app = Celery("load", broker=os.environ.get("LOAD_BROKER", ""))
app.conf.update(
    task_ignore_result=True,
    task_default_queue=QUEUE,
    worker_prefetch_multiplier=100,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(n):
    return n


@app.task(name="step")
def step(n):
    return n


def fill(dsn, count, work):
    app.conf.broker_url = dsn
    with app.producer_pool.acquire(block=True) as producer:
        for n in range(int(count)):
            if work == "noop":
                noop.apply_async((n,), producer=producer)
            else:
                chain(step.s(n), step.s(), step.s()).apply_async(producer=producer)


def drain(dsn, children, work):
    """The worker listens to another queue until it is told to start."""
    worker = subprocess.Popen(
        [
            sys.executable, "-m", "celery", "-A", "run_celery", "worker", "-Q", IDLE, "-c", children, "-l",
            "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat",
        ],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env=os.environ | {"LOAD_BROKER": dsn},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def stop(*_):
        # The children of the worker end when their pipe is closed.
        worker.kill()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    app.conf.broker_url = dsn
    while not app.control.ping(timeout=0.5):
        pass
    ready()
    app.control.add_consumer(QUEUE)
    worker.wait()


def wait(dsn, count, work):
    """Waits until no job is queued and none is handed out, three times in a row: the next link of a
    chain is sent while neither holds it.
    """
    client = redis.Redis.from_url(dsn)
    ready()
    seen = []
    while len(seen) < 3:
        empty = not client.llen(QUEUE) and not client.hlen("unacked")
        seen = [*seen, time.time()] if empty else []
        time.sleep(0.05)
    print(seen[0], flush=True)


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    {"fill": fill, "drain": drain, "wait": wait}[command](*rest)
