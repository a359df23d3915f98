"""Whoever makes something due hints at its queue, whatever the workflow on it is called: supervisors listen by queue."""

import pytest

import pgqrs
from pgqrs.model.states import WorkflowStatus
from tests.store.given import execute


@pgqrs.workflow(queue="letters")
def post(n: int) -> int:
    return n


@pytest.fixture
def hinted(tmp_path):
    """A store, its DSN, and the queues that it has hinted at."""
    dsn = f"sqlite://{tmp_path / 'hints.db'}"
    with pgqrs.connect(dsn) as store:
        store.install()
        queues: list[str] = []
        store._ready().database.hint = queues.extend
        yield store, dsn, queues


def test_a_run_that_is_triggered_by_name_is_hinted_at_on_its_queue(hinted):
    store, _, queues = hinted
    store.trigger(post, 1)
    queues.clear()
    store.trigger_raw("post", b"1")
    assert queues == ["letters"]


def test_so_is_a_run_that_is_resumed(hinted):
    store, dsn, queues = hinted
    run = store.trigger(post, 1)
    execute(
        dsn,
        "insert into pgqrs_workflow_runs (workflow_id, message_id, status) values (1, ?, ?)",
        run.id,
        WorkflowStatus.Paused.value,
    )
    execute(dsn, "update pgqrs_messages set vt = '2999-01-01 00:00:00.000' where id = ?", run.id)
    queues.clear()
    assert run.resume()
    assert queues == ["letters"]
