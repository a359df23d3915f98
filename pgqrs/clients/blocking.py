"""The blocking store: a database of queues and workflows. `pgqrs.clients.aio` has its async twin."""

import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

from pgqrs import errors
from pgqrs.arguments import checks as arguments
from pgqrs.arguments import durations, names
from pgqrs.arguments.durations import Duration
from pgqrs.clients.handle import RunHandle
from pgqrs.clients.using import Using
from pgqrs.config import Config, redact
from pgqrs.flows.definitions import definition_of, step_of
from pgqrs.flows.flow import Definition
from pgqrs.manual import table_handles
from pgqrs.manual.consumer import Consumer
from pgqrs.manual.consumer_iterator import ConsumerIterator, Iteration
from pgqrs.manual.producer import Producer
from pgqrs.model.records import QueueCounts, QueueInfo, QueueMessage, RunRecord, WorkerInfo
from pgqrs.model.states import WorkflowStatus
from pgqrs.store import MessageStore, administering, consuming, open_store
from pgqrs.store.database import Kept
from pgqrs.store.store import Known
from pgqrs.store.waiting import Blocking
from pgqrs.values import codec

if TYPE_CHECKING:
    import psycopg

    from pgqrs.clients.jobs import Job
    from pgqrs.clients.local_supervisor import Local

P = ParamSpec("P")
R = TypeVar("R")

# Payloads per statement. A larger batch takes several statements, each in a transaction of its own.
ENQUEUE_MAX = 10_000


class Store:
    """A database of queues and workflows. Thread-safe. Do not use it across a fork."""

    def __init__(self, config: Config, insist: bool = False) -> None:
        self.config = config
        self._insist = insist
        self._messages: MessageStore | None = None
        self._verified = False
        self._queues: dict[str, int] = {}
        self._workflows: dict[str, int] = {}
        # The supervisors of the `workers` blocks that are open.
        self._supervisors: list[Local] = []

    ways = Blocking()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def open(self) -> Self:
        """Connects, unless the store is connected already. `pgqrs.connect` calls this; call it
        again to reopen a store after `close`.
        """
        self._closed = False
        if self._messages is None:
            self._messages = open_store(self.config, insist=self._insist)
            self.forget()
        return self

    def close(self) -> None:
        """Closes the connections. A second call does nothing."""
        self._closed = True
        messages, self._messages = self._messages, None
        if messages is not None:
            messages.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # Setting up

    def install(self) -> int:
        """Creates or migrates the schema to this version of pgqrs. Returns the number of migrations
        applied, 0 if the schema was up to date.
        """
        return self._opened().install()

    def verify(self) -> int:
        """Returns the version of the schema. Raises SchemaError if the schema is missing, or older
        or newer than this version of pgqrs supports.
        """
        return self._opened().verify()

    def bootstrap(self) -> None:
        """Another name for `install`."""
        self.install()

    # The API of 0.15: queues, producers, consumers, tables

    def queue(self, name: str) -> QueueInfo:
        """Creates a queue. Raises QueueAlreadyExistsError."""
        return administering.make_queue(self._ready().database, names.checked(name, "queue"))

    def producer(self, queue: str) -> Producer:
        """Registers a producer on a queue. Raises QueueNotFoundError."""
        return Producer.registered(self._ready(), self.config, self._queue_info(queue))

    def anonymous_producer(self, queue: str) -> Producer:
        """Returns a producer without a row in the table of workers. Its messages name no producer."""
        return Producer(self._ready(), self.config, self._queue_info(queue), None)

    def consumer(self, queue: str) -> Consumer:
        """Registers a consumer on a queue. Raises QueueNotFoundError."""
        return Consumer.registered(self._ready(), self.config, self._queue_info(queue))

    def consume_iter(self, queue: str, poll_interval_ms: int | None = None) -> ConsumerIterator:
        """Returns an iterator over the queue's messages as they arrive. The iterator has a
        consumer, which lives as long as the iterator: close it, or use it in a `with` block.
        """
        return ConsumerIterator(self.iteration(queue, poll_interval_ms))

    def iteration(self, queue: str, poll_interval_ms: int | None = None) -> Iteration:
        """Returns the part of an iterator over messages that the blocking and the async store
        share.
        """
        return Iteration(self._ready, self.config, queue, poll_interval_ms)

    def get_workers(self) -> table_handles.Workers:
        """Returns the handle of the table of producers and consumers."""
        return table_handles.Workers(self._ready().database)

    def get_queues(self) -> table_handles.Queues:
        """Returns the handle of the table of queues."""
        return table_handles.Queues(self._ready().database)

    def get_messages(self) -> table_handles.Messages:
        """Returns the handle of the table of messages."""
        return table_handles.Messages(self._ready().database)

    def get_workflows(self) -> table_handles.Workflows:
        """Returns the handle of the table of workflows."""
        return table_handles.Workflows(self._ready().database)

    def get_workflow_runs(self) -> table_handles.WorkflowRuns:
        """Returns the handle of the table of runs."""
        return table_handles.WorkflowRuns(self._ready().database)

    def get_workflow_steps(self) -> table_handles.WorkflowSteps:
        """Returns the handle of the table of steps."""
        return table_handles.WorkflowSteps(self._ready().database)

    # Enqueue and trigger

    def enqueue(self, queue: str, payload: Any, delay: Duration = 0) -> int:
        """Enqueues a message, commits, and returns the message's id. Creates the queue if it does
        not exist.
        """
        return self.enqueue_many(queue, [payload], delay)[0]

    def enqueue_many(self, queue: str, payloads: Iterable[Any], delay: Duration = 0) -> list[int]:
        """Enqueues several messages and returns their ids in the order of the payloads. Every
        10,000 messages are one transaction.
        """
        encoded = [self._encoded(p) for p in arguments.several(payloads, "payloads")]
        return self.enqueue_raw(queue, encoded, durations.seconds(delay))

    def enqueue_raw(self, queue: str, payloads: Sequence[bytes], delay_s: float = 0.0) -> list[int]:
        """Enqueues several messages like `enqueue_many`. The payloads are JSON already."""
        return self._sent(queue, None, payloads, delay_s)

    def _sent(
        self, queue: str, workflow: str | None, payloads: Sequence[bytes], delay_s: float = 0.0
    ) -> list[int]:
        known = Known(queue, workflow)

        def send(part: Sequence[bytes], queue_id: int) -> list[int]:
            return self._ready().enqueue(queue_id, part, delay_s, known=known)

        ids: list[int] = []
        for start in range(0, len(payloads), ENQUEUE_MAX):
            ids += self.on_queue(known, partial(send, payloads[start : start + ENQUEUE_MAX]))
        if not delay_s and ids:
            self._ready().database.hint([queue])
        return ids

    @overload
    def trigger(
        self, workflow: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> "RunHandle[R]": ...
    @overload
    def trigger(self, workflow: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "RunHandle[R]": ...
    @overload
    def trigger(self, workflow: str, /, *args: Any, **kwargs: Any) -> "RunHandle[Any]": ...
    def trigger(self, workflow: Any, /, *args: Any, **kwargs: Any) -> "RunHandle[Any]":
        """Starts a run of a decorated function with these arguments, commits, and returns the run's
        handle.

        A workflow may also be given by its name. The call then accepts one positional argument, or
        several keyword arguments, and does not check them. Raises ValidationError if the arguments
        do not fit the function, and SerializationError for a value that JSON cannot represent.
        """
        return self._triggered(workflow, [(args, kwargs)])[0]

    def trigger_many(
        self, workflow: Callable[..., Any] | str, calls: Iterable[Any]
    ) -> "list[RunHandle[Any]]":
        """Starts one run for each item of `calls`, and returns the handles in the same order. Every
        10,000 runs are one transaction.

        `store.trigger_many(compress, files)` passes one file to each run. For a workflow with
        several arguments, each item is a pair (args, kwargs): `[((source, target), {"level": 9}),
        …]`. Raises the errors of `trigger`, and ValidationError if `calls` is not a list of calls.
        """
        return self._triggered(workflow, _each_call(calls))

    def _triggered(
        self, workflow: Callable[..., Any] | str, calls: "Sequence[_Call]"
    ) -> "list[RunHandle[Any]]":
        name, queue, inputs, returns = self._calls(workflow, calls)
        ids = self._sent(queue, name, inputs)
        return [RunHandle(self, i, returns) for i in ids]

    def trigger_raw(self, workflow: str, argument: bytes) -> "RunHandle[Any]":
        """Starts a run of a workflow by name, with an input that is JSON already. The database must
        know the workflow. Raises WorkflowNotFoundError.
        """
        record = self._ready().find_workflow(workflow)
        payload = self._fitting(codec.wrap_input(argument))
        message_id = self._ready().enqueue(record.queue_id, [payload])[0]
        if queue := self._ready().queue_of_workflow(workflow):
            self._ready().database.hint([queue])
        return RunHandle(self, message_id, Any)

    def map(
        self,
        step: Callable[..., R],
        items: Iterable[Any],
        /,
        *more_items: Iterable[Any],
        name: str | None = None,
        errors: str = "raise",
        tolerate: int | str | None = None,
    ) -> "Job[R]":
        """Executes a step for each item, on every core of every supervisor that knows the step, and
        returns a job that records each outcome once.

        The items are read and recorded here, in transactions of up to 1,000. The first ones begin
        while the rest is read. With `more_items`, the step is called with one item of each, until
        the shortest ends.

        `name`: a program that maps the same step under the same name again gets the job that is
        there, goes on where it stopped, and executes nothing twice that has an outcome. If the
        earlier program died while it gave the items, they are compared with the recorded ones.

        `errors`: with "raise", the first failed item ends the job: nothing more is started. With
        "collect" the job goes on. `tolerate` is the number of failed items, or their share such as
        "1%", beyond which the job ends; a share is judged by the whole number of items once that is
        known, and after 100 items before.

        The step's `retry`, `timeout` and `memory` hold for each item. An item that kills its worker
        is tried again alone, and fails at the fifth death.

        Raises ValidationError for anything but a plain step and for arguments that do not fit it,
        SerializationError for an item that JSON cannot represent, and ReplayMismatchError for an
        item that differs from the recorded one. An exception of `items` cancels the job.
        """
        return self._mapped(step, zip(items, *more_items, strict=False), name, errors, tolerate)

    def starmap(
        self,
        step: Callable[..., R],
        arguments: Iterable[Sequence[Any]],
        /,
        *,
        name: str | None = None,
        errors: str = "raise",
        tolerate: int | str | None = None,
    ) -> "Job[R]":
        """Like `map`, for items that are sequences of the step's arguments."""
        return self._mapped(step, arguments, name, errors, tolerate)

    def job(self, step: Callable[..., R], name: str) -> "Job[R]":
        """Returns the job that `map` started under this name. Raises RunNotFoundError."""
        from pgqrs.clients.jobs import Job
        from pgqrs.store import maps

        map_id = maps.by_name(self._ready().database, name)
        if map_id is None:
            raise errors.RunNotFoundError(f"there is no map with the name {name!r}")
        return Job(self, map_id, step_of(step))

    def _mapped(
        self,
        step: Callable[..., Any],
        calls: Iterable[Sequence[Any]],
        name: str | None,
        errors: str,
        tolerate: int | str | None,
    ) -> "Job[Any]":
        from pgqrs.clients.jobs import start

        return start(self, step_of(step), calls, name, errors, tolerate)

    def using(self, connection: "psycopg.Connection[Any]") -> "Using":
        """Returns enqueue and trigger inside the caller's own transaction, on a psycopg connection.

        The caller commits them or rolls them back. PostgreSQL only. Raises ValidationError for a
        psycopg.AsyncConnection, which needs an async store.
        """
        if inspect.iscoroutinefunction(getattr(connection, "execute", None)):
            raise errors.ValidationError(
                "a blocking store's using(connection) takes a psycopg.Connection, "
                f"not {type(connection).__name__}; for an async connection use an "
                "async store: store = await pgqrs.connect(…)"
            )
        return Using(self, connection)

    # Inspection

    def run(self, run_id: int) -> "RunHandle[Any]":
        """Returns the handle of the run with this id. Raises RunNotFoundError."""
        known = arguments.identity(run_id)
        self._ready().settled(known)
        return RunHandle(self, known, Any)

    def runs(
        self,
        workflow: str | None = None,
        status: WorkflowStatus | str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[RunRecord]:
        """Returns runs, newest first, at most `limit` of them. `status` is a WorkflowStatus or its
        name. To get the following runs, pass the last id of the result as `before`.
        """
        return self._ready().runs(workflow, arguments.status(status), limit, before)

    def queues(self) -> list[QueueCounts]:
        """Returns every queue, ordered by name, with its number of messages per state."""
        return self._ready().queues()

    def consumers(self, stopped: bool = False) -> list[WorkerInfo]:
        """Returns the consumers of supervisors (one for each queue), and the producers and
        consumers of the Python library. Stopped ones are included only if `stopped` is true.
        """
        return self._ready().workers(stopped)

    def dead(self, queue: str | None = None, limit: int = 50) -> list[tuple[str, QueueMessage]]:
        """Returns dead letters as pairs (queue name, message), newest first."""
        if queue is not None:
            self._ready().find_queue(queue)
        return self._ready().dead(queue, limit)

    def replay(self, message_id: int) -> None:
        """Makes a dead message, or a run in ERROR, available again. Recorded steps are kept, and
        counters start at zero. Raises RunNotFoundError, and ValidationError if the message is not
        dead.
        """
        queue = self._ready().replay(message_id)
        self._ready().database.hint([queue])

    # Workers

    def workers(
        self, *functions: Callable[..., Any], processes: int | None = None, lanes: int | None = None
    ) -> AbstractContextManager[None]:
        """Runs a supervisor with these workflows and handlers while the `with` block lasts.

        The supervisor is a process of its own. It is ready when the block begins, and drains when
        the block ends. `processes` is its number of workers, by default the number of cores. Not
        available on sqlite::memory:.
        """
        from pgqrs.clients.local_supervisor import local_supervisor
        from pgqrs.program import targets

        targets.refuse_unguarded(functions, sys._getframe())
        return local_supervisor(self.config, self._ready, functions, processes, lanes, self._supervisors)

    def _refuse_without_workers(self) -> None:
        """Raises SupervisorError if the supervisors of `workers` blocks have died, and no other
        supervisor of this store is alive.
        """
        deaths = [local.death() for local in self._supervisors]
        if deaths and all(deaths):
            from pgqrs.clients.local_supervisor import told_death

            raise errors.SupervisorError(told_death(deaths[-1] or ""))

    # For the modules of pgqrs that use a store

    @property
    def messages(self) -> MessageStore:
        """The operations on the store's database. The first use checks the schema."""
        return self._ready()

    def kept(self) -> Kept:
        """The database of a store on S3, which can synchronize its local copy with the object."""
        return cast(Kept, self._opened().database)

    def on_queue(self, known: Known, send: Callable[[int], list[int]]) -> list[int]:
        """Calls `send` with the id of the queue, and returns its result. Creates the queue and the
        workflow if they do not exist.

        A store caches ids. If a cached id is no longer in the database (the queue was deleted, or
        the schema was dropped and installed again), this looks up or creates both again, and calls
        `send` once more.
        """
        try:
            return send(self._id_of(known))
        except errors.QueueNotFoundError:
            self.forget()
            return send(self._id_of(known))

    def _id_of(self, known: Known) -> int:
        if known.workflow is not None:
            self._workflow(known.workflow, known.queue)
        return self._queue(known.queue)

    def forget(self) -> None:
        """Drops the cached ids of queues and workflows, because the database may have changed."""
        self._verified = False
        self._queues.clear()
        self._workflows.clear()

    def undo(self, sent: int | Sequence[int]) -> None:
        """Withdraws messages that no worker has received yet."""
        consuming.withdraw(self._ready().database, [sent] if isinstance(sent, int) else sent)

    def _queue_info(self, name: str) -> QueueInfo:
        return administering.queue(self._ready().database, name)

    def _opened(self) -> MessageStore:
        if self._messages is None and self._closed:
            raise errors.PgqrsConnectionError(
                f"the store on {redact(self.config.dsn)} was closed; connect again"
            )
        if self._messages is None:
            raise errors.PgqrsConnectionError(
                "this store is not open: use `with pgqrs.connect(…) as store:` or .open()"
            )
        return self._messages

    def _ready(self) -> MessageStore:
        """Returns the database operations after checking the schema once. Installs a missing schema
        on an embedded database.
        """
        messages = self._opened()
        if not self._verified:
            if self.config.embedded:
                messages.install()
            messages.verify()
            self._verified = True
        return messages

    def _queue(self, name: str) -> int:
        if arguments.name(name, "a queue") not in self._queues:
            self._queues[name] = self._ready().ensure_queue(name)
        return self._queues[name]

    def _workflow(self, name: str, queue: str) -> None:
        if name not in self._workflows:
            self._workflows[name] = self._ready().ensure_workflow(name, queue).id

    def _encoded(self, payload: Any) -> bytes:
        return codec.encode(payload, what="the payload", limit=self.config.max_payload_size_bytes)

    def _fitting(self, payload: bytes) -> bytes:
        limit = self.config.max_payload_size_bytes
        if len(payload) > limit:
            raise errors.ValidationError(
                f"the payload is {len(payload):,} bytes, over the limit of {limit:,}; "
                "store the bulk elsewhere and pass its address, or raise max_payload_size_bytes"
            )
        return payload

    def _calls(
        self, workflow: Callable[..., Any] | str, calls: "Sequence[_Call]"
    ) -> tuple[str, str, list[bytes], Any]:
        limit = self.config.max_payload_size_bytes
        if isinstance(workflow, str):
            queue = self._queue_of(workflow)
            by_name = [codec.wrap_input(self._encoded(_input_by_name(a, k))) for a, k in calls]
            return workflow, queue, by_name, Any
        d: Definition = definition_of(workflow)
        if d.step is not None:
            raise errors.ValidationError(
                f"{d.step.name!r} is a step: call it in a workflow, or map it over items with store.map(…)"
            )
        if d.kind != "workflow":
            raise errors.ValidationError(
                f"{d.name!r} is a handler: put a message on its queue with store.enqueue({d.queue!r}, …)"
            )
        inputs = []
        for args, kwargs in calls:
            try:
                inputs.append(d.signature.encode_payload(args, kwargs, limit))
            except (errors.ValidationError, errors.SerializationError) as e:
                if len(calls) == 1:
                    raise
                raise type(e)(f"call {len(inputs)} of {len(calls)}, counted from 0: {e}") from e
        return d.name, d.queue, inputs, d.signature.returns

    def _queue_of(self, workflow: str) -> str:
        """Returns the queue of a known workflow. A new workflow uses a queue with its own name."""
        return self._ready().queue_of_workflow(workflow) or workflow


_Call = tuple[Sequence[Any], dict[str, Any]]


def _each_call(calls: Iterable[Any]) -> list[_Call]:
    """Returns the calls as pairs (args, kwargs). An item that is no such pair is the only argument
    of its call. Raises ValidationError.
    """
    if isinstance(calls, str | bytes | bytearray | Mapping) or not isinstance(calls, Iterable):
        raise errors.ValidationError(
            "trigger_many() takes a list of arguments, one for each run, and not a "
            f"{type(calls).__name__}; for one run use trigger()"
        )
    return [call if _is_call(call) else ((call,), {}) for call in calls]


def _is_call(call: Any) -> bool:
    return (
        type(call) is tuple
        and len(call) == 2
        and isinstance(call[0], tuple | list)
        and isinstance(call[1], dict)
        and all(isinstance(name, str) for name in call[1])
    )


def _input_by_name(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if args and (kwargs or len(args) > 1):
        raise errors.ValidationError(
            "by name, a workflow takes one positional argument, or several by keyword"
        )
    return args[0] if args else (kwargs or None)


# In the package `pgqrs`, `Store` is the async class.
BlockingStore = Store
