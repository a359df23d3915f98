"""What the tests of tests/interop have done by a program of its own, in either package: `python programs.py WHAT [argument …]`.

Only `import pgqrs` and the standard library; says what it found as one JSON document.
"""

import asyncio
import collections
import contextlib
import json
import os
import sys

import pgqrs
from pgqrs.decorators import workflow


async def template(store):
    """A hundred messages and ten runs, in every state that a database of 0.15.3 may be left in."""
    await pgqrs.admin(store).install()
    await store.queue("plain")
    producer, holder = await store.producer("plain"), await store.consumer("plain")
    await pgqrs.enqueue_batch(producer, [{"n": n, "text": "ä\n\"'"} for n in range(71)])
    await holder.dequeue_many_with_delay(10, 3600)
    await holder.archive_many([m.id for m in await holder.dequeue(10)])
    for _ in range(5):  # deliveries, the last that there are
        for message in await holder.dequeue(3):
            await holder.release_with_visibility(message.id, "2000-01-01T00:00:00Z")
    for n in range(5):
        await producer.enqueue_delayed([n, None, 1.5], 3600)
    await workers_in_every_status(store)

    await pgqrs.workflow().name("double").store(store).create()
    for n in range(14):
        await pgqrs.workflow().name("double").store(store).trigger(n).execute()
    await leave(store, "double", (queued, queued_and_held, running))
    await pgqrs.workflow().name("two_steps").store(store).create()
    for end in ENDS:
        await pgqrs.workflow().name("two_steps").store(store).trigger(end.__name__).execute()
    await leave(store, "two_steps", ENDS)


async def leave(store, name, ends):
    """Has each of the next messages, claimed, end in its own way; what it returns is done with the message."""
    consumer = await store.consumer(name)
    taken = await consumer.dequeue_many_with_delay(len(ends), 3600)
    for message, end in zip(sorted(taken, key=lambda m: m.id), ends, strict=True):
        done = await end(await pgqrs.run().message(message).store(store).execute())
        if done == "released":
            await consumer.release_messages([message.id])
        elif done == "archived":
            await consumer.archive(message.id)


async def queued(run):
    return "released"


async def queued_and_held(run): ...


async def running(run):
    await run.start()
    return "released"


async def first_done(run):
    """To be gone on with."""
    await run.start()
    await run.complete_step("first", "recorded by 0.15.3")
    return "released"


async def in_a_step(run):
    await run.start()
    await run.acquire_step("first")


async def to_be_retried(run):
    await run.start()
    await (await run.acquire_step("first")).guard.fail_transient("BUSY", "later", 3600.0)


async def paused(run):
    await run.start()
    await run.pause("look at it", 3600)


async def succeeded(run):
    await run.start()
    await run.complete_step("first", {"a": [1, None]})
    await run.success({"b": "ä"})
    return "archived"


async def failed(run):
    await run.start()
    await (await run.acquire_step("first")).guard.fail("broke")
    await run.fail("broke")
    return "archived"


async def failed_and_held(run):
    await run.fail("broke")


ENDS = (first_done, in_a_step, to_be_retried, paused, succeeded, failed, failed_and_held)


async def workers_in_every_status(store):
    """Ready there are already."""

    async def stuck(message):
        await asyncio.sleep(3600)

    await store.queue("busy")
    await pgqrs.produce_batch(store, "busy", [1, 2, 3])
    async with store.consume_iter("busy") as messages:
        await messages.archive((await messages.__anext__()).id)
    polls = []
    for interrupted in (False, True):
        consumer = await store.consumer("busy")
        poll = pgqrs.dequeue().worker(consumer).poll_interval(10).handle(stuck).poll(store)
        polls.append(asyncio.ensure_future(poll))
        await asyncio.sleep(0.3)
        if interrupted:
            await consumer.interrupt()
    suspended = await store.consumer("plain")
    poll = asyncio.ensure_future(
        pgqrs.dequeue()
        .worker(suspended)
        .at("2000-01-01T00:00:00Z")
        .poll_interval(10)
        .handle(stuck)
        .poll(store)
    )
    while not poll.done():
        await asyncio.sleep(0.01)
        with contextlib.suppress(pgqrs.StateTransitionError):
            await suspended.interrupt()
            await asyncio.wait([poll], timeout=5)
    poll.exception()


async def check(store):
    """install and verify, on whatever is there."""
    await pgqrs.admin(store).install()
    await pgqrs.admin(store).verify()


async def read(store):
    """Everything, counted by its state."""
    runs = await (await store.get_workflow_runs()).list()
    steps = await (await store.get_workflow_steps()).list()
    workers = await (await store.get_workers()).list()
    messages = await store.get_messages()
    archived = [
        len(await messages.list_archived_by_queue(queue))
        for queue in range(1, 1 + await (await store.get_queues()).count())
    ]
    return {
        "runs": collections.Counter(str(r.status) for r in runs),
        "results": collections.Counter(
            json.dumps(r.output) for r in runs if str(r.status).endswith("Success")
        ),
        "steps": collections.Counter(str(s.status) for s in steps),
        "workers": len(workers),
        "live": await messages.count(),
        "archived": sum(archived),
    }


async def trigger_and_wait(store, *inputs):
    """Triggers `double` for each, and waits for the results of the runs, of which somebody else takes care."""
    messages = [await pgqrs.workflow().name("double").store(store).trigger(int(x)).execute() for x in inputs]
    results = [await pgqrs.run().message(m).store(store).result() for m in messages]
    got = [await pgqrs.run().message(m).store(store).get() for m in messages]
    return {"results": results, "got": got}


async def create_and_trigger(store, name, value):
    """Another workflow, made and triggered; the id of its message."""
    await pgqrs.workflow().name(name).store(store).create()
    return (await pgqrs.workflow().name(name).store(store).trigger(value).execute()).id


async def enqueue(store, queue, count):
    """Payloads are their numbers. The ids."""
    producer = await store.producer(queue)
    return [
        id
        for n in range(0, int(count), 500)
        for id in await pgqrs.enqueue_batch(producer, list(range(n, min(n + 500, int(count)))))
    ]


async def take(store, queue, count):
    """Takes messages and archives them: [id, payload, read_ct, whether it was ours to archive] of each."""
    consumer = await store.consumer(queue)
    taken = await consumer.dequeue(int(count))
    return [[m.id, m.payload, m.read_ct, await consumer.archive(m.id)] for m in taken]


async def run_one(store, name):
    """Polls a workflow until it has run once."""
    consumer = await store.consumer(name)
    seen = []

    @workflow(name=name)
    async def theirs(run, given):
        seen.append(given)
        return ["run by 0.15.3", given]

    poll = asyncio.ensure_future(
        pgqrs.dequeue().worker(consumer).poll_interval(10).handle_workflow(theirs).poll(store)
    )
    messages = await store.get_messages()
    while not seen or await messages.count():  # noqa: ASYNC110 - what changes is in the database
        await asyncio.sleep(0.02)
    poll.cancel()
    return seen


async def consume(store, who, evidence, keeping):
    """Handles the messages of the queue `tasks` until there are none, each noted in the file. Claims are for a second; slow
    messages take longer, and are kept meanwhile if `keeping`. How many archivings were refused."""
    consumer = await store.consumer("tasks")
    refused = 0

    async def handle(message):
        nonlocal refused
        note(evidence, who, message.id)
        for _ in range(SLOW_BEATS if message.payload % SLOW_EVERY == 0 else 0):
            if keeping == "keeping":
                await consumer.extend_vt(message.id, 1)
            await asyncio.sleep(BEAT_S)
        refused += not await consumer.archive(message.id)

    while True:
        messages = await consumer.dequeue_many_with_delay(10, 1)
        await asyncio.gather(*map(handle, messages))
        if not messages:
            await asyncio.sleep(0.05)
            if await (await store.get_messages()).count() == 0:
                return refused


SLOW_EVERY, SLOW_BEATS, BEAT_S = 400, 8, 0.3


def note(evidence, who, message_id):
    file = os.open(evidence, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{who} {message_id}\n".encode())
    os.close(file)


async def main(what, *arguments):
    config = pgqrs.Config(os.environ["PGQRS_DSN"])
    config.max_enqueue_per_second = None
    store = await pgqrs.connect_with(config)
    print(json.dumps(await globals()[what](store, *arguments)))


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 90))
    sys.stdout.flush()
    os._exit(0)  # 0.15.3 now and then crashes as the interpreter ends
