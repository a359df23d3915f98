"""The common part of producers and consumers: a row of pgqrs_workers, with a status and a
heartbeat.
"""

import socket
import uuid
from datetime import timedelta

from pgqrs.arguments import durations, names
from pgqrs.model.states import WorkerStatus
from pgqrs.store import consuming
from pgqrs.store.database import Database

# The prefix of the name of a worker that one call creates for itself.
EPHEMERAL = "__ephemeral__"


class Registered:
    """The row of a worker. `states.WORKER_TRANSITIONS` defines which status may follow which. Any
    other change raises StateTransitionError.
    """

    def __init__(self, database: Database, worker_id: int) -> None:
        self._database = database
        self._worker_id = worker_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}(worker_id={self._worker_id})"

    @property
    def worker_id(self) -> int:
        return self._worker_id

    def status(self) -> WorkerStatus:
        return consuming.status(self._database, self._worker_id)

    def poll(self) -> None:
        """Ready → Polling. A worker that is Polling already stays Polling."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Polling)

    def complete_poll(self) -> None:
        """Polling → Ready."""
        self._from(WorkerStatus.Polling, WorkerStatus.Ready, "Worker must be Polling to complete a poll")

    def interrupt(self) -> None:
        """Polling → Interrupted. The polling loop stops before its next message."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Interrupted)

    def suspend(self) -> None:
        """Ready, Polling or Interrupted → Suspended. The worker receives no messages until `resume()`."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Suspended)

    def resume(self) -> None:
        """Suspended → Ready."""
        self._from(WorkerStatus.Suspended, WorkerStatus.Ready, "Worker must be Suspended to resume")

    def shutdown(self) -> None:
        """Suspended → Stopped. This is final. It is refused while the worker holds messages."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Stopped)

    def heartbeat(self) -> None:
        """Sends a heartbeat. Raises WorkerNotFoundError if the worker's row is gone."""
        consuming.beat(self._database, self._worker_id)

    def is_healthy(self, max_age: float | timedelta | str) -> bool:
        """Returns whether the last heartbeat is at most `max_age` old (seconds, a timedelta or text)."""
        return consuming.heard_of(self._database, self._worker_id, durations.seconds(max_age))

    def _from(self, needed: WorkerStatus, becomes: WorkerStatus, why: str) -> None:
        was = self.status()
        if was is not needed:
            raise consuming.refused(was, becomes, why)
        consuming.move(self._database, self._worker_id, becomes)


def register(database: Database, queue_id: int, ephemeral: bool = False, name: str | None = None) -> int:
    """Inserts the row of a worker and returns its id. Raises ValidationError if another worker has
    this name.
    """
    if name is not None:
        names.checked(name, "worker")
    prefix = EPHEMERAL if ephemeral else f"{socket.gethostname()}-"
    return consuming.register(database, name or f"{prefix}{uuid.uuid4()}", queue_id)
