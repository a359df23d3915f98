"""The server dies for good, and its standby becomes the server."""

import time
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.supervised import Supervised, eventually, starts
from tests.postgres_server import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

RUNS, MESSAGES = 60, 2000


def test_a_promoted_standby_takes_over_and_nothing_is_lost(tmp_path: Path, proves: Proves) -> None:
    evidence = tmp_path / "evidence"
    with PostgresServer.start() as server:
        server.create_database("away")
        with server.followed() as standby:
            hosts = f"127.0.0.1:{server.port},127.0.0.1:{standby.port}"
            dsn = f"postgresql://postgres@{hosts}/away?target_session_attrs=read-write"
            with pgqrs.connect(dsn) as store:
                store.install()
                runs = [
                    store.trigger(pipeline.three_steps, str(tmp_path / f"run-{n}"), 0.05) for n in range(RUNS)
                ]
                ids = store.enqueue_many("tasks", [{"evidence": str(evidence)}] * MESSAGES)
                with Supervised(dsn, tmp_path / "log", "--workers", "2", "--burst") as supervisor:
                    eventually(lambda: starts(tmp_path / "run-5"))
                    server.shut_down("immediate")
                    assert _begun(tmp_path) < RUNS
                    standby.promote()
                    began = time.monotonic()
                    seen = _begun(tmp_path)
                    # A promotion on a busy machine may take longer than all the rest of the work.
                    eventually(lambda: _begun(tmp_path) > min(seen, RUNS - 1), what=supervisor.said)
                    back_s = time.monotonic() - began
                    assert supervisor.wait(60) == 0, supervisor.said()
                assert all(store.run(r.id).status == pgqrs.WorkflowStatus.Success for r in runs)
                [tasks] = [q for q in store.queues() if q.queue_name == "tasks"]
                assert (tasks.archived, tasks.dead) == (MESSAGES, 0)
    assert "Traceback" not in supervisor.said(), supervisor.said()
    assert sorted(int(line.split(" ")[0]) for line in evidence.read_text().splitlines()) == sorted(ids)
    for n in range(RUNS):
        assert [s.step for s in starts(tmp_path / f"run-{n}")] == ["first", "slow", "last"]
    proves(
        "the server dies, and a synchronous standby is promoted (both named in the DSN, `target_session_attrs=read-write`)",
        "the turn is repeated there until it is known to be committed; no step runs again",
        charged="nobody",
        seconds=back_s,
        within=5.0,
    )


def _begun(folder: Path) -> int:
    return len(list(folder.glob("run-*")))
