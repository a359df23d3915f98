"""Connecting, installing, queues and workers."""

import asyncio
import os

from look import seconds_from_now, section

import pgqrs


@section
async def connecting(look):
    dsn = os.environ["PGQRS_DSN"]
    await look.see("connect", pgqrs.connect, dsn)
    await look.see("connect_with", pgqrs.connect_with, look.config)
    await look.see("by name", lambda: pgqrs.connect(dsn=dsn))
    await look.see("other scheme", pgqrs.connect, "mysql://a@b/c")
    await look.see("no scheme", pgqrs.connect, "nonsense")
    await look.see("empty", pgqrs.connect, "")
    await look.see("postgres scheme", pgqrs.connect, dsn.replace("postgresql://", "postgres://"))
    await look.see("no such database", pgqrs.connect, dsn + "_not_there")
    await look.see("no such schema", pgqrs.connect_with, pgqrs.Config(dsn, schema="not_there"))
    await look.see("dsn for a config", pgqrs.connect_with, dsn)
    await look.see("admin of no store", pgqrs.admin, 5)
    two = pgqrs.Config(dsn, schema=look.name, max_connections=2)
    stores = [await pgqrs.connect_with(two) for _ in range(3)]
    await look.see("many stores", asyncio.gather, *(s.bootstrap() for s in stores))


@section
async def installing(look):
    store = await pgqrs.connect_with(look.config)
    admin = pgqrs.admin(store)
    await look.see("verify before", admin.verify)
    await look.see("queue before", store.queue, "q")
    await look.see("bootstrap", store.bootstrap)
    await look.see("verify after bootstrap", admin.verify)
    await look.see("install", admin.install)
    await look.see("install again", admin.install)
    await look.see("verify", admin.verify)
    await look.see("bootstrap again", store.bootstrap)
    await look.see("admin by its class", lambda: pgqrs.Admin(store))
    await look.see("install by its class", lambda: pgqrs.Admin(store).install())
    nowhere = pgqrs.Config(os.environ["PGQRS_DSN"], schema="not_there")

    async def install():
        await pgqrs.admin(await pgqrs.connect_with(nowhere)).install()

    await look.see("install in no schema", install)
    await look.see("first queue", store.queue, "q")
    await look.see("first message", pgqrs.produce, store, "q", 1)
    await look.see("first workflow", pgqrs.workflow().name("w").store(store).create)
    message = await look.see("first trigger", pgqrs.workflow().name("w").store(store).trigger(1).execute)
    run = await look.see("first run", pgqrs.run().message(message).store(store).execute)
    look.tell("first run id", run.id())


@section
async def queues(look):
    store = await look.installed()
    await look.see("made", store.queue, "q")
    await look.see("made twice", store.queue, "q")
    for label, name in (("spaces", " a b "), ("umlaut", "ä/ö")):
        await look.see(f"named {label}", store.queue, name)
    handle = await look.see("handle", store.get_queues)
    await look.see("count", handle.count)
    await look.see("producer of none", store.producer, "none")
    await look.see("consumer of none", store.consumer, "none")
    await look.see("iterator of none", store.consume_iter("none").__anext__)
    await look.see("produce to none", pgqrs.produce, store, "none", 1)
    await look.see("consume from none", pgqrs.consume, store, "none", print)
    await look.see("delete none", look.admin.delete_queue, "none")
    await look.see("delete", look.admin.delete_queue, "q")
    await look.see("deleted", store.producer, "q")
    await look.see("made again", store.queue, "q")
    await pgqrs.produce(store, "q", 1)
    await look.see("delete with a message", look.admin.delete_queue, "q")
    await store.queue("worked")
    await store.producer("worked")
    await look.see("delete with a worker", look.admin.delete_queue, "worked")
    await pgqrs.workflow().name("w").store(store).create()
    await look.see("delete a workflow's", look.admin.delete_queue, "w")
    await look.see("count after", handle.count)
    for label, name in (("empty", ""), ("long", "x" * 300), ("a number", 5)):
        await look.see(f"named {label}", store.queue, name)


@section
async def workers(look):
    store = await look.installed()
    await store.queue("q")
    producer = await look.see("producer", store.producer, "q")
    consumer = await look.see("consumer", store.consumer, "q")
    look.tell("ids", (producer.worker_id, consumer.worker_id))
    handle = await look.see("handle", store.get_workers)
    await look.see("count", handle.count)
    record = await handle.get(consumer.worker_id)
    look.tell("record", (record.id, record.status, record.queue_id, bool(record.name), record.heartbeat_at))
    look.tell("heartbeat is now", abs(seconds_from_now(record.heartbeat_at)) < 5)
    look.tell("names differ", len({w.name for w in await handle.list()}))
    look.tell("order of the list", [w.id for w in await handle.list()])
    await look.see("get none", handle.get, 99)
    await look.see("status", consumer.status)
    await look.see("interrupt a ready one", consumer.interrupt)
    await look.see("status then", consumer.status)
    for kind in (pgqrs.Producer, pgqrs.Consumer):
        make = kind.new_producer if kind is pgqrs.Producer else kind.new_consumer
        await look.see(f"new {kind.__name__}", make, look.admin, "q", f"a {kind.__name__}")
        await look.see(f"new {kind.__name__} of the same name", make, look.admin, "q", f"a {kind.__name__}")
        await look.see(f"new {kind.__name__} of no queue", make, look.admin, "none", "x")
    look.tell("given names", sorted(w.name for w in await handle.list() if w.name.startswith("a ")))
