"""A Turso file belongs to one process: who comes second is told so, and workers get nothing of it."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import Supervised, children, eventually

ROOT = Path(__file__).parents[2]
TARGET = str(Path(__file__).with_name("counted.py"))
RUNS = int(os.environ.get("PGQRS_TEST_TURSO_RUNS", "5000"))

OPEN = """
import sys, pgqrs
with pgqrs.connect(sys.argv[1]) as store:
    print(store.enqueue("tasks", 1))
"""


def elsewhere(dsn):
    """Another process opens it."""
    return subprocess.run(
        [sys.executable, "-c", OPEN, dsn], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_second_process_is_told_that_only_one_can_have_the_file(turso_dsn):
    with pgqrs.connect(turso_dsn) as store:
        store.install()
        told = elsewhere(turso_dsn).stderr.splitlines()[-1]
        assert told.startswith("pgqrs.errors.PgqrsConnectionError: the Turso database /")
        assert f"is in use by another process (pid {os.getpid()}), and only one can have it" in told
        assert (
            "Stop that process first. To share the file, restart it with ?experimental=multiprocess_wal"
            in told
        )
        assert "sqlite:// or postgresql://" in told
    assert elsewhere(turso_dsn).stdout == "1\n"


def test_the_experiment_lets_several_processes_have_it(turso_dsn):
    dsn = turso_dsn + "?experimental=multiprocess_wal"
    with pgqrs.connect(dsn) as store:
        store.enqueue("tasks", 0)
        assert elsewhere(dsn).stdout == "2\n"
        assert [q.ready for q in store.queues()] == [2]


def test_stores_of_one_process_share_it(turso_dsn):
    with pgqrs.connect(turso_dsn) as one, pgqrs.connect(turso_dsn) as other:
        one.enqueue("tasks", 1)
        assert [q.ready for q in other.queues()] == [1]
        one.close()
        other.enqueue("tasks", 2)
        assert elsewhere(turso_dsn).returncode == 1, "still in use"


def test_sqlite3_cannot_open_it_meanwhile(turso_dsn):
    """It would check out the log under Turso's feet."""
    path = turso_dsn.removeprefix("turso://")
    with pgqrs.connect(turso_dsn) as store, pgqrs.connect(turso_dsn):
        store.enqueue("tasks", 1)
        program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1).execute('select * from sqlite_master')"
        told = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=False
        )
        assert "database is locked" in told.stderr
    connection = sqlite3.connect(path)
    assert connection.execute("select payload from pgqrs_messages").fetchall() == [("1",)]
    connection.close()


def test_an_error_that_somebody_keeps_does_not_keep_the_file(turso_dsn):
    kept = []
    with pgqrs.connect(turso_dsn) as store:
        store.queue("tasks")
        for call in (
            lambda: store.queue("tasks"),
            lambda: store.messages.database.transaction().__enter__().run("no"),
        ):
            try:
                call()
            except Exception as e:
                kept.append(e)
        with pytest.raises(pgqrs.PgqrsError), store.messages.database.transaction() as tx:
            tx.script("select * from no_such_table")
    assert elsewhere(turso_dsn).returncode == 0


def test_an_abandoned_store_does_not_keep_the_file(turso_dsn):
    import gc

    store = pgqrs.connect(turso_dsn).open()
    store.enqueue("tasks", 1)
    del store
    gc.collect()
    assert elsewhere(turso_dsn).stdout == "2\n"


def test_a_store_is_refused_in_a_forked_child(turso_dsn):
    with pgqrs.connect(turso_dsn) as store:
        store.enqueue("tasks", 1)
        pid = os.fork()
        if pid == 0:
            try:
                store.queues()
            except pgqrs.InternalError as e:
                os._exit(7 if "before a fork" in str(e) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_workers_of_a_block_need_a_file_that_two_can_have(turso_dsn):
    from tests.sample_workflows import double

    with (
        pgqrs.connect(turso_dsn) as store,
        pytest.raises(pgqrs.ValidationError, match="belongs to one process"),
        store.workers(double),
    ):
        pass


def test_threads_wait_for_each_other_and_not_for_ever(turso_dsn):
    config = pgqrs.Config(turso_dsn)
    config.connection_timeout_seconds = 0.2
    with pgqrs.connect(turso_dsn) as store, pgqrs.connect_with(config).open() as other:
        store.queue("tasks")
        entered, leave = threading.Event(), threading.Event()

        def hold():
            with store.messages.database.transaction():
                entered.set()
                leave.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait(10)
        with pytest.raises(pgqrs.PgqrsConnectionError, match="is locked"):
            other.enqueue("tasks", 1)
        leave.set()
        thread.join()
        assert other.enqueue("tasks", 1) == 1


def descriptors(pid):
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_neither_the_nursery_nor_workers_get_the_file(turso_dsn, tmp_path, monkeypatch):
    """Also of a nursery that is started when the file is open."""
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence"))
    name = turso_dsn.removeprefix("turso://")
    with Supervised(turso_dsn, tmp_path / "log", "--workers", "2", target=TARGET) as supervisor:
        eventually(lambda: len(supervisor.workers()) == 2)
        first = set(supervisor.workers())
        nurseries = set(children(supervisor.pid)) - first
        assert any(name in d for d in descriptors(supervisor.pid))
        for pid in nurseries:
            os.kill(pid, signal.SIGKILL)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(set(supervisor.workers()) - first) == 2)
        for pid in children(supervisor.pid):
            assert not [d for d in descriptors(pid) if name in d], pid
        assert "in use by another process" in elsewhere(turso_dsn).stderr


@pytest.mark.slow
def test_four_workers_carry_out_each_run_once(turso_dsn, tmp_path, monkeypatch):
    from tests.turso import counted

    evidence = tmp_path / "evidence"
    monkeypatch.setenv("EVIDENCE", str(evidence))
    with pgqrs.connect(turso_dsn) as store:
        store.trigger_many(counted.count, [((n,), {}) for n in range(RUNS)])
    with Supervised(turso_dsn, tmp_path / "log", "--workers", "4", "--burst", target=TARGET) as supervisor:
        assert supervisor.wait(100) == 0, supervisor.said()
    lines = [line.split() for line in evidence.read_text().splitlines()]
    assert Counter(int(n) for n, _ in lines) == Counter(range(RUNS)), "each once"
    assert len({pid for _, pid in lines}) == 4
    with pgqrs.connect(turso_dsn) as store:
        assert [(q.archived, q.dead, q.ready, q.held) for q in store.queues()] == [(RUNS, 0, 0, 0)]
        [(ok,)] = store.messages.database._shared.reader.execute("pragma integrity_check").fetchall()
        assert ok == "ok"
