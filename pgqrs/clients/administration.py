"""Administration: set up the schema, inspect and clean up queues, replay messages. `pgqrs.Admin` is
the async twin of this class.
"""

from typing import Any

from pgqrs.arguments import checks as arguments
from pgqrs.arguments import durations, names
from pgqrs.arguments.durations import Duration
from pgqrs.clients.blocking import Store
from pgqrs.manual import validation
from pgqrs.manual.consumer import Consumer
from pgqrs.manual.producer import Producer, send
from pgqrs.manual.runs import Run
from pgqrs.manual.table_handles import HEALTH_TIMEOUT_S
from pgqrs.manual.validation import ValidationConfig
from pgqrs.model.records import (
    QueueInfo,
    QueueMessage,
    QueueMetrics,
    SystemStats,
    WorkerHealthStats,
    WorkerInfo,
    WorkerStats,
    WorkflowRecord,
)
from pgqrs.store import administering
from pgqrs.store.database import Database
from pgqrs.values import codec

RECLAIM_OLDER_THAN_S = 300.0


class Admin:
    def __init__(self, store: Store) -> None:
        self._store = store

    # Setting up

    def install(self) -> None:
        """Creates the tables, or migrates existing ones, including those of pgqrs 0.15, to this
        version. Calling it again does nothing.
        """
        self._store.install()

    def verify(self) -> None:
        """Checks the schema. Raises SchemaError if tables are missing or incomplete, or if the
        schema is older or newer than this version supports.
        """
        self._store.verify()

    # Queues

    def get_queue(self, name: str) -> QueueInfo:
        """Returns a queue. Raises QueueNotFoundError."""
        return administering.queue(self._database, name)

    def delete_queue(self, name: str) -> bool:
        """Deletes a queue and returns True. Raises QueueNotFoundError, and ValidationError while
        messages, workers or a workflow refer to the queue.
        """
        administering.delete_queue(self._database, name)
        return True

    def purge_queue(self, name: str) -> int:
        """Deletes all messages of a queue, including archived and claimed ones, with their runs and
        steps. Returns the number of messages.
        """
        return administering.purge_queue(self._database, name)

    def queue_metrics(self, name: str) -> QueueMetrics:
        """Returns the message counts of one queue. Raises QueueNotFoundError."""
        return administering.metrics(self._database, arguments.name(name, "a queue"))[0]

    def all_queues_metrics(self) -> list[QueueMetrics]:
        """Returns the message counts of every queue, ordered by name."""
        return administering.metrics(self._database)

    def system_stats(self) -> SystemStats:
        """Returns the number of queues, workers and messages, all from one query."""
        return administering.system_stats(self._database)

    # Messages

    def dlq(self) -> list[int]:
        """Moves messages to the dead letters if they have reached `Config.max_read_ct` deliveries
        and no worker holds them. Returns the ids of the moved messages, at most 1,000 per call.
        """
        return administering.bury_spent(self._database, self._store.config.max_read_ct)

    def replay_dlq(self, message_id: int) -> QueueMessage:
        """Makes a dead message, or a run in ERROR, available again, and returns the message.
        Recorded steps are kept, and counters start at zero. Raises RunNotFoundError, and
        ValidationError if the message is not dead.
        """
        found = arguments.identity(message_id)
        self._store.replay(found)
        return administering.message(self._database, found)

    def get_worker_messages(self, worker_id: int) -> list[QueueMessage]:
        """Returns the messages that a worker holds."""
        return administering.held_by(self._database, worker_id)

    def release_worker_messages(self, worker_id: int) -> int:
        """Releases the messages that a worker holds, so that they are visible at once. Returns the
        number of messages.
        """
        return administering.release_worker(self._database, worker_id)

    def reclaim_messages(self, queue: int | str, older_than: Duration | None = None) -> int:
        """Releases the messages of a queue (name or id) if their worker has sent no heartbeat for
        `older_than`, by default five minutes. Returns the number of messages.

        This recovers the messages of dead consumers of pgqrs 0.15. The messages of a supervisor are
        recovered by its lease instead.
        """
        older_s = RECLAIM_OLDER_THAN_S if older_than is None else durations.seconds(older_than)
        queue_id = (
            self.get_queue(queue).id if isinstance(queue, str) else arguments.identity(queue, "a queue")
        )
        return administering.reclaim(self._database, queue_id, older_s)

    # Workers

    def list_workers(self) -> list[WorkerInfo]:
        """Returns all workers, newest first."""
        return administering.workers(self._database)

    def delete_worker(self, worker_id: int) -> bool:
        """Deletes a worker and returns True. Raises WorkerNotFoundError, and ValidationError while
        the worker holds messages.
        """
        administering.delete_worker(self._database, worker_id)
        return True

    def purge_old_workers(self, older_than: Duration) -> int:
        """Deletes the rows of stopped workers that have sent no heartbeat for `older_than`. Returns
        the number of rows.
        """
        return administering.purge_workers(self._database, durations.seconds(older_than), stale=False)

    def worker_stats(self, queue: str) -> WorkerStats:
        """Returns the worker counts of a queue. Raises QueueNotFoundError."""
        return administering.worker_stats(self._database, queue)

    def worker_health_stats(
        self, timeout: Duration = HEALTH_TIMEOUT_S, group_by_queue: bool = False
    ) -> list[WorkerHealthStats]:
        """Returns the health of workers. With `group_by_queue`, there is one record for each queue
        that has workers. By default there is one record "Global" for all workers. A worker is stale
        if it has sent no heartbeat for `timeout`.
        """
        return administering.health(self._database, durations.seconds(timeout), group_by_queue)

    def new_producer(self, queue: str, name: str) -> Producer:
        """Registers a producer under a given name. Raises ValidationError if another worker has
        this name.
        """
        return Producer.registered(self._store.messages, self._store.config, self.get_queue(queue), name=name)

    def new_consumer(self, queue: str, name: str) -> Consumer:
        """Registers a consumer under a given name. Raises ValidationError if another worker has
        this name.
        """
        return Consumer.registered(self._store.messages, self._store.config, self.get_queue(queue), name=name)

    # Workflows

    def create_workflow(self, name: str, arg: Any = None) -> Run:
        """Creates a workflow, triggers it with `arg`, and returns the run. Raises
        WorkflowAlreadyExistsError.
        """
        create_workflow(self._store, name)
        message = trigger(self._store, name, arg)
        return Run.of_message(self._store.messages, self._store.config, message)

    @property
    def _database(self) -> Database:
        return self._store.messages.database


def create_workflow(store: Store, name: str) -> WorkflowRecord:
    """Creates a workflow. Raises WorkflowAlreadyExistsError."""
    return administering.make_workflow(store.messages.database, names.checked(name, "workflow"))


def trigger(store: Store, name: str, argument: Any) -> QueueMessage:
    """Enqueues a message that starts a run of the workflow, and returns the message.

    The argument is validated by the rules of pgqrs 0.15. The message's payload is {"input":
    argument}. Raises WorkflowNotFoundError.
    """
    workflow = store.messages.find_workflow(name)
    validation.encoded(argument, ValidationConfig.of(store.config))
    payload = codec.encode({"input": argument}, what="the input")
    queue = QueueInfo(workflow.queue_id, store.messages.queue_of_workflow(name) or name)
    [message_id] = send(store.messages, queue, [payload])
    return administering.message(store.messages.database, message_id)
