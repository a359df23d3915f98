"""Polling loops that call a handler. Each is written once, as a coroutine that works with both
kinds of `Ways`.

While a handler executes, its worker is Polling, heartbeats are sent, and its messages stay locked,
however long the handler takes. When the handler ends, the messages are archived or released.
"""

import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from pgqrs import errors
from pgqrs.manual.consumer import Consumer
from pgqrs.manual.runs import Run
from pgqrs.model.records import QueueMessage
from pgqrs.model.states import WorkerStatus, WorkflowStatus
from pgqrs.store import administering
from pgqrs.store.store import MessageStore
from pgqrs.store.waiting import Ways, patiently

Kind = Literal["message", "batch", "workflow"]
Handler = Callable[[Any], Any]

# These errors take a run off its worker for a while. It continues later.
PUT_OFF = (errors.TransientStepError, errors.StepNotReadyError, errors.PausedError)


class Poll(Struct, frozen=True):
    """The settings of a poll (`pgqrs.dequeue()…`). `of_run` converts a blocking run to the run that
    the handler receives.
    """

    kind: Kind
    handler: Handler
    batch: int
    interval_s: float
    at: datetime | None
    of_run: Callable[[Run], Any]


async def poll(ways: Ways, consumer: Consumer, told: Poll) -> None:
    """Polls until the worker is interrupted. The worker is then Suspended, and `poll` raises
    WorkerSuspendedError.

    If the handler raises an exception, `poll` raises it, and the worker is Ready. `poll` tolerates
    each outage of the database for `connection_timeout_seconds`.
    """
    patience_s = consumer.config.connection_timeout_seconds

    async def look() -> WorkerStatus:
        return await patiently(ways, patience_s, lambda: ways.call(consumer.status))

    status = await look()
    if status in (WorkerStatus.Suspended, WorkerStatus.Interrupted, WorkerStatus.Stopped):
        raise _suspended(status.value)
    try:
        await ways.call(consumer.poll)
        with Holding(consumer) as holding:
            while True:
                status = await look()
                if status is WorkerStatus.Interrupted:
                    await ways.call(consumer.suspend)
                if status is not WorkerStatus.Polling:
                    raise _suspended(status.value)
                messages = await patiently(
                    ways, patience_s, lambda: ways.claim(consumer.claim(told.batch, told.at), consumer.undo)
                )
                if messages:
                    await _handle(ways, consumer, told, messages, holding)
                else:
                    await ways.sleep(told.interval_s)
    finally:
        with contextlib.suppress(errors.PgqrsError):
            await ways.surely(_rest, consumer)


async def consume(ways: Ways, consumer: Consumer, limit: int, kind: Kind, handler: Handler) -> None:
    """Makes one pass: claims the available messages, up to the limit, and calls the handler."""
    refuse_no_handler(handler)
    messages = await ways.claim(consumer.claim(limit, None), consumer.undo)
    if messages:
        told = Poll(kind, handler, limit, 0.0, None, lambda run: run)
        with Holding(consumer) as holding:
            await _handle(ways, consumer, told, messages, holding)


async def next_message(ways: Ways, consumer: Consumer, interval_s: float) -> QueueMessage:
    """Waits for the next message. Tolerates each outage of the database for
    `connection_timeout_seconds`.
    """
    patience_s = consumer.config.connection_timeout_seconds
    while True:
        messages = await patiently(
            ways, patience_s, lambda: ways.claim(consumer.claim(1, None), consumer.undo)
        )
        if messages:
            return messages[0]
        await ways.sleep(interval_s)


@contextlib.asynccontextmanager
async def ephemeral(ways: Ways, messages: MessageStore, config: Any, queue: str) -> AsyncIterator[Consumer]:
    """Yields a consumer that exists only inside the block. Raises QueueNotFoundError."""
    found = await ways.call(administering.queue, messages.database, queue)
    consumer = await ways.claim(
        lambda: Consumer.registered(messages, config, found, ephemeral=True), lambda c: c.end()
    )
    try:
        yield consumer
    finally:
        with contextlib.suppress(
            errors.PgqrsConnectionError
            # The messages return when their lock expires.
        ):
            await ways.surely(consumer.end)


def refuse_no_handler(handler: object) -> None:
    """Raises TypeError unless the handler is callable and not a generator."""
    if not callable(handler):
        raise TypeError(f"a handler is a function, not {type(handler).__name__}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError(f"{handler!r} is a generator, whose body would never run; a handler returns")


# Internal functions


async def _handle(
    ways: Ways, consumer: Consumer, told: Poll, messages: Sequence[QueueMessage], holding: "Holding"
) -> None:
    ids = [m.id for m in messages]
    holding.ids = ids
    try:
        if told.kind == "workflow":
            for message in messages:
                await _run_workflow(ways, consumer, told, message)
        else:
            await _called(told.handler, messages[0] if told.kind == "message" else messages)
            # A short outage of the database must not cause the messages to be handled again.
            patience_s = consumer.config.connection_timeout_seconds
            await patiently(ways, patience_s, lambda: ways.surely(consumer.archive_many, ids))
    except BaseException:
        # Messages that were archived before the failure are not owned any more and do not change.
        with contextlib.suppress(errors.PgqrsConnectionError):
            await ways.surely(consumer.release_messages, ids)
        raise
    finally:
        holding.ids = []


async def _run_workflow(ways: Ways, consumer: Consumer, told: Poll, message: QueueMessage) -> None:
    run = await ways.call(Run.of_message, consumer.messages, consumer.config, message)
    run.archive_on_success()
    try:
        if not run.status.terminal:
            await _called(told.handler, told.of_run(run))
    except errors.RunCancelledError:
        pass  # the run has ended as requested
    except PUT_OFF:
        until = await ways.call(run.next_retry)
        await ways.surely(consumer.put_off, message.id, until)
        raise
    if run.status is WorkflowStatus.Error:
        await ways.surely(consumer.bury, message.id, "its run is in ERROR; see its error")
    else:
        await ways.surely(consumer.archive, message.id)


async def _called(handler: Handler, argument: Any) -> None:
    returned = handler(argument)
    if inspect.isawaitable(returned):
        await returned


def _rest(consumer: Consumer) -> None:
    """Sets the worker to Ready, unless the polling loop has suspended it."""
    if consumer.status() is WorkerStatus.Polling:
        consumer.complete_poll()


def _suspended(why: str) -> errors.WorkerSuspendedError:
    return errors.WorkerSuspendedError(
        f"Operation suspended: worker {why}; resume() lets it poll again, unless it was stopped"
    )


class Holding:
    """A thread that sends heartbeats and extends the locks of messages while the block lasts."""

    def __init__(self, consumer: Consumer) -> None:
        self.ids: list[int] = []
        self._consumer = consumer
        self._over = threading.Event()
        config = consumer.config
        self._interval_s = max(0.05, min(config.heartbeat_interval_seconds, config.lock_s / 3))
        self._thread = threading.Thread(target=self._beat, name="pgqrs-heartbeat", daemon=True)

    def __enter__(self) -> "Holding":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(self._interval_s):
            with contextlib.suppress(errors.PgqrsError):  # the next heartbeat follows soon
                self._consumer.keep(self.ids)
