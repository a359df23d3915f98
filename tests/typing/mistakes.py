"""Mistakes that a type checker must find: each in a line that says so. Never run."""

import pgqrs
from tests.typing.user_code import Page, count, halve, index, old_step, old_workflow


def blocking(store: pgqrs.BlockingStore) -> None:
    index(1)  # mistake: an argument's type
    count("a", minimum="2")  # mistake: an argument's type
    count("a", maximum=2)  # mistake: no such parameter
    store.trigger(index, 1)  # mistake: an argument's type
    store.trigger(index)  # mistake: an argument is missing
    page: int = store.trigger(index, "a").result()  # mistake: the result's type
    half: str = store.trigger(halve, 1).result()  # mistake: the result's type
    store.enqueue(1, {})  # mistake: a queue's name
    print(page, half)


async def awaited(store: pgqrs.Store, run: pgqrs.Run, message: pgqrs.QueueMessage) -> None:
    producer = await store.producer(7)  # mistake: a queue's name
    await producer.enqueue_delayed({})  # mistake: an argument is missing
    consumer = await store.consumer("tasks")
    await consumer.archive(message)  # mistake: an id
    await consumer.dequeue("2")  # mistake: an argument's type
    taken: int = await consumer.dequeue(2)  # mistake: the result's type
    await store.trigger(index, minimum="a", url="b")  # mistake: an argument's type
    handle = await store.trigger(index, "a")
    page: Page = handle.result()  # mistake: not awaited
    await pgqrs.consume(store, "tasks", len("a"))  # mistake: no function
    await run.complete_step(1, None)  # mistake: a step's name
    await old_step(run, "1")  # mistake: an argument's type
    text: str = await old_workflow(run, {})  # mistake: the result's type
    pgqrs.Config("sqlite://x", max_connections="4")  # mistake: an argument's type
    print(taken, page, text)
