"""What a call does not take is refused in words before a database sees it, and on every database alike."""

import math

import pytest

import pgqrs
from pgqrs import ValidationError

pytestmark = pytest.mark.backends("sqlite", "postgres")

NO_IDS = ["1", 1.0, 1.5, None, True, b"1", [1], math.nan, object()]

BY_ID = {
    "run": lambda s, i: s.run(i),
    "replay": lambda s, i: s.replay(i),
    "runs before": lambda s, i: s.runs(before=[i] if i is None else i),
    "archive": lambda s, i: s.consumer("q").archive(i),
    "archive_many": lambda s, i: s.consumer("q").archive_many([i]),
    "delete_many": lambda s, i: s.consumer("q").delete_many([i]),
    "extend_vt": lambda s, i: s.consumer("q").extend_vt(i, 1),
    "release_messages": lambda s, i: s.consumer("q").release_messages([i]),
    "workers.get": lambda s, i: s.get_workers().get(i),
    "delete_worker": lambda s, i: pgqrs.admin(s).delete_worker(i),
    "release_worker_messages": lambda s, i: pgqrs.admin(s).release_worker_messages(i),
    "get_worker_messages": lambda s, i: pgqrs.admin(s).get_worker_messages(i),
    "replay_dlq": lambda s, i: pgqrs.admin(s).replay_dlq(i),
    "reclaim_messages": lambda s, i: pgqrs.admin(s).reclaim_messages(b"q" if i == "1" else i),
    "list_archived_by_queue": lambda s, i: s.get_messages().list_archived_by_queue(i),
}
BY_NAME = {
    "enqueue": lambda s, n: s.enqueue(n, 1),
    "queue": lambda s, n: s.queue(n),
    "consumer": lambda s, n: s.consumer(n),
    "producer": lambda s, n: s.producer(n),
    "consume_iter": lambda s, n: s.consume_iter(n).__enter__(),
    "runs": lambda s, n: s.runs(b"q" if n is None else n),
    "dead": lambda s, n: s.dead(b"q" if n is None else n),
    "get_queue": lambda s, n: pgqrs.admin(s).get_queue(n),
    "delete_queue": lambda s, n: pgqrs.admin(s).delete_queue(n),
    "purge_queue": lambda s, n: pgqrs.admin(s).purge_queue(n),
    "queue_metrics": lambda s, n: pgqrs.admin(s).queue_metrics(n),
    "queues.metrics": lambda s, n: s.get_queues().metrics(n),
    "worker_stats": lambda s, n: pgqrs.admin(s).worker_stats(n),
    "create_workflow": lambda s, n: pgqrs.admin(s).create_workflow(n),
    "get_by_name": lambda s, n: s.get_workflows().get_by_name(n),
}
OF_MANY = {
    "enqueue_many": lambda s, v: s.enqueue_many("q", v),
    "enqueue_batch": lambda s, v: s.producer("q").enqueue_batch(v),
    "archive_many": lambda s, v: s.consumer("q").archive_many(v),
    "delete_many": lambda s, v: s.consumer("q").delete_many(v),
    "release_messages": lambda s, v: s.consumer("q").release_messages(v),
}
LIMITED = {
    "runs": lambda s, n: s.runs(limit=n),
    "dead": lambda s, n: s.dead(limit=n),
    "dequeue": lambda s, n: s.consumer("q").dequeue(n),
}


@pytest.fixture
def q(blocking):
    """A store with a queue, and a worker whom a wrong id might hit."""
    blocking.queue("q")
    blocking.consumer("q")
    return blocking


@pytest.mark.parametrize("call", BY_ID)
def test_an_id_is_a_whole_number(q, call):
    for value in NO_IDS:
        with pytest.raises(ValidationError, match=r"^the id of a \w+ is a whole number, not ") as refused:
            BY_ID[call](q, value)
        assert isinstance(refused.value, TypeError)
    assert q.get_workers().count() >= 1


def test_what_has_an_id_says_which_of_its_attributes_it_is(q):
    handle = q.trigger("flow", 1)
    with pytest.raises(ValidationError, match=r"not RunHandle: it has one, \.id$"):
        q.run(handle)
    with pytest.raises(ValidationError, match=r"not RunRecord: it has one, \.message_id$"):
        q.run(handle.record())


def test_what_counts_as_a_whole_number_is_an_id(q):
    class Four:
        def __index__(self):
            return 1

    handle = q.trigger("flow", 1)
    found = q.run(Four())
    assert found.id == handle.id == 1
    assert type(found.id) is int


def test_an_id_that_no_row_has_is_not_found(q):
    q.trigger("flow", 1)
    consumer = q.consumer("q")
    for number in (0, -1, 2**62, 2**63, 2**64, -(2**63) - 1):
        with pytest.raises(pgqrs.RunNotFoundError):
            q.run(number)
        assert [consumer.archive(number), consumer.release_messages([number])] == [False, 0]


def test_a_listing_before_an_id_holds_smaller_ones_alone(q):
    q.trigger("flow", 1)
    assert [len(q.runs(before=n)) for n in (-1, 0, 1, 2, 2**62)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("call", BY_NAME)
def test_a_name_is_text(q, call):
    for value in (None, 5, b"q", ["q"], True):
        with pytest.raises(ValidationError, match=r"the name of a \w+ is text, not|cannot name a \w+"):
            BY_NAME[call](q, value)
    assert [queue.queue_name for queue in q.get_queues().list()] == ["q"]


@pytest.mark.parametrize("call", OF_MANY)
def test_several_are_no_text_and_no_mapping(q, call):
    for value in ("abc", b"abc", bytearray(b"a"), {"a": 1}, None, 5):
        with pytest.raises(ValidationError, match=r"are a list, not .*; put a single one in a list"):
            OF_MANY[call](q, value)
    assert q.get_messages().count() == 0


@pytest.mark.parametrize("call", OF_MANY)
def test_of_nothing_nothing_is_made(q, call):
    assert not OF_MANY[call](q, [])
    assert not OF_MANY[call](q, iter([]))
    assert q.get_messages().count() == 0


def test_what_is_iterated_over_once_is_answered_in_full(q):
    producer, consumer = q.producer("q"), q.consumer("q")
    ids = producer.enqueue_batch(n for n in range(4))
    assert len(consumer.dequeue(4)) == 4
    assert consumer.archive_many(i for i in ids[:2]) == [True, True]
    assert consumer.delete_many(iter(ids[1:])) == [False, True, True]


@pytest.mark.parametrize("call", LIMITED)
def test_a_limit_is_a_whole_number(q, call):
    for value in (-1, 1.5, "5", b"5", True, math.inf, 2**63):
        with pytest.raises(ValidationError, match=r"is a whole number of at least 0, not"):
            LIMITED[call](q, value)


@pytest.mark.parametrize("call", LIMITED)
def test_a_limit_of_nothing_gives_nothing(q, call):
    q.trigger("flow", 1)
    q.enqueue("q", 1)
    assert LIMITED[call](q, 0) == []


def test_a_status_is_one_of_a_run_s(q):
    for value in ("nope", "", 5, b"QUEUED", pgqrs.WorkerStatus.Ready):
        with pytest.raises(ValidationError, match=r"status is one of QUEUED, RUNNING, .*, not "):
            q.runs(status=value)


def test_a_status_may_be_written_in_either_case(q):
    q.trigger("flow", 1)
    assert [len(q.runs(status=s)) for s in ("queued", "Queued", pgqrs.WorkflowStatus.Queued, "running")] == [
        1,
        1,
        1,
        0,
    ]


async def test_an_async_store_says_the_same(store):
    await store.queue("q")
    for call in (store.run("1"), store.runs(limit=-1), store.enqueue_many("q", "abc"), store.consumer(None)):
        with pytest.raises(ValidationError):
            await call


def test_a_hint_goes_to_the_queue_of_a_workflow(installed_postgres_dsn):
    """Supervisors listen for their queues' names."""
    with pgqrs.connect(installed_postgres_dsn) as store:
        store.messages.ensure_workflow("flow", "line")
        hinted = []
        store.messages.database.hint = hinted.extend
        handle = store.trigger_raw("flow", b"1")
        run = pgqrs.manual.runs.Run.of_message(
            store.messages, store.config, store.messages.message(handle.id)
        )
        run.pause("later", 600)
        assert handle.resume()
        assert hinted == ["line", "line"]
