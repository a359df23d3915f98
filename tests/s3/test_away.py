"""S3 goes away under somebody who has nothing to ask of it, and under somebody who wants to end."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import Supervised, connected, eventually
from tests.s3.faults import Fault, answer
from tests.s3.looking import query

ROOT = Path(__file__).parents[2]
TARGET = str(Path(__file__).with_name("drained.py"))
METHODS = ("GET", "HEAD", "PUT")

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence"))
    return tmp_path / "evidence"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def mute(proxy):
    """Requests are taken, and get no answer. Those under way are let go at the end."""
    before, proxy.mute = proxy.mute, threading.Event()
    try:
        yield
    finally:
        proxy.mute.set()
        proxy.mute = before


def readiness(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answered:
            return answered.status, answered.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def handled(s3_server, address, tmp_path):
    """Waits until nothing is left to do, and to be said of it."""
    left = "select count(*) from pgqrs_messages where archived_at is null"
    eventually(lambda: query(s3_server, address, tmp_path, left) == [(0,)])
    time.sleep(0.3)  # for the local commit that follows


def idle(address, tmp_path, port):
    options = ("--workers", "1", "--http", f"127.0.0.1:{port}")
    return Supervised(address, tmp_path / "log", *options, target=TARGET)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["403", "500", "garbage", "no endpoint"])
def test_an_idle_supervisor_tells_that_s3_is_away_and_is_not_ready(
    trouble, address, evidence, proxy, tmp_path, s3_server
):
    port = free_port()
    with connected(address) as store:
        store.enqueue("jobs", 0)
    with idle(address, tmp_path, port) as supervisor:
        eventually(lambda: evidence.exists() and readiness(port)[0] == 200)
        whole = s3_server.body(address)
        if trouble == "garbage":
            s3_server.put(address, b"garbage")
        else:
            fault = {"403": answer(403), "500": answer(500)}.get(trouble, Fault("refuse"))
            for method in METHODS:
                proxy.always(method, fault)
        eventually(lambda: "the database is away, trying again: " in supervisor.said(), timeout=15)
        eventually(lambda: readiness(port)[0] == 503)
        assert "the database is away" in readiness(port)[1]
        for method in METHODS:
            proxy.always(method, None)
        if trouble == "garbage":
            s3_server.put(address, whole)
        eventually(lambda: "the database is back" in supervisor.said())
        eventually(lambda: readiness(port)[0] == 200)
        assert supervisor.said().count("the database is away") == 1


@pytest.mark.slow
def test_an_s3_that_says_nothing_is_told_as_well(address, evidence, proxy, tmp_path, s3_server):
    port = free_port()
    with connected(address) as store:
        store.enqueue("jobs", 0)
    with idle(address, tmp_path, port) as supervisor:
        handled(s3_server, address, tmp_path)
        with mute(proxy):
            eventually(lambda: readiness(port)[0] == 503, timeout=30)
            assert "no answer within 10 s" in supervisor.said()
            began = time.monotonic()
            supervisor.signal(signal.SIGTERM)
            supervisor.wait(20)
            assert time.monotonic() - began < 5


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_a_supervisor_stops_while_s3_says_nothing(
    busy, address, evidence, proxy, tmp_path, monkeypatch, s3_server
):
    """Before anybody could notice."""
    monkeypatch.setenv("TAKES_S", "0.5" if busy else "0")
    with connected(address) as store:
        store.enqueue_many("jobs", range(200 if busy else 1))
    with Supervised(address, tmp_path / "log", "--workers", "1", target=TARGET) as supervisor:
        if busy:
            eventually(lambda: evidence.exists())
        else:
            handled(s3_server, address, tmp_path)
        with mute(proxy):
            if busy:
                eventually(lambda: proxy.waiting > 0)
            began = time.monotonic()
            for _ in range(3 if busy else 1):
                supervisor.signal(signal.SIGTERM)
                time.sleep(0.2)
            supervisor.wait(60)
            assert time.monotonic() - began < 9, supervisor.said()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_starting_too(number, address, proxy, tmp_path):
    with connected(address) as store:
        store.install()
    with mute(proxy), Supervised(address, tmp_path / "log", target=TARGET) as supervisor:
        eventually(lambda: proxy.waiting > 0)
        began = time.monotonic()
        supervisor.signal(number)
        supervisor.wait(20)
        assert time.monotonic() - began < 4


CLIENTS = {
    "blocking": """
import sys, pgqrs
with pgqrs.connect(sys.argv[1]) as store:
    store.enqueue("tasks", 1)
    print("here", flush=True)
    sys.stdin.readline()
    store.enqueue("tasks", 2)
""",
    "reading": """
import sys, pgqrs
with pgqrs.connect(sys.argv[1]) as store:
    store.enqueue("tasks", 1)
    print("here", flush=True)
    sys.stdin.readline()
    while True:
        store.queues()
""",
    "connecting": """
import sys, pgqrs
print("here", flush=True)
sys.stdin.readline()
pgqrs.connect(sys.argv[1]).open()
""",
    "async": """
import asyncio, sys, pgqrs
async def main():
    async with pgqrs.connect(sys.argv[1]) as store:
        await store.enqueue("tasks", 1)
        print("here", flush=True)
        sys.stdin.readline()
        await store.enqueue("tasks", 2)
asyncio.run(main())
""",
    "command line": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_ctrl_c_ends_a_client_while_s3_says_nothing(client, address, proxy):
    with connected(address) as store:
        store.enqueue("tasks", 0)
    program = ["-c", CLIENTS[client], address]
    if client == "command line":
        program = ["-m", "pgqrs", "enqueue", "tasks", "1", "--dsn", address]
    with mute(proxy) if client == "command line" else nullcontext():
        process = subprocess.Popen(
            [sys.executable, *program],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if client != "command line":
                assert process.stdout.readline() == "here\n"
            with mute(proxy):
                if client != "command line":
                    print(file=process.stdin, flush=True)
                eventually(lambda: proxy.waiting > 0)
                began = time.monotonic()
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=60)
                # A cancelled task waits 5 s for the end of its write, to take it back, and the store 3 s for it when it is closed.
                assert time.monotonic() - began < (9 if client == "async" else 5), told
                assert process.returncode != 0
                assert "fatal" not in told
        finally:
            process.kill()
            process.communicate()


async def cancelled(address, proxy):
    async with pgqrs.connect(address) as store:
        await store.enqueue("tasks", 0)
        with mute(proxy):
            task = asyncio.create_task(store.enqueue("tasks", 1))
            await asyncio.to_thread(eventually, lambda: proxy.waiting > 0)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 6
        return await store.enqueue("tasks", 2)


@pytest.mark.slow
def test_a_task_that_is_cancelled_meanwhile_ends(address, proxy):
    assert asyncio.run(cancelled(address, proxy)) >= 2


@pytest.mark.slow
def test_closing_a_store_waits_for_no_request_of_another_thread(store, proxy):
    store.queue("tasks")
    ended = []

    def enqueue():
        try:
            store.enqueue("tasks", 1)
        except pgqrs.PgqrsConnectionError as e:
            ended.append(str(e))

    with mute(proxy):
        thread = threading.Thread(target=enqueue)
        thread.start()
        eventually(lambda: proxy.waiting > 0)
        began = time.monotonic()
        store.close()
        thread.join(10)
        assert time.monotonic() - began < 5
    assert "is no longer waited for" in ended[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_s3_is_asked_again(status, store, proxy, s3_server):
    store.queue("tasks")
    busy = Fault("answer", status, xml="<Error><Code>SlowDown</Code><Message>later</Message></Error>")
    proxy.next("PUT", busy, busy)
    assert store.enqueue("tasks", 1) == 1
    proxy.next("GET", busy, busy)
    time.sleep(0.06)
    assert [q.ready for q in store.queues()] == [1]
