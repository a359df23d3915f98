"""What goes in: ids from 1, in order, byte for byte as JSON, now or later."""

import msgspec
import pytest

from pgqrs import errors
from pgqrs.store.store import COPY_MIN
from tests.store.given import Consumer, columns, execute, ids, when


def test_ids_start_at_one_and_follow_the_payloads(store, queue):
    assert store.enqueue(queue, [b"1", b"2", b"3"]) == [1, 2, 3]
    assert store.enqueue(queue, [b"4"]) == [4]
    assert [store.message(n).payload for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_install_verify_and_looking_take_no_ids(store, queue):
    store.install()
    store.verify()
    for _ in range(3):
        assert store.ensure_queue("tasks") == queue == 1
        assert store.ensure_workflow("flow", "flow").id == 1
    assert store.ensure_queue("third") == 3
    assert store.enqueue(queue, [b"1"]) == [1]


def test_a_thousand_payloads_keep_their_order(store, queue, consumer):
    numbers = store.enqueue(queue, [b"%d" % n for n in range(1000)])
    assert numbers == list(range(1, 1001))
    claimed = consumer.claim(1000)
    assert [int(c.payload) for c in claimed] == list(range(1000))


def test_nothing_to_enqueue_is_fine(store, queue):
    assert store.enqueue(queue, []) == []


VALUES = [
    None, True, 0, -1, 2**53 + 1, 0.1, 1e-300, "", "é 漢 🎉 \u2028 \x7f", "a\"b\\c/d\n\t", [], {}, {"": ""},
    {"input": {"x": [None, 1.5, "…"]}}, ["x" * 1000] * 3, "'; drop table pgqrs_messages; --", "%s %(now)s :now {now} ?",
]  # fmt: skip


def test_payloads_come_back_as_they_were(store, queue, consumer):
    numbers = store.enqueue(queue, [msgspec.json.encode(v) for v in VALUES])
    assert [msgspec.json.decode(c.payload) for c in consumer.claim(100)] == VALUES
    assert [store.message(n).payload for n in numbers] == VALUES


def test_many_at_once_are_what_they_are_alone(store, queue, dsn):
    """Many go another way on PostgreSQL, by COPY: with the same columns, whatever is in the payloads."""
    raw = [msgspec.json.encode(v) for v in VALUES] + [
        b'{"a":\n\t[1,\r\n2]}',
        b'"\\\\N"',
        b'"\\\\."',
        b'"\\\\t\\\\\\\\"',
    ]
    many = raw * (-(-COPY_MIN // len(raw)))
    alone = [store.enqueue(queue, [p], delay_s=2.5, producer_id=7)[0] for p in raw]
    together = store.enqueue(queue, many, delay_s=2.5, producer_id=7)
    assert together == list(range(together[0], together[0] + len(many)))
    rest = "payload, queue_id, vt, enqueued_at, read_ct, producer_worker_id, consumer_worker_id, archived_at, claim_no"
    rows = {row[0]: row[1:] for row in columns(dsn, "pgqrs_messages", f"id, {rest}")}
    for one, other in zip(alone * (len(many) // len(raw)), together, strict=True):
        assert rows[one] == rows[other]


def test_a_mebibyte_comes_back_as_it_was(store, queue, consumer):
    text = ('é🎉\\"' * 150_000)[: 2**18]
    store.enqueue(queue, [msgspec.json.encode(text)])
    assert msgspec.json.decode(consumer.claim()[0].payload) == text
    assert len(msgspec.json.encode(text)) > 2**19


def test_a_delayed_message_is_due_after_its_delay(store, queue, consumer, clock):
    [number] = store.enqueue(queue, [b"1"], delay_s=2.5)
    message = store.message(number)
    assert (when(message.vt), when(message.enqueued_at)) == (clock.at(2.5), clock.at())
    clock.advance(2.499)
    assert consumer.claim() == []
    clock.advance(0.001)
    assert ids(consumer.claim()) == [number]


def test_a_message_is_due_at_once_whatever_the_clocks_fraction_of_a_second(store, queue, consumer, clock):
    clock.now = clock.now.replace(microsecond=123_999)
    numbers = store.enqueue(queue, [b"1", b"2"])
    assert ids(consumer.claim()) == numbers


def test_a_new_message_was_never_read(store, queue):
    message = store.message(store.enqueue(queue, [b"1"])[0])
    assert (message.read_ct, message.dequeued_at, message.consumer_worker_id, message.archived_at) == (
        0,
        None,
        None,
        None,
    )
    assert message.dead_reason is None


def test_a_message_that_0_15_wrote_is_claimed_like_ours(store, queue, dsn, clock):
    from datetime import UTC, datetime

    clock.now = datetime.now(UTC)
    execute(dsn, "insert into pgqrs_messages (queue_id, payload) values (?, ?)", queue, '{"input": 7}')
    clock.advance(1)
    [claimed] = Consumer(store, queue).claim()
    assert (msgspec.json.decode(claimed.payload), claimed.read_ct, claimed.claim.claim_no) == (
        {"input": 7},
        1,
        1,
    )


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b"])
def test_what_cannot_name_a_queue_is_refused(name, store):
    with pytest.raises(errors.ValidationError, match="cannot name a queue"):
        store.ensure_queue(name)


@pytest.mark.parametrize("name", ["x" * 255, "é 漢", "'; --", "a b"])
def test_a_queue_has_the_name_that_it_was_given(name, store, dsn):
    number = store.ensure_queue(name)
    assert store.find_queue(name) == number
    assert columns(dsn, "pgqrs_queues", "queue_name") == [(name,)]


def test_an_unknown_queue_or_workflow_is_an_error(store):
    with pytest.raises(errors.QueueNotFoundError, match="'nowhere'"):
        store.find_queue("nowhere")
    with pytest.raises(errors.WorkflowNotFoundError, match="'nothing'"):
        store.find_workflow("nothing")


def test_a_workflow_keeps_its_queue(store):
    made = store.ensure_workflow("flow", "here")
    assert store.find_workflow("flow") == made == store.ensure_workflow("flow", "here")
    with pytest.raises(errors.ValidationError, match="is on queue 'here' in this database, not on 'there'"):
        store.ensure_workflow("flow", "there")
    with pytest.raises(errors.QueueNotFoundError):
        store.find_queue("there")


def test_a_queue_carries_one_workflow(store):
    store.ensure_workflow("flow", "here")
    with pytest.raises(errors.ValidationError, match="carries workflow 'flow' already"):
        store.ensure_workflow("second", "here")
