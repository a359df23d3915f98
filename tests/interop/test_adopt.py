"""A database of pgqrs 0.15.3, with tens of thousands of messages in every state, becomes ours in place and stays theirs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.crashes.supervised import Supervised
from tests.interop.conftest import OURS, said_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).with_name("programs.py")
TARGET = str(Path(__file__).with_name("supervised_here.py"))
COPIES = 300  # of the hundred messages and ten runs that 0.15.3 writes
STRIDE = 1000  # between the ids of a row and its copy

# Of what `programs.py template` leaves, by template: the supervisor ends the runs that nobody holds, and no other.
RUNNABLE_DOUBLES = 11 + 2  # without a run yet, and the queued and the running one that were given back
RUNS_AFTER = {"Success": RUNNABLE_DOUBLES + 2, "Error": 2, "Paused": 1, "Queued": 1, "Running": 2}


def test_a_database_of_0_15_is_adopted_as_it_is(postgres_dsn: str, python_0_15: Path, tmp_path: Path) -> None:
    said_by(python_0_15, PROGRAMS, postgres_dsn, "template")
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        multiply(connection)
        columns = columns_of_tables(connection)
        before = digests(connection, columns)
        assert (before["pgqrs_messages"][0], before["pgqrs_workflow_runs"][0]) == (100 * COPIES, 10 * COPIES)

        install(postgres_dsn)
        assert digests(connection, columns) == before
        catalog = catalog_of(connection)
        install(postgres_dsn)
        assert digests(connection, columns) == before
        assert catalog_of(connection) == catalog

    said_by(python_0_15, PROGRAMS, postgres_dsn, "check")
    said_by(OURS, PROGRAMS, postgres_dsn, "check")
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        assert catalog_of(connection) == catalog
        # 0.15.3's verify leaves a worker behind.
        assert {**digests(connection, columns), "pgqrs_workers": before["pgqrs_workers"]} == before

    with Supervised(postgres_dsn, tmp_path / "log", "--burst", "--quiet", target=TARGET) as supervisor:
        assert supervisor.wait(100) == 0, supervisor.said()
    found = json.loads(said_by(python_0_15, PROGRAMS, postgres_dsn, "read", timeout=100))
    assert found["runs"] == {f"WorkflowStatus.{state}": n * COPIES for state, n in RUNS_AFTER.items()}
    assert found["live"] + found["archived"] == 100 * COPIES
    assert found["results"] == {
        **{str(2 * n): COPIES for n in range(14) if n != 1},  # 1 is queued and held
        '["recorded by 0.15.3", "done by us"]': COPIES,
        '{"b": "\\u00e4"}': COPIES,
    }
    assert found == json.loads(said_by(OURS, PROGRAMS, postgres_dsn, "read", timeout=100))


def install(dsn: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgqrs", "install", "--dsn", dsn], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def multiply(connection: psycopg.Connection[Any]) -> None:
    """Copies what 0.15.3 wrote, row by row, with ids that are so much higher; who holds what is spread over all its workers."""
    connection.execute(
        """update pgqrs_messages set consumer_worker_id = (select id from pgqrs_workers order by status, id limit 1 offset pgqrs_messages.id % 6)
        where archived_at is null and consumer_worker_id is not null"""
    )
    references = {
        "pgqrs_messages": {"id"},
        "pgqrs_workflow_runs": {"id", "message_id"},
        "pgqrs_workflow_steps": {"id", "run_id"},
    }
    for table, columns in columns_of_tables(connection).items():
        if table in references:
            moved = [f"{c} + n * {STRIDE}" if c in references[table] else c for c in columns]
            connection.execute(
                f"insert into {table} ({', '.join(columns)}) select {', '.join(moved)} from {table}, "
                f"generate_series(1, {COPIES - 1}) n".encode()
            )
            connection.execute(f"select setval('{table}_id_seq', max(id)) from {table}".encode())


def columns_of_tables(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, column in connection.execute(
        """select table_name, column_name from information_schema.columns where table_schema = 'public'
        order by table_name, ordinal_position"""
    ):
        found.setdefault(table, []).append(column)
    return found


def digests(connection: psycopg.Connection[Any], columns: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    """How many rows, and a digest of all of their columns in order, by table."""
    found = {}
    for table, names in columns.items():
        key = "version" if table == "_sqlx_migrations" else "id"
        [row] = connection.execute(
            f"select count(*), md5(string_agg(md5(row({', '.join(names)})::text), '' order by {key})) from {table}".encode()
        )
        found[table] = row
    return found


def catalog_of(connection: psycopg.Connection[Any]) -> list[Any]:
    """Tables, columns, indexes, constraints, types, and our own notes of them."""
    return [
        connection.execute(query.encode()).fetchall()
        for query in (
            "select table_name, column_name, data_type, column_default from information_schema.columns where table_schema = 'public' order by 1, 2",
            "select indexname, indexdef from pg_indexes where schemaname = 'public' order by 1",
            "select conname, pg_get_constraintdef(oid) from pg_constraint where connamespace = 'public'::regnamespace order by 1, 2",
            "select enumlabel from pg_enum order by enumtypid, enumsortorder",
            "select * from pgqrs_migrations order by 1",
        )
    ]
