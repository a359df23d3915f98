"""What the database hands out, as frozen records. Times are ISO 8601 text in UTC; JSON values are decoded.

The records that 0.15 has keep its fields, in its order; what we add stands behind them, with a default.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from pgqrs.states import WorkerStatus, WorkflowStatus


class QueueInfo(msgspec.Struct, frozen=True):
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


class WorkerInfo(msgspec.Struct, frozen=True):
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
    id: int
    name: str
    queue_id: int


class RunRecord(msgspec.Struct, frozen=True):
    """A run. `id` and `created_at` are those of its row, which is written when it first starts: None while QUEUED."""

    id: int | None
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


def iso(value: datetime | str | None) -> str | None:
    """A time as either driver hands it out, as ISO 8601 text in UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.replace(" ", "T") + "+00:00"
    return value.astimezone(UTC).isoformat()
