"""A producer: enqueues messages on one queue, within the limits of its configuration."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pgqrs.arguments import checks as arguments
from pgqrs.arguments import durations, times
from pgqrs.config import Config
from pgqrs.manual import validation
from pgqrs.manual.registered import Registered, register
from pgqrs.manual.validation import RateLimitStatus, ValidationConfig
from pgqrs.model.records import QueueInfo
from pgqrs.store import consuming
from pgqrs.store.database import Database
from pgqrs.store.store import Known, MessageStore


class Producer(Registered):
    """A producer that is registered on one queue. It validates messages and limits their rate. See
    `ValidationConfig`.
    """

    def __init__(
        self, messages: MessageStore, config: Config, queue: QueueInfo, worker_id: int | None
    ) -> None:
        super().__init__(messages.database, worker_id or 0)
        self._producer_id = worker_id
        self._messages = messages
        self._queue = queue
        self._limits = ValidationConfig.of(config)
        self._rate = validation.rate_limiter(self._limits, time.monotonic)

    @classmethod
    def registered(
        cls, messages: MessageStore, config: Config, queue: QueueInfo, name: str | None = None
    ) -> "Producer":
        return cls(messages, config, queue, register(messages.database, queue.id, name=name))

    @property
    def queue_name(self) -> str:
        return self._queue.queue_name

    def enqueue(self, payload: Any) -> int:
        """Enqueues a message, commits, and returns its id. Raises ValidationError,
        SerializationError or RateLimitedError.
        """
        return self._send([payload], 0.0, None)[0]

    def enqueue_delayed(self, payload: Any, delay_seconds: float | timedelta | str) -> int:
        """Enqueues a message like `enqueue`. The message becomes due after the delay."""
        return self._send([payload], durations.seconds(delay_seconds), None)[0]

    def enqueue_batch(self, payloads: Sequence[Any]) -> list[int]:
        """Enqueues several messages in one transaction, and returns their ids in the order of the
        payloads. The rate limit counts each message.
        """
        return self._send(payloads, 0.0, None)

    def enqueue_batch_delayed(
        self, payloads: Sequence[Any], delay_seconds: float | timedelta | str
    ) -> list[int]:
        """Enqueues several messages like `enqueue_batch`. The messages become due after the delay."""
        return self._send(payloads, durations.seconds(delay_seconds), None)

    def enqueue_at(
        self, payloads: Sequence[Any], current_time: str | datetime, delay_seconds: float = 0
    ) -> list[int]:
        """Enqueues several messages like `enqueue_batch_delayed`, as if the time were
        `current_time`.
        """
        return self._send(payloads, durations.seconds(delay_seconds), times.moment(current_time))

    def rate_limit_status(self) -> RateLimitStatus | None:
        """Returns the state of the rate limiter, or None if the rate is not limited."""
        return self._rate.status() if self._rate else None

    def undo(self, sent: int | Sequence[int]) -> None:
        """Withdraws messages that no worker has received yet."""
        consuming.withdraw(self._database, [sent] if isinstance(sent, int) else sent)

    def _send(self, payloads: Sequence[Any], delay_s: float, at: datetime | None) -> list[int]:
        payloads = arguments.several(payloads, "payloads")
        raw = validation.all_encoded(payloads, self._limits) if len(payloads) != 1 else [
            validation.encoded(payloads[0], self._limits)
        ]  # fmt: skip
        if not raw:
            return []
        if self._rate:
            self._rate.take(len(raw))
        return send(self._messages, self._queue, raw, delay_s, self._producer_id, at)


def send(
    messages: MessageStore,
    queue: QueueInfo,
    payloads: Sequence[bytes],
    delay_s: float = 0.0,
    producer_id: int | None = None,
    at: datetime | None = None,
) -> list[int]:
    """Enqueues the messages, commits, and wakes listeners."""
    ids = messages.enqueue(queue.id, payloads, delay_s, producer_id, at, Known(queue.queue_name))
    if not delay_s:
        database: Database = messages.database
        database.hint([queue.queue_name])
    return ids
