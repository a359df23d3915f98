"""The tables, as 0.15 hands them out: counts, listings, and what an administrator does to a table."""

from builtins import list as List

from pgqrs import errors
from pgqrs.arguments import checks as arguments
from pgqrs.arguments import durations
from pgqrs.arguments.durations import Duration
from pgqrs.model.records import (
    QueueInfo,
    QueueMessage,
    QueueMetrics,
    RunRecord,
    StepRecord,
    WorkerHealthStats,
    WorkerInfo,
    WorkflowRecord,
)
from pgqrs.store import administering
from pgqrs.store.database import Database

HEALTH_TIMEOUT_S = 60.0  # after so long without a heartbeat a worker counts as stale


class Table:
    def __init__(self, database: Database) -> None:
        self._database = database


class Workers(Table):
    """Producers and consumers, those of supervisors included."""

    def count(self) -> int:
        """Those that stopped included, until they are purged."""
        return len(self.list())

    def list(self) -> List[WorkerInfo]:
        """The newest first."""
        return administering.workers(self._database)

    def get(self, worker_id: int) -> WorkerInfo:
        """Raises WorkerNotFoundError."""
        return administering.worker(self._database, worker_id)

    def health_stats(self, timeout: Duration = HEALTH_TIMEOUT_S) -> List[WorkerHealthStats]:
        """By queue; stale are those not heard of for `timeout`."""
        return administering.health(self._database, durations.seconds(timeout), by_queue=True)

    def purge_stale(self, timeout_seconds: Duration) -> int:
        """Deletes the rows of those not heard of for so long that hold nothing; returns how many."""
        return administering.purge_workers(self._database, durations.seconds(timeout_seconds), stale=True)


class Queues(Table):
    """The queues, those of workflows included."""

    def count(self) -> int:
        """How many queues there are."""
        return len(self.list())

    def list(self) -> List[QueueInfo]:
        """In the order of their making."""
        return administering.queues(self._database)

    def get(self, name: str) -> QueueInfo:
        """Raises QueueNotFoundError."""
        return administering.queue(self._database, name)

    def purge(self, queue_name: str) -> int:
        """Deletes the queue's messages, with their runs; returns how many. Raises QueueNotFoundError."""
        return administering.purge_queue(self._database, queue_name)

    def metrics(self, queue_name: str) -> QueueMetrics:
        """Raises QueueNotFoundError."""
        return administering.metrics(self._database, arguments.name(queue_name, "a queue"))[0]

    def list_metrics(self) -> List[QueueMetrics]:
        """By name."""
        return administering.metrics(self._database)


class Messages(Table):
    """The messages of all queues."""

    def count(self) -> int:
        """Those that are not archived."""
        return administering.live_count(self._database)

    def list_archived_by_queue(self, queue_id: int) -> List[QueueMessage]:
        """The last archived first, dead ones included."""
        return administering.archived(self._database, queue_id)


class Workflows(Table):
    """The workflows that were supervised, triggered or made by hand."""

    def count(self) -> int:
        """How many workflows there are."""
        return len(self.list())

    def list(self) -> List[WorkflowRecord]:
        """In the order of their making."""
        return administering.workflows(self._database)

    def get_by_name(self, name: str) -> WorkflowRecord:
        """Raises WorkflowNotFoundError."""
        arguments.name(name, "a workflow")
        for workflow in self.list():
            if workflow.name == name:
                return workflow
        raise errors.WorkflowNotFoundError(
            f"no workflow is named {name!r}; make it: pgqrs.workflow().name({name!r}).store(…).create()"
        )


class WorkflowRuns(Table):
    """The runs that have a row: a triggered one gets it when it first starts."""

    def count(self) -> int:
        """Those that have begun, or were made by hand."""
        return len(self.list())

    def list(self) -> List[RunRecord]:
        """The newest first: those that have begun, or were made by hand."""
        return administering.runs(self._database)


class WorkflowSteps(Table):
    """The recorded steps of all runs."""

    def count(self) -> int:
        """How many steps are recorded."""
        return len(self.list())

    def list(self) -> List[StepRecord]:
        """The newest first."""
        return administering.steps(self._database)
