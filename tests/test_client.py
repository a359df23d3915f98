"""The blocking client: enqueue, trigger, look, and run workers for the length of a block."""

import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

import pgqrs
from tests import sample_workflows as sample
from tests.crashes.supervised import connected

pytestmark = pytest.mark.processes


def test_a_workflow_runs_on_worker_processes_and_its_result_comes_back_typed(dsn: str) -> None:
    with connected(dsn) as store:
        store.install()
        order = sample.Order("tea", 3, Decimal("4.20"), datetime(2026, 1, 2, tzinfo=UTC), Path("/tmp/x"))
        handle = store.trigger(sample.bill, order)
        assert handle.status == pgqrs.WorkflowStatus.Queued
        with store.workers(sample.bill, sample.double, processes=2):
            assert handle.result(timeout=20) == sample.Invoice(order, Decimal("12.60"))
            assert store.trigger(sample.double, x=4).result(timeout="20s") == 8
        assert handle.status == pgqrs.WorkflowStatus.Success
        assert [s.step_name for s in handle.steps()] == ["price", "stamp", "stamp#2"]
        record = handle.record()
        assert record.workflow == "bill"
        assert record.output["total"] == "12.60"
        assert record.attempt == 1


def test_an_exception_comes_back_with_its_type_message_and_traceback(dsn: str) -> None:
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(sample.broken, "boom")
        with (
            store.workers(sample.broken, processes=1),
            pytest.raises(pgqrs.RunFailedError, match="ValueError: boom") as failed,
        ):
            handle.result(timeout=20)
        assert failed.value.error["type"] == "builtins.ValueError"
        assert "raise ValueError(text)" in failed.value.error["traceback"]
        [step] = handle.steps()
        assert (step.status, step.error["message"]) == (pgqrs.WorkflowStatus.Error, "boom")
        assert [m.id for _, m in store.dead()] == [handle.id]


def test_messages_keep_their_order_and_wait_out_their_delay(dsn: str) -> None:
    with connected(dsn) as store:
        store.install()
        ids = store.enqueue_many("tasks", [{"n": n} for n in range(25)])
        assert ids == sorted(ids)
        later = store.enqueue("tasks", {"n": "later"}, delay="10m")
        [queue] = store.queues()
        assert (queue.queue_name, queue.ready, queue.delayed) == ("tasks", 25, 1)
        assert later not in ids


def test_cancelling_what_nobody_holds_ends_it_at_once(dsn: str) -> None:
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(sample.double, 4)
        assert handle.cancel() == pgqrs.WorkflowStatus.Cancelled
        assert handle.cancel() == pgqrs.WorkflowStatus.Cancelled, "twice is fine"
        with pytest.raises(pgqrs.RunCancelledError):
            handle.result(0)
        with store.workers(sample.double, processes=1):
            assert store.trigger(sample.double, 5).result(20) == 10
        assert handle.status == pgqrs.WorkflowStatus.Cancelled


def test_waiting_for_a_result_ends_with_its_timeout(sqlite_dsn: str) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(sample.double, 4)
        with pytest.raises(pgqrs.TimeoutError, match="still QUEUED"):
            handle.result(timeout=0.05)
        with pytest.raises(TimeoutError):
            handle.result(timeout=0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda s: s.trigger(sample.double, "text"), pgqrs.PgqrsError, "int"),
        (lambda s: s.trigger(sample.double), pgqrs.ValidationError, "x"),
        (lambda s: s.trigger(sample.double, 1, 2), pgqrs.ValidationError, "double"),
        (lambda s: s.trigger(sample.double, float("nan")), pgqrs.SerializationError, "nan"),
        (lambda s: s.enqueue("tasks", "a\0b"), pgqrs.SerializationError, "NUL"),
        (lambda s: s.enqueue("tasks", object()), pgqrs.SerializationError, "object"),
        (lambda s: s.enqueue("tasks", "x" * 2_000_000), pgqrs.ValidationError, "1,048,576"),
        (lambda s: s.enqueue("", 1), pgqrs.ValidationError, "queue"),
        (lambda s: s.enqueue("tasks", 1, delay="soon"), pgqrs.ValidationError, "soon"),
        (lambda s: s.run(99), pgqrs.RunNotFoundError, "99"),
        (lambda s: s.replay(99), pgqrs.RunNotFoundError, "99"),
        (lambda s: s.dead("nowhere"), pgqrs.QueueNotFoundError, "nowhere"),
        (lambda s: s.trigger(len, 1), pgqrs.ValidationError, "@pgqrs.workflow"),
        (lambda s: s.trigger(sample.take, {}), pgqrs.ValidationError, "enqueue"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(sqlite_dsn: str, call, error, says: str) -> None:  # type: ignore[no-untyped-def]
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        if error is None:
            call(
                store
            )  # types are the worker's to check: only it has the function's own annotations for sure
            return
        with pytest.raises(error, match=says):
            call(store)
        assert sum(q.ready for q in store.queues()) == 0


def test_the_callers_transaction_takes_the_message_with_it(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store, psycopg.connect(postgres_dsn) as connection:
        store.install()
        connection.execute("create table orders (id int)")
        connection.commit()
        mine = store.using(connection)
        connection.execute("insert into orders values (1)")
        mine.enqueue("tasks", {"order": 1})
        mine.trigger(sample.double, 1)
        connection.rollback()
        assert _orders(connection) == 0
        assert sum(q.ready for q in store.queues()) == 0
        connection.execute("insert into orders values (1)")
        message = mine.enqueue("tasks", {"order": 1})
        handle = mine.trigger(sample.double, 21)
        with pytest.raises(pgqrs.RunNotFoundError):
            store.run(handle.id)  # nobody else sees it before the commit
        connection.commit()
        assert _orders(connection) == 1
        assert sum(q.ready for q in store.queues()) == 2
        assert message < handle.id
        with store.workers(sample.double, processes=1):
            assert handle.result(20) == 42


def test_using_a_connection_honours_the_schema(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("create schema other")
        connection.commit()
        config = pgqrs.Config(postgres_dsn, schema="other")
        with pgqrs.connect_with(config) as store:
            store.install()
            store.using(connection).enqueue("tasks", 1)
            connection.commit()
            assert connection.execute("select count(*) from other.pgqrs_messages").fetchone() == (1,)
            assert connection.execute("show search_path").fetchone() == ('"$user", public',)
            assert [q.ready for q in store.queues()] == [1]


def _orders(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute("select count(*) from orders").fetchone()
    connection.commit()
    assert row is not None
    return row[0]


def test_a_server_that_is_down_is_said_at_once_and_without_the_password() -> None:
    with pytest.raises(pgqrs.PgqrsConnectionError) as failed:
        pgqrs.connect("postgresql://me:geheim@127.0.0.1:1/db").open()
    assert "geheim" not in str(failed.value)


def test_a_server_without_the_schema_says_what_to_run(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store, pytest.raises(pgqrs.SchemaError, match="pgqrs install"):
        store.enqueue("tasks", 1)


def test_a_closed_store_says_so(sqlite_dsn: str) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        pass
    with pytest.raises(pgqrs.PgqrsConnectionError, match="was closed"):
        store.queues()
    store.close()


SCRIPT = """
    import sys
    from dataclasses import dataclass
    import pgqrs

    FACTOR = 3

    @dataclass
    class Point:
        x: int
        y: int

    @pgqrs.step
    def grow(p: Point) -> Point:
        return Point(p.x * FACTOR, p.y * FACTOR)

    @pgqrs.workflow
    def grown(p: Point) -> Point:
        return grow(grow(p))

    {guard}
        with pgqrs.connect(sys.argv[1]) as store, store.workers(grown, processes=2):
            print(store.trigger(grown, Point(1, 2)).result(timeout=20))
"""


@pytest.mark.parametrize("struct", [False, True])
def test_a_script_can_run_its_own_workers(sqlite_dsn: str, tmp_path: Path, struct: bool) -> None:
    script = tmp_path / "script.py"
    text = textwrap.dedent(SCRIPT.format(guard="if __name__ == '__main__':"))
    if struct:
        text = text.replace("@dataclass\nclass Point:", "import msgspec\nclass Point(msgspec.Struct):")
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script), sqlite_dsn], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "Point(x=9, y=18)\n", done.stderr
    assert done.returncode == 0


def test_workers_need_a_database_that_another_process_can_open() -> None:
    with (
        pgqrs.connect("sqlite::memory:") as store,
        pytest.raises(pgqrs.ValidationError, match="memory"),
        store.workers(sample.double),
    ):
        pass


def test_a_function_that_is_no_workflow_is_refused(sqlite_dsn: str) -> None:
    with (
        pgqrs.connect(sqlite_dsn) as store,
        pytest.raises(pgqrs.ValidationError, match="decorate"),
        store.workers(len),
    ):
        pass


def test_a_queue_carries_one_workflow(dsn: str) -> None:
    with connected(dsn) as store:
        store.install()
        store.trigger(sample.double, 1)

        @pgqrs.workflow(queue="double")
        def other(x: int) -> int:
            return x

        with pytest.raises(pgqrs.ValidationError, match="queue of its own"):
            store.trigger(other, 1)
