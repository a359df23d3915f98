"""What a role or a database has set by default changes nothing about what a statement means, or
is refused in words."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

import pgqrs
from pgqrs.store import open_store
from tests.postgres_server import Postgres
from tests.store.given import Consumer, Flow, step, wrote

SETTINGS = {
    "DateStyle": ["German", "SQL, DMY", "Postgres, MDY", "ISO, YMD"],
    "IntervalStyle": ["iso_8601"],
    "TimeZone": ["Asia/Kolkata", "posixrules"],
    "bytea_output": ["escape"],
    "extra_float_digits": ["-15"],
    "standard_conforming_strings": ["off"],
    "backslash_quote": ["off"],
    "array_nulls": ["off"],
    "client_encoding": ["LATIN1", "SQL_ASCII"],
    "default_transaction_isolation": ["serializable", "repeatable read"],
    "default_transaction_deferrable": ["on"],
    "search_path": ["nowhere", "pg_catalog", ""],
    "quote_all_identifiers": ["on"],
    "transform_null_equals": ["on"],
    "row_security": ["off"],
    "lc_messages": ["C"],
    "client_min_messages": ["debug1"],
    "plan_cache_mode": ["force_generic_plan"],
    "check_function_bodies": ["off"],
}
FOR_SUPERVISORS = {
    "statement_timeout": "30ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "300ms",
}
ONE_BY_ONE = [(name, value) for name, values in SETTINGS.items() for value in values]
TEXT = "é€𝄞 it's a \\ \"quoted\" 'text'"
FLOW = f"""
import time
import pgqrs

@pgqrs.step
def slow(n: int) -> float:
    time.sleep(0.05)
    return n / 3

@pgqrs.workflow
def told(text: str) -> list:
    return [text, slow(1), slow(2), {TEXT!r}]
"""


def default(dsn: str, name: str, value: str) -> None:
    database = dsn.rpartition("/")[2]
    with psycopg.connect(dsn, autocommit=True) as pg:
        if name == "search_path" and not value:
            pg.execute(f"alter database {database} set search_path to ''".encode())
        elif name == "search_path":
            pg.execute(f"alter database {database} set search_path to {value}".encode())
        else:
            pg.execute(f"alter database {database} set {name} to '{value}'".encode())


@pytest.mark.slow
@pytest.mark.parametrize("name, value", ONE_BY_ONE)
def test_a_clients_reads_and_writes_are_as_ever(name: str, value: str, postgres_dsn: str) -> None:
    default(postgres_dsn, name, value)
    before = datetime.now(UTC)
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        ids = [store.enqueue("tasks", {"t": TEXT, "n": [None, 1.5]}), store.enqueue("tasks", None)]
        ids += store.enqueue_many("tasks", [TEXT] * 150)
        later = store.enqueue_many("tasks", ["later"] * 150, delay=3600)
        consumer = store.consumer("tasks")
        taken = [m for _ in range(4) for m in consumer.dequeue(50)]
        assert [m.id for m in taken] == ids
        assert [m.payload for m in taken[:3]] == [{"t": TEXT, "n": [None, 1.5]}, None, TEXT]
        for m in taken:
            assert m.enqueued_at is not None
            assert abs(datetime.fromisoformat(m.enqueued_at) - before) < timedelta(minutes=1)
        due = datetime.fromisoformat(store.messages.message(later[0]).vt or "")
        assert timedelta(minutes=59) < due - before < timedelta(minutes=62)
        assert abs(store.messages.database.now() - before) < timedelta(minutes=1)
        consumer.archive_many(ids)
        assert [(q.archived, q.delayed) for q in store.queues()] == [(152, 150)]


@pytest.mark.slow
@pytest.mark.parametrize("name, value", [*ONE_BY_ONE, *FOR_SUPERVISORS.items()])
def test_a_supervisors_turns_are_as_ever(name: str, value: str, postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
    default(postgres_dsn, name, value)
    store = open_store(pgqrs.Config(postgres_dsn), steady_plans=True)
    try:
        flow = Flow(store)
        claim = flow.begun()
        odd = step(claim, TEXT, output=b'"\\u00e9 \xe2\x82\xac"', seconds=1 / 3, cpu_seconds=0.1 + 0.2)
        assert wrote(store, odd).applied
        [row] = store.steps(claim.message_id)
        assert (row.step_name, row.output, row.cpu_seconds) == (TEXT, "é €", 0.1 + 0.2)
        assert row.error is None
        assert store.renew_lease(flow.consumer.supervisor_id, 15)
        store.expire_lease(flow.consumer.supervisor_id)
        assert store.recover(5) == 1
        [again] = Consumer(store, flow.workflow.queue_id, "heir").claim()
        assert [s.name for s in again.steps] == [TEXT]
    finally:
        store.close()


@pytest.mark.parametrize("level", SETTINGS["default_transaction_isolation"])
def test_transactions_are_read_committed(level: str, postgres_dsn: str) -> None:
    """A fence that waited for a lock must then see what was committed meanwhile."""
    default(postgres_dsn, "default_transaction_isolation", level)
    store = open_store(pgqrs.Config(postgres_dsn))
    try:
        store.install()
        with store.database.transaction() as tx:
            assert tx._connection.execute("show transaction_isolation").fetchone() == ("read committed",)  # type: ignore[attr-defined]
    finally:
        store.close()


@pytest.mark.slow
def test_supervisor_and_command_line_work_with_all_of_it_at_once(postgres_dsn: str, tmp_path: Path) -> None:
    for name, values in SETTINGS.items():
        default(postgres_dsn, name, values[0])
    for name, value in FOR_SUPERVISORS.items():
        default(postgres_dsn, name, value)
    (tmp_path / "flow.py").write_text(FLOW)

    def run(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "pgqrs", *arguments, "--dsn", postgres_dsn],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr + ended.stdout
        return ended.stdout

    run("install")
    run("verify")
    with pgqrs.connect(postgres_dsn) as store:
        handle = store.trigger("told", TEXT)
    run("supervise", "flow.py", "--burst")
    with pgqrs.connect(postgres_dsn) as store:
        assert store.run(handle.id).result(timeout=1) == [TEXT, 1 / 3, 2 / 3, TEXT]
    for command in (["runs"], ["queues"], ["run", str(handle.id)], ["dead"]):
        run(*command)


def test_a_role_that_may_only_read_does_and_is_told_why_it_cannot_write(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        store.enqueue("tasks", 1)
    default(postgres_dsn, "default_transaction_read_only", "on")
    with pgqrs.connect(postgres_dsn) as store:
        assert [q.ready for q in store.queues()] == [1]
        assert store.messages.recover(5) == 0
        writes = (
            lambda: store.enqueue("tasks", 2),
            lambda: store.enqueue_many("tasks", range(200)),
            store.install,
        )
        for write in writes:
            with pytest.raises(
                pgqrs.PgqrsConnectionError, match=r"read-only .* default_transaction_read_only is on"
            ):
                write()


@pytest.fixture
def encoded(request: pytest.FixtureRequest, postgres_server: Postgres) -> Iterator[str]:
    """A database of another encoding."""
    name = f"pgqrs_encoded_{request.param.lower()}"
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as pg:
        pg.execute(f"drop database if exists {name}".encode())
        pg.execute(
            f"create database {name} encoding '{request.param}' locale 'C' template template0".encode()
        )
    yield postgres_server.dsn(name)
    postgres_server.drop_database(name)


@pytest.mark.parametrize("encoded", ["SQL_ASCII"], indirect=True)
def test_a_database_without_an_encoding_holds_every_text(encoded: str) -> None:
    with pgqrs.connect(encoded) as store:
        store.install()
        store.enqueue("wörk", {"é": TEXT})
        store.enqueue_many("wörk", [TEXT] * 150)
        payloads = [m.payload for m in store.consumer("wörk").dequeue(100)]
        assert payloads[:2] == [{"é": TEXT}, TEXT]
        assert store.messages.cautions() == []


@pytest.mark.parametrize("encoded", ["LATIN1"], indirect=True)
def test_a_database_that_cannot_hold_every_text_is_refused(encoded: str) -> None:
    with pgqrs.connect(encoded) as store, pytest.raises(pgqrs.SchemaError, match=r"LATIN1.*encoding 'UTF8'"):
        store.install()


def test_a_callers_connection_may_speak_another_encoding(postgres_dsn: str) -> None:
    dsn = f"{postgres_dsn}{'&' if '?' in postgres_dsn else '?'}client_encoding=latin1"
    with pgqrs.connect(postgres_dsn) as store, psycopg.connect(dsn) as latin:
        store.install()
        with latin.transaction():
            store.using(latin).enqueue_many("tasks", [{"é€": TEXT}, "\\u20ac", 1])
        assert [m.payload for m in store.consumer("tasks").dequeue(3)] == [{"é€": TEXT}, "\\u20ac", 1]
