"""What the tests of the surface begin with."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pgqrs
from tests.store.given import execute

QUEUE = "tasks"
PATIENCE_S = 10.0
_began = [datetime.now(UTC)]


def the_test_begins() -> None:
    _began[0] = datetime.now(UTC)


def at(seconds: float) -> str:
    """ISO 8601 text of that long after the test began: a time to hand in, where one would otherwise have to sleep."""
    return (_began[0] + timedelta(seconds=seconds)).isoformat()


def moment(text: str | None) -> datetime:
    assert text is not None
    found = datetime.fromisoformat(text)
    assert found.tzinfo is not None, f"{text} does not say in which zone"
    return found


def seconds_from_now(text: str | None) -> float:
    return (moment(text) - datetime.now(UTC)).total_seconds()


async def a_pair(store: pgqrs.Store, queue: str = QUEUE) -> tuple[pgqrs.Producer, pgqrs.Consumer]:
    """A producer and a consumer on a new queue."""
    await store.queue(queue)
    return await store.producer(queue), await store.consumer(queue)


async def a_held_message(store: pgqrs.Store, payload: Any = 1) -> tuple[pgqrs.Consumer, pgqrs.QueueMessage]:
    """A message, and the consumer that owns it."""
    producer, consumer = await a_pair(store)
    await producer.enqueue(payload)
    [message] = await consumer.dequeue()
    return consumer, message


async def a_triggered(store: pgqrs.Store, input: Any = None, name: str = "job") -> pgqrs.QueueMessage:
    """A message that starts a run of a new workflow."""
    await pgqrs.workflow().name(name).store(store).create()
    return await pgqrs.workflow().name(name).store(store).trigger(input).execute()


async def a_run(store: pgqrs.Store, input: Any = None) -> pgqrs.Run:
    message = await a_triggered(store, input)
    return await pgqrs.run().message(message).store(store).execute()


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Waits for it, and gives up after a while."""
    give_up = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < give_up, "it did not happen"
        await asyncio.sleep(0.01)


async def status_is(worker: pgqrs.Consumer, status: pgqrs.WorkerStatus) -> None:
    async def reached() -> bool:
        return await worker.status() is status

    await until(reached)


def was_heard_of(dsn: str, worker_id: int, seconds_ago: float) -> None:
    """Its last heartbeat was so long ago."""
    then = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    zoned = then if not dsn.startswith("postgres") else then + "+00"
    execute(dsn, "update pgqrs_workers set heartbeat_at = ? where id = ?", zoned, worker_id)
