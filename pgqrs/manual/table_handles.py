"""Handles of the database tables, as in 0.15. Each handle counts, lists and administers one table."""

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

# A worker without a heartbeat for this long counts as stale.
HEALTH_TIMEOUT_S = 60.0


class Table:
    def __init__(self, database: Database) -> None:
        self._database = database


class Workers(Table):
    """The producers and consumers, including those of supervisors."""

    def count(self) -> int:
        """Returns the number of workers, including stopped ones that have not been purged."""
        return len(self.list())

    def list(self) -> List[WorkerInfo]:
        """Returns all workers, newest first."""
        return administering.workers(self._database)

    def get(self, worker_id: int) -> WorkerInfo:
        """Returns a worker. Raises WorkerNotFoundError."""
        return administering.worker(self._database, worker_id)

    def health_stats(self, timeout: Duration = HEALTH_TIMEOUT_S) -> List[WorkerHealthStats]:
        """Returns worker health per queue. A worker is stale if it has sent no heartbeat for `timeout`."""
        return administering.health(self._database, durations.seconds(timeout), by_queue=True)

    def purge_stale(self, timeout_seconds: Duration) -> int:
        """Deletes the rows of workers that hold no messages and have sent no heartbeat for
        `timeout_seconds`. Returns the number of rows.
        """
        return administering.purge_workers(self._database, durations.seconds(timeout_seconds), stale=True)


class Queues(Table):
    """The queues, including those of workflows."""

    def count(self) -> int:
        """Returns the number of queues."""
        return len(self.list())

    def list(self) -> List[QueueInfo]:
        """Returns all queues, oldest first."""
        return administering.queues(self._database)

    def get(self, name: str) -> QueueInfo:
        """Returns a queue. Raises QueueNotFoundError."""
        return administering.queue(self._database, name)

    def purge(self, queue_name: str) -> int:
        """Deletes the messages of a queue, with their runs. Returns the number of messages. Raises
        QueueNotFoundError.
        """
        return administering.purge_queue(self._database, queue_name)

    def metrics(self, queue_name: str) -> QueueMetrics:
        """Returns the message counts of a queue. Raises QueueNotFoundError."""
        return administering.metrics(self._database, arguments.name(queue_name, "a queue"))[0]

    def list_metrics(self) -> List[QueueMetrics]:
        """Returns the message counts of every queue, ordered by name."""
        return administering.metrics(self._database)


class Messages(Table):
    """The messages of all queues."""

    def count(self) -> int:
        """Returns the number of messages that are not archived."""
        return administering.live_count(self._database)

    def list_archived_by_queue(self, queue_id: int) -> List[QueueMessage]:
        """Returns the archived messages of a queue, including dead ones. The message that was
        archived last comes first.
        """
        return administering.archived(self._database, queue_id)


class Workflows(Table):
    """The workflows that were supervised, triggered or created by hand."""

    def count(self) -> int:
        """Returns the number of workflows."""
        return len(self.list())

    def list(self) -> List[WorkflowRecord]:
        """Returns all workflows, oldest first."""
        return administering.workflows(self._database)

    def get_by_name(self, name: str) -> WorkflowRecord:
        """Returns a workflow. Raises WorkflowNotFoundError."""
        arguments.name(name, "a workflow")
        for workflow in self.list():
            if workflow.name == name:
                return workflow
        raise errors.WorkflowNotFoundError(
            f"no workflow is named {name!r}; make it: pgqrs.workflow().name({name!r}).store(…).create()"
        )


class WorkflowRuns(Table):
    """The runs that have a row. A triggered run gets its row when it first starts."""

    def count(self) -> int:
        """Returns the number of runs that have begun or were created by hand."""
        return len(self.list())

    def list(self) -> List[RunRecord]:
        """Returns the runs that have begun or were created by hand, newest first."""
        return administering.runs(self._database)


class WorkflowSteps(Table):
    """The recorded steps of all runs."""

    def count(self) -> int:
        """Returns the number of recorded steps."""
        return len(self.list())

    def list(self) -> List[StepRecord]:
        """Returns all recorded steps, newest first."""
        return administering.steps(self._database)
