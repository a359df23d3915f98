"""A store outlives its queues, and at times its database. What it remembers of them never sends a message where nobody looks."""

import os

import psycopg
import pytest

import pgqrs
from pgqrs import errors

pytestmark = pytest.mark.backends("sqlite", "postgres")


@pgqrs.workflow
def doubled(n: int) -> int:
    return 2 * n


def without_queue(store, name="tasks"):
    """The queue is deleted, as an administrator does it, by another store than the one that remembers it."""
    with pgqrs.connect_with(store.config) as other:
        admin = pgqrs.admin(other)
        admin.purge_queue(name)
        for worker in admin.list_workers():
            admin.delete_worker(worker.id)
        admin.delete_queue(name)


def waiting(store):
    return {q.queue_name: q.ready for q in store.queues()}


@pytest.fixture
def remembering(blocking):
    """A store that has sent to the queue `tasks`."""
    blocking.enqueue("tasks", 0)
    return blocking


@pytest.mark.parametrize("count", [1, 200])  # the latter by COPY on PostgreSQL
def test_a_queue_that_was_deleted_is_made_again(remembering, count):
    without_queue(remembering)
    assert len(remembering.enqueue_many("tasks", range(count))) == count
    assert waiting(remembering) == {"tasks": count}


@pytest.mark.parametrize("count", [1, 200])
def test_a_producer_of_a_queue_that_was_deleted_says_so(remembering, count):
    remembering.config.max_enqueue_per_second = None
    producer = remembering.producer("tasks")
    without_queue(remembering)
    with pytest.raises(
        errors.QueueNotFoundError, match=r"'tasks' is not in this database any more.*Nothing was sent"
    ):
        producer.enqueue_batch(list(range(count)))
    assert remembering.get_messages().count() == 0


async def test_an_async_store_makes_it_again_too(store, remembering):
    await store.enqueue("tasks", 1)
    without_queue(remembering)
    await store.enqueue("tasks", 2)
    assert waiting(remembering) == {"tasks": 1}


# PostgreSQL: another database behind the same DSN


@pytest.fixture
def dropped(installed_postgres_dsn):
    """A store that remembers a queue and a workflow, whose ids belong to others in the schema that was installed since."""
    with pgqrs.connect(installed_postgres_dsn) as store, pgqrs.connect(installed_postgres_dsn) as other:
        store.enqueue("tasks", 1)
        store.trigger(doubled, 1)
        with psycopg.connect(installed_postgres_dsn, autocommit=True) as connection:
            connection.execute("drop schema public cascade; create schema public")
        other.install()
        for name in "abcd":
            pgqrs.admin(other).create_workflow(name, None)
        yield store, other


def test_no_message_goes_to_another_queue_that_has_the_id_now(dropped):
    store, other = dropped
    store.enqueue("tasks", 1)
    store.enqueue_many("tasks", range(200))
    handle = store.trigger(doubled, 21)
    assert waiting(other) == {"a": 1, "b": 1, "c": 1, "d": 1, "tasks": 201, "doubled": 1}
    assert other.run(handle.id).record().workflow == "doubled"


def test_a_run_is_not_sent_to_a_queue_without_its_workflow(installed_postgres_dsn):
    """The queue has the old id and the old name, and carries no workflow."""
    with pgqrs.connect(installed_postgres_dsn) as store, pgqrs.connect(installed_postgres_dsn) as other:
        store.trigger(doubled, 1)
        with psycopg.connect(installed_postgres_dsn, autocommit=True) as connection:
            connection.execute("drop schema public cascade; create schema public")
        other.install()
        other.queue("doubled")
        handle = store.trigger(doubled, 2)
        assert other.run(handle.id).record().workflow == "doubled"


def test_inside_a_transaction_it_is_the_same(dropped, installed_postgres_dsn):
    store, other = dropped
    with psycopg.connect(installed_postgres_dsn) as connection:
        mine = store.using(connection)
        mine.enqueue("tasks", 1)
        mine.trigger(doubled, 1)
    assert waiting(other) == {"a": 1, "b": 1, "c": 1, "d": 1, "tasks": 1, "doubled": 1}


def test_a_consumer_takes_nothing_by_an_id_that_is_another_s_now(dropped):
    store, _ = dropped
    consumer = store.consumer("a")
    assert len(consumer.dequeue(10)) == 1
    consumer._queue = pgqrs.QueueInfo(consumer._queue.id + 1, "a")
    assert consumer.dequeue(10) == []


# SQLite and Turso: another file behind the same name


@pytest.fixture(params=["sqlite", "turso"])
def file_dsn(request):
    return request.getfixturevalue(f"installed_{request.param}_dsn")


def path_of(dsn):
    return dsn.partition("://")[2].partition("?")[0]


def removed(dsn):
    for ending in ("", "-wal", "-shm", "-tshm"):
        if os.path.exists(path_of(dsn) + ending):
            os.remove(path_of(dsn) + ending)


CALLS = {
    "enqueue": lambda store, kept: store.enqueue("tasks", 1),
    "enqueue_many": lambda store, kept: store.enqueue_many("tasks", range(3)),
    "trigger": lambda store, kept: store.trigger(doubled, 1),
    "status": lambda store, kept: kept["handle"].status,
    "result": lambda store, kept: kept["handle"].result(timeout=5),
    "run": lambda store, kept: store.run(1),
    "producer": lambda store, kept: kept["producer"].enqueue(1),
    "consumer": lambda store, kept: kept["consumer"].dequeue(),
    "install": lambda store, kept: store.install(),
}


@pytest.mark.parametrize("then", ["gone", "another"])
def test_a_file_that_lost_its_name_is_written_to_by_nobody(file_dsn, then, monkeypatch, tmp_path):
    store = pgqrs.connect(file_dsn).open()
    store.queue("tasks")
    kept = {
        "handle": store.trigger(doubled, 1), "producer": store.producer("tasks"), "consumer": store.consumer("tasks"),
    }  # fmt: skip
    removed(file_dsn)
    if then == "another":
        open(path_of(file_dsn), "w").close()
    for call in CALLS.values():
        with pytest.raises(
            errors.SchemaError, match=r"was removed or replaced while this store .*; connect again"
        ):
            call(store, kept)
    store.close()
    removed(file_dsn)
    with store.open():
        store.enqueue("tasks", 1)
        assert waiting(store) == {"tasks": 1}


def test_a_folder_that_is_left_changes_nothing(installed_sqlite_dsn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pgqrs.connect("sqlite://pgqrs.db") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert store.enqueue("tasks", 1) == 1


def test_a_database_in_memory_has_no_name_to_lose():
    with pgqrs.connect("sqlite::memory:") as store:
        assert store.enqueue("tasks", 1) == 1
