"""A SQLite file that another process holds locked is no matter of its folder."""

import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import pgqrs

ROOT = Path(__file__).parents[2]
TURSO = "import sys, pgqrs; s = pgqrs.connect('turso://' + sys.argv[1]).open(); s.queues(); print(flush=True); input()"


def impatient(dsn):
    config = pgqrs.Config(dsn)
    config.connection_timeout_seconds = 0.05
    return pgqrs.connect_with(config)


@contextmanager
def sqlite_has(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("pragma journal_mode = delete")
        other.execute("begin exclusive")
        yield


@contextmanager
def turso_has(path):
    with subprocess.Popen(
        [sys.executable, "-c", TURSO, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield
        process.communicate(b"\n")


@pytest.mark.parametrize("somebody_has", [sqlite_has, turso_has])
def test_who_opens_it_is_told_that_somebody_has_it(somebody_has, sqlite_dsn):
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
    with (
        somebody_has(sqlite_dsn.removeprefix("sqlite://")),
        pytest.raises(pgqrs.PgqrsConnectionError, match="database is locked; somebody else holds it") as told,
    ):
        impatient(sqlite_dsn).open()
    assert "another process that is writing, or has it open with turso://" in str(told.value)
    assert "folder" not in str(told.value)


def test_so_is_who_writes(sqlite_dsn):
    with pgqrs.connect(sqlite_dsn) as store, impatient(sqlite_dsn) as other:
        store.queue("tasks")
        with (
            store.messages.database.transaction(),
            pytest.raises(pgqrs.PgqrsConnectionError, match="database is locked; somebody else holds it"),
        ):
            other.enqueue("tasks", 1)
