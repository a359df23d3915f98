"""Stores on S3. A commit may find that another writer has replaced the object. Then nothing was
written, and the call can be repeated.

A caller of the library gets the error, because only the caller knows whether the call is still
wanted. Idempotent operations (`install`, creating a queue) are repeated. Calls of the command line
are also repeated, because the user would repeat them. So are the calls of a supervisor, because
each of its writes is checked against its claim in the new object.
"""

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import ParamSpec, TypeVar

from pgqrs.errors import SchemaError
from pgqrs.model.records import WorkflowRecord
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.turns import Turn, Want
from pgqrs.model.writes import Write
from pgqrs.store.database import Row, Transaction
from pgqrs.store.s3.database import S3Database
from pgqrs.store.s3.insisting import insist
from pgqrs.store.store import Identity, Known, MessageStore, beat, extended

P = ParamSpec("P")
R = TypeVar("R")

# A supervisor that has written for BUSY_S without a pause stops writing for YIELD_S.
BUSY_S = 10.0
YIELD_S = 1.2
# A pause long enough for another writer.
RESTED_S = 0.5

# The renewal of a lease waits up to half a lease to be combined with another write. So the lease in
# S3 may be older than the supervisor's own by up to half a lease. To allow for that, leases in S3
# are longer by as much.
WAITS = 0.5
# An idle supervisor writes several times within this time. See database.py.
FORGOTTEN_S = 24 * 3600.0


class CopiedStore(MessageStore):
    def __init__(self, database: S3Database) -> None:
        super().__init__(database)
        self._s3 = database

    def _again(self, do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return insist(partial(do, *args, **kwargs), self._s3.wait)

    def install(self) -> int:
        return self._again(super().install)

    def verify(self) -> int:
        try:
            return super().verify()
        except SchemaError:
            if not self._s3.absent():
                raise
            raise SchemaError(
                f"there is no database at {self._s3.dsn} yet; name another with --dsn or PGQRS_DSN, or "
                f"make it: pgqrs install --dsn {self._s3.dsn}"
            ) from None

    def ensure_queue(self, name: str) -> int:
        return self._again(super().ensure_queue, name)

    def ensure_workflow(self, name: str, queue: str) -> WorkflowRecord:
        return self._again(super().ensure_workflow, name, queue)


class InsistentStore(CopiedStore):
    """Repeats calls that met a conflict. For the command line there is a time limit. For a
    supervisor (`endless`) there is none, but severing the calls in progress ends the repetition.
    Renewals of a lease are combined with other writes.
    """

    def __init__(self, database: S3Database, endless: bool = False) -> None:
        super().__init__(database)
        self._endless = endless
        self._rested_at = time.monotonic()

    def _again(self, do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return insist(partial(do, *args, **kwargs), self._s3.wait, math.inf if self._endless else None)

    def enqueue(
        self,
        queue_id: int,
        payloads: Sequence[bytes],
        delay_s: float = 0.0,
        producer_id: int | None = None,
        at: datetime | None = None,
        known: Known | None = None,
    ) -> list[int]:
        return self._again(super().enqueue, queue_id, payloads, delay_s, producer_id, at, known)

    def cancel(self, message_id: int, now: bool = False, by_driver: bool = False) -> WorkflowStatus:
        return self._again(super().cancel, message_id, now, by_driver)

    def resume(self, message_id: int) -> bool:
        return self._again(super().resume, message_id)

    def replay(self, message_id: int) -> str:
        return self._again(super().replay, message_id)

    def register_supervisor(
        self, identity: Identity, queues: dict[str, int], lease_s: float
    ) -> tuple[int, dict[str, int]]:
        return self._again(super().register_supervisor, identity, queues, lease_s * (1 + WAITS))

    def renew_lease(self, supervisor_id: int, lease_s: float) -> bool:
        def renewed() -> bool:
            with self._s3.passing(supervisor_id, lease_s * WAITS) as tx:
                if not extended(tx, supervisor_id, lease_s * (1 + WAITS)):
                    return False
                beat(tx, supervisor_id)
                return True

        return self._again(renewed)

    def expire_lease(self, supervisor_id: int) -> None:
        def expired() -> None:
            with self.database.transaction() as tx:
                tx.run("end_lease", id=supervisor_id, ago_s=FORGOTTEN_S)

        self._again(expired)

    def recover(self, read_ct_max: int) -> int:
        return self._again(super().recover, read_ct_max)

    def _has_lapsed(self, tx: Transaction) -> bool:
        return bool(self._lapsed(tx))

    def _lapsed(self, tx: Transaction) -> list[Row]:
        """Returns the supervisors to retire: those with an expired lease that hold messages. The
        renewals of an idle supervisor do not reach S3, so its lease looks expired to others. It
        holds nothing, and is not retired. A supervisor that has written nothing for FORGOTTEN_S
        counts as dead.
        """
        return tx.run("lapsed_holders", ago_s=FORGOTTEN_S)

    def retire(self, supervisor_id: int, read_ct_max: int) -> int:
        return self._again(super().retire, supervisor_id, read_ct_max)

    def turn(self, writes: Sequence[Write], wanted: Sequence[Want] = (), unsure: bool = False) -> Turn:
        self._yield()
        return self._again(super().turn, writes, wanted, unsure)

    def _yield(self) -> None:
        """Pauses from time to time. Otherwise a writer whose round trip is longer than the gaps
        between this supervisor's writes would never succeed.
        """
        now = time.monotonic()
        if now - self._s3.put_at > RESTED_S:
            self._rested_at = now
        elif self._endless and now - self._rested_at > BUSY_S:
            self._s3.wait(YIELD_S)
            self._rested_at = time.monotonic()
