"""Consumers that claim at the same time, in threads and in processes: each message is taken once."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from tests.store.given import Consumer, columns, ids, release

ROOT = Path(__file__).parents[2]
MESSAGES = 2000

CLAIM_ALL = """
import sys
from pgqrs.errors import ConflictError
from pgqrs.config import Config
from pgqrs.store import open_store
from tests.store.given import Consumer, ids
dsn, queue, name = sys.argv[1:]
store = open_store(Config(dsn))
while True:
    try:
        consumer = Consumer(store, int(queue), name)
        break
    except ConflictError:
        continue
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        claimed = consumer.claim(23)
    except ConflictError:  # on S3 whoever comes too late is told, and tries again
        continue
    if not claimed:
        break
    print(*ids(claimed), flush=True)
store.close()
"""


def test_threads_take_each_message_once(store, queue, open_another):
    store.enqueue(queue, [b"1"] * MESSAGES)
    together = threading.Barrier(4)

    def take_all(n):
        consumer = Consumer(open_another(), queue, f"thread {n}")
        together.wait(10)
        taken = []
        while claimed := consumer.claim(17):
            taken += ids(claimed)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(take_all, range(4)))
    assert sorted(chain(*taken)) == list(range(1, MESSAGES + 1))


def test_threads_that_share_a_store_take_each_message_once(store, queue, consumer):
    store.enqueue(queue, [b"1"] * 300)
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: ids(consumer.claim(5)), range(60)))
    assert sorted(chain(*taken)) == list(range(1, 301))


@pytest.mark.processes
def test_processes_take_each_message_once(dsn, store, queue):
    store.enqueue(queue, [b"1"] * MESSAGES)  # at a time that has long passed
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_ALL, dsn, str(queue), f"process {n}"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in range(3)
    ]  # fmt: skip
    for p in processes:
        assert p.stdout.readline() == "ready\n"
    for p in processes:
        p.stdin.write("go\n")
        p.stdin.flush()
    taken = [[int(n) for n in p.communicate(timeout=60)[0].split()] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert sorted(chain(*taken)) == list(range(1, MESSAGES + 1))
    assert columns(dsn, "pgqrs_messages", "distinct claim_no, read_ct") == [(1, 1)]


def test_claims_and_releases_at_once_lose_nothing(store, queue, open_another, dsn):
    """Each delivery has a number of its own, however the consumers meet."""
    store.enqueue(queue, [b"1"] * 40)

    def take_and_give_back(n):
        own = open_another()
        consumer = Consumer(own, queue, f"thread {n}")
        seen = []
        for _ in range(15):
            claims = [c.claim for c in consumer.claim(7)]
            seen += [(c.message_id, c.claim_no) for c in claims]
            writes = [release(c) for c in claims]
            while writes:  # what another one's claim has just looked at is locked, and put off
                turn = own.turn(writes)
                assert all(o.applied for o in turn.outcomes)
                writes = list(turn.put_off)
        return seen

    with ThreadPoolExecutor(3) as pool:
        seen = list(chain(*pool.map(take_and_give_back, range(3))))
    assert len(set(seen)) == len(seen) > 40
    assert columns(dsn, "pgqrs_messages", "distinct consumer_worker_id, read_ct") == [(None, 0)]
    assert columns(dsn, "pgqrs_messages", "sum(claim_no)") == [(len(seen),)]
