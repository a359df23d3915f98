"""A Turso file is open in one way at a time: for one process alone, or for several by the driver's experiment."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import pgqrs
from tests.turso.test_turso import ROOT, elsewhere

EXPERIMENT = "?experimental=multiprocess_wal"
WAYS = {"alone": "", "shared": EXPERIMENT}

KILLED = """
import os, signal, sys, pgqrs
store = pgqrs.connect(sys.argv[1]).open()
for n in range(500):  # so many that the log began anew
    store.enqueue("tasks", n)
os.kill(os.getpid(), signal.SIGKILL)
"""

OPENING = """
import sys
from pgqrs.store.turso import lock as turso_lock
claim = turso_lock.claim(sys.argv[1].removeprefix("turso://"), True, 0)
print("opening", flush=True)
sys.stdin.read()
"""


def killed_while_it_had(dsn):
    ended = subprocess.run([sys.executable, "-c", KILLED, dsn], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL


def ready(dsn):
    with pgqrs.connect(dsn) as store:
        return [q.ready for q in store.queues()]


def test_who_wants_it_alone_is_told_that_others_share_it(turso_dsn):
    with pgqrs.connect(turso_dsn + EXPERIMENT) as store:
        store.enqueue("tasks", 0)
        told = elsewhere(turso_dsn).stderr.splitlines()[-1]
        assert "PgqrsConnectionError" in told
        assert "in use by other processes, which share it with ?experimental=multiprocess_wal" in told
        assert "stop them first, or use their DSN here" in told
        store.enqueue("tasks", 1)
    assert elsewhere(turso_dsn).stdout == "3\n", "all is there, and free"


def test_who_would_share_it_is_told_that_another_has_it_alone(turso_dsn):
    with pgqrs.connect(turso_dsn) as store:
        store.enqueue("tasks", 0)
        told = elsewhere(turso_dsn + EXPERIMENT).stderr.splitlines()[-1]
        assert "PgqrsConnectionError" in told
        assert f"in use by another process (pid {os.getpid()}) that has it alone" in told
        assert "stop it first; to share the file, restart it with the DSN that you use here" in told
        store.enqueue("tasks", 1)
    assert elsewhere(turso_dsn + EXPERIMENT).stdout == "3\n"


@pytest.mark.parametrize(("first", "second"), [("alone", "shared"), ("shared", "alone")])
def test_nor_may_one_process_mix_the_ways(first, second, turso_dsn, tmp_path):
    path = Path(turso_dsn.removeprefix("turso://"))
    other_name = tmp_path / "other name.db"
    other_name.symlink_to(path)
    with pgqrs.connect(turso_dsn + WAYS[first]) as store:
        store.enqueue("tasks", 1)
        for name in (path, other_name):
            with pytest.raises(pgqrs.PgqrsConnectionError, match="use the same DSN for all"):
                pgqrs.connect(f"turso://{name}{WAYS[second]}").open()
        assert elsewhere(turso_dsn + WAYS[second]).returncode == 1, "still this process's"
    assert ready(turso_dsn + WAYS[second]) == [1]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_has_one_log_under_all_its_names(way, turso_dsn, tmp_path):
    (tmp_path / "other name.db").symlink_to(turso_dsn.removeprefix("turso://"))
    with pgqrs.connect(f"turso://{tmp_path / 'other name.db'}{way}") as store:
        store.enqueue("tasks", 1)
    assert not list(tmp_path.glob("other name.db-*"))
    assert ready(turso_dsn + way) == [1]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_lock_that_cannot_be_made_is_told(way, turso_dsn):
    path = turso_dsn.removeprefix("turso://")
    Path(path + "-pgqrs").mkdir()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="cannot be made: Is a directory") as told:
        pgqrs.connect(turso_dsn + way).open()
    assert f"the folder {Path(path).parent} must exist and be writable" in str(told.value)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_could_not_be_opened_is_nobodys(way, turso_dsn):
    path = Path(turso_dsn.removeprefix("turso://"))
    path.write_bytes(b"no database " * 999)
    config = pgqrs.Config(turso_dsn + way)
    config.connection_timeout_seconds = 0.1
    with pytest.raises(pgqrs.PgqrsConnectionError):
        pgqrs.connect_with(config).open()
    path.unlink()
    assert elsewhere(turso_dsn).stdout == "1\n"


@pytest.mark.slow
@pytest.mark.parametrize("look", ["sqlite3", "alone", "none"])
def test_the_experiment_goes_on_after_the_death_of_a_process(look, turso_dsn):
    """What it leaves says what is in the log; whoever looks meanwhile moves that into the file."""
    killed_while_it_had(turso_dsn + EXPERIMENT)
    if look == "sqlite3":
        with closing(sqlite3.connect(turso_dsn.removeprefix("turso://"))) as connection:
            assert connection.execute("select count(*) from pgqrs_messages").fetchone() == (500,)
    elif look == "alone":
        assert ready(turso_dsn) == [500]
    assert ready(turso_dsn + EXPERIMENT) == [500]
    assert elsewhere(turso_dsn + EXPERIMENT).stdout == "501\n"


def test_what_living_processes_share_is_left_to_them(turso_dsn):
    index = Path(turso_dsn.removeprefix("turso://") + "-tshm")
    with pgqrs.connect(turso_dsn + EXPERIMENT) as store:
        store.enqueue("tasks", 1)
        had = index.stat().st_ino
        assert elsewhere(turso_dsn + EXPERIMENT).stdout == "2\n"
        assert index.stat().st_ino == had


def test_only_one_opens_it_at_a_time(turso_dsn):
    """The driver takes what another process is about to make for corrupt."""
    Path(turso_dsn.removeprefix("turso://") + "-pgqrs").touch()
    opening = subprocess.Popen(
        [sys.executable, "-c", OPENING, turso_dsn], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with opening:
        assert opening.stdout.readline() == b"opening\n"
        config = pgqrs.Config(turso_dsn + EXPERIMENT)
        config.connection_timeout_seconds = 0.1
        with pytest.raises(pgqrs.PgqrsConnectionError, match="began to open it and has not come to an end"):
            pgqrs.connect_with(config).open()
        threading.Timer(0.3, opening.stdin.close).start()
        with pgqrs.connect(turso_dsn + EXPERIMENT) as store:
            store.enqueue("tasks", 1)
    assert opening.returncode == 0


@pytest.mark.slow
def test_a_forked_child_neither_keeps_nor_gives_away_the_file(turso_dsn):
    store = pgqrs.connect(turso_dsn).open()
    store.enqueue("tasks", 1)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(tell)
            store._messages.database._file.claim.leave()  # as the garbage collector may
            os.read(told, 1)
        finally:
            os._exit(0)
    try:
        assert elsewhere(turso_dsn + EXPERIMENT).returncode == 1
        store.close()
        assert elsewhere(turso_dsn + EXPERIMENT).stdout == "2\n"
    finally:
        os.close(tell)
        os.close(told)
        os.waitpid(pid, 0)
