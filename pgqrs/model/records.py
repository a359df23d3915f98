"""Rows of the database as frozen records. Times are ISO 8601 text in UTC, and JSON values are
decoded.

If a record exists in 0.15, it keeps the fields of 0.15 in their order. New fields follow, with a
default.
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
    """The number of a queue's messages in each state. `ready` messages can be claimed now, and
    `delayed` ones later. `held` messages are claimed, `archived` ones are finished, and `dead` ones
    are dead letters.
    """

    id: int
    queue_name: str
    workflow: str | None
    ready: int
    delayed: int
    held: int
    archived: int
    dead: int


class QueueMessage(msgspec.Struct, frozen=True):
    """A message. It can be claimed from `vt` on, while `archived_at` is None and no consumer holds
    it.

    `read_ct` counts deliveries. `claim_no` counts claims, so a late writer has a smaller number
    than the current holder. If a claim is released unused, it is subtracted from `read_ct` only.
    `dead_reason` says why the message became a dead letter, and is None for any other message.
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
    """A producer or consumer. `host`, `pid` and `lease_until` belong to the supervisor that owns
    the consumer, and are None for a consumer of the Python library. `held` is the number of
    messages that the consumer holds.
    """

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
    """A workflow, and the queue whose messages start the workflow's runs."""

    id: int
    name: str
    queue_id: int


class RunRecord(msgspec.Struct, frozen=True):
    """A run.

    The meaning of `id` depends on the call that returns the record. In `Store.runs`,
    `RunHandle.record` and the command line, `id` is the id of the run's message, like `message_id`,
    and `Store.run` accepts it. In the table of runs (`get_workflow_runs`), `id` is the number of
    the run's row, as in pgqrs 0.15 and `Run.id()`.

    `created_at` is the time at which the run's row was written, which is when the run first
    started. It is None while the run is QUEUED.
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
    """A step of a run. In `RunHandle.steps`, `run_id` is the id of the run's message. In the table
    of steps (`get_workflow_steps`), it is the number of the run's row.

    `position` counts the steps of the run from 0, in the order of their calls. `pid` and
    `cpu_seconds` belong to the attempt that ended the step. `peak_rss_bytes` is the peak memory of
    its worker until then, including earlier steps. `crash_count` is the number of workers that died
    in this step, and `crash` describes the last of these deaths. Fields are None if unknown, as in
    a run that was driven by hand.
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
    """The message counts of a queue. Pending messages are not claimed yet, and include delayed
    ones. Locked messages are held by a consumer.
    """

    name: str
    total_messages: int
    pending_messages: int
    locked_messages: int
    archived_messages: int
    oldest_pending_message: str | None
    newest_message: str | None


class SystemStats(msgspec.Struct, frozen=True):
    """Counts of the whole database. An active worker is ready or polling."""

    total_queues: int
    total_workers: int
    active_workers: int
    total_messages: int
    pending_messages: int
    locked_messages: int
    archived_messages: int
    schema_version: str


class WorkerHealthStats(msgspec.Struct, frozen=True):
    """The number of workers in each status, for one queue or for all queues ("Global"). A stale
    worker is not stopped, but has sent no recent heartbeat.
    """

    queue_name: str
    total_workers: int
    ready_workers: int
    polling_workers: int
    suspended_workers: int
    interrupted_workers: int
    stopped_workers: int
    stale_workers: int


class WorkerStats(msgspec.Struct, frozen=True):
    """The workers of one queue. `average_uptime` is in seconds. `oldest_worker` and `newest_worker`
    are start times, or None if there is no worker.
    """

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
    """Converts a time from any driver to ISO 8601 text in UTC. An unexpected value in a SQLite
    column is returned as text.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.replace(" ", "T") + "+00:00"
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def as_moment(value: datetime | str) -> datetime:
    """Converts a time from any driver to a datetime in UTC."""
    return (
        datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value.astimezone(UTC)
    )
