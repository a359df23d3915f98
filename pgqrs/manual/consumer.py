"""A consumer: dequeues messages of one queue, holds each for a limited time, and archives, deletes
or releases it.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from pgqrs.arguments import checks as arguments
from pgqrs.arguments import durations, times
from pgqrs.config import Config
from pgqrs.manual.registered import Registered, register
from pgqrs.model.records import QueueInfo, QueueMessage
from pgqrs.store import consuming
from pgqrs.store.store import MessageStore

Seconds = float | timedelta | str


class Consumer(Registered):
    """A consumer that is registered on one queue.

    The consumer owns a message from the claim until it archives, deletes or releases the message.
    If the lock time (`vt`) has passed, another consumer may claim the message and become its owner.
    A call on a message that this consumer does not own returns False, or does not count the
    message.
    """

    def __init__(self, messages: MessageStore, config: Config, queue: QueueInfo, worker_id: int) -> None:
        super().__init__(messages.database, worker_id)
        self._messages = messages
        self._queue = queue
        self._config = config

    @classmethod
    def registered(
        cls,
        messages: MessageStore,
        config: Config,
        queue: QueueInfo,
        ephemeral: bool = False,
        name: str | None = None,
    ) -> "Consumer":
        return cls(messages, config, queue, register(messages.database, queue.id, ephemeral, name))

    @property
    def queue_name(self) -> str:
        return self._queue.queue_name

    def dequeue(self, batch_size: int | None = None) -> list[QueueMessage]:
        """Claims the next messages, oldest first. `batch_size` None means one.

        The messages are held for `Config.default_lock_time_seconds`, or for 30 s if that is not
        set. Returns nothing while the worker is suspended, interrupted or stopped.
        """
        return self._take(1 if batch_size is None else batch_size, self._config.lock_s, None)

    def dequeue_many_with_delay(self, limit: int, vt: Seconds) -> list[QueueMessage]:
        """Claims messages like `dequeue`, with the lock time `vt`."""
        return self._take(limit, vt, None)

    def dequeue_at(self, limit: int, vt: Seconds, current_time: str | datetime) -> list[QueueMessage]:
        """Claims messages like `dequeue_many_with_delay`, as if the time were `current_time`."""
        return self._take(limit, vt, times.moment(current_time))

    def extend_vt(self, message_id: int, seconds: Seconds) -> bool:
        """Extends the lock of a message by `seconds`."""
        return consuming.extend(self._database, self._worker_id, _id(message_id), durations.seconds(seconds))

    def archive(self, message_id: int) -> bool:
        """Archives a message as finished. It is not delivered again."""
        return bool(consuming.archive(self._database, self._worker_id, [_id(message_id)]))

    def archive_many(self, message_ids: Sequence[int]) -> list[bool]:
        """Archives messages. Returns a result for each message, in the order of the ids."""
        ids = _ids(message_ids)
        archived = consuming.archive(self._database, self._worker_id, ids)
        return [i in archived for i in ids]

    def delete(self, message_id: int) -> bool:
        """Deletes a finished message. Raises ValidationError if the message has a run, whose
        history would be lost.
        """
        return bool(consuming.delete(self._database, self._worker_id, [_id(message_id)]))

    def delete_many(self, message_ids: Sequence[int]) -> list[bool]:
        """Deletes messages. Returns a result for each message, in the order of the ids."""
        ids = _ids(message_ids)
        deleted = consuming.delete(self._database, self._worker_id, ids)
        return [i in deleted for i in ids]

    def release_with_visibility(self, message_id: int, visible_at: str | datetime) -> bool:
        """Releases a message, which becomes visible at the time `visible_at`."""
        at = times.moment(visible_at)
        return consuming.give_back(self._database, self._worker_id, [_id(message_id)], at) == 1

    def release_messages(self, message_ids: Sequence[int]) -> int:
        """Releases messages, which become visible at once. Returns the number of released messages."""
        return consuming.give_back(self._database, self._worker_id, _ids(message_ids))

    # For the loops in polling.py

    @property
    def config(self) -> Config:
        return self._config

    @property
    def messages(self) -> MessageStore:
        return self._messages

    def undo(self, messages: Sequence[QueueMessage]) -> None:
        """Releases messages as if they had never been delivered."""
        consuming.give_back(self._database, self._worker_id, [m.id for m in messages], refund=True)

    def put_off(self, message_id: int, until: datetime | None) -> None:
        """Releases a message that waits for a retry or a resumption, without charging the delivery."""
        consuming.give_back(self._database, self._worker_id, [message_id], until, refund=True)

    def bury(self, message_id: int, reason: str) -> None:
        """Moves a message to the dead letters."""
        consuming.archive(self._database, self._worker_id, [message_id], reason)

    def keep(self, message_ids: Sequence[int]) -> None:
        """Sends a heartbeat, and extends the locks of messages that are still being handled. Their
        locks then last for the lock time from now.
        """
        self.heartbeat()
        consuming.keep(self._database, self._worker_id, message_ids, self._config.lock_s)

    def end(self) -> None:
        """Stops a consumer that one call created for itself, and releases the messages that it
        holds.
        """
        consuming.leave(self._database, self._worker_id)

    def claim(self, limit: int, at: datetime | None) -> Callable[[], list[QueueMessage]]:
        return lambda: self._take(limit, self._config.lock_s, at)

    def _take(self, limit: int, lock: Seconds, at: datetime | None) -> list[QueueMessage]:
        return consuming.dequeue(
            self._database,
            self._worker_id,
            self._queue.id,
            arguments.count("the number of messages", limit),
            durations.seconds(lock),
            self._config.max_read_ct,
            at,
        )


def _id(message_id: int) -> int:
    return arguments.identity(message_id, "a message")


def _ids(message_ids: Sequence[int]) -> list[int]:
    return [_id(i) for i in arguments.several(message_ids, "message ids")]
