"""What a producer sends a consumer gets once, keeps while it is the owner, and ends or gives back."""

import asyncio

import pytest

import pgqrs
from tests.surface.given import QUEUE, a_held_message, a_pair, at, moment, seconds_from_now

# Queues


async def test_a_queue_is_made_once(store):
    made = await store.queue("tasks")
    assert (made.id, made.queue_name) == (1, "tasks")
    with pytest.raises(pgqrs.QueueAlreadyExistsError, match="'tasks' already exists"):
        await store.queue("tasks")


async def test_of_two_who_make_the_same_queue_at_once_one_is_told(store):
    made = await asyncio.gather(*(store.queue("tasks") for _ in range(5)), return_exceptions=True)
    assert [type(m) for m in made].count(pgqrs.QueueInfo) == 1
    assert [type(m) for m in made].count(pgqrs.QueueAlreadyExistsError) == 4


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b", None, 5])
async def test_what_cannot_name_a_queue_is_refused(store, name):
    with pytest.raises(pgqrs.ValidationError, match="cannot name a queue: 1 to 255 characters"):
        await store.queue(name)


@pytest.mark.parametrize("name", ["a b", "Ü-λ", "'; drop table pgqrs_queues; --", "%s", "x" * 255])
async def test_any_other_text_names_one(store, name):
    producer, consumer = await a_pair(store, name)
    await producer.enqueue(1)
    assert [m.payload for m in await consumer.dequeue()] == [1]


@pytest.mark.parametrize("make", ["producer", "consumer"])
async def test_nobody_registers_on_a_queue_that_is_not_there(store, make):
    with pytest.raises(pgqrs.QueueNotFoundError, match="'nowhere' not found; make it"):
        await getattr(store, make)("nowhere")
    assert await (await store.get_workers()).count() == 0


async def test_producers_and_consumers_are_workers_with_an_id_each(store):
    producer, consumer = await a_pair(store)
    workers = await (await store.get_workers()).list()
    assert {w.id for w in workers} == {producer.worker_id, consumer.worker_id}
    assert len({w.name for w in workers}) == 2
    assert await consumer.status() is pgqrs.WorkerStatus.Ready


# Sending


async def test_ids_start_at_one_and_grow(store):
    producer, _ = await a_pair(store)
    assert [await producer.enqueue(n) for n in range(3)] == [1, 2, 3]


async def test_installing_and_verifying_take_no_ids(store):
    admin = pgqrs.admin(store)
    for _ in range(3):
        await admin.install()
        await admin.verify()
    await store.bootstrap()
    producer, _ = await a_pair(store)
    assert await producer.enqueue(1) == 1
    run = await admin.create_workflow("job", {"x": 1})
    assert run.id() == 1


@pytest.mark.parametrize(
    "payload",
    [
        None,
        True,
        0,
        -1,
        1.5,
        2**53 + 1,
        "text",
        "é\u2028😀",
        "",
        [],
        {},
        [1, [2, {"a": None}]],
        {"k": {"l": "v"}},
        "null",
    ],
    ids=repr,
)
async def test_a_payload_comes_back_as_it_was_sent(store, payload):
    producer, consumer = await a_pair(store)
    await producer.enqueue(payload)
    [message] = await consumer.dequeue()
    assert message.payload == payload
    assert type(message.payload) is type(payload)


async def test_a_message_tells_where_it_came_from_and_when(store):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue({"a": 1})
    [message] = await consumer.dequeue()
    assert message.id == sent
    assert message.queue_id == 1
    assert message.read_ct == 1
    assert message.producer_worker_id == producer.worker_id
    assert message.consumer_worker_id == consumer.worker_id
    assert abs(seconds_from_now(message.enqueued_at)) < 5
    assert moment(message.dequeued_at) >= moment(message.enqueued_at)
    assert message.archived_at is None


async def test_messages_are_delivered_in_the_order_in_which_they_were_sent(store):
    producer, consumer = await a_pair(store)
    for n in range(5):
        await producer.enqueue(n)
    await producer.enqueue_batch(list(range(5, 10)))
    taken = [(await consumer.dequeue())[0].payload for _ in range(4)]
    taken += [m.payload for m in await consumer.dequeue(batch_size=100)]
    assert taken == list(range(10))


async def test_a_delayed_message_is_due_when_its_delay_is_over(store):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue_delayed({"a": 1}, 60)
    assert await consumer.dequeue() == []
    assert await consumer.dequeue_at(1, 30, at(50)) == []
    assert [m.id for m in await consumer.dequeue_at(1, 30, at(600))] == [sent]


async def test_a_delay_of_nothing_is_none(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_delayed(1, 0)
    assert len(await consumer.dequeue()) == 1


async def test_a_negative_delay_is_refused(store):
    producer, _ = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="-1 is no duration"):
        await producer.enqueue_delayed(1, -1)


async def test_a_batch_is_sent_whole_and_its_ids_are_in_the_order_of_the_payloads(store):
    producer, consumer = await a_pair(store)
    ids = await producer.enqueue_batch([{"n": n} for n in range(30)])
    by_id = {m.id: m.payload["n"] for m in await consumer.dequeue(100)}
    assert [by_id[i] for i in ids] == list(range(30))


async def test_of_a_batch_with_a_payload_that_is_refused_nothing_is_sent(store):
    producer, consumer = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="index 1"):
        await producer.enqueue_batch([1, "x" * 2000, 3])
    assert await consumer.dequeue(10) == []


async def test_a_delayed_batch_is_due_together(store):
    producer, consumer = await a_pair(store)
    ids = await producer.enqueue_batch_delayed([1, 2], 60)
    assert await consumer.dequeue(10) == []
    assert [m.id for m in await consumer.dequeue_at(10, 30, at(600))] == ids


async def test_one_can_send_as_if_it_were_another_time(store):
    producer, consumer = await a_pair(store)
    [sent] = await producer.enqueue_at([1], at(100), delay_seconds=50)
    assert await consumer.dequeue_at(1, 30, at(149)) == []
    [message] = await consumer.dequeue_at(1, 30, at(151))
    assert message.id == sent
    assert abs((moment(message.enqueued_at) - moment(at(100))).total_seconds()) < 0.01


async def test_the_queues_do_not_mix(store):
    producer, _ = await a_pair(store, "one")
    _, other = await a_pair(store, "two")
    await producer.enqueue(1)
    assert await other.dequeue(10) == []


# Taking


async def test_an_empty_queue_gives_an_empty_list(store):
    _, consumer = await a_pair(store)
    assert await consumer.dequeue() == []


async def test_unless_told_otherwise_one_message_is_taken_for_thirty_seconds(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    [message] = await consumer.dequeue()
    assert 25 < seconds_from_now(message.vt) <= 30


async def test_the_default_lock_time_is_honoured_where_it_was_set(dsn):
    config = pgqrs.Config(dsn)
    config.default_lock_time_seconds = 300
    async with pgqrs.connect_with(config) as store:
        _, message = await a_held_message(store)
        assert 290 < seconds_from_now(message.vt) <= 300


async def test_a_batch_is_at_most_so_many(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    assert [m.payload for m in await consumer.dequeue(batch_size=2)] == [1, 2]
    assert [m.payload for m in await consumer.dequeue(2)] == [3]


async def test_a_lock_time_can_be_given(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue_batch([1, 2, 3])
    taken = await consumer.dequeue_many_with_delay(2, 600)
    assert [m.payload for m in taken] == [1, 2]
    assert all(590 < seconds_from_now(m.vt) <= 600 for m in taken)


async def test_a_time_can_be_given_and_the_lock_counts_from_it(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    [message] = await consumer.dequeue_at(1, 60, at(1000))
    assert abs((moment(message.vt) - moment(at(1060))).total_seconds()) < 0.01


@pytest.mark.parametrize("time", ["yesterday", "2030-01-15", "2030-01-15T10:30:00", "", None, 5])
async def test_what_is_no_moment_with_its_offset_is_refused(store, time):
    _, consumer = await a_pair(store)
    with pytest.raises(ValueError, match="2030-01-15T10:30:00Z"):
        await consumer.dequeue_at(1, 30, time)


async def test_two_consumers_never_get_the_same_message(store):
    producer, one = await a_pair(store)
    other = await store.consumer(QUEUE)
    sent = await producer.enqueue_batch(list(range(40)))
    taken = await asyncio.gather(*(c.dequeue(4) for c in [one, other] * 10))
    ids = [m.id for batch in taken for m in batch]
    assert sorted(ids) == sent


async def test_a_message_is_delivered_again_when_its_lock_is_over(store):
    producer, consumer = await a_pair(store)
    other = await store.consumer(QUEUE)
    sent = await producer.enqueue(1)
    [first] = await consumer.dequeue_at(1, 30, at(100))
    assert await other.dequeue_at(1, 30, at(129)) == []
    [again] = await other.dequeue_at(1, 30, at(131))
    assert (first.id, again.id) == (sent, sent)
    assert (first.read_ct, again.read_ct) == (1, 2)
    assert again.consumer_worker_id == other.worker_id


async def test_the_same_consumer_gets_what_it_let_lapse(store):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue(1)
    await consumer.dequeue_at(1, 30, at(100))
    assert [m.id for m in await consumer.dequeue_at(1, 30, at(140))] == [sent]


async def test_the_first_delivery_is_remembered(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    [first] = await consumer.dequeue_at(1, 30, at(100))
    [again] = await consumer.dequeue_at(1, 30, at(140))
    assert again.dequeued_at == first.dequeued_at


async def test_after_so_many_deliveries_a_message_is_delivered_no_more(dsn):
    config = pgqrs.Config(dsn)
    config.max_read_ct = 2
    async with pgqrs.connect_with(config) as store:
        producer, consumer = await a_pair(store)
        await producer.enqueue(1)
        deliveries = [len(await consumer.dequeue_at(1, 10, at(n * 100))) for n in range(1, 6)]
        assert deliveries == [1, 1, 0, 0, 0]
        assert await (await store.get_messages()).count() == 1


async def test_the_default_is_five_deliveries(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    for n in range(1, 6):
        [message] = await consumer.dequeue_at(1, 10, at(n * 100))
        assert message.read_ct == n
    assert await consumer.dequeue_at(1, 10, at(900)) == []


async def test_deliveries_that_ended_in_a_release_count_as_well(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue(1)
    for n in range(1, 6):
        [message] = await consumer.dequeue()
        assert message.read_ct == n
        await consumer.release_messages([message.id])
    assert await consumer.dequeue() == []


@pytest.mark.parametrize("size", [-1, 1.5, "2", True])
async def test_a_batch_that_is_no_whole_number_is_refused(store, size):
    _, consumer = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="whole number"):
        await consumer.dequeue(size)


# Ownership


async def test_the_owner_archives_once(store):
    consumer, message = await a_held_message(store)
    assert await consumer.archive(message.id) is True
    assert await consumer.archive(message.id) is False
    assert await consumer.dequeue_at(1, 30, at(9999)) == []


async def test_an_archived_message_is_kept_with_who_had_it(store):
    consumer, message = await a_held_message(store, {"a": 1})
    await consumer.archive(message.id)
    [kept] = await (await store.get_messages()).list_archived_by_queue(message.queue_id)
    assert (kept.id, kept.payload) == (message.id, {"a": 1})
    assert kept.consumer_worker_id == consumer.worker_id
    assert abs(seconds_from_now(kept.archived_at)) < 5


async def test_the_owner_deletes_once_and_nothing_is_kept(store):
    consumer, message = await a_held_message(store)
    assert await consumer.delete(message.id) is True
    assert await consumer.delete(message.id) is False
    messages = await store.get_messages()
    assert await messages.count() == 0
    assert await messages.list_archived_by_queue(message.queue_id) == []


async def test_a_message_with_a_run_is_not_deleted(store):
    await pgqrs.workflow().name("job").store(store).create()
    await pgqrs.workflow().name("job").store(store).trigger(1).execute()
    consumer = await store.consumer("job")
    [message] = await consumer.dequeue()
    await pgqrs.run().message(message).store(store).execute()
    with pytest.raises(pgqrs.ValidationError, match="archive it instead"):
        await consumer.delete(message.id)
    assert await consumer.archive(message.id)


ENDS_OR_MOVES = {
    "archive": (lambda c, i: c.archive(i), False),
    "archive_many": (lambda c, i: c.archive_many([i]), [False]),
    "delete": (lambda c, i: c.delete(i), False),
    "delete_many": (lambda c, i: c.delete_many([i]), [False]),
    "extend_vt": (lambda c, i: c.extend_vt(i, 60), False),
    "release_with_visibility": (lambda c, i: c.release_with_visibility(i, at(60)), False),
    "release_messages": (lambda c, i: c.release_messages([i]), 0),
}


@pytest.mark.parametrize("call,refusal", ENDS_OR_MOVES.values(), ids=ENDS_OR_MOVES)
async def test_who_is_not_the_owner_changes_nothing_and_is_told_so(store, call, refusal):
    consumer, message = await a_held_message(store)
    stranger = await store.consumer(QUEUE)
    assert await call(stranger, message.id) == refusal
    [held] = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert held == message


@pytest.mark.parametrize("call,refusal", ENDS_OR_MOVES.values(), ids=ENDS_OR_MOVES)
async def test_of_a_message_that_is_not_there_nobody_is_the_owner(store, call, refusal):
    _, consumer = await a_pair(store)
    assert await call(consumer, 4711) == refusal


@pytest.mark.parametrize("call,refusal", ENDS_OR_MOVES.values(), ids=ENDS_OR_MOVES)
async def test_a_message_that_waits_has_no_owner(store, call, refusal):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue(1)
    assert await call(consumer, sent) == refusal
    assert [m.id for m in await consumer.dequeue()] == [sent]


@pytest.mark.parametrize("call,refusal", ENDS_OR_MOVES.values(), ids=ENDS_OR_MOVES)
async def test_the_owner_that_let_it_lapse_still_owns_it(store, call, refusal):
    producer, consumer = await a_pair(store)
    sent = await producer.enqueue_at([1], at(-1000))
    await consumer.dequeue_at(1, 30, at(-900))
    assert await call(consumer, sent[0]) != refusal


@pytest.mark.parametrize("call,refusal", ENDS_OR_MOVES.values(), ids=ENDS_OR_MOVES)
async def test_until_somebody_else_has_claimed_it(store, call, refusal):
    producer, consumer = await a_pair(store)
    other = await store.consumer(QUEUE)
    sent = await producer.enqueue_at([1], at(-1000))
    await consumer.dequeue_at(1, 30, at(-900))
    [message] = await other.dequeue()
    assert message.id == sent[0]
    assert await call(consumer, message.id) == refusal
    assert await call(other, message.id) != refusal


@pytest.mark.parametrize("call,refusal", ENDS_OR_MOVES.values(), ids=ENDS_OR_MOVES)
async def test_who_has_ended_or_released_it_is_the_owner_no_more(store, call, refusal):
    consumer, message = await a_held_message(store)
    await consumer.release_messages([message.id])
    assert await call(consumer, message.id) == refusal
    [message] = await consumer.dequeue()
    await consumer.archive(message.id)
    assert await call(consumer, message.id) == refusal


async def test_many_are_archived_in_the_order_asked(store):
    producer, consumer = await a_pair(store)
    ids = await producer.enqueue_batch([1, 2, 3])
    await consumer.dequeue(2)
    a, b, c = ids
    assert await consumer.archive_many([c, b, 999, a]) == [False, True, False, True]
    assert await consumer.archive_many([]) == []


async def test_many_are_deleted_in_the_order_asked(store):
    producer, consumer = await a_pair(store)
    a, b, c = await producer.enqueue_batch([1, 2, 3])
    await consumer.dequeue(2)
    assert await consumer.delete_many([c, b, 999, a]) == [False, True, False, True]
    assert await consumer.delete_many([]) == []


# Giving back


async def test_a_lock_is_extended_by_so_much(store):
    consumer, message = await a_held_message(store)
    assert await consumer.extend_vt(message.id, 100) is True
    [held] = await pgqrs.admin(store).get_worker_messages(consumer.worker_id)
    assert abs((moment(held.vt) - moment(message.vt)).total_seconds() - 100) < 0.01
    other = await store.consumer(QUEUE)
    assert await other.dequeue_at(1, 30, at(60)) == []


async def test_what_is_released_is_due_at_once(store):
    consumer, message = await a_held_message(store)
    other = await store.consumer(QUEUE)
    assert await consumer.release_messages([message.id]) == 1
    [again] = await other.dequeue()
    assert (again.id, again.read_ct) == (message.id, 2)


async def test_releasing_counts_those_that_were_its_own(store):
    producer, consumer = await a_pair(store)
    ids = await producer.enqueue_batch([1, 2, 3])
    await consumer.dequeue(2)
    assert await consumer.release_messages([*ids, 999]) == 2
    assert await consumer.release_messages([]) == 0


async def test_what_is_released_for_later_is_due_then(store):
    consumer, message = await a_held_message(store)
    assert await consumer.release_with_visibility(message.id, at(600)) is True
    assert await consumer.dequeue() == []
    assert await consumer.dequeue_at(1, 30, at(599)) == []
    assert [m.id for m in await consumer.dequeue_at(1, 30, at(601))] == [message.id]


async def test_what_is_released_belongs_to_nobody(store):
    consumer, message = await a_held_message(store)
    await consumer.release_with_visibility(message.id, at(600))
    assert await pgqrs.admin(store).get_worker_messages(consumer.worker_id) == []
