"""`pgqrs.dequeue()`."""

import asyncio

from look import at, seconds_from_now, section

import pgqrs


@section
async def builder(look):
    """What `pgqrs.dequeue()` says of itself, and what it refuses."""
    store = await look.installed()
    await store.queue("q")
    consumer = await store.consumer("q")

    async def handler(message): ...

    made = pgqrs.dequeue()
    look.tell("made", made)
    look.tell("defaults", (made.queue, made.batch_size, made.poll_interval_ms, made.has_worker()))
    for label, call in (("worker", lambda: made.worker(consumer)), ("batch", lambda: made.batch(3)), ("from_queue", lambda: made.from_queue("q")),
                        ("poll_interval", lambda: made.poll_interval(20)), ("at", lambda: made.at("2100-01-01T00:00:00Z")),
                        ("handle", lambda: made.handle(handler))):  # fmt: skip
        look.tell(f"{label} returns itself", call() is made)
    look.tell("told", (made.queue, made.batch_size, made.poll_interval_ms, made.has_worker()))
    new = pgqrs.dequeue
    await look.see("no handler", new().from_queue("q").poll, store)
    await look.see("two handlers", new().from_queue("q").handle(handler).handle_batch(handler).poll, store)
    await look.see("no queue", new().handle(handler).poll, store)
    await look.see("queue that is not there", new().from_queue("none").handle(handler).poll, store)
    await look.see("batch for a single handler", new().from_queue("q").batch(2).handle(handler).poll, store)
    await look.see("bad time", lambda: new().at("soon"))
    await look.see("negative batch", lambda: new().batch(-1))
    await look.see("negative interval", lambda: new().poll_interval(-1))
    await look.see("a number for a handler", lambda: new().handle(5))
    await look.see("a function for a workflow", lambda: new().handle_workflow(handler))
    await look.see("low level builder", pgqrs.dequeue_builder)
    await look.see("without a store", new().from_queue("q").handle(handler).poll, None)


async def polled(look, label, store, consumer, builder, until):
    """Polls until `until()` is true, interrupts the consumer, and tells how the poll ended."""
    poll = asyncio.ensure_future(builder.poll(store))
    for _ in range(400):
        if until() or poll.done():
            break
        await asyncio.sleep(0.02)
    look.tell(f"{label}: ended by itself", poll.done())
    # 0.15.3's worker is Ready for a moment between two looks at the queue.
    while not poll.done():
        try:
            await consumer.interrupt()
            break
        except pgqrs.StateTransitionError:
            await asyncio.sleep(0.005)
    await look.see(f"{label}: poll", lambda: poll)
    look.tell(f"{label}: status after", await consumer.status())


@section
async def polling(look):
    store = await look.installed()
    await store.queue("q")
    producer = await store.producer("q")
    seen = []

    async def handler(message):
        seen.append(message)

    async def batches(messages):
        seen.append(sorted(m.payload for m in messages))

    async def failing(message):
        raise LookupError("no")

    await pgqrs.enqueue_batch(producer, ["a", "b"])
    consumer = await store.consumer("q")
    one = pgqrs.dequeue().worker(consumer).poll_interval(20).handle(handler)
    await polled(look, "one by one", store, consumer, one, lambda: len(seen) == 2)
    look.tell("handled", sorted(m.payload for m in seen))
    look.tell("held for", {seconds_from_now(m.vt) for m in seen})
    look.tell("live", await (await store.get_messages()).count())
    await look.see(
        "again with a suspended worker", pgqrs.dequeue().worker(consumer).handle(handler).poll, store
    )
    await look.see("interrupt a suspended one", consumer.interrupt)
    await look.see("dequeue with a suspended one", consumer.dequeue)
    seen.clear()
    await pgqrs.enqueue_batch(producer, ["a", "b", "c"])
    consumer = await store.consumer("q")
    many = pgqrs.dequeue().worker(consumer).batch(2).poll_interval(20).handle_batch(batches)
    await polled(look, "batches", store, consumer, many, lambda: sum(map(len, seen)) == 3)
    look.tell("batch sizes", [len(batch) for batch in seen])
    await producer.enqueue("d")
    consumer = await store.consumer("q")
    await look.see("failing", pgqrs.dequeue().worker(consumer).handle(failing).poll, store)
    look.tell("failing: status after", await consumer.status())
    look.tell(
        "failing: given back", [(m.payload, m.read_ct) for m in await (await store.consumer("q")).dequeue()]
    )
    await producer.enqueue("e")
    await look.see(
        "failing batch", pgqrs.dequeue().from_queue("q").batch(2).handle_batch(failing).poll, store
    )
    look.tell("workers", sorted(str(w.status) for w in await (await store.get_workers()).list()))


@section
async def polling_at(look):
    store = await look.installed()
    await store.queue("q")
    producer, consumer = await store.producer("q"), await store.consumer("q")
    seen = []

    async def handler(message):
        seen.append((message.payload, seconds_from_now(message.vt), seconds_from_now(message.dequeued_at)))

    await producer.enqueue_delayed("later", 1000)
    later = pgqrs.dequeue().worker(consumer).at(at(2000)).poll_interval(20).handle(handler)
    await polled(look, "at", store, consumer, later, lambda: seen)
    look.tell("handled", seen)
