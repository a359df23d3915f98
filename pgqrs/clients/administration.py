"""What an administrator does: set up, look, clean up, and give second chances. The blocking twin of `pgqrs.Admin`."""

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
        """Makes the tables, or brings them to this version: those of pgqrs 0.15 too, in place. Twice is fine."""
        self._store.install()

    def verify(self) -> None:
        """Raises SchemaError where the tables are missing, incomplete, or older or newer than this version."""
        self._store.verify()

    # Queues

    def get_queue(self, name: str) -> QueueInfo:
        """Raises QueueNotFoundError."""
        return administering.queue(self._database, name)

    def delete_queue(self, name: str) -> bool:
        """True. Raises QueueNotFoundError, and ValidationError while messages, workers or a workflow refer to it."""
        administering.delete_queue(self._database, name)
        return True

    def purge_queue(self, name: str) -> int:
        """Deletes its messages, archived and held ones too, with their runs; returns how many."""
        return administering.purge_queue(self._database, name)

    def queue_metrics(self, name: str) -> QueueMetrics:
        """Raises QueueNotFoundError."""
        return administering.metrics(self._database, arguments.name(name, "a queue"))[0]

    def all_queues_metrics(self) -> list[QueueMetrics]:
        """By name."""
        return administering.metrics(self._database)

    def system_stats(self) -> SystemStats:
        """Queues, workers and messages, counted in one look."""
        return administering.system_stats(self._database)

    # Messages

    def dlq(self) -> list[int]:
        """Gives up the messages whose deliveries are used up (`Config.max_read_ct`) and that nobody holds: archives them as
        dead, and returns their ids, at most 1,000 a call."""
        return administering.bury_spent(self._database, self._store.config.max_read_ct)

    def replay_dlq(self, message_id: int) -> QueueMessage:
        """Gives a dead message (or a run in ERROR) another life: recorded steps are kept, counters start at zero. Returns the
        message. Raises RunNotFoundError, ValidationError where it is not dead."""
        found = arguments.identity(message_id)
        self._store.replay(found)
        return administering.message(self._database, found)

    def get_worker_messages(self, worker_id: int) -> list[QueueMessage]:
        """What a worker holds."""
        return administering.held_by(self._database, worker_id)

    def release_worker_messages(self, worker_id: int) -> int:
        """Makes what a worker holds visible at once; returns how many messages."""
        return administering.release_worker(self._database, worker_id)

    def reclaim_messages(self, queue: int | str, older_than: Duration | None = None) -> int:
        """Makes visible what is held on a queue (name or id) by workers not heard of for so long (by default five minutes);
        returns how many. Consumers of pgqrs 0.15 that died hold theirs until then. Supervisors' have a lease instead."""
        older_s = RECLAIM_OLDER_THAN_S if older_than is None else durations.seconds(older_than)
        queue_id = (
            self.get_queue(queue).id if isinstance(queue, str) else arguments.identity(queue, "a queue")
        )
        return administering.reclaim(self._database, queue_id, older_s)

    # Workers

    def list_workers(self) -> list[WorkerInfo]:
        """The newest first."""
        return administering.workers(self._database)

    def delete_worker(self, worker_id: int) -> bool:
        """True. Raises WorkerNotFoundError, and ValidationError while it holds messages."""
        administering.delete_worker(self._database, worker_id)
        return True

    def purge_old_workers(self, older_than: Duration) -> int:
        """Deletes the rows of stopped workers not heard of for so long; returns how many."""
        return administering.purge_workers(self._database, durations.seconds(older_than), stale=False)

    def worker_stats(self, queue: str) -> WorkerStats:
        """Raises QueueNotFoundError."""
        return administering.worker_stats(self._database, queue)

    def worker_health_stats(
        self, timeout: Duration = HEALTH_TIMEOUT_S, group_by_queue: bool = False
    ) -> list[WorkerHealthStats]:
        """One for each queue that has workers, or one ("Global") of them all. Stale are those not heard of for `timeout`."""
        return administering.health(self._database, durations.seconds(timeout), group_by_queue)

    def new_producer(self, queue: str, name: str) -> Producer:
        """Registers one under a name of the caller's choice. Raises ValidationError where a worker has it already."""
        return Producer.registered(self._store.messages, self._store.config, self.get_queue(queue), name=name)

    def new_consumer(self, queue: str, name: str) -> Consumer:
        """Registers one under a name of the caller's choice. Raises ValidationError where a worker has it already."""
        return Consumer.registered(self._store.messages, self._store.config, self.get_queue(queue), name=name)

    # Workflows

    def create_workflow(self, name: str, arg: Any = None) -> Run:
        """Makes the workflow, triggers it, and returns the run. Raises WorkflowAlreadyExistsError."""
        create_workflow(self._store, name)
        message = trigger(self._store, name, arg)
        return Run.of_message(self._store.messages, self._store.config, message)

    @property
    def _database(self) -> Database:
        return self._store.messages.database


def create_workflow(store: Store, name: str) -> WorkflowRecord:
    """Raises WorkflowAlreadyExistsError."""
    return administering.make_workflow(store.messages.database, names.checked(name, "workflow"))


def trigger(store: Store, name: str, argument: Any) -> QueueMessage:
    """A message that starts a run of the workflow, validated as 0.15 does; its payload shows the argument. Raises
    WorkflowNotFoundError."""
    workflow = store.messages.find_workflow(name)
    validation.encoded(argument, ValidationConfig.of(store.config))
    payload = codec.encode({"input": argument}, what="the input")
    queue = QueueInfo(workflow.queue_id, store.messages.queue_of_workflow(name) or name)
    [message_id] = send(store.messages, queue, [payload])
    return administering.message(store.messages.database, message_id)
