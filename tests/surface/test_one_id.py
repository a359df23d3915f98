"""A run goes by one id on our surface, its message's: in handles, records, steps, and in what errors say. The tables of 0.15 keep
the numbers of their own rows."""

import pytest

import pgqrs
from pgqrs import errors
from pgqrs.model.states import WorkflowStatus
from tests.surface.given import a_triggered

pytestmark = pytest.mark.backends("sqlite", "postgres")

QUEUED, RUNNING, CANCELLED = WorkflowStatus.Queued, WorkflowStatus.Running, WorkflowStatus.Cancelled


@pgqrs.workflow
def ship(order: int) -> int:
    return order


@pytest.fixture
def shifted(blocking):
    """Runs whose rows are numbered otherwise than their messages: message 1 is a plain one, and the runs start in the reverse
    order."""
    blocking.enqueue("plain", "first")
    handles = [blocking.trigger(ship, n) for n in range(4)]
    for handle in handles[:0:-1]:
        begun = started(blocking, handle.id)
        begun.complete_step("pack", handle.id)
    return blocking, [handle.id for handle in handles]


def started(store, message_id):
    message = pgqrs.admin(store)._store.messages.message(message_id)
    run = pgqrs.manual.runs.Run.of_message(store.messages, store.config, message)
    run.start()
    return run


def test_the_runs_of_a_store_have_the_ids_of_their_handles(shifted):
    store, ids = shifted
    assert [r.id for r in store.runs()] == ids[::-1]
    assert [store.run(i).record().id for i in ids] == ids
    assert {r.id: r.status for r in store.runs()} == dict.fromkeys(ids[1:], RUNNING) | {ids[0]: QUEUED}


def test_what_is_cancelled_by_its_listed_id_is_the_run_that_was_listed(shifted):
    store, ids = shifted
    [last] = store.runs(status="running", limit=1)
    store.run(last.id).cancel(now=True)
    assert [r.id for r in store.runs(status="cancelled")] == [last.id] == [ids[-1]]
    for record in store.runs():
        store.run(record.id).cancel(now=True)
    assert [r.status for r in store.runs()] == [CANCELLED] * 4


def test_a_listing_goes_on_after_the_id_that_it_ended_with(shifted):
    store, ids = shifted
    first = store.runs(limit=2)
    assert [r.id for r in first + store.runs(before=first[-1].id)] == ids[::-1]


def test_the_steps_of_a_handle_name_its_run(shifted):
    store, ids = shifted
    for i in ids[1:]:
        assert [(s.run_id, s.output) for s in store.run(i).steps()] == [(i, i)]


async def test_an_async_store_says_the_same(shifted, store):
    _, ids = shifted
    assert [r.id for r in await store.runs()] == ids[::-1]
    handle = await store.run(ids[-1])
    assert (await handle.record()).id == ids[-1]
    assert [s.run_id for s in await handle.steps()] == [ids[-1]]


def test_the_tables_of_0_15_keep_the_numbers_of_their_rows(shifted):
    store, ids = shifted
    runs = {r.id: r.message_id for r in store.get_workflow_runs().list()}
    assert runs == {1: ids[3], 2: ids[2], 3: ids[1]}
    assert {runs[s.run_id]: s.output for s in store.get_workflow_steps().list()} == {i: i for i in ids[1:]}


async def test_what_an_error_says_of_a_run_is_the_id_by_which_it_is_found(store):
    """Run 1 of 0.15 is message 2 here."""
    await store.enqueue("plain", "first")
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    assert (run.id(), run.message_id) == (1, 2)
    await run.start()
    await run.success(1)
    with pytest.raises(errors.ValidationError, match=r"\b[Rr]un 2 is in terminal SUCCESS"):
        await run.start()
    assert repr(run) == "Run(message_id=2, id=1, SUCCESS)"
