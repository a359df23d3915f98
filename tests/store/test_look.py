"""What there is to see."""

import pytest

from pgqrs import errors
from pgqrs.model.writes import Archive, Settle, Write
from tests.store.given import (
    CANCELLED,
    ERROR,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCESS,
    Consumer,
    Flow,
    dump,
    finish,
    json,
    release,
    step,
    when,
    wrote,
)


def test_a_run_without_a_row_is_queued(flow, clock):
    [number] = flow.trigger()
    run = flow.store.run(number)
    assert (run.id, run.message_id, run.status, run.input, run.workflow) == (
        number,
        number,
        QUEUED,
        0,
        "flow",
    )
    assert (when(run.enqueued_at), when(run.due_at), run.started_at) == (clock.at(), clock.at(), None)
    assert flow.store.settled(number).status == QUEUED


def test_settled_says_how_a_run_ended(flow):
    claim = flow.begun()
    assert flow.store.settled(claim.message_id).status == RUNNING
    wrote(flow.store, finish(claim, SUCCESS, b'{"a": [1]}'))
    settled = flow.store.settled(claim.message_id)
    assert (settled.status, json(settled.output), settled.error, settled.is_run) == (
        SUCCESS,
        {"a": [1]},
        None,
        True,
    )


def test_settled_says_why_a_run_failed(flow):
    settled = flow.store.settled(flow.failed())
    assert (settled.status, json(settled.error), settled.dead_reason) == (
        ERROR,
        {"message": "no"},
        "it failed",
    )


def test_settled_of_a_plain_message(store, queue, consumer):
    good, bad, waiting = store.enqueue(queue, [b"1"] * 3)
    claims = [c.claim for c in consumer.claim(2)]
    store.turn([Write(claims[0], message=Archive()), Write(claims[1], message=Archive("no"))])
    told = [store.settled(n) for n in (good, bad, waiting)]
    assert [(s.status, s.is_run, s.dead_reason) for s in told] == [
        (SUCCESS, False, None), (ERROR, False, "no"), (QUEUED, False, None),
    ]  # fmt: skip


@pytest.fixture
def seven(flow):
    """Runs 1 to 6 of `flow` in every state, and 7 of another workflow."""
    flow.trigger(6)
    claims = [c.claim for c in flow.consumer.claim(5)]
    flow.store.turn([flow.begin(c) for c in claims])
    flow.store.turn([finish(claims[0]), finish(claims[1], ERROR), release(claims[3], 60)])
    flow.store.turn([Write(claims[2], settle=Settle(PAUSED), message=release(claims[2], 60).message)])
    flow.store.cancel(claims[3].message_id)
    Flow(flow.store, "second").trigger()
    return flow.store


def test_runs_are_listed_newest_first(seven):
    listed = seven.runs()
    assert [(r.message_id, r.status) for r in listed] == [
        (7, QUEUED), (6, QUEUED), (5, RUNNING), (4, CANCELLED), (3, PAUSED), (2, ERROR), (1, SUCCESS),
    ]  # fmt: skip


def test_runs_are_filtered_by_workflow_and_by_state(seven):
    assert [r.message_id for r in seven.runs("second")] == [7]
    assert [r.message_id for r in seven.runs("flow", QUEUED)] == [6]
    assert [r.message_id for r in seven.runs(status=QUEUED)] == [7, 6]
    assert [r.message_id for r in seven.runs(status=PAUSED)] == [3]
    assert seven.runs("nothing") == []


def test_runs_are_listed_page_by_page(seven):
    pages, before = [], None
    while page := seven.runs(limit=3, before=before):
        pages.append([r.message_id for r in page])
        before = page[-1].message_id
    assert pages == [[7, 6, 5], [4, 3, 2], [1]]


def test_plain_messages_are_no_runs(store, queue, flow):
    [number] = store.enqueue(queue, [b"1"])
    assert flow.store.runs() == []
    with pytest.raises(errors.RunNotFoundError):
        store.run(number)


def test_a_run_and_its_listing_say_the_same(seven):
    assert [seven.run(r.message_id) for r in seven.runs()] == seven.runs()


def test_queues_are_counted(seven, clock):
    plain = seven.ensure_queue("plain")
    seven.enqueue(plain, [b"1"] * 4)
    seven.enqueue(plain, [b"1"] * 2, delay_s=5)
    consumer = Consumer(seven, plain, "plain")
    claims = [c.claim for c in consumer.claim(3)]
    seven.turn([Write(claims[0], message=Archive()), Write(claims[1], message=Archive("no"))])
    seven.ensure_queue("empty")
    told = {
        q.queue_name: (q.workflow, q.ready, q.delayed, q.held, q.archived, q.dead) for q in seven.queues()
    }
    assert told == {
        "empty": (None, 0, 0, 0, 0, 0),
        "flow": ("flow", 1, 1, 1, 3, 0),
        "plain": (None, 1, 2, 1, 1, 1),
        "second": ("second", 1, 0, 0, 0, 0),
    }
    assert [q.queue_name for q in seven.queues()] == sorted(told)


def test_the_dead_are_listed_newest_first_and_by_queue(store, queue, consumer, flow):
    numbers = store.enqueue(queue, [b"1"] * 3)
    for claimed in consumer.claim():
        wrote(store, Write(claimed.claim, message=Archive(f"no {claimed.claim.message_id}")))
    failed = flow.failed()
    assert [(q, m.id, m.dead_reason) for q, m in store.dead()] == [
        ("flow", failed, "it failed"), *(("tasks", n, f"no {n}") for n in reversed(numbers)),
    ]  # fmt: skip
    assert [m.id for _, m in store.dead("tasks", limit=2)] == numbers[:0:-1]


def test_steps_of_nobody_are_none(store):
    assert store.steps(4711) == []


def test_a_message_that_nobody_knows_is_an_error(store):
    with pytest.raises(errors.MessageNotFoundError, match="4711"):
        store.message(4711)


def test_looking_changes_nothing(seven, dsn):
    before = dump(dsn)
    seven.runs(), seven.queues(), seven.workers(True), seven.dead(), seven.backlog([1])
    for n in range(1, 8):
        seven.run(n), seven.steps(n), seven.settled(n), seven.message(n)
    assert dump(dsn) == before


def test_looking_does_not_wait_for_a_writer(seven, open_another):
    second = open_another()
    with seven.database.transaction() as tx:
        tx.run("make_due", id=1)
        tx.run("lock_message", id=1)
        assert len(second.runs()) == 7
        assert second.settled(1).status == SUCCESS


def test_a_reader_sees_what_was_committed(seven, open_another):
    second = open_another()
    [claimed] = Consumer(seven, 2, "reader").claim()
    workflow = seven.find_workflow("second")
    from pgqrs.model.writes import Begin

    seven.turn([Write(claimed.claim, begin=Begin(workflow.id, 1)), step(claimed.claim, "seen")])
    assert [s.step_name for s in second.steps(7)] == ["seen"]
