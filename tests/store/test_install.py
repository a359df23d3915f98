"""Setting up: once, twice, by several at once, over what pgqrs 0.15 made, and what `verify` says of the rest."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgqrs import errors
from pgqrs.store import migrations
from pgqrs.store.migrations import VERSION
from tests.store.given import TABLES, columns, execute

ROOT = Path(__file__).parents[2]
VERSIONS = [version for version, _ in migrations._migrations("postgres")]
INSTALL = """
import sys
from pgqrs.config import Config
from pgqrs.store import open_store
print("ready", flush=True)
sys.stdin.readline()
store = open_store(Config(sys.argv[1]))
print(store.install(), store.verify())
store.close()
"""


def test_the_first_install_makes_everything(bare, dsn):
    assert bare.install() == len(VERSIONS)
    assert bare.verify() == VERSION
    for table in TABLES:
        assert execute(dsn, f"select count(*) from {table}") == [(0,)]


def test_a_second_install_does_nothing(store, queue, dsn):
    store.enqueue(queue, [b"1"])
    assert store.install() == 0
    assert columns(dsn, "pgqrs_messages", "id") == [(1,)]
    assert columns(dsn, "pgqrs_migrations", "version") == [(v,) for v in VERSIONS]


def test_threads_may_install_at_once(bare, open_another):
    stores = [bare, *(open_another() for _ in range(5))]
    with ThreadPoolExecutor(6) as pool:
        done = sorted(pool.map(lambda s: s.install(), stores))
    assert done == [0] * 5 + [len(VERSIONS)]


@pytest.mark.processes
def test_processes_may_connect_to_an_empty_database_and_install_at_once(empty_dsn):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INSTALL, empty_dsn],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for p in processes:
        assert p.stdout.readline() == "ready\n"
    for p in processes:
        p.stdin.write("\n")
        p.stdin.flush()
    told = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0] * 3, told
    assert sorted(out.split() for out, _ in told) == [["0", str(VERSION)]] * 2 + [
        [str(len(VERSIONS)), str(VERSION)]
    ]


def test_verify_says_that_nothing_is_installed(bare):
    with pytest.raises(errors.SchemaError, match="pgqrs install"):
        bare.verify()


def test_any_use_of_an_empty_database_says_what_to_do(bare):
    for use in (lambda: bare.ensure_queue("q"), lambda: bare.queues(), lambda: bare.settled(1)):
        with pytest.raises(errors.SchemaError, match="pgqrs install"):
            use()


def test_verify_says_that_the_schema_is_older(store, dsn):
    execute(dsn, "delete from pgqrs_migrations where version = ?", VERSION)
    with pytest.raises(errors.SchemaError, match=f"at version {VERSIONS[-2]}, this pgqrs needs {VERSION}"):
        store.verify()


def test_a_schema_of_the_future_is_refused_and_left_alone(store, dsn):
    execute(dsn, "insert into pgqrs_migrations (version, name) values (?, 'from the future')", VERSION + 1)
    for use in (store.verify, store.install):
        with pytest.raises(errors.SchemaError, match=r"newer than this pgqrs knows .* upgrade the package"):
            use()


@pytest.mark.parametrize("table", TABLES)
def test_verify_finds_that_a_table_is_missing(table, store, dsn):
    cascade = "" if not dsn.startswith("postgres") else " cascade"
    execute(dsn, f"drop table {table}{cascade}")
    with pytest.raises(errors.SchemaError):
        store.verify()


def test_a_migration_that_fails_leaves_nothing(bare, dsn):
    execute(dsn, "create table pgqrs_supervisors (x int)")  # in the way of migration 2
    with pytest.raises(errors.PgqrsError):
        bare.install()
    with pytest.raises(errors.SchemaError):
        bare.verify()
    execute(dsn, "drop table pgqrs_supervisors")
    assert bare.install() == len(VERSIONS)


def test_a_database_that_0_15_made_is_adopted_in_place(bare, dsn):
    """Its tables, without ours: the baseline is migration 1."""
    baseline = sorted((ROOT / "pgqrs/store/schema" / bare.database.dialect).glob("0001*"))[0].read_text()
    with bare.database.transaction() as tx:
        tx.script(baseline)
    execute(dsn, "insert into pgqrs_queues (queue_name) values ('old')")
    execute(dsn, "insert into pgqrs_messages (queue_id, payload) values (1, '1')")
    assert bare.install() == len(VERSIONS) - 1
    assert bare.verify() == VERSION
    assert bare.find_queue("old") == 1
    assert bare.message(1).payload == 1


def test_a_store_is_refused_after_a_fork(store, monkeypatch):
    import os

    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(errors.InternalError, match="fork"):
        store.ensure_queue("q")


def test_a_closed_store_says_so(bare):
    bare.install()
    bare.close()
    with pytest.raises(errors.PgqrsError):
        bare.ensure_queue("q")
