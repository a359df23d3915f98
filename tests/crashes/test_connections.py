"""PostgreSQL itself gets in the way: backends are terminated, statements cut short, tables locked, the disk is full."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.supervised import PIPELINE, Supervised, alive, eventually, starts
from tests.postgres_server import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

THREE_STEPS = f"{PIPELINE}:three_steps"
ONCE = ["first", "slow", "last"]

# What a connection of each kind said last, and says in a transaction; and what keeps that transaction open. Between two commits
# that of the turns claims and looks.
SAID = {
    "turn": "^COMMIT|held_by_vt = false|^select r.queue_id",
    "lease": "pgqrs_supervisors",
    "listen": "listen pgqrs",
}
SAYS = {"turn": "pgqrs_workflow_runs", "lease": "update pgqrs_supervisors"}
LOCKS = {
    "turn": "lock table pgqrs_workflow_runs in access exclusive mode",
    "lease": "lock table pgqrs_supervisors in access exclusive mode",
}


@pytest.fixture
def admin(postgres_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_dsn, autocommit=True, application_name="admin") as connection:
        yield connection


def find(admin: psycopg.Connection[Any], says: str, waiting: bool = False) -> int:
    """The backend of our supervisor that says this now; `waiting`: in a transaction that waits for a lock."""

    def look() -> int | None:
        row = admin.execute(
            "select pid from pg_stat_activity where application_name = 'pgqrs' and datname = current_database() "
            "and replace(query, '\"public\".', '') ~ %s and (not %s or wait_event_type = 'Lock')",
            (says, waiting),
        ).fetchone()
        return None if row is None else int(row[0])

    found = eventually(look, what=says)
    assert found is not None
    return found


def terminate(admin: psycopg.Connection[Any], backend: int) -> None:
    assert admin.execute("select pg_terminate_backend(%s, 5000)", (backend,)).fetchone() == (True,)


@contextmanager
def locked(dsn: str, statement: str) -> Iterator[None]:
    with psycopg.connect(dsn, application_name="locker") as locker:
        locker.execute(statement.encode())
        yield


@pytest.mark.parametrize("kind", ["turn", "lease", "listen"])
def test_a_terminated_connection_of_any_kind_costs_nothing(
    postgres_dsn: str, admin: psycopg.Connection[Any], tmp_path: Path, kind: str, proves: Proves
) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        options = ("--workers", "1", "--lease", "3s")
        with Supervised(postgres_dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
            # Idle, or between two statements.
            run = store.trigger(pipeline.three_steps, str(tmp_path / "e1"), 1.0)
            eventually(lambda: starts(tmp_path / "e1")[1:])
            terminate(admin, find(admin, SAID[kind]))
            assert run.result(10) == ONCE
            if kind in LOCKS:
                # In the middle of a transaction, which waits for a lock.
                with locked(postgres_dsn, LOCKS[kind]):
                    run = store.trigger(pipeline.three_steps, str(tmp_path / "e2"), 0.0)
                    backend = find(admin, SAYS[kind], waiting=True)
                    terminate(admin, backend)
                assert run.result(10) == ONCE
            else:
                assert find(admin, SAID[kind]), "it listens again"
                began = time.monotonic()
                run = store.trigger(pipeline.three_steps, str(tmp_path / "e2"), 0.0)
                assert run.result(10) == ONCE
                assert time.monotonic() - began < 2.0, "and is told"
            assert "the lease ran out" not in supervisor.said()
            assert "Traceback" not in supervisor.said(), supervisor.said()
    assert [[s.step for s in starts(tmp_path / e)] for e in ("e1", "e2")] == [ONCE, ONCE]
    proves(
        "a backend of the supervisor is terminated: that of its turns, its lease or LISTEN, idle or in a transaction",
        "the supervisor connects again and repeats what was under way; no step runs again",
        charged="nobody",
    )


def test_a_statement_timeout_of_the_database_delays_and_loses_nothing(
    postgres_dsn: str, admin: psycopg.Connection[Any], tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        database = postgres_dsn.rpartition("/")[2]
        admin.execute(f"alter database {database} set statement_timeout = '150ms'".encode())
        with Supervised(postgres_dsn, tmp_path / "log", "--workers", "1", target=THREE_STEPS) as supervisor:
            warm = store.trigger(pipeline.three_steps, str(tmp_path / "e0"), 0.0)
            assert warm.result(10) == ONCE
            with locked(postgres_dsn, LOCKS["turn"]):
                run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 0.0)
                eventually(lambda: "statement timeout" in supervisor.said())
            assert run.result(10) == ONCE
            assert "Traceback" not in supervisor.said(), supervisor.said()
    assert [s.step for s in starts(tmp_path / "e")] == ONCE
    proves(
        "a statement_timeout of the role or database cuts a turn short",
        "the turn is repeated until it is committed; no step runs again",
        charged="nobody",
    )


def test_a_supervisor_that_is_stopped_in_mid_transaction_holds_up_nobody_and_goes_on(
    postgres_dsn: str, admin: psycopg.Connection[Any], tmp_path: Path, proves: Proves
) -> None:
    idle_s = 3.0  # which the supervisor asks of its server
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        with Supervised(postgres_dsn, tmp_path / "log", "--workers", "1", target=THREE_STEPS) as supervisor:
            run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 0.5)
            eventually(lambda: starts(tmp_path / "e")[1:])
            with locked(postgres_dsn, "lock table pgqrs_workflow_steps in access exclusive mode"):
                backend = find(admin, "insert into pgqrs_workflow_steps", waiting=True)
                supervisor.signal(signal.SIGSTOP)
            began = time.monotonic()
            eventually(lambda: state(admin, backend) is None, what=lambda: f"it is {state(admin, backend)}")
            gone_s = time.monotonic() - began
            supervisor.signal(signal.SIGCONT)
            assert run.result(10) == ONCE, supervisor.said()
            assert run.record().crash_count == 0
            assert "the lease ran out" not in supervisor.said()
            assert "Traceback" not in supervisor.said(), supervisor.said()
    assert [s.step for s in starts(tmp_path / "e")] == ONCE
    proves(
        "a supervisor is stopped (SIGSTOP) in the middle of a transaction, for less than its lease",
        "the server ends that transaction after 3 s, so its locks block nobody for longer; the turn is repeated; no step runs again",
        charged="nobody",
        seconds=gone_s,
        within=idle_s + 2.0,
    )


def state(admin: psycopg.Connection[Any], backend: int) -> str | None:
    row = admin.execute("select state from pg_stat_activity where pid = %s", (backend,)).fetchone()
    return None if row is None else str(row[0])


@pytest.mark.parametrize("for_s", [0.5, 4.0], ids=["less than the lease", "longer"])
def test_a_database_that_can_only_be_read_delays_and_loses_nothing(
    postgres_dsn: str, admin: psycopg.Connection[Any], tmp_path: Path, for_s: float, proves: Proves
) -> None:
    database = postgres_dsn.rpartition("/")[2]

    def only_reads(how: str) -> None:
        with psycopg.connect(postgres_dsn, autocommit=True) as writable:
            writable.execute("set default_transaction_read_only = off")
            writable.execute(f"alter database {database} set default_transaction_read_only = {how}".encode())
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqrs' "
            "and datname = current_database()"
        )

    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        runs = [store.trigger(pipeline.three_steps, str(tmp_path / f"{n}"), 0.05) for n in range(20)]
    options = ("--workers", "2", "--lease", "3s")
    with Supervised(postgres_dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
        eventually(lambda: starts(tmp_path / "0")[1:])
        only_reads("on")
        eventually(lambda: "the database is away" in supervisor.said(), what=supervisor.said)
        time.sleep(for_s)  # the fault itself: this long
        only_reads("off")
        with pgqrs.connect(postgres_dsn) as store:
            for run in runs:
                assert store.run(run.id).result(20) == ONCE, supervisor.said()
                assert store.run(run.id).record().crash_count == 0
        assert "Traceback" not in supervisor.said(), supervisor.said()
    proves(
        "the database is read-only for a while: a failover left the supervisor at a standby",
        "as if the database did not answer: turns are repeated until one is committed; no run fails for that reason",
        charged="nobody",
    )


def test_a_server_without_a_connection_left_delays_and_loses_nothing(tmp_path: Path, proves: Proves) -> None:
    with (
        PostgresServer.start(settings={"max_connections": "12"}) as server,
        psycopg.connect(server.dsn(), autocommit=True) as admin,
    ):
        admin.execute("create role app login")  # for a superuser some are always left
        admin.execute("create database full_up owner app")
        dsn = server.dsn("full_up").replace("postgres@", "app@")
        with pgqrs.connect(dsn) as store:
            store.install()
            runs = [store.trigger(pipeline.three_steps, str(tmp_path / f"{n}"), 0.3).id for n in range(3)]
        options = ("--workers", "1", "--lease", "3s")
        with Supervised(dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
            eventually(lambda: starts(tmp_path / "0")[1:])
            with every_connection(dsn, admin):
                eventually(lambda: "the database is away" in supervisor.said())
                eventually(lambda: "the lease ran out" in supervisor.said())
            with pgqrs.connect(dsn) as store:
                for run in runs:
                    assert store.run(run).result(20) == ONCE, supervisor.said()
                    assert store.run(run).record().crash_count == 0
            assert "Traceback" not in supervisor.said(), supervisor.said()
    proves(
        "the server has no connection left for longer than the lease (`max_connections`)",
        "as if the database did not answer: executing runs are killed before the lease ends, and continue when a connection is free again",
        charged="nobody",
    )


@contextmanager
def every_connection(dsn: str, admin: psycopg.Connection[Any]) -> Iterator[None]:
    """Takes what is free, and then what the supervisor had."""
    with ExitStack() as stack:
        for attempt in range(20):
            with suppress(psycopg.OperationalError):
                stack.enter_context(psycopg.connect(dsn, connect_timeout=2, application_name="greedy"))
                continue
            theirs = admin.execute(
                "select count(pg_terminate_backend(pid, 1000)) from pg_stat_activity where application_name = 'pgqrs'"
            ).fetchone()
            if attempt and theirs == (0,):
                break
        yield


def test_a_table_locked_for_longer_than_the_lease_ends_what_runs_before_the_lease_does(
    postgres_dsn: str, admin: psycopg.Connection[Any], tmp_path: Path, proves: Proves
) -> None:
    lease_s = 2.5
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        options = ("--workers", "1", "--lease", f"{lease_s}s")
        with Supervised(postgres_dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
            run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
            body = eventually(lambda: starts(tmp_path / "e")[1:])[0]
            everything = (
                "lock table pgqrs_supervisors, pgqrs_messages, pgqrs_workers in access exclusive mode"
            )
            began = time.monotonic()
            with locked(postgres_dsn, everything):
                eventually(lambda: not alive(body.pid), timeout=lease_s + 1, what=supervisor.said)
                fenced_s = time.monotonic() - began
                eventually(lambda: time.monotonic() - began > lease_s + 0.5)
            assert run.result(20) == ONCE, supervisor.said()
            assert (run.record().attempt, run.record().crash_count) == (2, 0)
            assert "Traceback" not in supervisor.said(), supervisor.said()
    assert [s.step for s in starts(tmp_path / "e")] == ["first", "slow", "slow", "last"]
    proves(
        "another session locks the tables of pgqrs for longer than the lease",
        "the supervisor kills its executing runs before the lease ends, waits, and registers again",
        charged="nobody",
        seconds=fenced_s,
        within=lease_s,
    )


def test_a_lock_that_its_last_commit_waits_for_does_not_keep_it_from_ending(
    postgres_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    """The lease is renewed beside it, so nothing else would end this."""
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        options = ("--workers", "1", "--lease", "6s")
        with Supervised(postgres_dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
            run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
            eventually(lambda: starts(tmp_path / "e")[1:])
            with locked(postgres_dsn, "select id from pgqrs_messages for update"):
                began = time.monotonic()
                for _ in range(3):
                    supervisor.signal(signal.SIGTERM)
                    time.sleep(0.1)
                assert supervisor.wait(20) == 3, supervisor.said()
                ended_s = time.monotonic() - began
            assert "somebody may hold a lock" in supervisor.said()
            assert "Traceback" not in supervisor.said(), supervisor.said()
        with Supervised(postgres_dsn, tmp_path / "log", *options, "--burst", target=THREE_STEPS):
            eventually(lambda: len(starts(tmp_path / "e")) == 3)
            assert [s.step for s in starts(tmp_path / "e")] == ["first", "slow", "slow"]
            run.cancel(now=True)
    proves(
        "another session holds a lock that a supervisor's last commit waits for",
        "a supervisor that is told three times to stop exits with status 3 without that commit; executing runs are released when the lease expires",
        charged="nobody",
        seconds=ended_s,
        within=15.0,
    )


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of its own, which goes with everything on it."""
    folder = Path(tempfile.mkdtemp(prefix="pgqrs-small-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if mounted.returncode:
            pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
        yield folder
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path, left_bytes: int) -> Path:
    """A file that takes the space, but for so much."""
    filler = disk / "filler"
    now = os.statvfs(disk)
    filler.write_bytes(b"\0" * (now.f_bavail * now.f_frsize - left_bytes))
    return filler


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_a_full_disk_delays_and_loses_nothing(tmp_path: Path, backend: str, proves: Proves) -> None:
    with small_disk(60) as disk:
        if backend == "sqlite":
            full(disk, f"sqlite://{disk / 'pgqrs.db'}", tmp_path)
        else:
            with PostgresServer.start() as server:
                full(disk, on_a_disk_of_its_own(server, disk), tmp_path)
    proves(
        "the database's disk is full",
        "turns are repeated until there is space, and then every run ends; no step runs again",
        charged="nobody",
    )


def test_a_read_only_disk_keeps_the_supervisor_from_starting_and_it_says_so(
    tmp_path: Path, proves: Proves
) -> None:
    with small_disk(10) as disk:
        dsn = f"sqlite://{disk / 'pgqrs.db'}"
        with pgqrs.connect(dsn) as store:
            store.install()
            run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 0.0)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with Supervised(dsn, tmp_path / "log", "--burst") as supervisor:
            assert supervisor.wait(10) == 3
            assert "whether its disk is read-only" in supervisor.said()
            assert "Traceback" not in supervisor.said(), supervisor.said()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with Supervised(dsn, tmp_path / "log2", "--burst") as supervisor:
            assert supervisor.wait(10) == 0, supervisor.said()
        with pgqrs.connect(dsn) as store:
            assert store.run(run.id).result(0) == ONCE
    proves(
        "the SQLite file is on a read-only disk",
        "the supervisor reports that and exits with status 3 without starting",
        charged="nobody",
    )


def on_a_disk_of_its_own(server: PostgresServer, disk: Path) -> str:
    """A database whose tables are there. Its log of changes is not: PostgreSQL stops altogether where that finds no space."""
    space = disk / "space"
    space.mkdir()
    owner = server.directory / "cluster"
    os.chown(space, owner.stat().st_uid, owner.stat().st_gid)
    disk.chmod(0o755)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create tablespace small location '{space}'".encode())
        connection.execute(b"create database on_small tablespace small")
    return server.dsn("on_small")


def full(disk: Path, dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(dsn) as store:
        store.install()
        runs = [
            store.trigger(pipeline.three_big_steps, str(tmp_path / f"run-{n}"), 60_000) for n in range(60)
        ]
        filler = fill(disk, 3_000_000)  # which some of them need
        with Supervised(
            dsn, tmp_path / "log", "--workers", "1", target=f"{PIPELINE}:three_big_steps"
        ) as supervisor:
            eventually(lambda: "the database is away" in supervisor.said(), what=supervisor.said)
            filler.unlink()
            for run in runs:
                assert run.result(30) == 3, supervisor.said()
            assert "the database is back" in supervisor.said()
            assert "Traceback" not in supervisor.said(), supervisor.said()
    for n in range(len(runs)):
        assert [s.step for s in starts(tmp_path / f"run-{n}")] == ["big", "big#2", "big#3"]
