"""Enqueue and trigger inside a transaction of the caller."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from pgqrs import errors
from pgqrs.arguments import durations
from pgqrs.arguments.durations import Duration
from pgqrs.clients.handle import RunHandle
from pgqrs.store.store import Known, enqueue

if TYPE_CHECKING:
    import psycopg

    from pgqrs.clients.blocking import Store

P = ParamSpec("P")
R = TypeVar("R")


class Using:
    """Offers a store's enqueue and trigger inside the caller's transaction. If a queue does not
    exist yet, it is created on the store's own connection. The queue remains even if the
    transaction is rolled back.
    """

    def __init__(self, store: "Store", connection: "psycopg.Connection[Any]") -> None:
        if store.config.backend != "postgres":
            raise errors.ValidationError(
                "store.using(connection) takes a psycopg connection; this store is not on PostgreSQL"
            )
        from pgqrs.store.postgresql.database import PostgresTransaction

        self._store = store
        self._connection = connection
        self._tx = PostgresTransaction(connection, store.config.schema)

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
        return RunHandle(self._store, self._enqueue(queue, inputs, 0.0, name)[0], returns)

    def _enqueue(
        self, queue: str, payloads: Sequence[bytes], delay_s: float, workflow: str | None = None
    ) -> list[int]:
        from pgqrs.store.postgresql.database import notify

        known = Known(queue, workflow)

        def send(queue_id: int) -> list[int]:
            return enqueue(self._tx, queue_id, payloads, delay_s, known=known)

        ids = self._store.on_queue(known, send)
        if not delay_s:
            # Listeners receive the notification when the caller commits.
            notify(self._connection, queue)
        return ids
