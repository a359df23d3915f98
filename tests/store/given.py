"""What the store's tests begin with: a clock that only moves when told, supervisors, claims, and a look at every row."""

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg

from pgqrs.config import Config, conninfo, sqlite_path
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.turns import Want
from pgqrs.model.writes import Archive, Begin, Claim, Claimed, Outcome, Release, Settle, Step, Write
from pgqrs.store import MessageStore, open_database, open_store
from pgqrs.store.store import Identity

TABLES = (
    "pgqrs_queues",
    "pgqrs_workers",
    "pgqrs_messages",
    "pgqrs_workflows",
    "pgqrs_workflow_runs",
    "pgqrs_workflow_steps",
    "pgqrs_supervisors",
)
SUCCESS, ERROR, PAUSED = WorkflowStatus.Success, WorkflowStatus.Error, WorkflowStatus.Paused
RUNNING, QUEUED = WorkflowStatus.Running, WorkflowStatus.Queued
CANCELLING, CANCELLED = WorkflowStatus.Cancelling, WorkflowStatus.Cancelled


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2024, 5, 17, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def at(self, plus_s: float = 0.0) -> datetime:
        return self.now + timedelta(seconds=plus_s)


class Consumer:
    """A supervisor with one queue."""

    def __init__(
        self, store: MessageStore, queue_id: int, name: str = "one", lease_s: float = 15.0, **who: Any
    ) -> None:
        self.store = store
        self.queue_id = queue_id
        self.identity = identity(name, **who)
        self.supervisor_id, consumers = store.register_supervisor(self.identity, {"q": queue_id}, lease_s)
        self.id = consumers["q"]

    def wanted(self, limit: int = 10, read_ct_max: int = 5, after: Any = None) -> Want:
        return Want(self.queue_id, self.id, limit, read_ct_max, after)

    def claim(self, limit: int = 10, read_ct_max: int = 5) -> list[Claimed]:
        return self.store.turn((), [self.wanted(limit, read_ct_max)]).taken[0].messages

    def claim_one(self) -> Claim:
        [claimed] = self.claim(1)
        return claimed.claim


class Flow:
    """A workflow with a consumer on its queue."""

    def __init__(self, store: MessageStore, name: str = "flow") -> None:
        self.store = store
        self.name = name
        self.workflow = store.ensure_workflow(name, name)
        self.consumer = Consumer(store, self.workflow.queue_id, f"of {name}")

    def trigger(self, count: int = 1, delay_s: float = 0.0) -> list[int]:
        payloads = [b'{"input": %d}' % n for n in range(count)]
        return self.store.enqueue(self.workflow.queue_id, payloads, delay_s)

    def begin(self, claim: Claim, attempt: int = 1) -> Write:
        return Write(claim, begin=Begin(self.workflow.id, attempt))

    def begun(self) -> Claim:
        """A run that its consumer has claimed and begun."""
        self.trigger()
        claim = self.consumer.claim_one()
        assert wrote(self.store, self.begin(claim)).applied
        return claim

    def again(self) -> Claimed:
        [claimed] = self.consumer.claim()
        return claimed

    def failed(self) -> int:
        """A run that ended in ERROR."""
        claim = self.begun()
        wrote(self.store, finish(claim, ERROR, error=b'{"message": "no"}', dead="it failed"))
        return claim.message_id


def identity(
    name: str, host: str = "here", boot_id: str = "boot", pid_ns: str = "1", pid: int = 4711
) -> Identity:
    return Identity(name, host, boot_id, pid_ns, pid, 99)


def step(claim: Claim, name: str = "a", position: int = 0, output: bytes = b"1", **more: Any) -> Write:
    return Write(claim, step=Step(position, name, SUCCESS, output, **more))


def failed_step(claim: Claim, name: str = "a", position: int = 0, **more: Any) -> Write:
    return Write(claim, step=Step(position, name, ERROR, error=b'{"message": "no"}', **more))


def retried_step(claim: Claim, retry_count: int = 1, retry_in_s: float = 10.0, name: str = "a") -> Write:
    return Write(
        claim,
        step=Step(0, name, ERROR, error=b'"flaky"', retry_count=retry_count, retry_in_s=retry_in_s),
        settle=Settle(RUNNING),
        message=Release(retry_in_s),
    )


def finish(
    claim: Claim,
    status: WorkflowStatus = SUCCESS,
    output: bytes | None = None,
    error: bytes | None = None,
    dead: str | None = None,
) -> Write:
    return Write(claim, settle=Settle(status, output, error), message=Archive(dead))


def release(claim: Claim, delay_s: float | None = None, refund: bool = True) -> Write:
    return Write(claim, message=Release(delay_s, refund))


def wrote(store: MessageStore, write: Write, unsure: bool = False) -> Outcome:
    """As a supervisor writes: what another session has locked is put off, and tried again until it is free."""
    while not (outcomes := store.turn([write], unsure=unsure).outcomes):
        put_off.set()
        threading.Event().wait(0.002)
    [outcome] = outcomes
    return outcome


put_off = threading.Event()  # by whoever writes in a `Blocked`


def ids(claimed: Sequence[Claimed]) -> list[int]:
    return [c.claim.message_id for c in claimed]


# Behind the store's back


def execute(dsn: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    """Parameters are question marks."""
    if dsn.startswith(("turso", "s3")):
        # One process has the file, so behind the store's back is beside it: on the same connection, in a transaction between.
        with closing(open_database(Config(dsn))) as database, database.transaction() as tx:
            return list(tx._connection.execute(statement, params).fetchall())
    if dsn.startswith("sqlite"):
        with sqlite3.connect(sqlite_path(dsn)) as connection:
            rows = connection.execute(statement, params).fetchall()
        connection.close()
        return rows
    with psycopg.connect(conninfo(dsn)) as pg:
        cursor = pg.execute(statement.replace("?", "%s").encode(), params)
        return cursor.fetchall() if cursor.description else []


def dump(dsn: str) -> dict[str, list[str]]:
    """Every row of every table."""
    return {t: sorted(map(repr, execute(dsn, f"select * from {t}"))) for t in TABLES}


def columns(dsn: str, table: str, names: str, where: str = "true") -> list[tuple[Any, ...]]:
    return execute(dsn, f"select {names} from {table} where {where} order by 1")


def when(text: str | None) -> datetime | None:
    """The two databases write the same time in different ways."""
    return None if text is None else datetime.fromisoformat(text)


def json(raw: bytes | None) -> Any:
    return None if raw is None else msgspec.json.decode(raw)


# Two connections at once


def another(store: MessageStore, clock: Callable[[], datetime] | None) -> MessageStore:
    """The same database, with connections of its own."""
    return open_store(Config(store.database.dsn), clock)


class Blocked:
    """`action` in a thread, which waits for a lock that somebody else's open transaction holds, or is put off for it."""

    def __init__(self, dsn: str, action: Callable[[], Any]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._dsn = dsn
        put_off.clear()
        self._future: Future[Any] = self._pool.submit(action)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        with psycopg.connect(conninfo(self._dsn), autocommit=True) as pg:
            while not self._future.done():
                waiting = pg.execute(
                    "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
                ).fetchall()
                if waiting or put_off.is_set():
                    return
                assert time.monotonic() < deadline, "it neither waits nor ends"
                threading.Event().wait(0.002)
        raise AssertionError(f"it was to wait, and ended: {self._future.result()}")

    def result(self) -> Any:
        """Once the other transaction has ended."""
        with self._pool:
            return self._future.result(10)
