"""The commands that only read: runs, run, queues, workers, dead."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pgqrs import errors
from pgqrs.cli import output
from pgqrs.cli.options import Count, Database, Id, Name, database_options, json_option
from pgqrs.cli.output import ago, local, preview, took
from pgqrs.model.printable import printable_lines
from pgqrs.model.recorded_error import RecordedError
from pgqrs.model.states import WorkflowStatus

if TYPE_CHECKING:
    from pgqrs.model.records import RunRecord, StepRecord
    from pgqrs.store import MessageStore

LIMIT_MAX = 100_000
STEP_RESULT_LENGTH_MAX = 60
# The length in a list of runs.
INPUT_LENGTH_MAX = 40
# The length of an input or output that is shown on its own.
VALUE_LENGTH_MAX = 2_000
# A pause without an end is stored as one of a hundred years.
FOR_EVER = timedelta(days=365 * 50)


def limit_option(command: Any) -> Any:
    return click.option(
        "--limit",
        type=Count(1, LIMIT_MAX),
        default=50,
        show_default=True,
        help="Maximum number of rows, newest first.",
    )(command)


@click.command()
@click.option("--workflow", type=Name(), help="Show only runs of this workflow.")
@click.option(
    "--status",
    type=click.Choice([s.value for s in WorkflowStatus], case_sensitive=False),
    help="Show only runs with this status.",
)
@limit_option
@database_options
@json_option
def runs(workflow: str | None, status: str | None, limit: int, database: Database, as_json: bool) -> None:
    """List runs, newest first.

    \b
    Examples:
      pgqrs runs --status error --limit 10
      pgqrs runs --workflow archive_files --json
    """
    with database.messages() as messages:
        if workflow is not None:
            messages.find_workflow(workflow)
        found = messages.runs(workflow, WorkflowStatus(status.upper()) if status else None, limit)
        now = messages.database.now()
    if as_json:
        output.json_document(found)
        return
    rows = [
        (
            str(r.message_id), r.workflow, r.status.value, ago(r.enqueued_at, now),
            took(r.started_at, r.completed_at),
            str(r.attempt or ""), str(r.crash_count or ""), preview(r.input, INPUT_LENGTH_MAX) or "null",
            _outcome(r, now),
        )
        for r in found
    ]  # fmt: skip
    columns = (">id", "workflow", "status", "enqueued", ">took", ">attempts", ">crashes", "input…", "result…")
    output.table(columns, rows, empty="no runs" + (" like that" if workflow or status else ""))


@click.command()
@click.argument("run_id", metavar="ID", type=Id())
@database_options
@json_option
def run(run_id: int, database: Database, as_json: bool) -> None:
    """Show one run: its steps, what it waits for, and why it failed.

    \b
    Example:
      pgqrs run 12
    """
    with database.messages() as messages:
        record = _run(messages, run_id)
        steps = messages.steps(run_id)
        now = messages.database.now()
    if as_json:
        output.json_document(
            msgspec.structs.asdict(record) | {"steps": [msgspec.structs.asdict(s) for s in steps]}
        )
        return
    click.echo(f"run {run_id} of {output.clean(record.workflow)}: {record.status.value}")
    for name, value in _facts(record, steps, now):
        click.echo(f"  {name:<9} {value}")
    if steps:
        click.echo()
        columns = (
            ">step",
            "name",
            "status",
            "started",
            ">took",
            ">CPU",
            ">memory",
            ">tries",
            ">crashes",
            "result…",
        )
        output.table(columns, [_step_row(s, record.status) for s in steps], empty="")
    if traceback := _traceback(record):
        click.echo()
        click.echo(printable_lines("  " + traceback.rstrip("\n"), indent="  "))


@click.command()
@database_options
@json_option
def queues(database: Database, as_json: bool) -> None:
    """List queues with the number of their messages in each state.

    ready: may be claimed now. delayed: become due later. held: claimed. archived: finished or
    cancelled. dead: given up after too many deliveries, or because the run failed.

    \b
    Example:
      pgqrs queues --json
    """
    with database.messages() as messages:
        found = messages.queues()
    if as_json:
        output.json_document(found)
        return
    rows = [
        (
            q.queue_name,
            q.workflow or "",
            *(f"{n:,}" for n in (q.ready, q.delayed, q.held, q.archived, q.dead)),
        )
        for q in found
    ]
    output.table(
        ("queue", "workflow", ">ready", ">delayed", ">held", ">archived", ">dead"),
        rows,
        empty="no queues yet",
    )


@click.command()
@click.option("--all", "stopped", is_flag=True, help="Show stopped consumers too.")
@database_options
@json_option
def workers(stopped: bool, database: Database, as_json: bool) -> None:
    """List the consumers and producers of queues (not worker processes), with their leases.

    A supervisor has one consumer for each of its queues. If a supervisor's lease expires, another
    supervisor takes over the messages that it held. Consumers and producers of the Python library
    have no lease.

    \b
    Example:
      pgqrs workers --json
    """
    with database.messages() as messages:
        found = messages.workers(stopped)
        now = messages.database.now()
    if as_json:
        output.json_document(found)
        return
    rows = [
        (
            str(w.id), w.queue_name or "", w.status.value, w.host or "", str(w.pid or ""), f"{w.held:,}",
            ago(w.heartbeat_at, now), _lease(w.lease_until, now),
        )
        for w in found
    ]  # fmt: skip
    columns = (">id", "queue", "status", "host", ">pid", ">held", "heartbeat", "lease")
    output.table(
        columns, rows, empty="nobody takes messages; start a supervisor: pgqrs supervise pipeline.py"
    )


@click.command()
@click.option("--queue", type=Name(), help="Show only messages of this queue.")
@limit_option
@database_options
@json_option
def dead(queue: str | None, limit: int, database: Database, as_json: bool) -> None:
    """List dead messages and failed runs, newest first.

    \b
    Example:
      pgqrs dead --queue mails
      pgqrs replay 12
    """
    with database.messages() as messages:
        if queue is not None:
            messages.find_queue(queue)
        found = messages.dead(queue, limit)
        now = messages.database.now()
    if as_json:
        output.json_document([{"queue_name": name} | msgspec.structs.asdict(m) for name, m in found])
        return
    rows = [
        (
            str(m.id),
            name,
            ago(m.archived_at, now),
            str(m.read_ct),
            output.cut(m.dead_reason or "", 120),
            preview(m.payload),
        )
        for name, m in found
    ]
    output.table(
        (">id", "queue", "died", ">deliveries", "reason…", "payload…"), rows, empty="nothing is dead"
    )


def _run(messages: "MessageStore", run_id: int) -> "RunRecord":
    if not messages.settled(run_id).is_run:
        raise errors.RunNotFoundError(
            f"{run_id} is a plain message, not a run; see: pgqrs queues, pgqrs dead"
        )
    return messages.run(run_id)


def _facts(record: "RunRecord", steps: "list[StepRecord]", now: datetime) -> list[tuple[str, str]]:
    facts = [
        ("input", preview(record.input, VALUE_LENGTH_MAX) or "null"),
        ("enqueued", _when(record.enqueued_at, now)),
        ("started", _when(record.started_at, now)),
        ("ended", _when(record.completed_at, now)),
        ("took", took(record.started_at, record.completed_at)),
        ("attempts", str(record.attempt or "")),
        ("crashes", _crashes(record.crash_count, record.crash)),
        ("waits", _waits(record, steps, now)),
        (
            "paused",
            output.clean(RecordedError.read(record.error).message)
            if record.status is WorkflowStatus.Paused
            else "",
        ),
        ("result", preview(record.output, VALUE_LENGTH_MAX)),
        ("error", _error(record.error, VALUE_LENGTH_MAX) if record.status is WorkflowStatus.Error else ""),
    ]
    if record.status is WorkflowStatus.Success:
        facts[-2] = ("result", preview(record.output, VALUE_LENGTH_MAX) or "null")
    return [(name, value) for name, value in facts if value]


def _waits(record: "RunRecord", steps: "list[StepRecord]", now: datetime) -> str:
    """Returns what a run waits for, and until when. Empty for a run that is executing or has ended."""
    if record.status.terminal:
        return ""
    if record.due_at is None:
        return (
            "for its next step to begin, to be cancelled there"
            if record.status is WorkflowStatus.Cancelling
            else ""
        )
    due = datetime.fromisoformat(record.due_at)
    if due <= now:
        return "for a worker"
    if record.status is WorkflowStatus.Paused:
        if due - now > FOR_EVER:
            return f"to be resumed: pgqrs resume {record.message_id}"
        return f"until {_when(record.due_at, now)}, or: pgqrs resume {record.message_id}"
    retried = [s for s in steps if s.status is WorkflowStatus.Error and s.retry_at is not None]
    if retried:
        step = retried[-1]
        return f"to try {output.clean(step.step_name)} again, until {_when(record.due_at, now)}"
    return f"until {_when(record.due_at, now)}"


def _step_row(step: "StepRecord", run_status: WorkflowStatus) -> tuple[str, ...]:
    failed = step.status is WorkflowStatus.Error
    result = (
        _error(step.error, STEP_RESULT_LENGTH_MAX) if failed else preview(step.output, STEP_RESULT_LENGTH_MAX)
    )
    if step.status is WorkflowStatus.Running and step.crash:
        result = _crash(step.crash)
    # retry_count already includes the attempt to come
    waits = failed and step.retry_at is not None
    # The row of an interrupted step stays open, so that a replay of the run continues with it.
    cut_off = step.status is WorkflowStatus.Running and run_status.terminal
    return (
        "" if step.position is None else str(step.position + 1),
        step.step_name,
        "RETRY" if waits else ("CRASHED" if step.crash else "CUT OFF") if cut_off else step.status.value,
        local(step.started_at),
        took(step.started_at, step.completed_at),
        "" if step.cpu_seconds is None else output.seconds(step.cpu_seconds),
        "" if step.peak_rss_bytes is None else f"{step.peak_rss_bytes / 2**20:,.0f} MB",
        str(step.retry_count + (step.completed_at is not None and not waits)),
        str(step.crash_count or ""),
        result,
    )


def _when(then: str | None, now: datetime) -> str:
    return "" if then is None else f"{local(then)} ({ago(then, now)})"


def _outcome(record: "RunRecord", now: datetime) -> str:
    if record.status is WorkflowStatus.Success:
        return preview(record.output)
    if record.status is WorkflowStatus.Error:
        return _error(record.error)
    if record.due_at is not None and record.status is not WorkflowStatus.Cancelled:
        due = datetime.fromisoformat(record.due_at)
        if due - now > FOR_EVER:
            return "until resumed"
        return f"due {ago(record.due_at, now)}" if due > now else ""
    return ""


def _error(error: Any, length_max: int = output.PREVIEW_LENGTH_MAX) -> str:
    if not isinstance(error, dict):
        return preview(error, length_max)
    told = RecordedError.read(error)
    kind = (told.type or told.code).removeprefix("builtins.").removeprefix("pgqrs.errors.")
    return output.cut(f"{kind}: {told.message}" if kind else told.message, length_max)


def _traceback(record: "RunRecord") -> str:
    return RecordedError.read(record.error).traceback if record.status is WorkflowStatus.Error else ""


def _crashes(count: int, crash: Any) -> str:
    """Describes the crashes of a run. Shows the last crash even if a later checkpoint has reset the
    count.
    """
    if not crash:
        return str(count or "")
    return f"{count} without a checkpoint since, the last: {_crash(crash)}"


def _crash(crash: Any) -> str:
    return output.cut(str(crash.get("text") or crash), 200) if isinstance(crash, dict) else preview(crash)


def _lease(until: str | None, now: datetime) -> str:
    if until is None:
        return ""
    return f"ends {ago(until, now)}" if datetime.fromisoformat(until) > now else f"ran out {ago(until, now)}"
