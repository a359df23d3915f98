"""The builders of 0.15: `workflow()`, `run()`, `step()`, `dequeue()`, `enqueue()` and `tables()`.

The builders are thin layers over the other APIs. With an async store, the last call of a chain is
awaited. `pgqrs.flows.definitions` contains `workflow` and `step`.
"""

from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Self, TypeVar, overload

from pgqrs import errors
from pgqrs.arguments import times
from pgqrs.arguments.checks import count
from pgqrs.arguments.durations import Duration, seconds
from pgqrs.clients import administration, aio, blocking
from pgqrs.clients.handle import POLL_MAX_S, POLL_MIN_S
from pgqrs.compat.shorthand import AnyConsumer, AnyProducer, AnyStore, apart, finish
from pgqrs.flows import definitions
from pgqrs.manual import consumer as blocking_consumer
from pgqrs.manual import polling, runs
from pgqrs.manual import producer as blocking_producer
from pgqrs.model.records import QueueMessage
from pgqrs.store import runs_by_hand
from pgqrs.store.waiting import Ways

F = TypeVar("F", bound=Callable[..., Any])
AnyRun = aio.Run | runs.Run


# Workflows


class WorkflowBuilder:
    """Builds a workflow or a run: `.name(n).store(s)`, then `.create()` or `.trigger(input).execute()`."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._store: AnyStore | None = None

    def __call__(self, function: F) -> F:
        """Decorates a function: `@pgqrs.workflow()`."""
        return definitions.workflow(function)

    def name(self, name: str) -> Self:
        """Sets the workflow's name, which is also the name of its queue."""
        self._name = name
        return self

    def store(self, store: AnyStore) -> Self:
        """Sets the store, blocking or async."""
        self._store = store
        return self

    def id(self, id: int) -> Self:
        """Does nothing, as in 0.15: a workflow is identified by its name."""
        return self

    def create(self) -> Any:
        """Creates the workflow and its queue, and returns the WorkflowRecord. Raises
        WorkflowAlreadyExistsError.
        """
        name, store = _given(self._name, "name"), _given(self._store, "store")
        core, ways = apart(store)
        return finish(store, ways.call(administration.create_workflow, core, name))

    def trigger(self, input: Any = None) -> "WorkflowTriggerBuilder":
        """Prepares a run with this JSON value as input. Nothing is written before `.execute()`."""
        return WorkflowTriggerBuilder(self._name, self._store, input)


class WorkflowTriggerBuilder:
    """The result of `.trigger(input)`. `.execute()` starts the run."""

    def __init__(self, name: str | None, store: AnyStore | None, input: Any) -> None:
        self._name, self._store, self._input = name, store, input

    def execute(self) -> Any:
        """Enqueues the message that starts the run, and returns it. The payload of the returned
        message shows the input. Raises WorkflowNotFoundError.
        """
        name, store = _given(self._name, "name"), _given(self._store, "store")
        core, ways = apart(store)
        sent = ways.claim(lambda: administration.trigger(core, name, self._input), lambda m: core.undo(m.id))
        return finish(store, sent)


class RunBuilder:
    """Accesses a run: `.message(m).store(s)`, then `.execute()`, `.result()` or `.get()`."""

    def __init__(self) -> None:
        self._message: QueueMessage | None = None
        self._store: AnyStore | None = None

    def message(self, message: QueueMessage) -> Self:
        """Sets the message that started the run, as returned by a trigger or a dequeue."""
        self._message = message
        return self

    def store(self, store: AnyStore) -> Self:
        """Sets the store, blocking or async."""
        self._store = store
        return self

    def execute(self) -> Any:
        """Returns the message's Run. The first call creates it."""
        message, store = self._both("execute")
        core, ways = apart(store)

        async def made() -> Any:
            run = await ways.call(lambda: runs.Run.of_message(core.messages, core.config, message))
            return aio.Run(run, store.ways) if isinstance(store, aio.Store) else run

        return finish(store, made())

    def result(self) -> Any:
        """Waits until the run ends, and returns its result. If the run failed, raises PgqrsError
        with the stored error. If it was cancelled, raises RunCancelledError.
        """
        message, store = self._both("result")
        core, ways = apart(store)

        async def waited() -> Any:
            wait_s = POLL_MIN_S
            while True:
                state = await ways.call(lambda: runs_by_hand.find(core.messages.database, message.id))
                ended, result = runs.result_of(state)
                if ended:
                    return result
                await ways.sleep(wait_s)
                wait_s = min(wait_s * 1.5, POLL_MAX_S)

        return finish(store, waited())

    def get(self) -> Any:
        """Returns the run's result, or None if the run has not ended. Raises the errors of `result`."""
        message, store = self._both("get")
        core, ways = apart(store)

        async def looked() -> Any:
            state = await ways.call(lambda: runs_by_hand.find(core.messages.database, message.id))
            return runs.result_of(state)[1]

        return finish(store, looked())

    def _both(self, what: str) -> tuple[QueueMessage, AnyStore]:
        if self._message is None:
            raise errors.ValidationError(
                f"Validation failed: QueueMessage is required for RunBuilder::{what}; call .message(message)"
            )
        if self._store is None:
            raise errors.ValidationError(
                f"Validation failed: Store is required for RunBuilder::{what}; call .store(store)"
            )
        return self._message, self._store


class StepBuilder:
    """Acquires a step: `.run(run).name(n)`, then `.execute()`."""

    def __init__(self) -> None:
        self._run: AnyRun | None = None
        self._name: str | None = None
        self._time: str | datetime | None = None

    def __call__(self, function: F) -> F:
        """Decorates a function: `@pgqrs.step()`."""
        return definitions.step(function)

    def run(self, run: AnyRun) -> Self:
        """Sets the step's run, as returned by `pgqrs.run()….execute()` or passed by `handle_workflow`."""
        self._run = run
        return self

    def name(self, name: str) -> Self:
        """Sets the step's name, which is unique in its run."""
        self._name = name
        return self

    def id(self, id: str) -> Self:
        """Another name for `name`."""
        return self.name(id)

    def with_time(self, time: str | datetime) -> Self:
        """Makes `execute` acquire the step as if the time were `time`."""
        times.moment(time)
        self._time = time
        return self

    def execute(self) -> Any:
        """Returns the StepResult. See `Run.acquire_step`."""
        if self._run is None:
            raise errors.PgqrsError("Run is required; call .run(run)")
        if self._name is None:
            raise errors.PgqrsError("Step name is required; call .name(name)")
        return self._run.acquire_step(self._name, self._time)


# Messages


class EnqueueBuilder:
    """Enqueues messages: `.message(payload)` or `.messages(payloads)`, `.to(queue)` or
    `.worker(producer)`, optionally `.delay(seconds)` and `.at(time)`, then `.execute(store)`.
    """

    def __init__(self) -> None:
        self._payloads: list[Any] = []
        self._single = False
        self._queue: str | None = None
        self._producer: AnyProducer | None = None
        self._delay_s = 0.0
        self._at: str | datetime | None = None

    def message(self, payload: Any) -> Self:
        """Sets one JSON value as payload. `execute` returns one id. Replaces earlier payloads."""
        self._payloads, self._single = [payload], True
        return self

    def messages(self, payloads: Sequence[Any]) -> Self:
        """Sets several payloads for one transaction. `execute` returns a list. Replaces earlier
        payloads.
        """
        self._payloads, self._single = list(payloads), False
        return self

    def to(self, queue: str) -> Self:
        """Sets the queue by name. `execute` raises QueueNotFoundError if it does not exist."""
        self._queue = queue
        return self

    def worker(self, producer: AnyProducer) -> Self:
        """Sets the producer and its queue. The producer's limits and rate apply."""
        self._producer = producer
        return self

    def delay(self, delay_seconds: Duration) -> Self:
        """Makes the messages due after this delay: seconds, a timedelta or text such as '5m'."""
        self._delay_s = seconds(delay_seconds)
        return self

    def at(self, time: str | datetime) -> Self:
        """Makes `execute` enqueue the messages as if the time were `time`."""
        times.moment(time)
        self._at = time
        return self

    def execute(self, store: AnyStore) -> Any:
        """Enqueues the messages. Returns the id of a single `message`, or the ids of `messages` in
        their order.
        """
        if not self._payloads and self._single is False:
            raise errors.ValidationError(
                "there is nothing to enqueue; call .message(payload) or .messages(payloads)"
            )
        if (self._queue is None) == (self._producer is None):
            raise errors.ValidationError("exactly one of .to(queue) and .worker(producer) is required")
        core, ways = apart(store)

        async def sent() -> Any:
            producer = await self._sender(core, ways)
            at = self._at
            if at is None:
                send = partial(producer.enqueue_batch_delayed, self._payloads, self._delay_s)
            else:
                send = partial(producer.enqueue_at, self._payloads, at, self._delay_s)
            ids = await ways.claim(send, producer.undo)
            return ids[0] if self._single else ids

        return finish(store, sent())

    async def _sender(self, core: blocking.Store, ways: Ways) -> blocking_producer.Producer:
        if isinstance(self._producer, aio.Producer):
            return self._producer.core
        if self._producer is not None:
            return self._producer
        assert self._queue is not None
        return await ways.call(core.anonymous_producer, self._queue)


class DequeueBuilder:
    """Polls a queue: `.worker(consumer)` or `.from_queue(name)`, optionally `.batch(n)`,
    `.poll_interval(ms)` and `.at(time)`, one of `.handle(fn)`, `.handle_batch(fn)` and
    `.handle_workflow(wf)`, then `.poll(store)`.
    """

    def __init__(self) -> None:
        self._consumer: AnyConsumer | None = None
        self._queue: str | None = None
        self._batch = 1
        self._interval_ms: int | None = None
        self._at: datetime | None = None
        self._handlers: list[tuple[polling.Kind, Callable[[Any], Any]]] = []

    def worker(self, consumer: AnyConsumer) -> Self:
        """Sets the consumer and its queue."""
        self._consumer = consumer
        return self

    def from_queue(self, queue: str) -> Self:
        """Sets the queue. A new consumer polls it, and is stopped when the polling ends."""
        self._queue = queue
        return self

    def batch(self, size: int) -> Self:
        """Sets the most messages to claim at once, at least 1. More than 1 requires `handle_batch`
        or `handle_workflow`.
        """
        self._batch = count("a batch", size, 1)
        return self

    def poll_interval(self, interval_ms: int) -> Self:
        """Sets the milliseconds between queries of an empty queue."""
        self._interval_ms = count("poll_interval", interval_ms)
        return self

    def at(self, time: str | datetime) -> Self:
        """Makes `poll` poll as if the time were `time`."""
        self._at = times.moment(time)
        return self

    def handle(self, handler: Callable[[QueueMessage], Any]) -> Self:
        """Sets a handler that is called with each message. When the handler returns, the message is
        archived.
        """
        return self._with("message", handler)

    def handle_batch(self, handler: Callable[[list[QueueMessage]], Any]) -> Self:
        """Sets a handler that is called with up to `batch` messages. When the handler returns, they
        are archived.
        """
        return self._with("batch", handler)

    def handle_workflow(self, handler: Callable[[Any], Any]) -> Self:
        """Sets a handler that is called with each message's Run. The run's success archives its
        message in the same transaction.
        """
        return self._with("workflow", handler)

    @property
    def queue(self) -> str | None:
        """The queue set by `from_queue`."""
        return self._queue

    @property
    def batch_size(self) -> int:
        """The size set by `batch`, or 1."""
        return self._batch

    @property
    def poll_interval_ms(self) -> int | None:
        """The interval set by `poll_interval`. None means the setting of the store's Config."""
        return self._interval_ms

    def has_worker(self) -> bool:
        """Returns whether `worker` was called."""
        return self._consumer is not None

    def poll(self, store: AnyStore) -> Any:
        """Polls until the worker is interrupted. The worker is then Suspended, and `poll` raises
        WorkerSuspendedError. If the handler raises an exception, `poll` raises it, and the claimed
        messages are released.
        """
        return finish(store, self._poll(store))

    async def _poll(self, store: AnyStore) -> None:
        if len(self._handlers) != 1:
            raise ValueError("exactly one of handle(), handle_batch() or handle_workflow() is required")
        kind, handler = self._handlers[0]
        if self._consumer is None and self._queue is None:
            raise ValueError('Queue name is required. Use .from_queue("queue-name") or .worker(consumer)')
        if kind == "message" and self._batch != 1:
            raise errors.ValidationError(
                "Validation failed: single-message handlers require "
                f"batch size = 1, got {self._batch}; use handle_batch()"
            )
        core, ways = apart(store)
        interval_ms = core.config.poll_interval_ms if self._interval_ms is None else self._interval_ms
        of_run: Callable[[runs.Run], Any] = lambda run: run  # noqa: E731
        if isinstance(store, aio.Store):
            threads = store.ways
            of_run = lambda run: aio.Run(run, threads)  # noqa: E731
        told = polling.Poll(kind, handler, self._batch, interval_ms / 1000, self._at, of_run)
        if self._consumer is not None:
            await polling.poll(ways, _core(self._consumer), told)
            return
        assert self._queue is not None
        messages = await ways.call(lambda: core.messages)
        async with polling.ephemeral(ways, messages, core.config, self._queue) as consumer:
            await polling.poll(ways, consumer, told)

    def _with(self, kind: polling.Kind, handler: Callable[[Any], Any]) -> Self:
        polling.refuse_no_handler(handler)
        self._handlers.append((kind, handler))
        return self


def _core(consumer: AnyConsumer) -> blocking_consumer.Consumer:
    return consumer.core if isinstance(consumer, aio.Consumer) else consumer


class TablesBuilder:
    """Returns table handles: `pgqrs.tables(store).messages()` and so on."""

    def __init__(self, store: AnyStore) -> None:
        self._store = store

    def workers(self) -> Any:
        """Returns the table of producers and consumers. See `Workers`."""
        return self._store.get_workers()

    def queues(self) -> Any:
        """Returns the table of queues. See `Queues`."""
        return self._store.get_queues()

    def messages(self) -> Any:
        """Returns the table of messages. See `Messages`."""
        return self._store.get_messages()

    def workflows(self) -> Any:
        """Returns the table of workflows. See `Workflows`."""
        return self._store.get_workflows()

    def workflow_runs(self) -> Any:
        """Returns the table of runs. See `WorkflowRuns`."""
        return self._store.get_workflow_runs()

    def workflow_steps(self) -> Any:
        """Returns the table of steps. See `WorkflowSteps`."""
        return self._store.get_workflow_steps()


# The builders under their public names


def run() -> RunBuilder:
    """Returns a builder for a message's run, to drive it or wait for it. See `RunBuilder`."""
    return RunBuilder()


@overload
def enqueue() -> EnqueueBuilder: ...
@overload
def enqueue(producer: aio.Producer, payload: Any) -> Coroutine[Any, Any, int]: ...
@overload
def enqueue(producer: blocking_producer.Producer, payload: Any) -> int: ...
def enqueue(*args: Any, **kwargs: Any) -> Any:
    """Enqueues a message through a producer. Without arguments, returns a builder."""

    def sent(producer: AnyProducer, payload: Any) -> Any:
        return producer.enqueue(payload)

    return sent(*args, **kwargs) if args or kwargs else EnqueueBuilder()


@overload
def dequeue() -> DequeueBuilder: ...
@overload
def dequeue(consumer: aio.Consumer, batch_size: int) -> Coroutine[Any, Any, list[QueueMessage]]: ...
@overload
def dequeue(consumer: blocking_consumer.Consumer, batch_size: int) -> list[QueueMessage]: ...
def dequeue(*args: Any, **kwargs: Any) -> Any:
    """Claims up to `batch_size` messages. Without arguments, returns a builder."""

    def taken(consumer: AnyConsumer, batch_size: int) -> Any:
        return consumer.dequeue(batch_size)

    return taken(*args, **kwargs) if args or kwargs else DequeueBuilder()


def dequeue_builder() -> DequeueBuilder:
    """Returns the builder that `dequeue()` without arguments returns."""
    return DequeueBuilder()


def tables(store: AnyStore) -> TablesBuilder:
    """Returns the table handles of a store, blocking or async like the store."""
    return TablesBuilder(store)


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"{what} is required; call .{what}(…)")
    return value
