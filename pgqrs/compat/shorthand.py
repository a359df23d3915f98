"""The module functions of 0.15. With an async store, producer or consumer, the caller awaits the
result.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, overload

from pgqrs.arguments.durations import Duration
from pgqrs.clients import administration, aio, blocking
from pgqrs.manual import consumer as blocking_consumer
from pgqrs.manual import polling, validation
from pgqrs.manual import producer as blocking_producer
from pgqrs.manual.producer import send
from pgqrs.manual.validation import ValidationConfig
from pgqrs.model.records import QueueMessage
from pgqrs.store import administering
from pgqrs.store.waiting import Blocking, Ways, drive

AnyStore = aio.Store | blocking.Store
AnyProducer = aio.Producer | blocking_producer.Producer
AnyConsumer = aio.Consumer | blocking_consumer.Consumer
Awaited = Coroutine[Any, Any, Any]


@overload
def admin(store: aio.Store) -> aio.Admin: ...
@overload
def admin(store: blocking.Store) -> administration.Admin: ...
def admin(store: AnyStore) -> Any:
    """Returns the administration of a store."""
    return aio.Admin(store) if isinstance(store, aio.Store) else administration.Admin(_store(store))


# A store and a queue


@overload
def produce(store: aio.Store, queue: str, payload: Any) -> Coroutine[Any, Any, int]: ...
@overload
def produce(store: blocking.Store, queue: str, payload: Any) -> int: ...
def produce(store: AnyStore, queue: str, payload: Any) -> Any:
    """Validates and enqueues a message, and returns its id. Raises QueueNotFoundError."""
    core, ways = apart(store)
    return finish(store, ways.claim(lambda: _sent(core, queue, payload), core.undo))


@overload
def produce_batch(
    store: aio.Store, queue: str, payloads: Sequence[Any]
) -> Coroutine[Any, Any, list[int]]: ...
@overload
def produce_batch(store: blocking.Store, queue: str, payloads: Sequence[Any]) -> list[int]: ...
def produce_batch(store: AnyStore, queue: str, payloads: Sequence[Any]) -> Any:
    """Enqueues several messages in one transaction, and returns their ids in the order of the payloads."""
    core, ways = apart(store)
    return finish(store, ways.claim(lambda: _all_sent(core, queue, payloads), core.undo))


@overload
def consume(
    store: aio.Store, queue: str, handler: Callable[[QueueMessage], Any]
) -> Coroutine[Any, Any, None]: ...
@overload
def consume(store: blocking.Store, queue: str, handler: Callable[[QueueMessage], Any]) -> None: ...
def consume(store: AnyStore, queue: str, handler: Callable[[QueueMessage], Any]) -> Any:
    """Makes one pass: claims a message, if there is one, and calls the handler with it. If the
    handler returns, the message is archived. If the handler raises, the message is released and the
    exception is passed on.
    """
    return finish(store, _consume(*apart(store), queue, 1, "message", handler))


@overload
def consume_batch(
    store: aio.Store, queue: str, batch_size: int, handler: Callable[[list[QueueMessage]], Any]
) -> Coroutine[Any, Any, None]: ...
@overload
def consume_batch(
    store: blocking.Store, queue: str, batch_size: int, handler: Callable[[list[QueueMessage]], Any]
) -> None: ...
def consume_batch(
    store: AnyStore, queue: str, batch_size: int, handler: Callable[[list[QueueMessage]], Any]
) -> Any:
    """Makes one pass like `consume`, with up to `batch_size` messages."""
    return finish(store, _consume(*apart(store), queue, batch_size, "batch", handler))


# A producer


@overload
def enqueue_batch(producer: aio.Producer, payloads: Sequence[Any]) -> Coroutine[Any, Any, list[int]]: ...
@overload
def enqueue_batch(producer: blocking_producer.Producer, payloads: Sequence[Any]) -> list[int]: ...
def enqueue_batch(producer: AnyProducer, payloads: Sequence[Any]) -> Any:
    """Enqueues several messages in one transaction, and returns their ids in the order of the payloads."""
    return producer.enqueue_batch(payloads)


@overload
def enqueue_delayed(
    producer: aio.Producer, payload: Any, delay_seconds: Duration
) -> Coroutine[Any, Any, int]: ...
@overload
def enqueue_delayed(producer: blocking_producer.Producer, payload: Any, delay_seconds: Duration) -> int: ...
def enqueue_delayed(producer: AnyProducer, payload: Any, delay_seconds: Duration) -> Any:
    """Enqueues a message that becomes due after a delay, and returns its id. See
    `Producer.enqueue_delayed`.
    """
    return producer.enqueue_delayed(payload, delay_seconds)


# A consumer


@overload
def archive(consumer: aio.Consumer, message: QueueMessage) -> Coroutine[Any, Any, bool]: ...
@overload
def archive(consumer: blocking_consumer.Consumer, message: QueueMessage) -> bool: ...
def archive(consumer: AnyConsumer, message: QueueMessage) -> Any:
    """Archives a message. Returns whether the consumer owned it. See `Consumer.archive`."""
    return consumer.archive(_id(message))


@overload
def archive_batch(consumer: aio.Consumer, messages: Sequence[QueueMessage]) -> Coroutine[Any, Any, bool]: ...
@overload
def archive_batch(consumer: blocking_consumer.Consumer, messages: Sequence[QueueMessage]) -> bool: ...
def archive_batch(consumer: AnyConsumer, messages: Sequence[QueueMessage]) -> Any:
    """Archives messages. Returns whether the consumer owned all of them. `consumer.archive_many`
    returns which messages it owned.
    """
    ids = [_id(m) for m in messages]
    if isinstance(consumer, aio.Consumer):
        return _all(consumer.archive_many(ids))
    return all(consumer.archive_many(ids))


async def _all(archived: Coroutine[Any, Any, list[bool]]) -> bool:
    return all(await archived)


@overload
def delete(consumer: aio.Consumer, message: QueueMessage) -> Coroutine[Any, Any, bool]: ...
@overload
def delete(consumer: blocking_consumer.Consumer, message: QueueMessage) -> bool: ...
def delete(consumer: AnyConsumer, message: QueueMessage) -> Any:
    """Deletes a message. Returns whether the consumer owned it. See `Consumer.delete`."""
    return consumer.delete(_id(message))


@overload
def extend_vt(
    consumer: aio.Consumer, message: QueueMessage, seconds: Duration
) -> Coroutine[Any, Any, bool]: ...
@overload
def extend_vt(consumer: blocking_consumer.Consumer, message: QueueMessage, seconds: Duration) -> bool: ...
def extend_vt(consumer: AnyConsumer, message: QueueMessage, seconds: Duration) -> Any:
    """Extends the lock of a message. Returns whether the consumer owned it. See `Consumer.extend_vt`."""
    return consumer.extend_vt(_id(message), seconds)


# Shared with the builders


def apart(store: AnyStore) -> tuple[blocking.Store, Ways]:
    """Returns the blocking store of a store, and the `Ways` to wait for its calls."""
    if isinstance(store, aio.Store):
        return store.core, store.ways
    return _store(store), Blocking()


def finish(store: AnyStore, coroutine: Awaited) -> Any:
    """Returns an awaitable for an async store. Otherwise executes the coroutine and returns its result."""
    return coroutine if isinstance(store, aio.Store) else drive(coroutine)


def _id(message: QueueMessage) -> int:
    if not isinstance(message, QueueMessage):
        raise TypeError(f"a QueueMessage is expected, as dequeue() gives it, not {type(message).__name__}")
    return message.id


def _store(store: object) -> blocking.Store:
    if not isinstance(store, blocking.Store):
        raise TypeError(f"a store is expected, as pgqrs.connect() gives it, not {type(store).__name__}")
    return store


def _sent(core: blocking.Store, queue: str, payload: Any) -> int:
    found = administering.queue(core.messages.database, queue)
    return send(core.messages, found, [validation.encoded(payload, ValidationConfig.of(core.config))])[0]


def _all_sent(core: blocking.Store, queue: str, payloads: Sequence[Any]) -> list[int]:
    found = administering.queue(core.messages.database, queue)
    raw = validation.all_encoded(payloads, ValidationConfig.of(core.config))
    return send(core.messages, found, raw) if raw else []


async def _consume(
    core: blocking.Store,
    ways: Ways,
    queue: str,
    limit: int,
    kind: polling.Kind,
    handler: Callable[[Any], Any],
) -> None:
    messages = await ways.call(lambda: core.messages)
    async with polling.ephemeral(ways, messages, core.config, queue) as consumer:
        await polling.consume(ways, consumer, limit, kind, handler)
