"""The async twins of the blocking classes. Each call runs the blocking method on a thread and
awaits it.

Some calls wait for more than the database: for a result, for the next message, or for a handler.
These calls do not occupy a thread. They are coroutines that wait through `Ways` (store/waiting.py),
and the blocking classes use the same coroutines. A test compares the blocking with the async
classes.
"""

import asyncio
import functools
import types
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from pgqrs import errors
from pgqrs.arguments.durations import Duration
from pgqrs.clients import administration, blocking, handle, jobs, using
from pgqrs.config import Config
from pgqrs.manual import consumer, consumer_iterator, producer, registered, runs
from pgqrs.manual import table_handles as tables
from pgqrs.model.records import QueueMessage, RunRecord, StepRecord
from pgqrs.model.states import StepResultStatus, WorkflowStatus
from pgqrs.store.waiting import Threads

if TYPE_CHECKING:
    import psycopg

    from pgqrs.store.postgresql.borrowed import Borrowed

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
W = TypeVar("W")
B = TypeVar("B")


class Twin(Generic[B]):
    """Holds the blocking object and the threads that execute its calls."""

    def __init__(self, core: B, ways: Threads) -> None:
        self.core = core
        self.ways = ways

    def __repr__(self) -> str:
        return repr(self.core)


# The name is lowercase because it reads like a keyword where it is used.
class awaited(Generic[P, R]):
    """Derives an async method from a blocking one."""

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        @functools.wraps(method)
        async def call(twin: Twin[Any], *args: P.args, **kwargs: P.kwargs) -> R:
            result: R = await self._called(twin, functools.partial(method, twin.core, *args, **kwargs))
            return result

        self.blocking = method
        self._call = call

    def __get__(self, twin: Any, owner: type) -> Callable[P, Coroutine[Any, Any, R]]:
        return types.MethodType(self._call, twin) if twin is not None else self._call  # type: ignore[return-value]

    async def _called(self, twin: Twin[Any], call: Callable[[], Any]) -> Any:
        return await twin.ways.call(call)


class undone(awaited[P, R]):
    """Derives an async method that claims or sends messages. If the caller is cancelled, claimed
    messages are released and sent ones are withdrawn.
    """

    async def _called(self, twin: Twin[Any], call: Callable[[], Any]) -> Any:
        return await twin.ways.claim(call, twin.core.undo)


class carried_out(awaited[P, R]):
    """Derives an async method of `Using`, which runs on the caller's own connection."""

    async def _called(self, twin: Any, call: Callable[[], Any]) -> Any:
        return await twin._carried_out(call)


class awaited_as(awaited[P, W]):
    """Derives an async method from a blocking one that returns an object. The async method returns
    the twin of that object.
    """

    def __init__(
        self, method: Callable[Concatenate[Any, P], Any], twin_of: Callable[[Any, Threads], W]
    ) -> None:
        super().__init__(method)
        self._twin_of = twin_of

    async def _called(self, twin: Twin[Any], call: Callable[[], Any]) -> Any:
        return self._twin_of(await twin.ways.call(call), twin.ways)


class handed_out(awaited[P, "list[RunHandle[Any]]"]):
    """Derives an async method that triggers runs and returns the twins of their handles. If the
    caller is cancelled, the runs are withdrawn.
    """

    def __init__(self, method: Callable[Concatenate[Any, P], Any]) -> None:
        super().__init__(method)

    async def _called(self, twin: Twin[Any], call: Callable[[], Any]) -> Any:
        made = await twin.ways.claim(call, lambda made: twin.core.undo([handle.id for handle in made]))
        return [RunHandle(handle, twin.ways) for handle in made]


# Producers and consumers


class Registered(Twin[B]):
    @property
    def worker_id(self) -> int:
        core: Any = self.core
        return int(core.worker_id)

    @property
    def queue_name(self) -> str:
        core: Any = self.core
        return str(core.queue_name)

    status = awaited(registered.Registered.status)
    poll = awaited(registered.Registered.poll)
    complete_poll = awaited(registered.Registered.complete_poll)
    interrupt = awaited(registered.Registered.interrupt)
    suspend = awaited(registered.Registered.suspend)
    resume = awaited(registered.Registered.resume)
    shutdown = awaited(registered.Registered.shutdown)
    heartbeat = awaited(registered.Registered.heartbeat)
    is_healthy = awaited(registered.Registered.is_healthy)


class Producer(Registered[producer.Producer]):
    """Enqueues messages on one queue. Created by `await store.producer(queue)`."""

    enqueue = undone(producer.Producer.enqueue)
    enqueue_delayed = undone(producer.Producer.enqueue_delayed)
    enqueue_batch = undone(producer.Producer.enqueue_batch)
    enqueue_batch_delayed = undone(producer.Producer.enqueue_batch_delayed)
    enqueue_at = undone(producer.Producer.enqueue_at)
    rate_limit_status = awaited(producer.Producer.rate_limit_status)

    @staticmethod
    async def new_producer(admin: "Admin", queue: str, name: str) -> "Producer":
        """Registers a producer under a given name. Raises ValidationError if another worker has
        this name.
        """
        made = await admin.ways.call(admin.core.new_producer, queue, name)
        return Producer(made, admin.ways)


class Consumer(Registered[consumer.Consumer]):
    """Dequeues the messages of one queue. Created by `await store.consumer(queue)`."""

    dequeue = undone(consumer.Consumer.dequeue)
    dequeue_many_with_delay = undone(consumer.Consumer.dequeue_many_with_delay)
    dequeue_at = undone(consumer.Consumer.dequeue_at)
    extend_vt = awaited(consumer.Consumer.extend_vt)
    archive = awaited(consumer.Consumer.archive)
    archive_many = awaited(consumer.Consumer.archive_many)
    delete = awaited(consumer.Consumer.delete)
    delete_many = awaited(consumer.Consumer.delete_many)
    release_with_visibility = awaited(consumer.Consumer.release_with_visibility)
    release_messages = awaited(consumer.Consumer.release_messages)

    @staticmethod
    async def new_consumer(admin: "Admin", queue: str, name: str) -> "Consumer":
        """Registers a consumer under a given name. Raises ValidationError if another worker has
        this name.
        """
        made = await admin.ways.call(admin.core.new_consumer, queue, name)
        return Consumer(made, admin.ways)


class ConsumerIterator:
    """Iterates over the messages of a queue: `async with store.consume_iter(queue) as messages:
    async for message in messages: …`.
    """

    def __init__(self, iteration: consumer_iterator.Iteration, ways: Threads) -> None:
        self._iteration = iteration
        self._ways = ways

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> QueueMessage:
        if self._iteration.closed:
            raise StopAsyncIteration
        return await self._iteration.next(self._ways)

    async def archive(self, message_id: int) -> bool:
        """Archives a message as finished. Returns False if this iterator does not hold the message."""
        return await self._iteration.archive(self._ways, message_id)

    async def delete(self, message_id: int) -> bool:
        """Deletes a finished message. Returns False if this iterator does not hold the message.
        Raises ValidationError if the message has a run.
        """
        return await self._iteration.delete(self._ways, message_id)

    async def close(self) -> None:
        """Stops the iterator's worker and releases the messages that the iterator still holds. A
        second call does nothing.
        """
        await self._iteration.close(self._ways)

    async def __aenter__(self) -> Self:
        await self._iteration.open(self._ways)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# Runs


class StepGuard(Twin[runs.StepGuard]):
    """The right to record how a step ended. Only the first report counts."""

    success = awaited(runs.StepGuard.success)
    fail = awaited(runs.StepGuard.fail)
    fail_transient = awaited(runs.StepGuard.fail_transient)


class StepResult:
    """The outcome of `acquire_step`. If the step is to be executed, `guard` records its end.
    Otherwise `guard` is None, and `value` is the recorded result.
    """

    def __init__(self, core: runs.StepResult, ways: Threads) -> None:
        self.status: StepResultStatus = core.status
        self.value: Any = core.value
        self.guard = None if core.guard is None else StepGuard(core.guard, ways)

    def __repr__(self) -> str:
        return f"StepResult({self.status}, {self.value!r})"


class Run(Twin[runs.Run]):
    """One run of a workflow, driven by its caller. `pgqrs.manual.runs.Run` documents each call."""

    def id(self) -> int:
        """The number of the run's row, as in 0.15. `Store.run` and the command line take
        `message_id` instead.
        """
        return self.core.id()

    @property
    def message_id(self) -> int:
        """The id that `Store.run` and the command line take."""
        return self.core.message_id

    @property
    def status(self) -> WorkflowStatus:
        """The status when a call last read the run. `refresh` reads it again."""
        return self.core.status

    @property
    def input(self) -> Any:
        """The payload of the run's message: {"input": X} after a trigger with X."""
        return self.core.input

    @property
    def output(self) -> Any:
        """The output when a call last read the run."""
        return self.core.output

    @property
    def current_time(self) -> str | None:
        """The time given to `with_time`, as ISO 8601 text in UTC. None means the database's clock."""
        return self.core.current_time

    def with_time(self, time: str | datetime) -> "Run":
        """Returns the same run with its clock set to `time`."""
        return Run(self.core.with_time(time), self.ways)

    async def refresh(self) -> "Run":
        """Reads the run again, and returns it."""
        return Run(await self.ways.call(self.core.refresh), self.ways)

    start = awaited(runs.Run.start)
    success = awaited(runs.Run.success)
    complete = awaited(runs.Run.complete)
    fail = awaited(runs.Run.fail)
    pause = awaited(runs.Run.pause)
    cancel = awaited(runs.Run.cancel)
    acquire_step = awaited_as(runs.Run.acquire_step, StepResult)
    complete_step = awaited(runs.Run.complete_step)
    fail_step = awaited(runs.Run.fail_step)


# Tables and administration


class Workers(Twin[tables.Workers]):
    """The producers and consumers, including those of supervisors.
    `pgqrs.manual.table_handles.Workers` documents each call.
    """

    count = awaited(tables.Workers.count)
    list = awaited(tables.Workers.list)
    get = awaited(tables.Workers.get)
    health_stats = awaited(tables.Workers.health_stats)
    purge_stale = awaited(tables.Workers.purge_stale)


class Queues(Twin[tables.Queues]):
    """The queues. `pgqrs.manual.table_handles.Queues` documents each call."""

    count = awaited(tables.Queues.count)
    list = awaited(tables.Queues.list)
    get = awaited(tables.Queues.get)
    purge = awaited(tables.Queues.purge)
    metrics = awaited(tables.Queues.metrics)
    list_metrics = awaited(tables.Queues.list_metrics)


class Messages(Twin[tables.Messages]):
    """The messages. `pgqrs.manual.table_handles.Messages` documents each call."""

    count = awaited(tables.Messages.count)
    list_archived_by_queue = awaited(tables.Messages.list_archived_by_queue)


class Workflows(Twin[tables.Workflows]):
    """The workflows. `pgqrs.manual.table_handles.Workflows` documents each call."""

    count = awaited(tables.Workflows.count)
    list = awaited(tables.Workflows.list)
    get_by_name = awaited(tables.Workflows.get_by_name)


class WorkflowRuns(Twin[tables.WorkflowRuns]):
    """The runs. `pgqrs.manual.table_handles.WorkflowRuns` documents each call."""

    count = awaited(tables.WorkflowRuns.count)
    list = awaited(tables.WorkflowRuns.list)


class WorkflowSteps(Twin[tables.WorkflowSteps]):
    """The steps. `pgqrs.manual.table_handles.WorkflowSteps` documents each call."""

    count = awaited(tables.WorkflowSteps.count)
    list = awaited(tables.WorkflowSteps.list)


class Admin(Twin[administration.Admin]):
    """Administration of a database. `pgqrs.clients.administration.Admin` documents each call."""

    def __init__(self, store: "Store") -> None:
        super().__init__(administration.Admin(store.core), store.ways)

    install = awaited(administration.Admin.install)
    verify = awaited(administration.Admin.verify)
    get_queue = awaited(administration.Admin.get_queue)
    delete_queue = awaited(administration.Admin.delete_queue)
    purge_queue = awaited(administration.Admin.purge_queue)
    queue_metrics = awaited(administration.Admin.queue_metrics)
    all_queues_metrics = awaited(administration.Admin.all_queues_metrics)
    system_stats = awaited(administration.Admin.system_stats)
    dlq = awaited(administration.Admin.dlq)
    replay_dlq = awaited(administration.Admin.replay_dlq)
    get_worker_messages = awaited(administration.Admin.get_worker_messages)
    release_worker_messages = awaited(administration.Admin.release_worker_messages)
    reclaim_messages = awaited(administration.Admin.reclaim_messages)
    list_workers = awaited(administration.Admin.list_workers)
    delete_worker = awaited(administration.Admin.delete_worker)
    purge_old_workers = awaited(administration.Admin.purge_old_workers)
    worker_stats = awaited(administration.Admin.worker_stats)
    worker_health_stats = awaited(administration.Admin.worker_health_stats)
    create_workflow = awaited_as(administration.Admin.create_workflow, Run)


# The store


class Job(Generic[R]):
    """A step over many items: what `await store.map(…)` returns.

    `async for outcome in job` yields an Outcome for each item, as the items end. `results()` yields
    the values in the order of the items. Both wait for what has not ended, and can be called again.
    """

    def __init__(self, core: jobs.Job[R], ways: Threads) -> None:
        self._core = core
        self._ways = ways
        self.id = core.id

    def __repr__(self) -> str:
        return repr(self._core)

    def __aiter__(self) -> AsyncIterator[jobs.Outcome[R]]:
        """Yields the outcome of each item as it ends, including failed items. Raises MapError at the
        end if more items failed than the map tolerates, and RunCancelledError if the map was
        cancelled.
        """
        return self._yielded(self._core._as_completed())

    def outcomes(self) -> AsyncIterator[jobs.Outcome[R]]:
        """Like iterating over the job, but in the order of the items."""
        return self._yielded(self._core._in_order())

    async def results(self) -> AsyncIterator[R]:
        """Yields the value of each item in the order of the items. Raises MapError at the first
        failed item.
        """
        async for outcome in self.outcomes():
            if outcome.error is not None:
                raise await self._ways.call(self._core._failed)
            yield cast(R, outcome.value)

    async def failures(self) -> AsyncIterator[jobs.Outcome[R]]:
        """Yields the outcomes of the items that have failed so far, in the order of the items. Does
        not wait for others.
        """
        found = self._core.failures()
        while (outcome := await self._ways.call(next, found, None)) is not None:
            yield outcome

    async def wait(self, timeout: Duration | None = None) -> jobs.Progress:  # noqa: ASYNC109
        """Waits until every item has an outcome, and returns the counts. Raises MapError,
        RunCancelledError, TimeoutError or SupervisorError, as `pgqrs.clients.jobs.Job.wait`
        documents.
        """
        return await self._core._until_over(self._ways, timeout)

    @property
    def progress(self) -> Coroutine[Any, Any, jobs.Progress]:
        """Returns a coroutine for the current counts: `await job.progress`."""
        return self._ways.call(lambda: self._core.progress)

    async def cancel(self) -> None:
        """Starts no further item. Items that are executing end, and keep their outcomes."""
        await self._ways.call(self._core.cancel)

    async def retry_failed(self) -> int:
        """Enqueues every item that has failed or never started, and returns their number."""
        return await self._ways.call(self._core.retry_failed)

    async def _yielded(self, reader: jobs.Reader) -> AsyncIterator[jobs.Outcome[R]]:
        while found := await self._core._next_outcomes(self._ways, reader):
            for outcome in found:
                yield outcome


class RunHandle(Generic[R]):
    """The handle of one run. `await handle.result()` waits for the run; `await handle.status` reads
    its status.
    """

    def __init__(self, core: handle.RunHandle[R], ways: Threads) -> None:
        self._core = core
        self._ways = ways
        self.id = core.id

    def __repr__(self) -> str:
        return repr(self._core)

    @property
    def status(self) -> Coroutine[Any, Any, WorkflowStatus]:
        """Returns a coroutine for the run's current status: `await handle.status`."""
        return self._ways.call(lambda: self._core.status)

    async def result(self, timeout: Duration | None = None) -> R:  # noqa: ASYNC109 - part of the API
        """Waits until the run ends, and returns its result, converted to the function's return
        annotation.

        Raises RunFailedError, RunCancelledError, TimeoutError, SupervisorError or InternalError, as
        `pgqrs.clients.handle.RunHandle.result` documents.
        """
        return await self._core.wait(self._ways, timeout)

    async def cancel(self, now: bool = False) -> WorkflowStatus:
        """Cancels the run, and returns the status of the run after that: CANCELLED, or CANCELLING
        until its next step begins. With `now`, the run is CANCELLED immediately.
        """
        return await self._ways.call(self._core.cancel, now)

    async def resume(self) -> bool:
        """Ends the pause of a run. Returns False if the run is not paused."""
        return await self._ways.call(self._core.resume)

    async def record(self) -> RunRecord:
        """Returns the run's current record. Raises RunNotFoundError."""
        return await self._ways.call(self._core.record)

    async def steps(self) -> list[StepRecord]:
        """Returns the run's recorded steps, in the order of their calls."""
        return await self._ways.call(self._core.steps)


class Using(Twin[using.Using]):
    """Offers a store's enqueue and trigger inside the caller's transaction, on a
    psycopg.AsyncConnection.

    While another task uses the connection, a call waits, and other tasks wait while a call uses it.
    If the calling task is cancelled, psycopg interrupts the current statement, and the transaction
    has failed after that.
    """

    def __init__(self, store: "Store", connection: "psycopg.AsyncConnection[Any]") -> None:
        self._connection = _borrowed(store.core, connection)
        super().__init__(using.Using(store.core, self._connection), store.ways)

    async def _carried_out(self, call: Callable[[], W]) -> W:
        async with self._connection.lent():
            return await self.ways.call(self._connection.carried_out, call)

    enqueue = carried_out(using.Using.enqueue)
    enqueue_many = carried_out(using.Using.enqueue_many)

    @overload
    def trigger(
        self, workflow: Callable[Q, Coroutine[Any, Any, R]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Coroutine[Any, Any, RunHandle[R]]: ...
    @overload
    def trigger(
        self, workflow: Callable[Q, R], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Coroutine[Any, Any, RunHandle[R]]: ...
    @overload
    def trigger(self, workflow: str, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]: ...
    def trigger(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]:
        """Triggers a run of a decorated function with these arguments. The run exists when the
        caller's transaction commits.
        """
        return self._trigger(workflow, args, kwargs)

    async def _trigger(self, workflow: Any, args: tuple[Any, ...], kwargs: Any) -> RunHandle[Any]:
        made: handle.RunHandle[Any] = await self._carried_out(
            functools.partial(self.core.trigger, workflow, *args, **kwargs)
        )
        return RunHandle(made, self.ways)


def _borrowed(store: blocking.Store, connection: "psycopg.AsyncConnection[Any]") -> "Borrowed":
    if store.config.backend != "postgres":
        raise errors.ValidationError(
            "store.using(connection) takes a psycopg.AsyncConnection; this store is not on PostgreSQL"
        )
    import psycopg

    from pgqrs.store.postgresql.borrowed import Borrowed

    if not isinstance(connection, psycopg.AsyncConnection):
        raise errors.ValidationError(
            "an async store's using(connection) takes a psycopg.AsyncConnection, "
            f"not {type(connection).__name__}; for a psycopg.Connection use a "
            "blocking store: with pgqrs.connect(…) as store"
        )
    return Borrowed(connection)


class Store(Twin[blocking.Store]):
    """An async store: a database of queues and workflows.

    A store works with any event loop and any number of tasks. Do not use it across a fork.
    `pgqrs.clients.blocking.Store` documents each call.
    """

    def __init__(self, core: blocking.Store) -> None:
        config = core.config
        # An embedded database has one connection, and therefore one call at a time.
        count = 1 if config.embedded else config.max_connections
        super().__init__(core, Threads(count, config.connection_timeout_seconds))

    @property
    def config(self) -> Config:
        """The settings of this store."""
        return self.core.config

    async def close(self) -> None:
        """Closes the store and its connections. A second call does nothing."""
        ways = self.ways
        if self.config.backend == "s3":
            # A call on the store's threads may wait for a response of S3. Closing the store ends
            # that call, so `close` uses a thread of its own.
            ways = Threads(1, self.config.connection_timeout_seconds)
        await ways.surely(self.core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    install = awaited(blocking.Store.install)
    verify = awaited(blocking.Store.verify)
    bootstrap = awaited(blocking.Store.bootstrap)

    queue = awaited(blocking.Store.queue)
    producer = awaited_as(blocking.Store.producer, Producer)
    consumer = awaited_as(blocking.Store.consumer, Consumer)
    get_workers = awaited_as(blocking.Store.get_workers, Workers)
    get_queues = awaited_as(blocking.Store.get_queues, Queues)
    get_messages = awaited_as(blocking.Store.get_messages, Messages)
    get_workflows = awaited_as(blocking.Store.get_workflows, Workflows)
    get_workflow_runs = awaited_as(blocking.Store.get_workflow_runs, WorkflowRuns)
    get_workflow_steps = awaited_as(blocking.Store.get_workflow_steps, WorkflowSteps)

    def consume_iter(self, queue: str, poll_interval_ms: int | None = None) -> ConsumerIterator:
        """Returns the queue's messages as they arrive. The result is an async iterator, and also an
        async context manager that closes the iterator at its end.
        """
        return ConsumerIterator(self.core.iteration(queue, poll_interval_ms), self.ways)

    enqueue = undone(blocking.Store.enqueue)
    enqueue_many = undone(blocking.Store.enqueue_many)

    @overload
    def trigger(
        self, workflow: Callable[Q, Coroutine[Any, Any, R]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Coroutine[Any, Any, RunHandle[R]]: ...
    @overload
    def trigger(
        self, workflow: Callable[Q, R], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Coroutine[Any, Any, RunHandle[R]]: ...
    @overload
    def trigger(self, workflow: str, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]: ...
    def trigger(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[Any]]:
        """Triggers a run of a decorated function with these arguments. Returns its handle after the
        commit.
        """
        return self._trigger(workflow, args, kwargs)

    async def _trigger(self, workflow: Any, args: tuple[Any, ...], kwargs: Any) -> RunHandle[Any]:
        [handle] = await self.trigger_many(workflow, [(args, kwargs)])
        return handle

    trigger_many = handed_out(blocking.Store.trigger_many)

    map = awaited_as(blocking.Store.map, Job)
    starmap = awaited_as(blocking.Store.starmap, Job)
    job = awaited_as(blocking.Store.job, Job)

    def using(self, connection: "psycopg.AsyncConnection[Any]") -> Using:
        """Returns enqueue and trigger inside the caller's own transaction, on a
        psycopg.AsyncConnection. The caller commits them or rolls them back. PostgreSQL only. Raises
        ValidationError for any other connection.
        """
        return Using(self, connection)

    run = awaited_as(blocking.Store.run, RunHandle)
    runs = awaited(blocking.Store.runs)
    queues = awaited(blocking.Store.queues)
    consumers = awaited(blocking.Store.consumers)
    dead = awaited(blocking.Store.dead)
    replay = awaited(blocking.Store.replay)

    @asynccontextmanager
    async def workers(
        self, *functions: Callable[..., Any], processes: int | None = None, lanes: int | None = None
    ) -> AsyncIterator[None]:
        """Runs a supervisor with these workflows and handlers while the `async with` block lasts.
        The supervisor is ready when the block begins, and drains when the block ends.
        """
        running = self.core.workers(*functions, processes=processes, lanes=lanes)
        await asyncio.to_thread(running.__enter__)
        try:
            yield
        except BaseException as e:
            # The blocking context manager receives the exception too: it stops at the next step and
            # does not drain.
            await asyncio.shield(asyncio.to_thread(running.__exit__, type(e), e, e.__traceback__))
            raise
        await asyncio.shield(asyncio.to_thread(running.__exit__, None, None, None))
