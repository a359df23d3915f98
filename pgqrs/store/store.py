"""The operations on messages and runs. Each operation is one transaction, on any `Database`.

Locks are taken in a fixed order, so that supervisors never deadlock: messages by id, then their
runs, then steps.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, cast

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.arguments import checks as arguments
from pgqrs.arguments import names
from pgqrs.model.records import (
    QueueCounts,
    QueueMessage,
    RunRecord,
    StepRecord,
    WorkerInfo,
    WorkflowRecord,
    iso,
)
from pgqrs.model.states import WorkerStatus, WorkflowStatus
from pgqrs.model.turns import Turn, Want
from pgqrs.model.writes import Claim, Write
from pgqrs.store import checking, migrations, turns
from pgqrs.store.database import Copying, Database, Row, Transaction
from pgqrs.store.rows import read_json, read_status
from pgqrs.values import codec

BACKLOG_BOUND = 100_000
ID_MAX = 2**63 - 1
# The number of messages from which on COPY is faster than an insert, despite two more statements.
COPY_MIN = 100


class Identity(Struct, frozen=True):
    """Identifies a supervisor, so that another one on the same host can detect that it has died."""

    name: str
    host: str
    boot_id: str
    pid_ns: str
    pid: int
    pid_started: int


class Settled(Struct, frozen=True):
    """The state of a message or its run, for a client that waits for its end. `output` and `error`
    are raw JSON.
    """

    status: WorkflowStatus
    output: bytes | None
    error: bytes | None
    is_run: bool
    dead_reason: str | None


class Known(Struct, frozen=True):
    """What a caller that has cached a queue's id expects of it: the queue's name, and the workflow
    whose runs the caller enqueues.
    """

    queue: str
    workflow: str | None = None


class MessageStore:
    def __init__(self, database: Database) -> None:
        self.database = database
        self._identity: str | None = None

    # Setting up

    def install(self) -> int:
        """Creates or migrates the schema to this code's version. Returns the number of migrations
        applied. Repeated and concurrent calls are safe.
        """
        return migrations.install(self.database)

    def verify(self) -> int:
        """Returns the version of the schema. Raises SchemaError if the schema is missing,
        incomplete, or older or newer than this code supports, and DatabaseError if the role may not
        read it.
        """
        try:
            return migrations.verify(self.database)
        except errors.DatabaseError as e:
            checking.explain(self.database, e)
            raise

    def cautions(self) -> list[str]:
        """Returns warnings for the person who sets up the database, one sentence each. They name
        privileges that a supervisor lacks, and dangers in the schema.
        """
        return checking.cautions(self.database)

    def refuse_incapable(self) -> None:
        """Raises DatabaseError if the role lacks a privilege that a supervisor needs."""
        checking.refuse_supervisor(self.database)

    def identity(self) -> str:
        """Returns the database's identity, 32 hexadecimal digits. Only copies of a database share
        it. Cached.
        """
        if self._identity is None:
            self._identity = self._looked_up_identity()
        return self._identity

    def _looked_up_identity(self) -> str:
        with self.database.reading() as tx:
            rows = tx.run("database_row")
        if not rows:  # another program has emptied the table
            with self.database.transaction() as tx:
                migrations.identify(tx)
                rows = tx.run("database_row")
        return str(rows[0][0])

    def close(self) -> None:
        self.database.close()

    # Queues and workflows

    def find_queue(self, name: str) -> int:
        with self.database.reading() as tx:
            found = tx.run("queue_by_name", name=arguments.name(name, "a queue"))
        if not found:
            raise errors.QueueNotFoundError(f"no queue is named {name!r}; see: pgqrs queues")
        return int(found[0][0])

    def ensure_queue(self, name: str) -> int:
        with self.database.transaction() as tx:
            return _ensure_queue(tx, name)

    def find_workflow(self, name: str) -> WorkflowRecord:
        with self.database.reading() as tx:
            found = tx.run("workflow_by_name", name=arguments.name(name, "a workflow"))
        if not found:
            raise errors.WorkflowNotFoundError(
                f"no workflow is named {name!r}; one is known once it was supervised, or made: "
                "store.trigger(function, …) makes it, and so does "
                "pgqrs.workflow().name(…).store(…).create()"
            )
        return WorkflowRecord(found[0][0], name, found[0][1])

    def ensure_workflow(self, name: str, queue: str) -> WorkflowRecord:
        """Returns a workflow. If it is new, creates it and its queue. A queue serves one workflow."""
        with self.database.transaction() as tx:
            found = tx.run("workflow_by_name", name=name)
            if not found:
                queue_id = _ensure_queue(tx, queue)
                if other := [n for _, n in tx.run("workflow_of_queue", queue_id=queue_id) if n != name]:
                    raise errors.ValidationError(
                        f"queue {queue!r} carries workflow {other[0]!r} "
                        f"already; give {name!r} a queue of its own"
                    )
                tx.run("add_workflow", name=name, queue_id=queue_id)
                found = tx.run("workflow_by_name", name=name)
            workflow_id, queue_id, known_queue = found[0]
            if known_queue != queue:
                raise errors.ValidationError(
                    f"workflow {name!r} is on queue {known_queue!r} in this database, not on {queue!r}; "
                    "a workflow keeps its queue: give it a new name, or the old queue"
                )
            return WorkflowRecord(workflow_id, name, queue_id)

    def queue_of_workflow(self, name: str) -> str | None:
        """Returns the name of a workflow's queue, or None if the workflow is unknown."""
        with self.database.reading() as tx:
            found = tx.run("workflow_by_name", name=name)
        return found[0][2] if found else None

    def enqueue(
        self,
        queue_id: int,
        payloads: Sequence[bytes],
        delay_s: float = 0.0,
        producer_id: int | None = None,
        at: datetime | None = None,
        known: "Known | None" = None,
    ) -> list[int]:
        """Enqueues messages, and returns their ids in the order of the payloads (raw JSON). `at`
        None means now. Raises QueueNotFoundError if no queue has this id, or if it is not the queue
        that the caller expects (`known`).
        """
        if self.database.dialect == "postgres" and len(payloads) >= COPY_MIN:
            with self.database.transaction(at) as tx:
                return _copied(cast(Copying, tx), queue_id, payloads, delay_s, producer_id, known)
        with self.database.single(at) as tx:
            return enqueue(tx, queue_id, payloads, delay_s, producer_id, known)

    # Supervisors and leases

    def register_supervisor(
        self, identity: Identity, queues: dict[str, int], lease_s: float
    ) -> tuple[int, dict[str, int]]:
        """Registers a supervisor. Returns its id, and its consumer's id for each queue. `queues`
        maps names to ids.
        """
        with self.database.transaction() as tx:
            who = msgspec.structs.asdict(identity)
            supervisor_id = int(tx.run("register_supervisor", **who, lease_s=lease_s)[0][0])
            consumers = {
                queue: int(
                    tx.run(
                        "register_consumer",
                        name=f"{identity.name}:{queue}",
                        queue_id=queue_id,
                        supervisor_id=supervisor_id,
                    )[0][0]
                )
                for queue, queue_id in queues.items()
            }
            return supervisor_id, consumers

    def renew_lease(self, supervisor_id: int, lease_s: float) -> bool:
        """Renews a lease. Returns False if the lease had expired, in which case other supervisors
        may hold its messages.
        """
        # Separate transactions: over a slow link, each statement saved leaves more time for the lease.
        with self.database.single() as tx:
            if not extended(tx, supervisor_id, lease_s):
                return False
        with self.database.single() as tx:
            beat(tx, supervisor_id)
        return True

    def watched(self, identity: Identity) -> tuple[list[tuple[int, int, int]], bool]:
        """Returns (id, pid, pid_started) of the supervisors on the same host, boot and pid
        namespace. Also returns whether the lease of any supervisor has expired.
        """
        with self.database.reading() as tx:
            rows = tx.run(
                "watched_supervisors", host=identity.host, boot_id=identity.boot_id, pid_ns=identity.pid_ns
            )
        return [(a, b, c) for a, b, c, near, _ in rows if near], any(over for *_, over in rows)

    def expire_lease(self, supervisor_id: int) -> None:
        with self.database.transaction() as tx:
            tx.run("expire_lease", id=supervisor_id)

    def bring_back(self) -> int:
        """Repairs times after the clock was set back. Messages whose due time was computed by the
        old clock become due by the new one. Returns the number of messages. Does nothing on a
        server, which has a clock of its own.
        """
        if self.database.dialect != "sqlite":
            return 0
        with self.database.reading() as tx:
            if not tx.run("of_the_future"):
                return 0
        with self.database.transaction() as tx:
            late = [
                (i, max(-(enqueued or 0.0), -(claimed or 0.0)))
                for i, enqueued, claimed in tx.run("of_the_future")
            ]
            tx.run("bring_back", late)
            return len(late)

    def recover(self, read_ct_max: int) -> int:
        """Releases the messages of supervisors whose lease has expired. Returns the number of
        messages.

        A plain message whose handler had begun is charged with a delivery, and becomes a dead
        letter if that was its last one. If another session has locked a message, the message is
        left for the next call.
        """
        if not self.has_expired():
            return 0
        with self.database.transaction() as tx:
            count = 0
            for (supervisor_id,) in self._lapsed(tx):
                count += _release_all(tx, supervisor_id, read_ct_max, "its supervisor died with it")
            return count

    def has_expired(self) -> bool:
        """Whether there is still the row of a supervisor whose lease has expired. Right after
        `recover` this means that another session has locked the row or messages of that supervisor.
        """
        with self.database.reading() as tx:
            return self._has_lapsed(tx)

    def _has_lapsed(self, tx: Transaction) -> bool:
        """Whether a supervisor's lease has expired. This check takes no lock."""
        return bool(tx.run("anything_expired"))

    def _lapsed(self, tx: Transaction) -> list[Row]:
        """Returns the ids of the supervisors to retire, because their lease has expired."""
        return tx.run("expired_supervisors")

    def retire(self, supervisor_id: int, read_ct_max: int) -> int:
        """Ends a supervisor: releases the messages that it still holds, and deletes its row."""
        with self.database.transaction() as tx:
            tx.run("lock_supervisor", id=supervisor_id)
            return _release_all(
                tx, supervisor_id, read_ct_max, "its supervisor stopped before it was handled"
            )

    def held(self, consumers: Iterable[int]) -> list[Claim]:
        """Returns the claims that these consumers hold according to the database. Used after a
        commit of unknown outcome.
        """
        with self.database.reading() as tx:
            return [Claim(m, c, n) for m, c, n in tx.run("held", [(c,) for c in consumers])]

    def backlog(self, queue_ids: Iterable[int]) -> int:
        """Counts the messages that could be claimed now, up to BACKLOG_BOUND."""
        with self.database.reading() as tx:
            return int(tx.run("backlog", [(q,) for q in queue_ids], bound=BACKLOG_BOUND)[0][0])

    def later(self, queue_ids: Iterable[int]) -> int:
        """Counts the messages that are due at a later time (because of a retry, a pause or a
        delay), up to BACKLOG_BOUND.
        """
        with self.database.reading() as tx:
            return int(tx.run("later", [(q,) for q in queue_ids], bound=BACKLOG_BOUND)[0][0])

    def turn(self, writes: Sequence[Write], wanted: Sequence[Want] = (), unsure: bool = False) -> Turn:
        """Executes one transaction of a supervisor. See `turns.turn`."""
        return turns.turn(self.database, writes, wanted, unsure)

    # Operations of clients on a run or message, by the message's id

    def cancel(self, message_id: int, now: bool = False, by_driver: bool = False) -> WorkflowStatus:
        """Cancels a run, and returns its status: CANCELLED if no worker holds it, else CANCELLING
        until its next step.

        `by_driver` means that the caller is the run's own `pgqrs.Run`. Such a run may have been
        started without a claim on its message. It has a driver all the same, and stays CANCELLING
        until that driver acquires a step or reports success.

        With `now`, the run becomes CANCELLED in any case and is taken from its holder. The holder's
        later writes are refused. If a supervisor executes the run, it notices this and kills the
        worker. A plain message is archived in the same way.
        """
        with self.database.transaction() as tx:
            m = _locked(tx, message_id)
            if m.run_status is not None and m.run_status.terminal:
                return m.run_status
            if m.archived:
                raise errors.ValidationError(
                    f"message {message_id} was handled or given up already; nothing to cancel"
                )
            held = (m.held or (by_driver and m.driven)) and not now
            status = WorkflowStatus.Cancelling if held else WorkflowStatus.Cancelled
            if m.workflow_id is None and held:
                raise errors.ValidationError(
                    f"message {message_id} is being handled; a plain handler has no step to stop at: end "
                    "it where it is, with cancel --now, or cancel(now=True)"
                )
            if m.run_id is not None:
                tx.run("set_run_status", run_id=m.run_id, status=status.value, done=not held)
            elif m.workflow_id is not None:
                tx.run(
                    "put_run",
                    workflow_id=m.workflow_id,
                    message_id=message_id,
                    status=status.value,
                    done=not held,
                )
            if not held:
                tx.run("end_message", id=message_id)
            return status

    def resume(self, message_id: int) -> bool:
        """Makes a paused run due now. Returns False if it is not paused."""
        with self.database.transaction() as tx:
            m = _locked(tx, message_id)
            if m.run_status is not WorkflowStatus.Paused:
                return False
            tx.run("make_due", id=message_id)
            return True

    def replay(self, message_id: int) -> str:
        """Makes a dead message available again, and returns its queue's name. Its run is QUEUED
        again, with the recorded results kept and the counters at zero.
        """
        with self.database.transaction() as tx:
            m = _locked(tx, arguments.identity(message_id))
            if m.run_status is not None and m.run_status is not WorkflowStatus.Error:
                raise errors.ValidationError(
                    f"run {message_id} is {m.run_status.value}; only a run in ERROR can be replayed"
                )
            if m.run_id is None and m.dead_reason is None:
                raise errors.ValidationError(f"message {message_id} is not dead; see: pgqrs dead")
            if m.run_id is not None:
                tx.run("revive_run", run_id=m.run_id)
                tx.run("forget_failed_steps", run_id=m.run_id)
            tx.run("revive_message", id=message_id)
            return m.queue

    # Inspection

    def settled(self, message_id: int) -> Settled:
        with self.database.reading() as tx:
            rows = tx.run("run_status", id=message_id)
        if not rows:
            raise _no_run(message_id)
        status, output, error, archived, dead_reason, workflow_id = rows[0]
        if status is None:
            ended = WorkflowStatus.Error if dead_reason else WorkflowStatus.Success
            status = ended if archived else WorkflowStatus.Queued
        return Settled(
            read_status(status, f"run {message_id}"),
            read_json(output),
            read_json(error),
            workflow_id is not None,
            dead_reason,
        )

    def run(self, message_id: int) -> RunRecord:
        with self.database.reading() as tx:
            rows = tx.run("run", id=message_id)
        if not rows:
            raise _no_run(message_id)
        return _run_record(rows[0])

    def runs(
        self,
        workflow: str | None = None,
        status: WorkflowStatus | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[RunRecord]:
        """Returns runs, newest first. To get the following runs, pass the last message id of the
        result as `before`.
        """
        with self.database.reading() as tx:
            rows = tx.run(
                "runs",
                workflow=None if workflow is None else arguments.name(workflow, "a workflow"),
                status=status and status.value,
                limit=arguments.count("limit", limit),
                before=ID_MAX if before is None else arguments.identity(before),
            )
        return [_run_record(r) for r in rows]

    def steps(self, message_id: int) -> list[StepRecord]:
        """Returns the recorded steps of a run, in the order of their calls."""
        with self.database.reading() as tx:
            rows = tx.run("steps", message_id=message_id)
        return [step_record(r) for r in rows]

    def queues(self) -> list[QueueCounts]:
        with self.database.reading() as tx:
            return [QueueCounts(*r) for r in tx.run("queues")]

    def workers(self, stopped: bool = False) -> list[WorkerInfo]:
        with self.database.reading() as tx:
            return [worker_record(r) for r in tx.run("workers", stopped=stopped)]

    def dead(self, queue: str | None = None, limit: int = 50) -> list[tuple[str, QueueMessage]]:
        """Returns dead letters as pairs (queue name, message), newest first."""
        with self.database.reading() as tx:
            rows = tx.run("dead", queue=queue, limit=arguments.count("limit", limit))
            return [(r[12], message_record(r)) for r in rows]

    def message(self, message_id: int) -> QueueMessage:
        with self.database.reading() as tx:
            rows = tx.run("message", id=message_id)
        if not rows:
            raise errors.MessageNotFoundError(f"no message has the id {message_id}")
        return message_record(rows[0])


def enqueue(
    tx: Transaction,
    queue_id: int,
    payloads: Sequence[bytes],
    delay_s: float,
    producer_id: int | None = None,
    known: Known | None = None,
) -> list[int]:
    """Enqueues in the caller's transaction. The ids ascend in the order of `payloads`, although the
    statement returns them in no particular order.
    """
    rows = tx.run(
        _statement(known),
        [(p,) for p in payloads],
        queue_id=queue_id,
        delay_s=delay_s,
        producer_id=producer_id,
        **_names(known),
    )
    if payloads and not rows:
        raise _gone(queue_id, known)
    return sorted(int(r[0]) for r in rows)


def _statement(known: Known | None) -> str:
    if known is None:
        return "enqueue"
    return "enqueue_known" if known.workflow is None else "enqueue_run"


def _names(known: Known | None) -> dict[str, str]:
    if known is None:
        return {}
    return {"queue": known.queue} | ({} if known.workflow is None else {"workflow": known.workflow})


def _gone(queue_id: int, known: Known | None) -> errors.QueueNotFoundError:
    name = repr(known.queue) if known else f"with the id {queue_id}"
    return errors.QueueNotFoundError(
        f"queue {name} is not in this database any more: it was deleted, or the database was made anew. "
        "Nothing was sent; make the queue, and a new producer"
    )


def _copied(
    tx: Copying,
    queue_id: int,
    payloads: Sequence[bytes],
    delay_s: float,
    producer_id: int | None,
    known: Known | None,
) -> list[int]:
    [(reserved, vt, now)] = tx.run(
        "reserve_messages",
        delay_s=delay_s,
        count=len(payloads),
        queue_id=queue_id,
        queue=known and known.queue,
        workflow=known and known.workflow,
    )
    if reserved is None:
        raise _gone(queue_id, known)
    ids = [int(i) for i in reserved.split(",")]
    same = queue_id, vt, now, "\\N" if producer_id is None else producer_id
    tail = "\t{}\t{}\t{}\t{}\t0\n".format(*same).encode()
    tx.copy_in(
        "pgqrs_messages (id, payload, queue_id, vt, enqueued_at, producer_worker_id, read_ct)",
        b"".join([b"%d\t%b%b" % (i, p, tail) for i, p in zip(ids, _for_copy(payloads), strict=True)]),
    )
    return ids


# Escapes of COPY's text format. The backslash must be replaced first.
_ESCAPES = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}


def _for_copy(payloads: Sequence[bytes]) -> Sequence[bytes]:
    # Most payloads need no escape, and one check of all takes a tenth of the time.
    together = b"".join(payloads)
    return [_escaped(p) for p in payloads] if any(c in together for c in _ESCAPES) else payloads


def _escaped(value: bytes) -> bytes:
    for character, escape in _ESCAPES.items():
        value = value.replace(character, escape)
    return value


def extended(tx: Transaction, supervisor_id: int, lease_s: float) -> bool:
    return bool(tx.run("renew_lease", id=supervisor_id, lease_s=lease_s))


def beat(tx: Transaction, supervisor_id: int) -> None:
    """Sends the heartbeat of a supervisor's consumers, which library workers and 0.15 check."""
    tx.run("beat_consumers", id=supervisor_id)


def _ensure_queue(tx: Transaction, name: str) -> int:
    """Looks up the queue before inserting it: an insert that conflicts would still consume an id."""
    found = (
        tx.run("queue_by_name", name=names.checked(name, "queue"))
        or tx.run("add_queue", name=name)
        or tx.run("queue_by_name", name=name)
    )
    return int(found[0][0])


def _release_all(tx: Transaction, supervisor_id: int, read_ct_max: int, reason: str) -> int:
    buried = tx.run("bury_of_supervisor", id=supervisor_id, read_ct_max=read_ct_max, reason=reason)
    released = tx.run("release_of_supervisor", id=supervisor_id, read_ct_max=read_ct_max)
    if tx.run("left_of_supervisor", id=supervisor_id):
        # Another session has locked a message. Keep the supervisor's row, so that the next call
        # releases the message.
        tx.run("expire_lease", id=supervisor_id)
    else:
        tx.run("stop_consumers", id=supervisor_id)
        tx.run("forget_supervisor", id=supervisor_id)
    return len(buried) + len(released)


# Records


class _Locked(Struct):
    queue: str
    held: bool
    archived: bool
    dead_reason: str | None
    workflow_id: int | None
    run_id: int | None
    run_status: WorkflowStatus | None
    delivered: bool

    @property
    def driven(self) -> bool:
        """Whether the run was started without a claim on its message."""
        return self.run_status not in (None, WorkflowStatus.Queued) and not self.delivered


def _locked(tx: Transaction, message_id: int) -> _Locked:
    if not tx.run("lock_message", id=message_id):
        raise _no_run(message_id)
    rows = tx.run("locked_message", id=message_id)
    _, queue, consumer, archived, dead_reason, workflow_id, _, run_id, status, delivered = rows[0]
    return _Locked(
        queue=queue,
        held=consumer is not None and archived is None,
        archived=archived is not None,
        dead_reason=dead_reason,
        workflow_id=workflow_id,
        run_id=run_id,
        run_status=read_status(status, f"run {message_id}") if status else None,
        delivered=bool(delivered),
    )


def _no_run(message_id: int) -> errors.RunNotFoundError:
    return errors.RunNotFoundError(f"no run or message has the id {message_id}; see: pgqrs runs")


def _run_record(r: Row) -> RunRecord:
    return RunRecord(
        r[0], r[1], r[2], read_status(r[3] or "QUEUED", f"run {r[0]}"), _triggered_with(r[4]),
        json_value(r[5]), json_value(r[6]), iso(r[7]), iso(r[8]),
        r[9], r[10] or 0, r[11] or 0, json_value(r[12]), iso(r[13]), iso(r[14]), iso(r[15]), iso(r[16]),
    )  # fmt: skip


def _triggered_with(payload: bytes | str) -> Any:
    value = json_value(payload)
    return value["input"] if isinstance(value, dict) and "input" in value else value


def step_record(r: Row) -> StepRecord:
    return StepRecord(
        id=r[0],
        run_id=r[1],
        step_name=r[2],
        status=read_status(r[3], f"step {r[2]!r} of run {r[1]}"),
        input=json_value(r[4]),
        output=json_value(r[5]),
        error=json_value(r[6]),
        retry_at=iso(r[7]),
        created_at=iso(r[8]),
        updated_at=iso(r[9]),
        started_at=iso(r[10]),
        completed_at=iso(r[11]),
        retry_count=r[12],
        position=r[13],
        pid=r[14],
        cpu_seconds=r[15],
        peak_rss_bytes=r[16],
        crash_count=r[17],
        crash=json_value(r[18]),
    )


def worker_record(r: Row) -> WorkerInfo:
    return WorkerInfo(r[0], r[1], WorkerStatus(r[2]), r[3], iso(r[4]), r[5], r[6], r[7], iso(r[8]), r[9])


def message_record(r: Row, of_workflow: bool = False) -> QueueMessage:
    """Makes a QueueMessage of a row. With `of_workflow`, the message is one that a trigger sent:
    its stored payload is {"input": X}, and the record shows X.
    """
    payload = codec.without_bound(json_value(r[2]))
    if of_workflow and isinstance(payload, dict) and payload.keys() == {"input"}:
        payload = payload["input"]
    return QueueMessage(
        r[0], r[1], payload, iso(r[3]), iso(r[4]), r[5], iso(r[6]), r[7], r[8], iso(r[9]), r[10], r[11],
    )  # fmt: skip


def json_value(value: bytes | str | None) -> Any:
    """Decodes a JSON value. A SQLite column may hold text that is not JSON, which is returned as it
    is.
    """
    try:
        return None if value is None else msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, TypeError):
        return value
    except UnicodeError:
        return repr(value)
