"""Durable: what a call has returned is in S3, and what changes nothing costs no PUT."""

import threading
import time

import pytest

import pgqrs
from pgqrs.model.states import SyncState
from pgqrs.model.turns import Want
from pgqrs.store import open_store
from pgqrs.store.store import Identity
from tests.s3.looking import payloads, query

ME = Identity("me", "here", "boot", "ns", 1, 1)


def test_the_first_write_makes_the_object(opened, s3_server, address, proxy):
    store = opened()
    assert s3_server.body(address) is None
    assert store.install() > 0
    assert proxy.puts == 1
    assert s3_server.body(address).startswith(b"SQLite format 3\0")


def test_each_write_is_in_s3_before_its_call_returns(store, s3_server, address, tmp_path):
    for n in range(5):
        store.enqueue("tasks", n)
        assert payloads(s3_server, address, tmp_path) == [str(i) for i in range(n + 1)]


def test_a_store_elsewhere_sees_what_was_written(store, opened):
    store.enqueue("tasks", "here")
    other = opened()
    assert [q.ready for q in other.queues()] == [1]
    store.enqueue("tasks", "and here")
    time.sleep(0.06)
    assert [q.ready for q in other.queues()] == [2]


def test_a_call_that_changes_nothing_puts_nothing(store, proxy):
    store.queue("tasks")
    consumer = store.consumer("tasks")
    puts = proxy.puts
    assert consumer.dequeue() == []
    assert consumer.archive(4711) is False
    assert store.install() == 0
    store.verify()
    store.queues(), store.runs(), store.get_messages().count()
    assert proxy.puts == puts


def test_a_claim_of_a_supervisor_that_finds_nothing_puts_nothing(address, proxy):
    store = open_store(pgqrs.Config(address), steady_plans=True)
    store.install()
    queue = store.ensure_queue("tasks")
    _, consumers = store.register_supervisor(ME, {"tasks": queue}, 15.0)
    puts = proxy.puts
    assert store.turn((), [Want(queue, consumers["tasks"], 10, 5)]).taken[0].messages == []
    assert store.recover(5) == 0
    assert proxy.puts == puts
    store.close()


def test_a_turn_is_one_put(address, proxy):
    store = open_store(pgqrs.Config(address), steady_plans=True)
    store.install()
    queue = store.ensure_queue("tasks")
    store.enqueue(queue, [b"1"] * 50)
    _, consumers = store.register_supervisor(ME, {"tasks": queue}, 15.0)
    puts = proxy.puts
    [taken] = store.turn((), [Want(queue, consumers["tasks"], 50, 5)]).taken
    assert len(taken.messages) == 50
    assert proxy.puts == puts + 1
    store.close()


def test_renewals_of_a_lease_go_up_with_other_writes(address, proxy):
    """With nothing held there is nothing to protect; with something held, half a lease after the last PUT."""
    store = open_store(pgqrs.Config(address), steady_plans=True)
    store.install()
    queue = store.ensure_queue("tasks")
    supervisor, consumers = store.register_supervisor(ME, {"tasks": queue}, 1.0)
    puts = proxy.puts
    for _ in range(8):
        time.sleep(0.1)
        assert store.renew_lease(supervisor, 1.0)
    assert proxy.puts == puts
    store.enqueue(queue, [b"1"])
    store.turn((), [Want(queue, consumers["tasks"], 1, 5)])
    puts = proxy.puts
    for _ in range(4):
        time.sleep(0.05)
        assert store.renew_lease(supervisor, 1.0)
    assert proxy.puts == puts
    time.sleep(0.35)
    assert store.renew_lease(supervisor, 1.0)
    assert proxy.puts == puts + 1
    store.close()


@pytest.mark.slow
def test_a_lease_that_was_renewed_here_alone_outlives_what_others_write(address, opened, proxy):
    """Their version of the file has it as it was at our last PUT: older than it may be."""
    store = open_store(pgqrs.Config(address), steady_plans=True)
    store.install()
    queue = store.ensure_queue("tasks")
    supervisor, consumers = store.register_supervisor(ME, {"tasks": queue}, 0.4)
    for _ in range(6):
        time.sleep(0.15)
        assert store.renew_lease(supervisor, 0.4)
    opened().enqueue("tasks", 1)  # by now our lease has run out by what S3 knows
    store.database.follow()
    assert store.renew_lease(supervisor, 0.4)
    assert len(store.turn((), [Want(queue, consumers["tasks"], 1, 5)]).taken[0].messages) == 1
    store.close()


def test_reading_does_not_wait_for_a_put_under_way(store, proxy):
    store.queue("tasks")
    proxy.latency_s = 0.6
    writer = threading.Thread(target=store.enqueue, args=("tasks", 1))
    puts = proxy.puts
    writer.start()
    while proxy.puts == puts:
        time.sleep(0.005)
    began = time.monotonic()
    assert [q.ready for q in store.queues()] == [0]
    assert time.monotonic() - began < 0.3
    writer.join()
    proxy.latency_s = 0.0
    assert [q.ready for q in store.queues()] == [1]


def test_an_object_that_is_gone_is_made_again_by_the_next_write(store, s3_server, address, tmp_path):
    store.enqueue("tasks", 1)
    s3_server.delete(address)
    assert pgqrs.as_s3(store).state() == SyncState.RemoteMissingClean
    store.enqueue("tasks", 2)
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]


def test_the_handle_of_a_durable_store_has_nothing_to_do(store, proxy):
    handle = pgqrs.as_s3(store)
    puts = proxy.puts
    handle.snapshot()
    handle.sync()
    assert handle.state() == SyncState.InSync
    assert proxy.puts == puts


async def by_an_async_store(address):
    async with pgqrs.connect(address) as store:
        await store.bootstrap()
        handle = pgqrs.as_s3(store)
        assert isinstance(handle, pgqrs.S3StoreHandle)
        await handle.snapshot()
        await handle.sync()
        return await handle.state()


def test_an_async_store_has_an_async_handle(address):
    import asyncio

    assert asyncio.run(by_an_async_store(address)) == SyncState.InSync


def test_what_is_no_database_is_refused(opened, s3_server, address):
    s3_server.put(address, b"a text")
    with pytest.raises(pgqrs.PgqrsError, match="is no SQLite database"):
        opened()


def test_a_file_of_other_pages_is_taken_over(opened, s3_server, address, tmp_path):
    """0.15, or whoever made it, may have chosen another page size; a WAL is not part of an object."""
    import sqlite3

    with pgqrs.connect(f"sqlite://{tmp_path}/made.db") as made:
        made.install()
        made.enqueue("tasks", "old")
    connection = sqlite3.connect(tmp_path / "made.db", isolation_level=None)
    connection.execute("pragma journal_mode = delete")
    connection.execute("pragma page_size = 8192")
    connection.execute("vacuum")
    connection.close()
    s3_server.put(address, (tmp_path / "made.db").read_bytes())
    store = opened()
    assert store.enqueue("tasks", "new") == 2
    assert payloads(s3_server, address, tmp_path) == ['"old"', '"new"']
    assert query(s3_server, address, tmp_path, "pragma journal_mode") == [("delete",)]
