"""Administrative operations. Each operation is one transaction, on any database."""

from collections.abc import Sequence
from typing import Any

from pgqrs import errors
from pgqrs.arguments import checks as arguments
from pgqrs.model.records import (
    QueueInfo,
    QueueMessage,
    QueueMetrics,
    RunRecord,
    StepRecord,
    SystemStats,
    WorkerHealthStats,
    WorkerInfo,
    WorkerStats,
    WorkflowRecord,
    as_moment,
    iso,
)
from pgqrs.model.states import WorkerStatus
from pgqrs.store import migrations
from pgqrs.store.database import Database, Row, Transaction
from pgqrs.store.rows import read_status
from pgqrs.store.store import json_value, message_record, step_record, worker_record

# The most messages that one call of `bury_spent` moves.
DEAD_MAX = 1000
SPENT = "its deliveries are used up"

# Queues


def make_queue(database: Database, name: str) -> QueueInfo:
    """Creates a queue. Raises QueueAlreadyExistsError."""
    with database.transaction() as tx:
        if tx.run("queue_by_name", name=name) or not (made := tx.run("add_queue", name=name)):
            raise errors.QueueAlreadyExistsError(
                f"Queue {name!r} already exists; use it, or choose another name"
            )
        return QueueInfo(int(made[0][0]), name)


def queues(database: Database, name: str | None = None) -> list[QueueInfo]:
    with database.reading() as tx:
        return [QueueInfo(i, n) for i, n in tx.run("queue_rows", name=name)]


def queue(database: Database, name: str) -> QueueInfo:
    """Returns a queue. Raises QueueNotFoundError."""
    found = queues(database, arguments.name(name, "a queue"))
    if not found:
        raise errors.QueueNotFoundError(f"Queue {name!r} not found; make it with store.queue({name!r})")
    return found[0]


def delete_queue(database: Database, name: str) -> None:
    """Deletes a queue. Raises QueueNotFoundError, and ValidationError while messages, workers or a
    workflow refer to it.
    """
    with database.transaction() as tx:
        queue_id = _locked_queue(tx, name)
        messages, workers, workflow = tx.run("uses_of_queue", id=queue_id)[0]
        refused = f"Validation failed: Cannot delete queue {name!r}:"
        if workers:
            raise errors.ValidationError(
                f"{refused} {workers} worker(s) are still assigned to this queue. Delete workers first."
            )
        if messages:
            raise errors.ValidationError(
                f"{refused} {messages} message(s), archived ones included, are still in it. Purge it first."
            )
        if workflow:
            raise errors.ValidationError(
                f"{refused} workflow {workflow!r} is on it, and a workflow keeps its queue."
            )
        tx.run("forget_consumers_of_queue", id=queue_id)
        tx.run("delete_queue", id=queue_id)


def purge_queue(database: Database, name: str) -> int:
    """Deletes all messages of a queue, including archived and claimed ones, with their runs and
    steps. Returns the number of messages. Whoever holds one of the messages loses the claim.
    """
    with database.transaction() as tx:
        queue_id = _locked_queue(tx, name)
        tx.run("lock_messages_of_queue", id=queue_id)
        tx.run("purge_steps", id=queue_id)
        tx.run("purge_runs", id=queue_id)
        return len(tx.run("purge_messages", id=queue_id))


def metrics(database: Database, name: str | None = None) -> list[QueueMetrics]:
    """Returns the message counts of all queues, or of one, ordered by name. Raises QueueNotFoundError."""
    if name is not None:
        queue(database, name)
    with database.reading() as tx:
        rows = tx.run("metrics", name=name)
    return [
        QueueMetrics(n, total, pending, locked, done, iso(oldest), iso(newest))
        for n, total, pending, locked, done, oldest, newest in rows
    ]


# Messages


def live_count(database: Database) -> int:
    with database.reading() as tx:
        counts = tx.run("counts")[0]
    return int(counts[3] + counts[4])


def message(database: Database, message_id: int) -> QueueMessage:
    """Returns a message. Raises MessageNotFoundError."""
    with database.reading() as tx:
        found = _messages(tx, tx.run("message", id=message_id))
    if not found:
        raise errors.MessageNotFoundError(f"no message has the id {message_id}")
    return found[0]


def bury_spent(database: Database, read_ct_max: int) -> list[int]:
    """Moves messages to the dead letters if they have reached the maximum number of deliveries,
    because no claim takes them any more. Returns the ids of the moved messages, at most 1,000.
    """
    with database.transaction() as tx:
        spent = [i for (i,) in tx.run("spent", read_ct_max=read_ct_max, limit=DEAD_MAX)]
        if spent:
            tx.run("archive", [(i, SPENT) for i in spent])
        return spent


def archived(database: Database, queue_id: int) -> list[QueueMessage]:
    """Returns the archived messages of a queue. The message that was archived last comes first."""
    with database.reading() as tx:
        return _messages(tx, tx.run("archived_messages", queue_id=arguments.identity(queue_id, "a queue")))


def held_by(database: Database, worker_id: int) -> list[QueueMessage]:
    with database.reading() as tx:
        return _messages(tx, tx.run("held_messages", worker_id=arguments.identity(worker_id, "a worker")))


def release_worker(database: Database, worker_id: int) -> int:
    """Releases the messages that a worker holds, so that they are visible at once. Returns the
    number of messages.
    """
    with database.transaction() as tx:
        return _given_back(tx, tx.run("held_by", worker_id=arguments.identity(worker_id, "a worker")))


def reclaim(database: Database, queue_id: int, older_than_s: float) -> int:
    """Releases messages if their worker's last heartbeat is more than `older_than_s` old. Messages
    of supervisors are not affected, because supervisors have a lease.
    """
    with database.transaction() as tx:
        return _given_back(tx, tx.run("abandoned", queue_id=queue_id, older_than_s=older_than_s))


def reclaim_overdue(database: Database, grace_s: float) -> int:
    """Releases messages that clients of pgqrs 0.15 still hold `grace_s` after the messages' vt, at
    most 1,000 of them. Returns the number of messages. Such clients never release a message
    themselves.
    """
    with database.transaction() as tx:
        return _given_back(tx, tx.run("overdue", grace_s=grace_s))


# Workers


def workers(database: Database, worker_id: int | None = None) -> list[WorkerInfo]:
    """Returns all workers, newest first, or only the worker with this id."""
    with database.reading() as tx:
        return [worker_record(r) for r in tx.run("worker_rows", id=worker_id)]


def worker(database: Database, worker_id: int) -> WorkerInfo:
    found = workers(database, arguments.identity(worker_id, "a worker"))
    if not found:
        raise errors.WorkerNotFoundError(f"Worker {worker_id} not found; see: pgqrs workers --all")
    return found[0]


def delete_worker(database: Database, worker_id: int) -> None:
    """Deletes a worker. Raises WorkerNotFoundError, and ValidationError while the worker holds
    messages or belongs to a live supervisor.
    """
    found = worker(database, worker_id)
    with database.transaction() as tx:
        if held := len(tx.run("held_by", worker_id=found.id)):
            raise errors.ValidationError(
                f"Validation failed: Cannot delete worker {worker_id}: it holds {held} message(s). "
                "Release them first: admin.release_worker_messages()"
            )
        if found.lease_until is not None:
            raise errors.ValidationError(
                f"Validation failed: Cannot delete worker {worker_id}: it is the consumer of a supervisor "
                f"(pid {found.pid} on {found.host}). Stop that first."
            )
        tx.run("delete_worker", id=found.id)


def purge_workers(database: Database, older_than_s: float, stale: bool) -> int:
    """Deletes the rows of stopped workers that hold no messages and whose last heartbeat is more
    than `older_than_s` old. With `stale`, also deletes such rows of workers that never stopped.
    Returns the number of rows.
    """
    with database.transaction() as tx:
        return len(tx.run("purge_workers", older_than_s=older_than_s, stale=stale))


def health(database: Database, timeout_s: float, by_queue: bool) -> list[WorkerHealthStats]:
    with database.reading() as tx:
        rows = tx.run("worker_counts", timeout_s=timeout_s)
    counted: dict[str, dict[str, int]] = {}
    for queue_name, status, count, stale in rows:
        of = counted.setdefault(queue_name if by_queue else "Global", {})
        of[status] = of.get(status, 0) + count
        of["stale"] = of.get("stale", 0) + int(stale)
    if not by_queue:
        counted.setdefault("Global", {})
    return [
        WorkerHealthStats(
            queue_name=name,
            total_workers=sum(of.get(s.value, 0) for s in WorkerStatus),
            stale_workers=of.get("stale", 0),
            **_by_status(of),
        )
        for name, of in counted.items()
    ]


def worker_stats(database: Database, queue_name: str) -> WorkerStats:
    found = queue(database, queue_name)
    with database.reading() as tx:
        rows = tx.run("worker_ages", queue_id=found.id)
    of: dict[str, int] = {}
    for status, _, _ in rows:
        of[status] = of.get(status, 0) + 1
    uptimes = [(as_moment(end) - as_moment(start)).total_seconds() for _, start, end in rows]
    return WorkerStats(
        total_workers=len(rows),
        average_uptime=sum(uptimes) / len(uptimes) if uptimes else 0.0,
        oldest_worker=iso(rows[0][1]) if rows else None,
        newest_worker=iso(rows[-1][1]) if rows else None,
        **_by_status(of),
    )


def system_stats(database: Database) -> SystemStats:
    version = migrations.verify(database)
    with database.reading() as tx:
        queue_count, worker_count, active, pending, locked, done = tx.run("counts")[0]
    total = pending + locked + done
    return SystemStats(queue_count, worker_count, active, total, pending, locked, done, str(version))


# Workflows


def make_workflow(database: Database, name: str) -> WorkflowRecord:
    """Creates a workflow and a queue with its name. Raises WorkflowAlreadyExistsError."""
    with database.transaction() as tx:
        if tx.run("workflow_by_name", name=name):
            raise errors.WorkflowAlreadyExistsError(f"Workflow {name!r} already exists; trigger it")
        found = tx.run("queue_by_name", name=name) or tx.run("add_queue", name=name)
        tx.run("add_workflow", name=name, queue_id=found[0][0])
        workflow_id, queue_id, _ = tx.run("workflow_by_name", name=name)[0]
        return WorkflowRecord(workflow_id, name, queue_id)


def workflows(database: Database) -> list[WorkflowRecord]:
    with database.reading() as tx:
        return [WorkflowRecord(*r) for r in tx.run("workflow_rows")]


def runs(database: Database) -> list[RunRecord]:
    """Returns the runs that have begun or were created by hand, newest first."""
    with database.reading() as tx:
        rows = tx.run("run_rows")
    return [
        RunRecord(
            r[0], r[1], r[2], read_status(r[3], f"run {r[0]}"), json_value(r[4]), json_value(r[5]),
            json_value(r[6]), iso(r[7]), iso(r[8]),
        )
        for r in rows
    ]  # fmt: skip


def steps(database: Database) -> list[StepRecord]:
    """Returns all recorded steps, newest first."""
    with database.reading() as tx:
        return [step_record(r) for r in tx.run("step_rows")]


# Internal functions


def _locked_queue(tx: Transaction, name: str) -> int:
    found = tx.run("lock_queue", name=arguments.name(name, "a queue"))
    if not found:
        raise errors.QueueNotFoundError(f"Queue {name!r} not found; see: pgqrs queues")
    return int(found[0][0])


def _given_back(tx: Transaction, ids: Sequence[Row]) -> int:
    if ids:
        tx.run("give_back", ids, visible_at=None, refund=False)
    return len(ids)


def _messages(tx: Transaction, rows: Sequence[Row]) -> list[QueueMessage]:
    carries = {q: bool(tx.run("workflow_of_queue", queue_id=q)) for q in {r[1] for r in rows}}
    return [message_record(r, carries[r[1]]) for r in rows]


def _by_status(of: dict[str, int]) -> dict[str, Any]:
    return {f"{s.value}_workers": of.get(s.value, 0) for s in WorkerStatus}
