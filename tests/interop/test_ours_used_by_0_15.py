"""pgqrs 0.15.3 works on a database that we installed, with us."""

import json
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import Supervised, eventually
from tests.interop.conftest import OURS, said_by

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).with_name("programs.py")
TARGET = str(Path(__file__).with_name("supervised_here.py"))


@pytest.fixture
def ours(postgres_dsn: str) -> str:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
    return postgres_dsn


def test_its_install_and_verify_pass_and_leave_ours_as_it_is(ours: str, python_0_15: Path) -> None:
    said_by(python_0_15, PROGRAMS, ours, "check")
    with pgqrs.connect(ours) as store:
        store.verify()


def test_it_triggers_we_run_it_reads_the_results(ours: str, python_0_15: Path, tmp_path: Path) -> None:
    with Supervised(ours, tmp_path / "log", target=TARGET) as supervisor:
        eventually(lambda: workflow_is_known(ours, "double"), what=supervisor.said())
        found = json.loads(said_by(python_0_15, PROGRAMS, ours, "trigger_and_wait", "1", "-2", "300"))
    assert found == {"results": [2, -4, 600], "got": [2, -4, 600]}


def test_it_runs_what_we_trigger(ours: str, python_0_15: Path) -> None:
    with pgqrs.connect(ours) as store:
        handle = store.trigger("theirs", {"a": 1})
        said_by(python_0_15, PROGRAMS, ours, "run_one", "theirs")
        assert handle.result() == ["run by 0.15.3", {"a": 1}]


def test_it_makes_the_workflow_that_we_supervise_later(ours: str, python_0_15: Path, tmp_path: Path) -> None:
    message_id = int(said_by(python_0_15, PROGRAMS, ours, "create_and_trigger", "two_steps", "x"))
    with Supervised(ours, tmp_path / "log", "--burst", target=TARGET) as supervisor:
        assert supervisor.wait() == 0, supervisor.said()
    with pgqrs.connect(ours) as store:
        assert store.run(message_id).result() == ["done by us", "done by us"]
    found = json.loads(said_by(python_0_15, PROGRAMS, ours, "read"))
    assert found["runs"] == {"WorkflowStatus.Success": 1}
    assert found["steps"] == {"WorkflowStatus.Success": 2}
    assert (found["live"], found["archived"]) == (0, 1)


def test_it_takes_and_archives_what_we_enqueue(ours: str, python_0_15: Path) -> None:
    payloads = [{"n": 1, "text": "ä\n\"'"}, [1.5, None, True], "x", 0, None]
    with pgqrs.connect(ours) as store:
        ids = store.enqueue_many("tasks", payloads)
        later = store.enqueue("tasks", "later", delay=3600)
    taken = json.loads(said_by(python_0_15, PROGRAMS, ours, "take", "tasks", "9"))
    assert sorted(taken) == [[i, payload, 1, True] for i, payload in zip(ids, payloads, strict=True)]
    with pgqrs.connect(ours) as store:
        [queue] = store.queues()
        assert (queue.archived, queue.delayed, queue.ready, queue.dead) == (5, 1, 0, 0)
        assert later == 6


def test_we_take_and_archive_what_it_enqueues(ours: str, python_0_15: Path) -> None:
    with pgqrs.connect(ours) as store:
        store.queue("tasks")
    ids = json.loads(said_by(python_0_15, PROGRAMS, ours, "enqueue", "tasks", "1200"))
    taken = json.loads(said_by(OURS, PROGRAMS, ours, "take", "tasks", "2000"))
    assert sorted(taken) == [[i, n, 1, True] for n, i in enumerate(ids)]


def workflow_is_known(dsn: str, name: str) -> bool:
    with pgqrs.connect(dsn) as store:
        return any(w.name == name for w in store.get_workflows().list())
