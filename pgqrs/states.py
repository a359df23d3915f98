"""The states of a run, a consumer and a step, and which may follow which.

Stored upper case (runs, steps) and lower case (workers), as pgqrs 0.15 stores them.
"""

import enum


class WorkflowStatus(enum.StrEnum):
    """Where a run or a step stands."""

    Queued = "QUEUED"
    Running = "RUNNING"
    Paused = "PAUSED"
    Cancelling = "CANCELLING"
    Cancelled = "CANCELLED"
    Success = "SUCCESS"
    Error = "ERROR"

    @property
    def terminal(self) -> bool:
        return not RUN_TRANSITIONS[self] or self is WorkflowStatus.Error


# `replay`, and nothing else, leaves ERROR.
RUN_TRANSITIONS: dict[WorkflowStatus, frozenset[WorkflowStatus]] = {
    WorkflowStatus.Queued: frozenset(
        {WorkflowStatus.Running, WorkflowStatus.Cancelling, WorkflowStatus.Cancelled}
    ),
    WorkflowStatus.Running: frozenset(
        {
            WorkflowStatus.Success,
            WorkflowStatus.Error,
            WorkflowStatus.Paused,
            WorkflowStatus.Cancelling,
            WorkflowStatus.Cancelled,
        }
    ),
    WorkflowStatus.Paused: frozenset(
        {WorkflowStatus.Running, WorkflowStatus.Cancelling, WorkflowStatus.Cancelled}
    ),
    WorkflowStatus.Cancelling: frozenset({WorkflowStatus.Cancelled}),
    WorkflowStatus.Cancelled: frozenset(),
    WorkflowStatus.Success: frozenset(),
    WorkflowStatus.Error: frozenset({WorkflowStatus.Queued}),
}


class WorkerStatus(enum.StrEnum):
    """Where a consumer (a row of pgqrs_workers) stands."""

    Ready = "ready"
    Polling = "polling"
    Suspended = "suspended"
    Interrupted = "interrupted"
    Stopped = "stopped"
