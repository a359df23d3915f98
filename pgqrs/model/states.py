"""The states of a run, a consumer and a step, and which may follow which.

Stored upper case (runs, steps) and lower case (workers), as pgqrs 0.15 stores them.
"""

import enum


class Named(enum.StrEnum):
    """An enum whose members are their stored text, and also what 0.15's are: shown as `WorkerStatus.Ready`, and equal to
    their number in the order of definition."""

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __int__(self) -> int:
        return list(type(self)).index(self)

    def __eq__(self, other: object) -> bool:
        return int(self) == other if type(other) is int else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class WorkflowStatus(Named):
    """Where a run or a step stands."""

    Queued = "QUEUED"
    Running = "RUNNING"
    Paused = "PAUSED"
    Success = "SUCCESS"
    Error = "ERROR"
    Cancelling = "CANCELLING"  # behind those of 0.15, which keep their numbers
    Cancelled = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether a run that stands there has ended: SUCCESS, ERROR or CANCELLED."""
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


class WorkerStatus(Named):
    """Where a consumer or a producer (a row of pgqrs_workers) stands."""

    Ready = "ready"
    Polling = "polling"
    Suspended = "suspended"
    Interrupted = "interrupted"
    Stopped = "stopped"


WORKER_TRANSITIONS: dict[WorkerStatus, frozenset[WorkerStatus]] = {
    WorkerStatus.Ready: frozenset({WorkerStatus.Polling, WorkerStatus.Suspended}),
    WorkerStatus.Polling: frozenset({WorkerStatus.Ready, WorkerStatus.Suspended, WorkerStatus.Interrupted}),
    WorkerStatus.Suspended: frozenset({WorkerStatus.Ready, WorkerStatus.Stopped}),
    WorkerStatus.Interrupted: frozenset({WorkerStatus.Suspended}),
    WorkerStatus.Stopped: frozenset(),
}


class StepResultStatus(Named):
    """What `acquire_step` found: the step's body is to be executed, or has been."""

    Execute = "EXECUTE"
    Skipped = "SKIPPED"


class SyncState(Named):
    """How the local copy of a store in S3 stands to its object there."""

    LocalMissing = "local_missing"
    RemoteMissingClean = "remote_missing_clean"
    RemoteMissingDirty = "remote_missing_dirty"
    InSync = "in_sync"
    LocalChanges = "local_changes"
    RemoteChanges = "remote_changes"
    ConcurrentChanges = "concurrent_changes"
