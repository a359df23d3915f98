"""Typical code of a user's, which type checkers must find nothing wrong with. Never run."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pgqrs
from pgqrs import decorators


@dataclass
class Page:
    url: str
    words: int


@pgqrs.step
def fetch(url: str) -> str:
    return url


@pgqrs.step(retry=3, timeout="10m", memory="1 GiB")
def count(text: str, minimum: int = 1) -> int:
    return len(text.split()) + minimum


@pgqrs.step(retry=pgqrs.StepRetryPolicy(max_attempts=3, backoff=pgqrs.BackoffStrategy.fixed(1)))
async def slow(n: int) -> float:
    await asyncio.sleep(n)
    return n / 2


@pgqrs.workflow
def index(url: str, minimum: int = 1) -> Page:
    text = fetch(url)
    words: int = count(text, minimum=minimum)
    return Page(url, words)


@pgqrs.workflow(name="halve_it", timeout="1h")
async def halve(n: int) -> float:
    half: float = await slow(n)
    return half


@pgqrs.handler(queue="tasks")
def on_task(payload: dict[str, int]) -> None:
    print(payload["n"])


def blocking() -> None:
    with pgqrs.connect("sqlite://x.db") as store:
        store.install()
        handle = store.trigger(index, "https://…", minimum=2)
        page: Page = handle.result(timeout=60)
        half: float = store.trigger(halve, 3).result()
        status: pgqrs.WorkflowStatus = handle.status
        ids: list[int] = store.enqueue_many("tasks", [1, 2], delay=timedelta(seconds=1))
        print(page.words, half, status, ids, index("a").url, handle.cancel())
        with store.workers(index, halve, processes=2):
            pass
        queues: list[pgqrs.QueueCounts] = store.queues()
        print([q.queue_name for q in queues])
    store = pgqrs.connect().open()
    store.close()


async def awaited() -> None:
    config = pgqrs.Config("postgresql://localhost/x", schema="jobs", max_connections=4)
    config.max_read_ct = 3
    store = await pgqrs.connect_with(config)
    await pgqrs.admin(store).install()
    info: pgqrs.QueueInfo = await store.queue("tasks")
    producer: pgqrs.Producer = await store.producer(info.queue_name)
    consumer: pgqrs.Consumer = await store.consumer("tasks")
    message_id: int = await producer.enqueue({"n": 1})
    await producer.enqueue_delayed({"n": 2}, delay_seconds=5)
    messages: list[pgqrs.QueueMessage] = await consumer.dequeue(batch_size=10)
    done: list[bool] = await consumer.archive_many([m.id for m in messages])
    print(message_id, done, await pgqrs.produce(store, "tasks", {"n": 3}))

    async def handle(message: pgqrs.QueueMessage) -> None:
        print(message.payload, message.vt)

    async def handle_all(messages: Sequence[pgqrs.QueueMessage]) -> None:
        print(len(messages))

    await pgqrs.consume(store, "tasks", handle)
    await pgqrs.consume_batch(store, "tasks", 10, handle_all)
    await pgqrs.dequeue().worker(consumer).batch(1).poll_interval(50).handle(handle).poll(store)
    async with store.consume_iter("tasks", poll_interval_ms=50) as messages_of_tasks:
        async for message in messages_of_tasks:
            await messages_of_tasks.archive(message.id)

    run_handle = await store.trigger(index, "https://…")
    page: Page = await run_handle.result(timeout="1m")
    state: pgqrs.WorkflowStatus = await run_handle.status
    print(page.words, state)

    record: pgqrs.WorkflowRecord = await pgqrs.workflow().name("manual").store(store).create()
    triggered: pgqrs.QueueMessage = (
        await pgqrs.workflow().name("manual").store(store).trigger({"a": 1}).execute()
    )
    run: pgqrs.Run = await pgqrs.run().message(triggered).store(store).execute()
    await run.start()
    step = await pgqrs.step().run(run).name("one").execute()
    if step.status == pgqrs.StepResultStatus.Execute and step.guard is not None:
        await step.guard.success({"n": 1})
    await run.success({"ok": True})
    await run.complete_step("two", output=[1])
    print(record.name, await (await store.get_workers()).count(), await pgqrs.tables(store).queues().count())
    async with pgqrs.connect("sqlite://x.db") as another:
        await another.verify()


@decorators.step
async def old_step(ctx: pgqrs.Run, x: int) -> int:
    return x + 1


@decorators.workflow(name="old")
async def old_workflow(ctx: pgqrs.Run, data: Any) -> int:
    return await old_step(ctx, 1)


async def old_style(run: pgqrs.Run) -> None:
    result: int = await old_workflow(run, {"a": 1})
    print(result, old_workflow.name)
