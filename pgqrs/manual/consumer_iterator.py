"""Iterates over the messages of a queue as they arrive. The iterator has a consumer, which lives as
long as the iterator.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from pgqrs import errors
from pgqrs.arguments.checks import count
from pgqrs.config import Config
from pgqrs.manual import polling
from pgqrs.manual.consumer import Consumer
from pgqrs.model.records import QueueMessage
from pgqrs.store import administering
from pgqrs.store.store import MessageStore
from pgqrs.store.waiting import Blocking, Ways, drive


class Iteration:
    """The part that the blocking and the async iterator share. It registers the consumer when the
    first message is requested.
    """

    def __init__(
        self,
        messages: Callable[[], MessageStore],
        config: Config,
        queue: str,
        poll_interval_ms: int | None,
    ) -> None:
        self._messages = messages
        self._config = config
        self._queue = queue
        wanted = config.poll_interval_ms if poll_interval_ms is None else poll_interval_ms
        self._interval_s = count("poll_interval_ms", wanted) / 1000
        self._consumer: Consumer | None = None
        self.closed = False

    async def open(self, ways: Ways) -> Consumer:
        if self.closed:
            raise errors.ValidationError(f"this iterator over queue {self._queue!r} is closed; make another")
        if self._consumer is None:
            self._consumer = await ways.claim(self._register, lambda c: c.end())
        return self._consumer

    async def next(self, ways: Ways) -> QueueMessage:
        consumer = await self.open(ways)
        return await polling.next_message(ways, consumer, self._interval_s)

    async def archive(self, ways: Ways, message_id: int) -> bool:
        consumer = await self.open(ways)
        return await ways.call(consumer.archive, message_id)

    async def delete(self, ways: Ways, message_id: int) -> bool:
        consumer = await self.open(ways)
        return await ways.call(consumer.delete, message_id)

    async def close(self, ways: Ways) -> None:
        """Stops the iterator's worker and releases the messages that the iterator still holds. A
        second call does nothing.
        """
        self.closed = True
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await ways.surely(consumer.end)

    def _register(self) -> Consumer:
        messages = self._messages()
        queue = administering.queue(messages.database, self._queue)
        return Consumer.registered(messages, self._config, queue, ephemeral=True)


class ConsumerIterator:
    """Iterates over the messages of a queue: `with store.consume_iter(queue) as messages: for
    message in messages: …; messages.archive(message.id)`.
    """

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> QueueMessage:
        if self._iteration.closed:
            raise StopIteration
        return drive(self._iteration.next(Blocking()))

    def archive(self, message_id: int) -> bool:
        """Archives a message as finished. Returns False if this iterator does not hold the message."""
        return drive(self._iteration.archive(Blocking(), message_id))

    def delete(self, message_id: int) -> bool:
        """Deletes a finished message. Returns False if this iterator does not hold the message.
        Raises ValidationError if the message has a run.
        """
        return drive(self._iteration.delete(Blocking(), message_id))

    def close(self) -> None:
        """Stops the iterator's worker and releases the messages that the iterator still holds. A
        second call does nothing.
        """
        drive(self._iteration.close(Blocking()))

    def __enter__(self) -> Self:
        drive(self._iteration.open(Blocking()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
