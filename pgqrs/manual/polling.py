"""Taking messages and calling back: written once, as coroutines over the two `Ways` of waiting.

Whatever ends a handler, its messages are archived or given back; while it runs its worker is Polling, its heartbeat advances
and its messages stay held, however long it takes.
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

# These take a run off its worker for a while; it goes on where it was.
PUT_OFF = (errors.TransientStepError, errors.StepNotReadyError, errors.PausedError)


class Poll(Struct, frozen=True):
    """What `pgqrs.dequeue()…` was told. `of_run` makes of a blocking run the one that the handler gets."""

    kind: Kind
    handler: Handler
    batch: int
    interval_s: float
    at: datetime | None
    of_run: Callable[[Run], Any]


async def poll(ways: Ways, consumer: Consumer, told: Poll) -> None:
    """Until the worker is interrupted: it is Suspended then, and WorkerSuspendedError raised. A handler's exception ends it
    too, with the worker Ready. A database that is away is waited for, for `connection_timeout_seconds` each time."""
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
    """One pass: takes what is there, up to the limit, and has it handled."""
    refuse_no_handler(handler)
    messages = await ways.claim(consumer.claim(limit, None), consumer.undo)
    if messages:
        told = Poll(kind, handler, limit, 0.0, None, lambda run: run)
        with Holding(consumer) as holding:
            await _handle(ways, consumer, told, messages, holding)


async def next_message(ways: Ways, consumer: Consumer, interval_s: float) -> QueueMessage:
    """Waits for it, and for a database that is away: `connection_timeout_seconds` each time."""
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
    """A consumer for the length of a block. Raises QueueNotFoundError."""
    found = await ways.call(administering.queue, messages.database, queue)
    consumer = await ways.claim(
        lambda: Consumer.registered(messages, config, found, ephemeral=True), lambda c: c.end()
    )
    try:
        yield consumer
    finally:
        with contextlib.suppress(
            errors.PgqrsConnectionError
        ):  # its messages come back when their time is over
            await ways.surely(consumer.end)


def refuse_no_handler(handler: object) -> None:
    """Raises TypeError."""
    if not callable(handler):
        raise TypeError(f"a handler is a function, not {type(handler).__name__}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError(f"{handler!r} is a generator, whose body would never run; a handler returns")


# Inside


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
            # What was handled is not to be handled again because of a moment without a database.
            patience_s = consumer.config.connection_timeout_seconds
            await patiently(ways, patience_s, lambda: ways.surely(consumer.archive_many, ids))
    except BaseException:
        # Those that were handled and archived are no longer ours, and stay as they are.
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
        pass  # it has ended as it should
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
    """Ready again, where the loop has not left it Suspended."""
    if consumer.status() is WorkerStatus.Polling:
        consumer.complete_poll()


def _suspended(why: str) -> errors.WorkerSuspendedError:
    return errors.WorkerSuspendedError(
        f"Operation suspended: worker {why}; resume() lets it poll again, unless it was stopped"
    )


class Holding:
    """For the length of a block: a thread that keeps the worker's heartbeat going and its messages held."""

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
            with contextlib.suppress(errors.PgqrsError):  # the next beat comes soon
                self._consumer.keep(self.ids)
