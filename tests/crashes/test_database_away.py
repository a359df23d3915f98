"""The database goes away under a running supervisor: nothing is lost, and nothing is assumed."""

import signal
import time
from pathlib import Path

import psycopg
import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.supervised import PIPELINE, Supervised, alive, eventually, starts
from tests.postgres_server import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_loses_nothing(tmp_path: Path, mode: str, proves: Proves) -> None:
    count = 3000
    evidence = tmp_path / "evidence"
    with PostgresServer.start() as server:
        dsn = server.create_database("away")
        with pgqrs.connect(dsn) as store:
            store.install()
            runs = [store.trigger(pipeline.three_steps, str(tmp_path / f"run-{n}"), 0.0) for n in range(100)]
            ids = store.enqueue_many("tasks", [{"evidence": str(evidence)}] * count)
        target = str(PIPELINE)
        with Supervised(dsn, tmp_path / "log", "--workers", "2", target=target) as supervisor:
            eventually(lambda: evidence.exists() and evidence.stat().st_size > 5000)
            for _ in range(3):
                server.restart(mode)
                eventually(lambda: _idle_or_moving(server.dsn("away")))
            with pgqrs.connect(dsn) as store:
                eventually(
                    lambda: sum(q.ready + q.held for q in store.queues()) == 0,
                    timeout=40,
                    what=supervisor.said(),
                )
        assert "Traceback" not in supervisor.said(), supervisor.said()
        with pgqrs.connect(dsn) as store:
            [tasks] = [q for q in store.queues() if q.queue_name == "tasks"]
            assert (tasks.archived, tasks.dead) == (count, 0)
            assert all(store.run(r.id).status == pgqrs.WorkflowStatus.Success for r in runs), (
                "every run is SUCCESS"
            )
        handled = {int(line.split(" ")[0]) for line in evidence.read_text().splitlines()}
        assert handled == set(ids)
        for n in range(100):
            assert [s.step for s in starts(tmp_path / f"run-{n}")] == ["first", "slow", "last"]
    proves(
        "PostgreSQL is restarted, fast or immediate",
        "the turn is repeated until it is known to be committed; no step runs again",
        charged="nobody",
    )


def _idle_or_moving(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn, connect_timeout=2) as connection:
            return connection.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_backends_that_are_terminated_cost_nothing(postgres_dsn: str, tmp_path: Path, proves: Proves) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        runs = [store.trigger(pipeline.three_steps, str(tmp_path / f"run-{n}"), 0.02) for n in range(150)]
        with Supervised(postgres_dsn, tmp_path / "log", "--workers", "2") as supervisor:
            eventually(lambda: starts(tmp_path / "run-0"))
            with psycopg.connect(postgres_dsn, autocommit=True) as killer:
                for _ in range(40):
                    killer.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqrs' "
                        "and datname = current_database() and backend_start < now() - interval '20 ms'"
                    )
                    killer.execute("select pg_sleep(0.05)")
            eventually(
                lambda: all(status(postgres_dsn, r.id) == pgqrs.WorkflowStatus.Success for r in runs[-5:]),
                timeout=40,
                what=supervisor.said(),
            )
            eventually(lambda: all(status(postgres_dsn, r.id) == pgqrs.WorkflowStatus.Success for r in runs))
        for n in range(150):
            assert [s.step for s in starts(tmp_path / f"run-{n}")] == ["first", "slow", "last"]
    proves(
        "all backends of the supervisor are terminated, twenty times a second",
        "the turn is repeated until it is known to be committed; no step runs again",
        charged="nobody",
    )


def status(dsn: str, run_id: int) -> pgqrs.WorkflowStatus:
    with pgqrs.connect(dsn) as store:
        return store.run(run_id).status


@pytest.mark.parametrize(
    ("lease_s", "drain_s", "because"),
    [(15.0, 1.0, "the drain's time is over"), (3.0, 30.0, "the lease ran out")],
)
def test_one_that_cannot_finish_for_want_of_the_database_ends_with_3(
    tmp_path: Path, lease_s: float, drain_s: float, because: str, proves: Proves
) -> None:
    options = ("--workers", "2", "--lease", f"{lease_s}s", "--drain-timeout", f"{drain_s}s")
    with PostgresServer.start() as server:
        dsn = server.create_database("away")
        with pgqrs.connect(dsn) as store:
            store.install()
            long = store.trigger(pipeline.three_steps, str(tmp_path / "long"), 30.0).id
            # Its step ends while the server is away: it is its write that finds that out.
            short = store.trigger(pipeline.three_steps, str(tmp_path / "short"), 0.5).id
        with Supervised(dsn, tmp_path / "log", *options) as supervisor:
            body = eventually(lambda: starts(tmp_path / "long")[1:])[0]
            eventually(lambda: starts(tmp_path / "short")[1:])
            server.shut_down("immediate")
            began = time.monotonic()
            supervisor.signal(signal.SIGTERM)
            assert supervisor.wait(20) == 3, supervisor.said()
            ended_s = time.monotonic() - began
            assert not alive(body.pid)
        said = supervisor.said()
        assert because in said
        assert "given back by its lease" in said
        assert "Traceback" not in said, said
        server.restart()
        with pgqrs.connect(dsn) as store, Supervised(dsn, tmp_path / "log2", "--burst") as second:
            assert second.wait() == 0, second.said()
            for run in (long, short):
                assert store.run(run).result(0) == ["first", "slow", "last"]
                assert store.run(run).record().crash_count == 0
        assert [s.step for s in starts(tmp_path / "long")] == ["first", "slow", "slow", "last"]
    proves(
        "a supervisor is told to stop while the database is away, and `--drain-timeout` or the lease ends",
        "workers are killed, and the supervisor exits with status 3; executing runs are released by the next supervisor on its host, or when the lease expires",
        charged="nobody",
        seconds=ended_s,
        within=10.0,
    )
