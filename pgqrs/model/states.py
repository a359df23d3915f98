"""The states of runs, workers and steps, and the allowed transitions.

As in pgqrs 0.15, the states of runs and steps are stored in upper case, and those of workers in
lower case.
"""

import enum
from typing import Literal

# What a worker executes: a workflow, the handler of plain messages, or a step over the items of a
# map.
Kind = Literal["workflow", "handler", "map"]


class Named(enum.StrEnum):
    """An enum whose members equal their stored text. For compatibility with 0.15, a member prints
    as `WorkerStatus.Ready`, and also equals its number in the order of definition.
    """

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
    """The status of a run or a step."""

    Queued = "QUEUED"
    Running = "RUNNING"
    Paused = "PAUSED"
    Success = "SUCCESS"
    Error = "ERROR"
    # CANCELLING and CANCELLED follow the states of 0.15, which keep their numbers.
    Cancelling = "CANCELLING"
    Cancelled = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether a run in this status has ended: SUCCESS, ERROR or CANCELLED."""
        return not RUN_TRANSITIONS[self] or self is WorkflowStatus.Error


# Only `replay` leaves ERROR.
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
    WorkflowStatus.Cancelling: frozenset({WorkflowStatus.Cancelled, WorkflowStatus.Error}),
    WorkflowStatus.Cancelled: frozenset(),
    WorkflowStatus.Success: frozenset(),
    WorkflowStatus.Error: frozenset({WorkflowStatus.Queued}),
}


class WorkerStatus(Named):
    """The status of a consumer or a producer (a row of pgqrs_workers)."""

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
    """The outcome of `acquire_step`: either the step is to be executed, or it has a recorded
    result.
    """

    Execute = "EXECUTE"
    Skipped = "SKIPPED"


class SyncState(Named):
    """How the local copy of an S3 store compares with its object."""

    LocalMissing = "local_missing"
    RemoteMissingClean = "remote_missing_clean"
    RemoteMissingDirty = "remote_missing_dirty"
    InSync = "in_sync"
    LocalChanges = "local_changes"
    RemoteChanges = "remote_changes"
    ConcurrentChanges = "concurrent_changes"
