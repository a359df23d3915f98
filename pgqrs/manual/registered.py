"""What a producer and a consumer have in common: a row of pgqrs_workers, with a status and a heartbeat."""

import socket
import uuid
from datetime import timedelta

from pgqrs.arguments import durations, names
from pgqrs.model.states import WorkerStatus
from pgqrs.store import consuming
from pgqrs.store.database import Database

EPHEMERAL = "__ephemeral__"  # begins the name of a worker that one call made for itself


class Registered:
    """A worker row. Which status may follow which: `states.WORKER_TRANSITIONS`; StateTransitionError otherwise."""

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
        """Ready → Polling; polling on is fine."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Polling)

    def complete_poll(self) -> None:
        """Polling → Ready."""
        self._from(WorkerStatus.Polling, WorkerStatus.Ready, "Worker must be Polling to complete a poll")

    def interrupt(self) -> None:
        """Polling → Interrupted: whoever polls leaves off before its next message."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Interrupted)

    def suspend(self) -> None:
        """Ready, Polling or Interrupted → Suspended: takes no messages until `resume()`."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Suspended)

    def resume(self) -> None:
        """Suspended → Ready."""
        self._from(WorkerStatus.Suspended, WorkerStatus.Ready, "Worker must be Suspended to resume")

    def shutdown(self) -> None:
        """Suspended → Stopped, for good; refused while it holds messages."""
        consuming.move(self._database, self._worker_id, WorkerStatus.Stopped)

    def heartbeat(self) -> None:
        """Says that it lives. Raises WorkerNotFoundError when its row is gone."""
        consuming.beat(self._database, self._worker_id)

    def is_healthy(self, max_age: float | timedelta | str) -> bool:
        """Whether its last heartbeat is at most this old (seconds, timedelta or text)."""
        return consuming.heard_of(self._database, self._worker_id, durations.seconds(max_age))

    def _from(self, needed: WorkerStatus, becomes: WorkerStatus, why: str) -> None:
        was = self.status()
        if was is not needed:
            raise consuming.refused(was, becomes, why)
        consuming.move(self._database, self._worker_id, becomes)


def register(database: Database, queue_id: int, ephemeral: bool = False, name: str | None = None) -> int:
    """A new worker row's id. Raises ValidationError where a worker has that name already."""
    if name is not None:
        names.checked(name, "worker")
    prefix = EPHEMERAL if ephemeral else f"{socket.gethostname()}-"
    return consuming.register(database, name or f"{prefix}{uuid.uuid4()}", queue_id)
