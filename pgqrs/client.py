"""What callers hold: a store, and a handle for each run they trigger."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from pgqrs import codec, durations, errors
from pgqrs.config import Config, default_dsn
from pgqrs.definitions import Duration, definition_of
from pgqrs.flow import Definition
from pgqrs.records import QueueCounts, QueueMessage, RunRecord, StepRecord, WorkerInfo
from pgqrs.states import WorkflowStatus
from pgqrs.store import MessageStore, open_store
from pgqrs.store.store import Settled, enqueue

if TYPE_CHECKING:
    import psycopg

P = ParamSpec("P")
R = TypeVar("R")

POLL_MIN_S, POLL_MAX_S = 0.002, 0.25
ENQUEUE_MAX = 10_000  # payloads in one statement; more are sent in several, in one transaction each


def connect(dsn: str | None = None) -> "Store":
    """A store on the database that `dsn` names: `with pgqrs.connect(dsn) as store:`, or `.open()` and later `.close()`.

    Without a DSN it is the environment's PGQRS_DSN, else ./pgqrs.db (SQLite). Raises ConfigError for a DSN that names no
    database, PgqrsConnectionError when it cannot be reached (on entry, not at the first query).
    """
    return Store(Config.from_dsn(dsn or default_dsn(os.environ)))


class Store:
    """A database of queues and workflows. Thread-safe; not for use across a fork."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._messages: MessageStore | None = None
        self._verified = False
        self._queues: dict[str, int] = {}
        self._workflows: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Store({self.config!r})"

    def open(self) -> Self:
        if self._messages is None:
            self._messages = open_store(self.config)
        return self

    def close(self) -> None:
        """Gives its connections back. Closing twice is fine."""
        messages, self._messages = self._messages, None
        if messages is not None:
            messages.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # Setting up

    def install(self) -> int:
        """Brings the schema to this version of pgqrs; returns how many migrations that took (0: nothing to do)."""
        return self._opened().install()

    def verify(self) -> int:
        """The schema's version. Raises SchemaError where it is missing, or older or newer than this version of pgqrs."""
        return self._opened().verify()

    # Asking for work

    def enqueue(self, queue: str, payload: Any, delay: Duration = 0) -> int:
        """Puts a message on a queue, which is made if it is new, and returns its id once that is committed."""
        return self.enqueue_many(queue, [payload], delay)[0]

    def enqueue_many(self, queue: str, payloads: Iterable[Any], delay: Duration = 0) -> list[int]:
        """The messages' ids, in the order of the payloads; all or nothing per 10,000."""
        encoded = [self._encoded(p) for p in payloads]
        return self.enqueue_raw(queue, encoded, durations.seconds(delay))

    def enqueue_raw(self, queue: str, payloads: Sequence[bytes], delay_s: float = 0.0) -> list[int]:
        """The same for payloads that are JSON already."""
        queue_id = self._queue(queue)
        ids: list[int] = []
        for start in range(0, len(payloads), ENQUEUE_MAX):
            ids += self._ready().enqueue(queue_id, payloads[start : start + ENQUEUE_MAX], delay_s)
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
        """Starts a run of a decorated function with these arguments, and returns its handle once that is committed.

        By name, a workflow takes one positional argument or several by keyword, unchecked. Raises ValidationError for
        arguments that do not fit, SerializationError for what JSON cannot carry.
        """
        return self.trigger_many(workflow, [(args, kwargs)])[0]

    def trigger_many(
        self, workflow: Callable[..., Any] | str, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]
    ) -> "list[RunHandle[Any]]":
        """A run for each (args, kwargs), in one go."""
        name, queue, inputs, returns = self._calls(workflow, calls)
        self._workflow(name, queue)
        ids = self.enqueue_raw(queue, inputs)
        return [RunHandle(self, i, returns) for i in ids]

    def trigger_raw(self, workflow: str, argument: bytes) -> "RunHandle[Any]":
        """A run of a workflow that the database knows, by name, with an input that is JSON already. Raises
        WorkflowNotFoundError."""
        record = self._ready().find_workflow(workflow)
        payload = self._fitting(codec.wrap_input(argument))
        message_id = self._ready().enqueue(record.queue_id, [payload])[0]
        self._ready().database.hint([workflow])
        return RunHandle(self, message_id, Any)

    def using(self, connection: "psycopg.Connection[Any]") -> "Using":
        """Enqueue and trigger inside the caller's own transaction, on its psycopg connection: committed or rolled back
        with it. Only on PostgreSQL."""
        return Using(self, connection)

    # Looking

    def run(self, run_id: int) -> "RunHandle[Any]":
        """The handle of a run by its id. Raises RunNotFoundError."""
        self._ready().settled(run_id)
        return RunHandle(self, run_id, Any)

    def runs(
        self,
        workflow: str | None = None,
        status: WorkflowStatus | str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[RunRecord]:
        """Newest first; `before` continues after the id a listing ended with."""
        wanted = WorkflowStatus(status.upper()) if isinstance(status, str) else status
        return self._ready().runs(workflow, wanted, limit, before)

    def queues(self) -> list[QueueCounts]:
        return self._ready().queues()

    def consumers(self, stopped: bool = False) -> list[WorkerInfo]:
        """Who takes messages: one for each queue of each supervisor. Those that stopped only if asked for."""
        return self._ready().workers(stopped)

    def dead(self, queue: str | None = None, limit: int = 50) -> list[tuple[str, QueueMessage]]:
        """(queue, message) of what was given up, newest first."""
        if queue is not None:
            self._ready().find_queue(queue)
        return self._ready().dead(queue, limit)

    def replay(self, message_id: int) -> None:
        """Gives a dead message or a run in ERROR another life: recorded steps are kept, counters start at zero. Raises
        RunNotFoundError, ValidationError where it is not dead."""
        queue = self._ready().replay(message_id)
        self._ready().database.hint([queue])

    # Running

    def workers(
        self, *functions: Callable[..., Any], processes: int | None = None, lanes: int | None = None
    ) -> "contextlib.AbstractContextManager[None]":
        """Runs a supervisor with these workflows and handlers while the `with` block lasts: a process of its own, ready
        on entry, drained on leaving. `processes` is by default the number of cores. Not on sqlite::memory:."""
        return _workers(self, functions, processes, lanes)

    # Inside

    def _opened(self) -> MessageStore:
        if self._messages is None:
            raise errors.PgqrsConnectionError(
                "this store is not open: use `with pgqrs.connect(…) as store:` or .open()"
            )
        return self._messages

    def _ready(self) -> MessageStore:
        """The store, its schema checked once. On SQLite a missing schema is installed."""
        messages = self._opened()
        if not self._verified:
            if self.config.backend == "sqlite":
                messages.install()
            messages.verify()
            self._verified = True
        return messages

    def _queue(self, name: str) -> int:
        if name not in self._queues:
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
        self, workflow: Callable[..., Any] | str, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]
    ) -> tuple[str, str, list[bytes], Any]:
        limit = self.config.max_payload_size_bytes
        if isinstance(workflow, str):
            queue = self._queue_of(workflow)
            inputs = [codec.wrap_input(self._encoded(_input_by_name(a, k))) for a, k in calls]
            return workflow, queue, inputs, Any
        d: Definition = definition_of(workflow)
        if d.kind != "workflow":
            raise errors.ValidationError(
                f"{d.name!r} is a handler: put a message on its queue with store.enqueue({d.queue!r}, …)"
            )
        inputs = [codec.wrap_input(_fitting_input(d, a, k, limit)) for a, k in calls]
        return d.name, d.queue, inputs, d.signature.returns

    def _queue_of(self, workflow: str) -> str:
        """A workflow that is known keeps its queue; a new one is on a queue of its own name."""
        return self._ready().queue_of_workflow(workflow) or workflow


def _fitting_input(d: Definition, args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> bytes:
    """The input as JSON, read back as the worker will: what does not fit is the caller's to hear, not the run's."""
    encoded = d.signature.encode_input(args, kwargs, limit)
    d.signature.decode_input(encoded)
    return encoded


def _input_by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and (kwargs or len(args) > 1):
        raise errors.ValidationError(
            "by name, a workflow takes one positional argument, or several by keyword"
        )
    return args[0] if args else (kwargs or None)


class RunHandle(Generic[R]):
    """A run, by its message's id. `result` waits for it."""

    def __init__(self, store: Store, run_id: int, returns: Any) -> None:
        self._store = store
        self._returns = returns
        self.id = run_id

    def __repr__(self) -> str:
        return f"RunHandle({self.id})"

    @property
    def status(self) -> WorkflowStatus:
        return self._settled().status

    def result(self, timeout: Duration | None = None) -> R:
        """Waits for the end of the run and returns its result, converted by the function's annotation.

        Raises RunFailedError (holding the recorded error), RunCancelledError, or TimeoutError when `timeout` (seconds,
        timedelta or text) is over first; the run goes on then.
        """
        deadline = None if timeout is None else time.monotonic() + durations.seconds(timeout)
        wait_s = POLL_MIN_S
        while not (settled := self._settled_patiently(deadline)).status.terminal:
            if deadline is not None and time.monotonic() >= deadline:
                raise errors.TimeoutError(
                    f"run {self.id} is still {settled.status} after {durations.text(durations.seconds(timeout or 0))}; "
                    "is a supervisor running for its workflow?"
                )
            time.sleep(wait_s if deadline is None else max(0.0, min(wait_s, deadline - time.monotonic())))
            wait_s = min(wait_s * 1.5, POLL_MAX_S)
        if settled.status is WorkflowStatus.Success:
            decoded = codec.decode(
                settled.output or b"null", self._returns, what=f"the result of run {self.id}"
            )
            return cast(R, decoded)
        if settled.status is WorkflowStatus.Cancelled:
            raise errors.RunCancelledError(f"run {self.id} was cancelled")
        raise _failure(self.id, settled)

    def cancel(self) -> WorkflowStatus:
        """CANCELLED at once when nobody holds the run, else CANCELLING until its next step begins. A run that ended stays
        as it ended. Returns what it is now."""
        return self._store._ready().cancel(self.id)

    def resume(self) -> bool:
        """Ends a pause. False when the run is not paused."""
        resumed = self._store._ready().resume(self.id)
        if resumed:
            self._store._ready().database.hint([self.record().workflow])
        return resumed

    def record(self) -> RunRecord:
        return self._store._ready().run(self.id)

    def steps(self) -> list[StepRecord]:
        """What is recorded of its steps, in their order."""
        return self._store._ready().steps(self.id)

    def _settled(self) -> Settled:
        return self._store._ready().settled(self.id)

    def _settled_patiently(self, deadline: float | None) -> Settled:
        """A database that is away for a while does not end a wait: the run goes on without us, too."""
        away_since: float | None = None
        while True:
            try:
                return self._settled()
            except errors.PgqrsConnectionError:
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                patience_s = self._store.config.connection_timeout_seconds
                if now - away_since >= patience_s or (deadline is not None and now >= deadline):
                    raise
                time.sleep(POLL_MAX_S)


def _failure(run_id: int, settled: Settled) -> errors.RunFailedError:
    told = (
        msgspec.json.decode(settled.error) if settled.error else (settled.dead_reason or "no reason recorded")
    )
    text = f"{told.get('type', 'error')}: {told.get('message', '')}" if isinstance(told, dict) else str(told)
    error = errors.RunFailedError(f"run {run_id} failed: {text}; its steps: pgqrs run {run_id}")
    error.run_id = run_id
    error.error = told if isinstance(told, dict) else {"message": text}
    if isinstance(told, dict) and told.get("traceback"):
        error.add_note(str(told["traceback"]))
    return error


class Using:
    """A store's enqueue and trigger inside the caller's transaction. A queue that is new is made on the store's own
    connection, and stays whatever becomes of the transaction."""

    def __init__(self, store: Store, connection: "psycopg.Connection[Any]") -> None:
        if store.config.backend != "postgres":
            raise errors.ValidationError(
                "store.using(connection) takes a psycopg connection; this store is not on PostgreSQL"
            )
        from pgqrs.store.postgres import PostgresTransaction

        self._store = store
        self._connection = connection
        self._tx = PostgresTransaction(connection)

    def enqueue(self, queue: str, payload: Any, delay: Duration = 0) -> int:
        return self.enqueue_many(queue, [payload], delay)[0]

    def enqueue_many(self, queue: str, payloads: Iterable[Any], delay: Duration = 0) -> list[int]:
        return self._enqueue(queue, [self._store._encoded(p) for p in payloads], durations.seconds(delay))

    @overload
    def trigger(
        self, workflow: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> RunHandle[R]: ...
    @overload
    def trigger(self, workflow: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R]: ...
    @overload
    def trigger(self, workflow: str, /, *args: Any, **kwargs: Any) -> RunHandle[Any]: ...
    def trigger(self, workflow: Any, /, *args: Any, **kwargs: Any) -> RunHandle[Any]:
        name, queue, inputs, returns = self._store._calls(workflow, [(args, kwargs)])
        self._store._workflow(name, queue)
        return RunHandle(self._store, self._enqueue(queue, inputs, 0.0)[0], returns)

    def _enqueue(self, queue: str, payloads: Sequence[bytes], delay_s: float) -> list[int]:
        from pgqrs.store.postgres import in_schema, notify

        queue_id = self._store._queue(queue)
        with in_schema(self._connection, self._store.config):
            ids = enqueue(self._tx, queue_id, payloads, delay_s)
        if not delay_s:
            notify(self._connection, queue)  # heard when the caller commits
        return ids


@contextlib.contextmanager
def _workers(
    store: Store, functions: Sequence[Callable[..., Any]], processes: int | None, lanes: int | None
) -> Iterator[None]:
    from pgqrs import targets

    targets.refuse_while_loading()
    if store.config.dsn.endswith(":memory:"):
        raise errors.ValidationError(
            "store.workers() needs a database that another process can open, not sqlite::memory:"
        )
    target = targets.of_functions(functions)
    store._ready()
    parent_read, parent_write = os.pipe()
    ready_read, ready_write = os.pipe()
    order = {
        "target": msgspec.to_builtins(target),
        "config": store.config.to_dict(),
        "options": {"workers": processes, "lanes": lanes, "ready_fd": ready_write, "parent_fd": parent_read},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisors"],
        stdin=subprocess.PIPE,
        pass_fds=(parent_read, ready_write),
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    os.close(parent_read)
    os.close(ready_write)
    ready = False
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        told = os.read(ready_read, 65536)
        ready = told == b"1"
        if not ready:
            reason = told.decode(errors="replace") or f"it ended with exit code {process.wait()}"
            raise errors.SupervisorError(f"the supervisor could not start: {reason}")
        yield
    finally:
        os.close(ready_read)
        os.close(parent_write)  # the supervisor drains when this end is gone, however we end
        if not ready:
            process.terminate()  # it may still be importing, and look at nothing
        process.wait()
