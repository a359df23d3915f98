"""Stores on S3, where a commit may find that somebody else has written: nothing was, then, and it can be done again.

A caller of the library is told, since only he knows whether he still wants it; what makes sure of something (`install`, a queue) is
repeated. So is all that the command line does, whose user would repeat it himself, and a supervisor, each of whose writes is checked
against its claim, on whatever is there by then.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ParamSpec, TypeVar

from pgqrs.errors import ConflictError, SchemaError
from pgqrs.records import WorkflowRecord
from pgqrs.states import WorkflowStatus
from pgqrs.store.s3 import S3Database
from pgqrs.store.store import Identity, Known, MessageStore, beat, extended
from pgqrs.store.turning import Turn, Wanted
from pgqrs.writes import Write

P = ParamSpec("P")
R = TypeVar("R")

TRIES = 20  # against a writer who never rests, each as likely to win as he is
PAUSE_S = 0.02

# A renewal waits half a lease for another write to go up with, so that what S3 has is up to that much older than what the
# supervisor counts on: leases are longer there by as much.
WAITS = 0.5


class CopiedStore(MessageStore):
    def __init__(self, database: S3Database) -> None:
        super().__init__(database)
        self._s3 = database

    def install(self) -> int:
        return _again(super().install)

    def verify(self) -> int:
        try:
            return super().verify()
        except SchemaError:
            if not self._s3.absent():
                raise
            raise SchemaError(
                f"there is no database at {self._s3.dsn} yet; name another with --dsn or PGQRS_DSN, or make it: "
                f"pgqrs install --dsn {self._s3.dsn}"
            ) from None

    def ensure_queue(self, name: str) -> int:
        return _again(super().ensure_queue, name)

    def ensure_workflow(self, name: str, queue: str) -> WorkflowRecord:
        return _again(super().ensure_workflow, name, queue)


class InsistentStore(CopiedStore):
    """Does again what met a conflict. A lease's renewals go up with other writes."""

    def enqueue(
        self,
        queue_id: int,
        payloads: Sequence[bytes],
        delay_s: float = 0.0,
        producer_id: int | None = None,
        at: datetime | None = None,
        known: Known | None = None,
    ) -> list[int]:
        return _again(super().enqueue, queue_id, payloads, delay_s, producer_id, at, known)

    def cancel(self, message_id: int, now: bool = False, by_driver: bool = False) -> WorkflowStatus:
        return _again(super().cancel, message_id, now, by_driver)

    def resume(self, message_id: int) -> bool:
        return _again(super().resume, message_id)

    def replay(self, message_id: int) -> str:
        return _again(super().replay, message_id)

    def register_supervisor(
        self, identity: Identity, queues: dict[str, int], lease_s: float
    ) -> tuple[int, dict[str, int]]:
        return _again(super().register_supervisor, identity, queues, lease_s * (1 + WAITS))

    def renew_lease(self, supervisor_id: int, lease_s: float) -> bool:
        def renewed() -> bool:
            with self._s3.passing(lease_s * WAITS) as tx:
                if not extended(tx, supervisor_id, lease_s * (1 + WAITS)):
                    return False
                beat(tx, supervisor_id)
                return True

        return _again(renewed)

    def expire_lease(self, supervisor_id: int) -> None:
        _again(super().expire_lease, supervisor_id)

    def recover(self, read_ct_max: int) -> int:
        return _again(super().recover, read_ct_max)

    def retire(self, supervisor_id: int, read_ct_max: int) -> int:
        return _again(super().retire, supervisor_id, read_ct_max)

    def turn(self, writes: Sequence[Write], wanted: Sequence[Wanted] = (), unsure: bool = False) -> Turn:
        return _again(super().turn, writes, wanted, unsure)


def _again(do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    for _ in range(TRIES - 1):
        try:
            return do(*args, **kwargs)
        except ConflictError:
            time.sleep(PAUSE_S * random.random())
    return do(*args, **kwargs)
