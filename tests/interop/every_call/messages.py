"""Producing and consuming."""

import asyncio
import math
import os
from datetime import UTC, datetime

from look import TIME, at, seconds_from_now, section

import pgqrs


@section
async def payloads(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer = await store.producer("q"), await store.consumer("q")
    for label, value in PAYLOADS.items():
        if await look.see(f"{label} sent", producer.enqueue, value) is not None:
            [message] = await consumer.dequeue()
            look.tell(f"{label} read", (message.payload, type(message.payload).__name__))


class Thing:
    pass


PAYLOADS = {
    "null": None, "true": True, "zero": 0, "int": -5, "big int": 2**63 - 1, "bigger int": 2**63, "unsigned": 2**64 - 1,
    "huge int": 2**70, "float": 1.5, "whole float": 2.0, "small float": 1e-300, "big float": 1e300, "1e16": 1e16, "text": "täxt\n\u2028", "empty text": "",
    "list": [1, "a", None], "tuple": (1, 2), "empty list": [], "dict": {"b": 1, "a": {"c": [1.5]}}, "empty dict": {},
    "int key": {1: "a"}, "none key": {None: 1}, "nan": math.nan, "infinity": math.inf, "nul": "a\0b", "surrogate": "\ud800", "bytes": b"a", "set": {1},
    "datetime": datetime(2024, 1, 1, tzinfo=UTC), "object": Thing(), "bool key": {True: 1},
}  # fmt: skip


@section
async def limits(look):
    await look.installed()
    await look.store.queue("q")
    for label, setting, value, payloads in LIMITS:
        config = pgqrs.Config(os.environ["PGQRS_DSN"], schema=look.name)
        setattr(config, setting, value)
        store = await pgqrs.connect_with(config)
        producer = await store.producer("q")
        for n, payload in enumerate(payloads):
            await look.see(f"{label} {n} enqueue", producer.enqueue, payload)
            await look.see(f"{label} {n} produce", pgqrs.produce, store, "q", payload)
        await look.see(f"{label} batch", pgqrs.enqueue_batch, producer, payloads)
        await look.see(f"{label} produce_batch", pgqrs.produce_batch, store, "q", payloads)
        await look.see(f"{label} delayed", producer.enqueue_delayed, payloads[-1], 1)
    await look.see("count", (await look.store.get_messages()).count)


def nested(depth):
    return {"a": nested(depth - 1)} if depth > 1 else {"a": 1}


LIMITS = (
    ("size", "max_payload_size_bytes", 20, ("x" * 18, "x" * 19, [1] * 20)),
    ("string", "max_string_length", 5, ("x" * 5, "x" * 6, "ä" * 5, {"a": ["x" * 6]}, {"k" * 6: 1})),
    (
        "depth",
        "max_object_depth",
        2,
        (1, nested(1), nested(2), nested(3), nested(4), [[1]], [[[1]]], [[[[1]]]]),
    ),
    ("default depth", "max_object_depth", 5, (nested(4), nested(5), nested(6), nested(7))),
    ("forbidden", "forbidden_keys", ["no"], ({"yes": 1}, {"no": 1}, {"a": {"no": 1}}, [{"no": 1}], "no")),
    (
        "default forbidden",
        "max_read_ct",
        5,
        ({"__proto__": 1}, {"constructor": 1}, {"a": [{"constructor": 1}]}),
    ),
    (
        "required",
        "required_keys",
        ["must"],
        ({"must": 1}, {"may": 1}, {"a": {"must": 1}}, 1, [], [{"may": 1}]),
    ),
)


@section
async def rates(look):
    await look.installed()
    await look.store.queue("q")
    config = pgqrs.Config(os.environ["PGQRS_DSN"], schema=look.name)
    config.max_enqueue_per_second, config.max_enqueue_burst = 1, 3
    store = await pgqrs.connect_with(config)
    producer = await store.producer("q")
    for n in range(5):
        await look.see(f"enqueue {n}", producer.enqueue, n)
    await look.see("delayed", producer.enqueue_delayed, 1, 0)
    await look.see("batch over the burst", pgqrs.enqueue_batch, await store.producer("q"), [1] * 4)
    await look.see("batch of the burst", pgqrs.enqueue_batch, await store.producer("q"), [1] * 3)
    for n in range(5):
        await look.see(f"produce {n}", pgqrs.produce, store, "q", n)
    config.max_enqueue_per_second = None
    unlimited = await (await pgqrs.connect_with(config)).producer("q")
    for n in range(9):
        await look.see(f"no limit {n}", unlimited.enqueue, n)
    config.max_enqueue_per_second, config.max_enqueue_burst = 2, None
    no_burst = await (await pgqrs.connect_with(config)).producer("q")
    for n in range(4):
        await look.see(f"no burst {n}", no_burst.enqueue, n)
    await look.see("produce a batch over the burst", pgqrs.produce_batch, store, "q", [1] * 9)


@section
async def producing(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer = await store.producer("q"), await store.consumer("q")
    await look.see("enqueue", producer.enqueue, "first")
    await look.see("enqueue_delayed", producer.enqueue_delayed, "later", 60)
    await look.see("by name", lambda: producer.enqueue_delayed(payload="now", delay_seconds=0))
    await look.see("batch", pgqrs.enqueue_batch, producer, ["a", "b"])
    await look.see("empty batch", pgqrs.enqueue_batch, producer, [])
    await look.see("tuple for a batch", pgqrs.enqueue_batch, producer, ("c", "d"))
    await look.see("module enqueue", pgqrs.enqueue, producer, "e")
    await look.see("module enqueue_delayed", pgqrs.enqueue_delayed, producer, "f", 60)
    await look.see("produce", pgqrs.produce, store, "q", "g")
    await look.see("produce_batch", pgqrs.produce_batch, store, "q", ["h", "i"])
    await look.see("produce an empty batch", pgqrs.produce_batch, store, "q", [])
    await look.see("produce on no store", pgqrs.produce, 5, "q", "h")
    await look.see("count", (await store.get_messages()).count)
    messages = await consumer.dequeue(50)
    look.tell("payloads", sorted(m.payload for m in messages))
    look.tell(
        "producers",
        sorted(
            (m.payload, m.producer_worker_id)
            for m in messages
            if (m.payload != "g" and m.payload < "h") or m.payload > "i"
        ),
    )
    look.tell("producers of produce", {m.producer_worker_id is None for m in messages if m.payload in "ghi"})
    look.tell(
        "shape of a time",
        [TIME.sub("<time>", t) for t in (messages[0].vt, messages[0].enqueued_at, messages[0].dequeued_at)],
    )
    look.tell("workers", await (await store.get_workers()).count())
    await look.see("negative delay", producer.enqueue_delayed, "past", -60)
    await look.see("text for a delay", producer.enqueue_delayed, "x", "x")
    await look.see("text for a batch", pgqrs.enqueue_batch, producer, "ab")
    await look.see("half a second", producer.enqueue_delayed, "x", 0.5)


@section
async def consuming(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer, other = (
        await store.producer("q"),
        await store.consumer("q"),
        await store.consumer("q"),
    )
    await look.see("nothing there", consumer.dequeue)
    await look.see("nothing there, many", consumer.dequeue, 10)
    await pgqrs.enqueue_batch(producer, list("abcdefghi"))
    [first] = await look.see("one", consumer.dequeue) or [None]
    look.tell("one for", seconds_from_now(first.vt))
    look.tell("dequeued now", seconds_from_now(first.dequeued_at) in (0, -1))
    two = await look.see("two", consumer.dequeue, 2)
    look.tell("two for", {seconds_from_now(m.vt) for m in two})
    await look.see("by name", lambda: other.dequeue(batch_size=1))
    [held] = await look.see("with delay", consumer.dequeue_many_with_delay, 1, 90)
    look.tell("with delay for", seconds_from_now(held.vt))
    [by_name] = await consumer.dequeue_many_with_delay(limit=1, vt=5)
    look.tell("with delay by name", (by_name.id, seconds_from_now(by_name.vt)))
    await look.see("extend", consumer.extend_vt, held.id, 100)
    await look.see("extend by 0", consumer.extend_vt, held.id, 0)
    await look.see("extend another's", other.extend_vt, held.id, 1)
    await look.see("extend none", consumer.extend_vt, 99, 1)
    await look.see("module dequeue", pgqrs.dequeue, consumer, 1)
    await look.see("module extend_vt", pgqrs.extend_vt, consumer, held, 1)
    await look.see("module dequeue by name", lambda: pgqrs.dequeue(consumer=consumer, batch_size=9))
    await look.see("count", (await store.get_messages()).count)
    await look.see("status", consumer.status)
    await look.see("0 wanted", consumer.dequeue_many_with_delay, 0, 5)
    await look.see("a past lock", consumer.dequeue_many_with_delay, 1, 0)


@section
async def ending(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer, other = (
        await store.producer("q"),
        await store.consumer("q"),
        await store.consumer("q"),
    )
    await pgqrs.enqueue_batch(producer, list(range(20)))
    m = [None, *sorted(await consumer.dequeue(16), key=lambda m: m.id)]
    await look.see("archive another's", other.archive, 1)
    await look.see("archive", consumer.archive, 1)
    await look.see("archive again", consumer.archive, 1)
    await look.see("archive none", consumer.archive, 99)
    await look.see("archive unclaimed", consumer.archive, 20)
    await look.see("archive_many", consumer.archive_many, [3, 2, 99, 1, 2])
    await look.see("archive_many of nothing", consumer.archive_many, [])
    await look.see("delete another's", other.delete, 4)
    await look.see("delete", consumer.delete, 4)
    await look.see("delete again", consumer.delete, 4)
    await look.see("delete archived", consumer.delete, 1)
    await look.see("delete unclaimed", consumer.delete, 20)
    await look.see("delete_many", consumer.delete_many, [6, 5, 99, 1])
    await look.see("delete_many of nothing", consumer.delete_many, [])
    await look.see("module archive", pgqrs.archive, consumer, m[7])
    await look.see("module archive again", pgqrs.archive, consumer, m[7])
    await look.see("module archive_batch", pgqrs.archive_batch, consumer, [m[8], m[7]])
    await look.see("module archive_batch of nothing", pgqrs.archive_batch, consumer, [])
    await look.see("module delete", pgqrs.delete, consumer, m[9])
    await look.see("module delete again", pgqrs.delete, consumer, m[9])
    await look.see("module archive another's", pgqrs.archive, other, m[10])
    await look.see("an id as a message", pgqrs.archive, consumer, 10)
    archived = await (await store.get_messages()).list_archived_by_queue(1)
    for message in sorted(archived, key=lambda m: m.id):
        look.tell(f"archived {message.id}", message)
    await look.see("archived of no queue", (await store.get_messages()).list_archived_by_queue, 99)
    await look.see("count", (await store.get_messages()).count)
    await look.see("extend archived", consumer.extend_vt, 1, 10)
    await look.see("text for an id", consumer.archive, "1")
    await look.see("negative id", consumer.archive, -1)


@section
async def releasing(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer, other = (
        await store.producer("q"),
        await store.consumer("q"),
        await store.consumer("q"),
    )
    await pgqrs.enqueue_batch(producer, list(range(6)))
    await consumer.dequeue(6)
    await look.see("release another's", other.release_messages, [1])
    await look.see("release", consumer.release_messages, [1, 2, 99])
    await look.see("release again", consumer.release_messages, [1])
    await look.see("release nothing", consumer.release_messages, [])
    await look.see("archive released", consumer.archive, 1)
    again = await other.dequeue(9)
    look.tell("taken again", sorted((m.id, m.read_ct, m.consumer_worker_id) for m in again))
    await look.see("archive what another took", consumer.archive, 1)
    await look.see("later", consumer.release_with_visibility, 3, at(60))
    await look.see("later, another's", consumer.release_with_visibility, 1, at(60))
    await look.see("later, none", consumer.release_with_visibility, 99, at(60))
    await look.see("in the past", consumer.release_with_visibility, 4, at(-60))
    await look.see("with Z", consumer.release_with_visibility, 5, "2020-01-01T00:00:00Z")
    await look.see("nonsense time", consumer.release_with_visibility, 6, "tomorrow")
    await look.see("no zone", consumer.release_with_visibility, 6, "2020-01-01T00:00:00")
    await look.see("date only", consumer.release_with_visibility, 6, "2020-01-01")
    look.tell("due again", sorted((m.id, m.read_ct) for m in await other.dequeue(9)))
    await look.see("release a worker's", look.admin.release_worker_messages, other.worker_id)
    await look.see("release a worker's again", look.admin.release_worker_messages, other.worker_id)
    await look.see("release no worker's", look.admin.release_worker_messages, 99)
    await look.see("archive what was released", other.archive, 1)
    look.tell("due then", sorted((m.id, m.read_ct, m.consumer_worker_id) for m in await consumer.dequeue(9)))


@section
async def times(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer, other = (
        await store.producer("q"),
        await store.consumer("q"),
        await store.consumer("q"),
    )
    await producer.enqueue_delayed("later", 1000)
    await look.see("now", consumer.dequeue)
    await look.see("before it is due", consumer.dequeue_at, 1, 30, at(900))
    [message] = await look.see("after it is due", consumer.dequeue_at, 1, 30, at(1100))
    look.tell("held until", seconds_from_now(message.vt))
    look.tell("dequeued", seconds_from_now(message.dequeued_at))
    await look.see("held, then", other.dequeue_at, 1, 30, at(1110))
    await look.see("archive", consumer.archive, message.id)
    await producer.enqueue("x")
    await look.see("before it was there", consumer.dequeue_at, 1, 30, at(-100))
    for label, time in (("Z", "2100-01-01T00:00:00Z"), ("offset", "2100-01-01T00:00:00+02:00"), ("fraction", "2100-01-01T00:00:00.123456789Z"),
                        ("space", "2100-01-01 00:00:00+00:00"), ("no zone", "2100-01-01T00:00:00"), ("date", "2100-01-01"), ("text", "soon"), ("number", 5)):  # fmt: skip
        found = await look.see(label, consumer.dequeue_at, 1, 30, time)
        for message in found or ():
            look.tell(
                f"{label} until",
                (message.vt, message.dequeued_at) if label != "fraction" else message.vt[:19],
            )
            await consumer.release_messages([message.id])


@section
async def worn_out(look):
    """Messages at the end of their deliveries, and workers that hold what they do not work on."""
    await look.installed()
    look.config.max_read_ct = 2
    store = await pgqrs.connect_with(look.config)
    await store.queue("q")
    producer, consumer, other = (
        await store.producer("q"),
        await store.consumer("q"),
        await store.consumer("q"),
    )
    await producer.enqueue("x")
    for n in range(4):
        await look.see(f"delivery {n}", consumer.dequeue)
        await look.see(f"release {n}", consumer.release_messages, [1])
    await look.see("count", (await store.get_messages()).count)
    await look.see("archived", (await store.get_messages()).list_archived_by_queue, 1)
    await producer.enqueue("y")
    [held] = await consumer.dequeue_many_with_delay(1, 1)
    await look.see("still mine", other.dequeue)
    await asyncio.sleep(1.2)
    await look.see("after its lock, not claimed", consumer.extend_vt, held.id, 0)
    await look.see("after its lock, to another", other.dequeue)
    await look.see("after its lock, archive", consumer.archive, held.id)
    look.config.default_lock_time_seconds = 7
    patient = await (await pgqrs.connect_with(look.config)).consumer("q")
    await producer.enqueue("z")
    [message] = await patient.dequeue()
    look.tell("lock time that is set", seconds_from_now(message.vt))


@section
async def iterating(look):
    store = await look.installed()
    await store.queue("q")
    producer = await store.producer("q")
    workers = await store.get_workers()
    await pgqrs.enqueue_batch(producer, list("abcde"))
    found = []
    async with store.consume_iter("q", poll_interval_ms=20) as messages:
        look.tell("itself", messages)
        look.tell("its own iterator", messages.__aiter__() is messages)
        async for message in messages:
            found.append(message)
            look.tell(
                f"archive {len(found)}",
                await messages.archive(message.id) if len(found) != 2 else await messages.delete(message.id),
            )
            if len(found) == 4:
                await look.see("archive again", messages.archive, message.id)
                await look.see("archive none", messages.archive, 99)
                await look.see("delete none", messages.delete, 99)
                break
    look.tell("found", sorted(m.payload for m in found))
    look.tell("read_ct", {m.read_ct for m in found})
    look.tell("statuses after", sorted(str(w.status) for w in await workers.list()))
    alone = store.consume_iter("q")
    await look.see("without with", alone.__anext__)
    await look.see("close", alone.close)
    look.tell("statuses then", sorted(str(w.status) for w in await workers.list()))
    look.tell("given back", [m.id for m in await (await store.consumer("q")).dequeue(9)])
    await look.see("close after close", messages.close)
    waiting = store.consume_iter("q", 20)
    soon = asyncio.ensure_future(waiting.__anext__())
    await asyncio.sleep(0.1)
    await producer.enqueue("late")
    look.tell("waited for", (await soon).payload)
    await look.see("close with one in hand", waiting.close)
    await look.see("an exception passes", left_by_exception, store)
    await producer.enqueue("last")
    await look.see("next after close", messages.__anext__)
    await look.see("negative interval", store.consume_iter, "q", -1)


async def left_by_exception(store):
    async with store.consume_iter("q", 20):
        raise KeyError("mine")


@section
async def one_pass(look):
    """consume and consume_batch."""
    store = await look.installed()
    await store.queue("q")
    seen = []

    async def handler(message):
        seen.append(message)

    async def failing(message):
        raise LookupError("no")

    await look.see("nothing there", pgqrs.consume, store, "q", handler)
    await look.see("nothing there, batch", pgqrs.consume_batch, store, "q", 5, handler)
    look.tell("handled", seen)
    await pgqrs.produce_batch(store, "q", list("abcd"))
    await look.see("consume", pgqrs.consume, store, "q", handler)
    look.tell("handled one", (type(seen[0]).__name__, seen[0].read_ct, seen[0].payload in "abcd"))
    await look.see("failing", pgqrs.consume, store, "q", failing)
    await look.see("failing batch", pgqrs.consume_batch, store, "q", 2, failing)
    await look.see("live after", (await store.get_messages()).count)
    look.tell("archived", len(await (await store.get_messages()).list_archived_by_queue(1)))
