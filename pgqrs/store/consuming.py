"""The database operations of producers and consumers of the Python library. Each operation is one
transaction, on any database.

A consumer owns a message from its claim until one of three things happens: it archives or deletes
the message, it releases the message, or another worker claims the message. An operation on a
message that the consumer does not own raises no error: it returns False, or does not count the
message.
"""

from collections.abc import Sequence
from datetime import datetime

from pgqrs import errors
from pgqrs.model.records import QueueMessage
from pgqrs.model.states import WORKER_TRANSITIONS, WorkerStatus
from pgqrs.store.database import Database, Transaction
from pgqrs.store.s3.insisting import insist
from pgqrs.store.sql import DAWN
from pgqrs.store.store import message_record

# Why a status change is refused, by the requested status. The texts are those of 0.15.
_NEEDED = {
    WorkerStatus.Ready: "Worker must be Polling or Suspended to become Ready",
    WorkerStatus.Polling: "Worker must be Ready to poll; "
    "create another consumer, or resume() a suspended one",
    WorkerStatus.Suspended: "Worker must be Ready, Polling, or Interrupted to suspend",
    WorkerStatus.Interrupted: "Worker must be in Polling state to be interrupted",
    WorkerStatus.Stopped: "Worker must be in Suspended state to shut down; call suspend() first",
}


# Workers


def register(database: Database, name: str, queue_id: int | None) -> int:
    """Inserts the row of a worker. Raises ValidationError if another worker has this name."""
    with database.single() as tx:
        made = tx.run("register_worker", name=name, queue_id=queue_id)
    if not made:
        raise errors.ValidationError(
            f"Validation failed: Worker {name} is already active. Cannot register duplicate."
        )
    return int(made[0][0])


def status(database: Database, worker_id: int) -> WorkerStatus:
    with database.reading() as tx:
        return _status(tx, worker_id)


def heard_of(database: Database, worker_id: int, max_age_s: float) -> bool:
    """Whether the worker's last heartbeat is at most `max_age_s` old."""
    with database.reading() as tx:
        found = tx.run("worker_heard_of", id=worker_id, max_age_s=max_age_s)
    if not found:
        raise _no_worker(worker_id)
    return bool(found[0][0])


def beat(database: Database, worker_id: int) -> None:
    with database.single() as tx:
        if not tx.run("beat_worker", id=worker_id):
            raise _no_worker(worker_id)


def move(database: Database, worker_id: int, becomes: WorkerStatus) -> None:
    """Changes a worker's status. Raises StateTransitionError unless WORKER_TRANSITIONS allows the
    change. A worker that is Polling may also be set to Polling.
    """
    with database.transaction() as tx:
        while True:
            was = _status(tx, worker_id)
            if was is becomes is WorkerStatus.Polling:
                return
            if becomes not in WORKER_TRANSITIONS[was]:
                raise refused(was, becomes, _NEEDED[becomes])
            if becomes is WorkerStatus.Stopped and (held := tx.run("holds", id=worker_id)[0][0]):
                raise refused(
                    was, becomes, f"it still holds {held} messages; archive or release them before shutdown()"
                )
            if tx.run("move_worker", id=worker_id, was=was.value, becomes=becomes.value):
                return


def leave(database: Database, worker_id: int) -> None:
    """Stops a worker in any status, and releases the messages that it holds. A second call does
    nothing.
    """
    with database.transaction() as tx:
        if held := tx.run("held_by", worker_id=worker_id):
            tx.run("give_back", held, visible_at=None, refund=False)
        tx.run("end_worker", id=worker_id)


def refused(was: WorkerStatus, becomes: WorkerStatus, why: str) -> errors.StateTransitionError:
    return errors.StateTransitionError(f"Invalid state transition from {was.value} to {becomes.value}: {why}")


def _status(tx: Transaction, worker_id: int) -> WorkerStatus:
    found = tx.run("worker_status", id=worker_id)
    if not found:
        raise _no_worker(worker_id)
    return WorkerStatus(found[0][0])


def _no_worker(worker_id: int) -> errors.WorkerNotFoundError:
    return errors.WorkerNotFoundError(f"Worker {worker_id} not found; see: pgqrs workers --all")


# Messages


def withdraw(database: Database, message_ids: Sequence[int]) -> None:
    """Withdraws messages that no worker has received yet. Retries the call after a conflict."""

    def withdrawn() -> None:
        with database.single() as tx:
            tx.run("withdraw", [(i,) for i in message_ids])

    insist(withdrawn)


def dequeue(
    database: Database,
    worker_id: int,
    queue_id: int,
    limit: int,
    lock_s: float,
    read_ct_max: int,
    at: datetime | None = None,
) -> list[QueueMessage]:
    """Claims the next messages: first messages of other library consumers whose claim has expired,
    then due messages, the oldest first. Returns nothing for a worker that is neither ready nor
    polling.
    """
    if limit < 1:
        return []
    with database.single(at) as tx:
        rows = tx.run(
            "dequeue",
            queue_id=queue_id,
            consumer_id=worker_id,
            lock_s=lock_s,
            read_ct_max=read_ct_max,
            limit=limit,
            after_vt=DAWN[database.dialect],
            after_id=0,
        )
    if not rows:
        status(database, worker_id)  # raises if there is no such worker
    # All messages have the same vt now. Their ids are in the order of sending.
    return sorted((message_record(r, of_workflow=r[12] > 0) for r in rows), key=lambda m: m.id)


def extend(database: Database, worker_id: int, message_id: int, seconds: float) -> bool:
    with database.single() as tx:
        return bool(tx.run("extend", id=message_id, consumer_id=worker_id, seconds=seconds))


def archive(
    database: Database, worker_id: int, message_ids: Sequence[int], dead_reason: str | None = None
) -> set[int]:
    """Archives messages, and returns the ids of those that the worker owned."""
    if not message_ids:
        return set()
    wanted = [(i,) for i in sorted(set(message_ids))]
    with database.single() as tx:
        return {i for (i,) in tx.run("archive_own", wanted, consumer_id=worker_id, dead_reason=dead_reason)}


def delete(database: Database, worker_id: int, message_ids: Sequence[int]) -> set[int]:
    """Deletes messages, and returns the ids of those that the worker owned. Raises ValidationError,
    and deletes nothing, if one has a run.
    """
    with database.transaction() as tx:
        own = _own(tx, worker_id, message_ids)
        if own:
            if runs := tx.run("runs_of_messages", [(i,) for i in own]):
                _, message_id = runs[0]
                raise errors.ValidationError(
                    f"message {message_id} has a run, whose history would be lost with it; archive it instead"
                )
            tx.run("delete_messages", [(i,) for i in own])
        return set(own)


def give_back(
    database: Database,
    worker_id: int,
    message_ids: Sequence[int],
    visible_at: datetime | None = None,
    refund: bool = False,
) -> int:
    """Releases messages, and returns how many of them the worker owned. `visible_at` None means
    now.

    `refund` subtracts the delivery from read_ct, as if it had not happened. A caller with `refund`
    does not wait for the result, so the call is retried after a conflict.
    """

    def given_back() -> int:
        with database.transaction() as tx:
            own = _own(tx, worker_id, message_ids)
            if own:
                tx.run("give_back", [(i,) for i in own], visible_at=visible_at, refund=refund)
            return len(own)

    return insist(given_back) if refund else given_back()


def keep(database: Database, worker_id: int, message_ids: Sequence[int], lock_s: float) -> None:
    """Extends the locks of messages, so that they last for at least `lock_s` from now."""
    with database.transaction() as tx:
        if own := _own(tx, worker_id, message_ids):
            tx.run("keep_holds", [(i,) for i in own], lock_s=lock_s)


def _own(tx: Transaction, worker_id: int, message_ids: Sequence[int]) -> list[int]:
    if not message_ids:
        return []
    return [i for (i,) in tx.run("own", [(i,) for i in sorted(set(message_ids))], consumer_id=worker_id)]
