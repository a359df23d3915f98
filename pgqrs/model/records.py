"""What the database hands out, as frozen records. Times are ISO 8601 text in UTC; JSON values are decoded.

The records that 0.15 has keep its fields, in its order; what we add stands behind them, with a default.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from pgqrs.model.states import WorkerStatus, WorkflowStatus


class QueueInfo(msgspec.Struct, frozen=True):
    """A queue."""

    id: int
    queue_name: str


class QueueCounts(msgspec.Struct, frozen=True):
    """How many messages of a queue stand where. `ready` and `delayed` wait, `held` are claimed, `dead` were given up."""

    id: int
    queue_name: str
    workflow: str | None
    ready: int
    delayed: int
    held: int
    archived: int
    dead: int


class QueueMessage(msgspec.Struct, frozen=True):
    """A message. It can be taken from `vt` on, while `archived_at` is None and no consumer holds it.

    `read_ct` counts the deliveries and `claim_no` the claims, by which a late writer is told from the holder; a claim that was
    given back unused is taken off `read_ct` alone. `dead_reason` says why it was given up, None where it was not.
    """

    id: int
    queue_id: int
    payload: Any
    vt: str | None
    enqueued_at: str | None
    read_ct: int
    dequeued_at: str | None
    producer_worker_id: int | None
    consumer_worker_id: int | None
    archived_at: str | None
    dead_reason: str | None = None
    claim_no: int = 0


class WorkerInfo(msgspec.Struct, frozen=True):
    """A producer or consumer. `host`, `pid` and `lease_until` are those of the supervisor whose consumer it is, None for a
    library's. `held`: how many messages it holds."""

    id: int
    name: str
    status: WorkerStatus
    queue_id: int | None
    heartbeat_at: str | None
    queue_name: str | None = None
    host: str | None = None
    pid: int | None = None
    lease_until: str | None = None
    held: int = 0


class WorkflowRecord(msgspec.Struct, frozen=True):
    """A workflow, and the queue whose messages start its runs."""

    id: int
    name: str
    queue_id: int


class RunRecord(msgspec.Struct, frozen=True):
    """A run.

    `Store.runs`, `RunHandle.record` and the command line know a run by its message's id: there, `id` is that id, which
    `Store.run` takes, and equals `message_id`. The table of runs (`get_workflow_runs`) is that of pgqrs 0.15: there, `id` is
    the number of the run's own row, as in `Run.id()`, and `message_id` is what `Store.run` takes.

    `created_at` is when the run's row was written, which is when the run first starts: None while QUEUED.
    """

    id: int
    workflow_id: int
    message_id: int
    status: WorkflowStatus
    input: Any
    output: Any
    error: Any
    created_at: str | None
    updated_at: str | None
    workflow: str = ""
    attempt: int = 0
    crash_count: int = 0
    crash: Any = None
    enqueued_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    due_at: str | None = None


class StepRecord(msgspec.Struct, frozen=True):
    """A step of a run. `run_id` is the `RunRecord.id` of the same surface: the message's id in `RunHandle.steps`, the number of
    the run's row in the table of steps (`get_workflow_steps`). `position` counts the steps from 0 as the run called them.

    `pid` and `cpu_seconds` are of the worker and of the attempt that ended the step; `peak_rss_bytes` is the most memory that the
    worker had held by then, in this step or before. `crash_count`: how many workers died in it; `crash` says how the last one did.
    None where nothing is known, as in a run that was driven by hand.
    """

    id: int
    run_id: int
    step_name: str
    status: WorkflowStatus
    input: Any
    output: Any
    error: Any
    retry_at: str | None
    created_at: str | None
    updated_at: str | None
    started_at: str | None = None
    completed_at: str | None = None
    retry_count: int = 0
    position: int | None = None
    pid: int | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    crash_count: int = 0
    crash: Any = None


class QueueMetrics(msgspec.Struct, frozen=True):
    """A queue's messages. Pending ones wait (those whose time is to come included), locked ones are held."""

    name: str
    total_messages: int
    pending_messages: int
    locked_messages: int
    archived_messages: int
    oldest_pending_message: str | None
    newest_message: str | None


class SystemStats(msgspec.Struct, frozen=True):
    """Everything, counted. Active workers are ready or polling."""

    total_queues: int
    total_workers: int
    active_workers: int
    total_messages: int
    pending_messages: int
    locked_messages: int
    archived_messages: int
    schema_version: str


class WorkerHealthStats(msgspec.Struct, frozen=True):
    """Workers by status, of one queue or ("Global") of all. Stale ones have not stopped and were not heard of in time."""

    queue_name: str
    total_workers: int
    ready_workers: int
    polling_workers: int
    suspended_workers: int
    interrupted_workers: int
    stopped_workers: int
    stale_workers: int


class WorkerStats(msgspec.Struct, frozen=True):
    """The workers of one queue. `average_uptime` is in seconds; the times are those of their start, None without any."""

    total_workers: int
    ready_workers: int
    polling_workers: int
    suspended_workers: int
    interrupted_workers: int
    stopped_workers: int
    average_uptime: float
    oldest_worker: str | None
    newest_worker: str | None


def iso(value: datetime | str | None) -> str | None:
    """A time as either driver hands it out, as ISO 8601 text in UTC. Whatever else somebody wrote into a column of SQLite's is
    shown as it is."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.replace(" ", "T") + "+00:00"
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def as_moment(value: datetime | str) -> datetime:
    """A time as either driver hands it out, as a datetime in UTC."""
    return (
        datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value.astimezone(UTC)
    )
