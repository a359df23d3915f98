"""Operations on a run that a program drives by hand. Each operation is one transaction.

Every write locks the run's message, and checks who holds it. A run that was created from a claimed
message belongs to that claim. If another worker has claimed the message since, nothing is written
and ClaimLostError is raised. A run that was created from an unclaimed message may be driven until a
supervisor claims the message.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.flows.retry import StepRetryPolicy
from pgqrs.model.records import QueueMessage, as_moment, iso
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Claim
from pgqrs.store.database import Database, Transaction
from pgqrs.store.postgresql.jsonb import exact_text
from pgqrs.store.rows import read_json, read_status

QUEUED, RUNNING, PAUSED = WorkflowStatus.Queued, WorkflowStatus.Running, WorkflowStatus.Paused
CANCELLING, CANCELLED = WorkflowStatus.Cancelling, WorkflowStatus.Cancelled
SUCCESS, ERROR = WorkflowStatus.Success, WorkflowStatus.Error


class RunRow(Struct, frozen=True):
    """A run's row. `input`, `output` and `error` are raw JSON."""

    id: int
    workflow_id: int
    message_id: int
    status: WorkflowStatus
    input: bytes | None
    output: bytes | None
    error: bytes | None


class Acquired(Struct, frozen=True):
    """The record of a step. If `done`, `output` is its result. Otherwise the body of the step is to
    be executed.
    """

    done: bool
    output: bytes | None = None


class Failure(Struct, frozen=True):
    """How a step failed. If `retry_after_s` is None, the policy's back-off applies."""

    code: str
    message: str
    transient: bool
    retry_after_s: float | None = None


class Held(Struct, frozen=True):
    """A run, and the claim that allows writing to it. `claim` is None if nobody had claimed the
    run's message.
    """

    run_id: int
    message_id: int
    claim: Claim | None


# Runs


def make(database: Database, message: QueueMessage) -> RunRow:
    """Returns the run of a message, and creates it if there is none. Raises WorkflowNotFoundError
    if the queue has no workflow, and MessageNotFoundError if the message is gone.
    """
    with database.transaction() as tx:
        found = tx.run("run_of_message", message_id=message.id)
        if not found:
            workflows = tx.run("workflow_of_queue", queue_id=message.queue_id)
            if not workflows:
                raise errors.WorkflowNotFoundError(
                    f"message {message.id} is on queue {message.queue_id}, which carries no workflow; "
                    "make one with pgqrs.workflow().name(…).store(…).create(), and trigger it"
                )
            tx.run("make_run", workflow_id=workflows[0][0], message_id=message.id)
            found = tx.run("run_of_message", message_id=message.id)
        if not found:
            raise errors.MessageNotFoundError(f"no message has the id {message.id}")
        return _state(found[0])


def find(database: Database, message_id: int) -> RunRow | None:
    with database.reading() as tx:
        found = tx.run("run_of_message", message_id=message_id)
    return _state(found[0]) if found else None


def look(database: Database, run_id: int) -> RunRow:
    with database.reading() as tx:
        return _by_id(tx, run_id)


def start(database: Database, held: Held) -> RunRow:
    """Sets a QUEUED or PAUSED run to RUNNING, even before its resume time. A RUNNING run stays
    RUNNING. Raises ValidationError for any other status.
    """
    with database.transaction() as tx:
        run = _ours(tx, held)
        if run.status is RUNNING:
            return run
        if run.status not in (QUEUED, PAUSED):
            raise _not_in(run)
        return _moved(tx, held, run, RUNNING)


def succeed(database: Database, held: Held, output: bytes, archive: bool = False) -> RunRow:
    """Sets a run to SUCCESS. If the cancellation of the run was requested, sets it to CANCELLED
    instead. With `archive`, the run's message is archived in the same transaction. A run in SUCCESS
    does not change. Raises ValidationError if the run has ended in another status.
    """
    with database.transaction() as tx:
        run = _ours(tx, held)
        if run.status is not SUCCESS:
            if run.status.terminal:
                raise _not_in(run)
            if run.status is CANCELLING:
                run = _cancelled(tx, held, run)
            else:
                run = _moved(tx, held, run, SUCCESS, output=output)
        if archive:
            tx.run("archive", [(held.message_id, None)])
        return run


def fail(database: Database, held: Held, error: bytes) -> RunRow:
    """Sets a run to ERROR. A run in ERROR does not change. Raises ValidationError if the run has
    ended in another status.
    """
    with database.transaction() as tx:
        run = _ours(tx, held)
        if run.status is ERROR:
            return run
        if run.status.terminal:
            raise _not_in(run)
        return _moved(tx, held, run, ERROR, error=error)


def pause(database: Database, held: Held, text: str, resume_after_s: float) -> RunRow:
    """Sets a run to PAUSED. The run's message stays with its holder. Raises ValidationError for a
    run that has ended or is being cancelled.
    """
    with database.transaction() as tx:
        run = _ours(tx, held)
        if run.status not in (QUEUED, RUNNING, PAUSED):
            raise _not_in(run)
        reason = msgspec.json.encode({"message": text, "resume_after": _plain(resume_after_s)})
        return _moved(tx, held, run, PAUSED, error=reason)


def due_again(database: Database, run_id: int) -> datetime | None:
    """Returns when the run can continue: when a step's retry is due, or when its pause ends. None
    means now.
    """
    with database.reading() as tx:
        status, paused_at, error, retry_at = tx.run("due_again", id=run_id)[0]
    if status == PAUSED.value and paused_at is not None:
        told = msgspec.json.decode(error or b"null")
        after_s = told.get("resume_after") if isinstance(told, dict) else None
        if isinstance(after_s, int | float):
            return as_moment(paused_at) + timedelta(seconds=after_s)
    return None if retry_at is None else as_moment(retry_at)


# Steps


def acquire_step(database: Database, held: Held, name: str, at: datetime | None = None) -> Acquired:
    """Returns a step's record, or the right to execute the step. `at` None means now.

    Raises StepNotReadyError if the step's retry is not due yet, and RetriesExhaustedError if the
    step has no retries left. If the cancellation of the run was requested, sets the run to
    CANCELLED and raises RunCancelledError. Raises ValidationError if the run was cancelled before.
    """
    cancelled = False
    with database.transaction(at) as tx:
        run = _ours(tx, held)
        step = _step(tx, held.run_id, name)
        if run.status is CANCELLING:
            _cancelled(tx, held, run)
            cancelled = True
        elif run.status is CANCELLED:
            raise _not_in(run)
        elif step is not None and step.status is SUCCESS:
            return Acquired(True, step.output)
        elif step is not None and step.status is ERROR and step.retry_at is None:
            told = msgspec.json.encode(msgspec.json.decode(step.error or b"null"), order="sorted").decode()
            raise errors.RetriesExhaustedError(f"Step failed after {step.retry_count} attempts: {told}")
        elif step is not None and step.status is ERROR and not step.due:
            raise errors.StepNotReadyError(
                f"Step not ready for execution (retry scheduled for {step.retry_at})", retry_at=step.retry_at
            )
        else:
            tx.run("open_step", run_id=held.run_id, name=name)
    if cancelled:
        raise errors.RunCancelledError(f"run {held.message_id} was cancelled before its step {name!r}")
    return Acquired(False)


def complete_step(database: Database, held: Held, name: str, output: bytes) -> None:
    """Sets a step to SUCCESS. A step in SUCCESS keeps its first output."""
    with database.transaction() as tx:
        _ours(tx, held)
        step = _step(tx, held.run_id, name)
        if step is None:
            tx.run("open_step", run_id=held.run_id, name=name)
        retries = step.retry_count if step else 0
        _end_step(tx, held.run_id, name, SUCCESS, output=output, retry_count=retries)


def fail_step(
    database: Database,
    held: Held,
    name: str,
    failure: Failure,
    random: Callable[[], float],
    at: datetime | None = None,
    policy: StepRetryPolicy | None = None,
) -> None:
    """Sets a step to ERROR. The failure is final, unless it is transient and the policy (three
    retries by default) has a retry left. A step in SUCCESS does not change.
    """
    with database.transaction(at) as tx:
        _ours(tx, held)
        step = _step(tx, held.run_id, name)
        if step is None:
            tx.run("open_step", run_id=held.run_id, name=name)
        retries = step.retry_count if step else 0
        policy = policy or StepRetryPolicy()
        told: dict[str, Any] = {
            "is_transient": failure.transient,
            "code": errors.storable(failure.code),
            "message": errors.storable(failure.message),
        }
        retry_in_s = None
        if failure.transient and retries < policy.max_attempts:
            retries += 1
            retry_in_s = failure.retry_after_s
            if retry_in_s is None:
                retry_in_s = policy.delay(retries, random)
        if failure.retry_after_s is not None:
            told["retry_after"] = _as_rust_has_it(failure.retry_after_s)
        error = msgspec.json.encode(told)
        _end_step(tx, held.run_id, name, ERROR, error=error, retry_count=retries, retry_in_s=retry_in_s)


# Internal functions


class _Step(Struct, frozen=True):
    status: WorkflowStatus
    output: bytes | None
    error: bytes | None
    retry_at: str | None
    retry_count: int
    due: bool


def _ours(tx: Transaction, held: Held) -> RunRow:
    """Returns the run after locking its message and checking the claim. Raises ClaimLostError."""
    if not tx.run("lock_message", id=held.message_id):
        raise errors.MessageNotFoundError(
            f"the message of run {held.message_id} was deleted; nothing was written"
        )
    consumer_id, claim_no, archived_at, client = tx.run("holder", id=held.message_id)[0]
    claim = held.claim
    if claim is None:
        lost = client == "supervisor" and archived_at is None
    else:
        lost = (consumer_id, claim_no) != (claim.consumer_id, claim.claim_no)
    if lost:
        now = f"consumer {consumer_id} holds" if consumer_id else "nobody holds"
        raise errors.ClaimLostError(
            f"run {held.message_id} belongs to somebody else by now ({now} its message); nothing was "
            "written. Dequeue it again, with a longer vt, or extend_vt() in time"
        )
    return _by_id(tx, held.run_id)


def _by_id(tx: Transaction, run_id: int) -> RunRow:
    found = tx.run("run_by_id", id=run_id)
    if not found:
        raise errors.RunNotFoundError(f"no run has the id {run_id}")
    return _state(found[0])


def _moved(
    tx: Transaction,
    held: Held,
    run: RunRow,
    status: WorkflowStatus,
    output: bytes | None = None,
    error: bytes | None = None,
) -> RunRow:
    tx.run(
        "move_run",
        id=run.id,
        status=status.value,
        output=_text(output),
        error=_text(error),
        starts=run.status is QUEUED and status is not CANCELLED,
        pauses=status is PAUSED,
        ends=status.terminal,
        worker_id=held.claim.consumer_id if held.claim else None,
    )
    return msgspec.structs.replace(run, status=status, output=output, error=error)


def _cancelled(tx: Transaction, held: Held, run: RunRow) -> RunRow:
    """Ends a run whose cancellation was requested. If nobody holds its message, this also archives
    the message.
    """
    consumer_id, *_ = tx.run("holder", id=held.message_id)[0]
    if consumer_id is None:
        tx.run("archive", [(held.message_id, None)])
    return _moved(tx, held, run, CANCELLED)


def _step(tx: Transaction, run_id: int, name: str) -> _Step | None:
    found = tx.run("step_by_name", run_id=run_id, name=name)
    if not found:
        return None
    _, status, output, error, retry_at, retry_count, due = found[0]
    return _Step(
        read_status(status, f"step {name!r}"),
        read_json(output),
        read_json(error),
        iso(retry_at),
        retry_count,
        bool(due),
    )


def _end_step(
    tx: Transaction,
    run_id: int,
    name: str,
    status: WorkflowStatus,
    output: bytes | None = None,
    error: bytes | None = None,
    retry_count: int = 0,
    retry_in_s: float | None = None,
) -> None:
    tx.run(
        "end_step",
        run_id=run_id,
        name=name,
        status=status.value,
        output=_text(output),
        output_text=exact_text(output, tx.dialect),
        error=_text(error),
        retry_count=retry_count,
        retry_in_s=retry_in_s,
    )


def _not_in(run: RunRow) -> errors.ValidationError:
    kind = "terminal " if run.status.terminal else ""
    ways = {
        SUCCESS: "its result stands",
        ERROR: f"give it another life with replay: pgqrs replay {run.message_id}",
        CANCELLED: "trigger it anew",
        CANCELLING: "it ends before its next step",
    }
    return errors.ValidationError(
        f"Validation failed: Run {run.message_id} is in {kind}{run.status.value} state; {ways[run.status]}"
    )


def _state(row: tuple[Any, ...]) -> RunRow:
    return RunRow(
        row[0],
        row[1],
        row[2],
        read_status(row[3], f"run {row[2]}"),
        read_json(row[4]),
        read_json(row[5]),
        read_json(row[6]),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _as_rust_has_it(seconds: float) -> dict[str, int]:
    """Returns a duration in the form that 0.15 stores, because 0.15 reads these rows too."""
    return {"secs": int(seconds), "nanos": round(seconds % 1 * 1e9)}


def _plain(seconds: float) -> float | int:
    return int(seconds) if float(seconds).is_integer() else seconds
