"""The commands that change something: enqueue, trigger, cancel, resume, replay."""

import re
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import click

from pgqrs import errors
from pgqrs.cli import output
from pgqrs.cli.options import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Database,
    Duration,
    Id,
    Name,
    database_options,
    fail,
    json_option,
)
from pgqrs.model.states import WorkflowStatus

if TYPE_CHECKING:
    from pgqrs.clients.blocking import Store
    from pgqrs.clients.handle import RunHandle

# Text that was hardly meant as a JSON number, list or object.
TEXT = re.compile(r"[^\s\[\]{}\"][^\[\]{}\"\0]{0,199}")
# The text of a payload may exceed the payload's limit by this factor. Longer input is not read.
WHITE_SPACE_FACTOR = 16


class _TakesNumbers(click.Command):
    """Accepts `pgqrs trigger add -3`: a negative number is an argument and no option. The number
    gets a leading space, which JSON allows.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {a}" if re.match(r"-\d", a) else a for a in args])


@click.command(cls=_TakesNumbers)
@click.argument("workflow", type=Name())
@click.argument("argument", metavar="[JSON|-]", default="null")
@click.option("--wait", is_flag=True, help="Wait until the run has ended, and print its result.")
@click.option(
    "--timeout", type=Duration(), help="Maximum time to wait, such as 90, 10m or 1h30m [default: no limit]."
)
@database_options
@json_option
def trigger(
    workflow: str, argument: str, wait: bool, timeout: float | None, database: Database, as_json: bool
) -> None:
    """Start a run of WORKFLOW and print its id.

    JSON is the argument of a workflow with one parameter. For several parameters it is an object
    with the arguments by name. "-" reads it from standard input. The command does not import your
    code: a run whose arguments do not fit ends in ERROR. The workflow must exist in the database. A
    supervisor or a Python program that triggers it creates it.

    With --wait the command prints the result as JSON. Its exit status is 1 if the run fails, is
    cancelled, or takes longer than --timeout. Ctrl-C ends the wait, and the run continues.

    \b
    Examples:
      pgqrs trigger archive_files '{"path": "/data", "days": 30}'
      id=$(pgqrs trigger archive_files - < arguments.json)
      pgqrs trigger add_one 41 --wait --timeout 1m
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    payload = _payload(argument, f"the argument of {workflow!r}", database.config().max_payload_size_bytes)
    with database.store() as store:
        handle = store.trigger_raw(workflow, payload)
        if wait:
            _say_if_nobody_runs_it(store, workflow)
            _wait(handle, timeout)
        elif as_json:
            output.json_document({"id": handle.id})
        else:
            click.echo(handle.id)


def _say_if_nobody_runs_it(store: "Store", workflow: str) -> None:
    with suppress(errors.PgqrsError):  # the wait reports the error too
        queue, now = store.messages.queue_of_workflow(workflow), store.messages.database.now()
        leases = [c.lease_until for c in store.consumers() if c.queue_name == queue]
        if not any(until is not None and datetime.fromisoformat(until) > now for until in leases):
            click.echo(
                f"no supervisor takes runs of {workflow!r} at the moment; start one: pgqrs supervise …",
                err=True,
            )


@click.command(cls=_TakesNumbers)
@click.argument("queue", type=Name())
@click.argument("payload", metavar="[JSON|-]", default="null")
@click.option(
    "--delay",
    type=Duration(),
    default="0",
    help="Time before the message becomes due, such as 90, 10m or 1h30m.",
)
@database_options
@json_option
def enqueue(queue: str, payload: str, delay: float, database: Database, as_json: bool) -> None:
    """Put a message on QUEUE and print its id.

    "-" reads the JSON from standard input. The queue must exist in the database. A supervisor or a
    Python program that uses it creates it.

    \b
    Examples:
      pgqrs enqueue mails '{"to": "you@example.com"}' --delay 10m
      date +%s | pgqrs enqueue ticks -
    """
    raw = _payload(payload, "the payload", database.config().max_payload_size_bytes)
    with database.messages() as messages:
        message_id = messages.enqueue(messages.find_queue(queue), [raw], delay)[0]
        if not delay:
            messages.database.hint([queue])
    if as_json:
        output.json_document({"id": message_id})
    else:
        click.echo(message_id)


@click.command()
@click.argument("run", metavar="ID", type=Id())
@click.option(
    "--now", is_flag=True, help="Kill the worker that executes the run, instead of waiting for its next step."
)
@database_options
@json_option
def cancel(run: int, now: bool, database: Database, as_json: bool) -> None:
    """Cancel the run or message ID.

    A queued run becomes CANCELLED at once. A running run becomes CANCELLING, and ends before its
    next step. With --now it becomes CANCELLED at once, and its worker is killed within about a
    second. Effects of its finished steps remain. If the run has already ended, the exit status is
    1.

    \b
    Examples:
      pgqrs cancel 12
      pgqrs cancel 12 --now
    """
    with database.store() as store:
        try:
            status = store.run(run).cancel(now)
        except errors.ValidationError as e:
            fail(str(e), EXIT_FAILED)
        what = _what(store, run)
    if status not in (WorkflowStatus.Cancelled, WorkflowStatus.Cancelling):
        fail(f"run {run} has ended already, with {status.value}", EXIT_FAILED)
    _tell(what, run, status, as_json)


@click.command()
@click.argument("run", metavar="ID", type=Id())
@database_options
@json_option
def resume(run: int, database: Database, as_json: bool) -> None:
    """End the pause of the run ID.

    If the run is not paused, the exit status is 1.

    \b
    Example:
      pgqrs runs --status paused
      pgqrs resume 12
    """
    with database.store() as store:
        handle = store.run(run)
        if not handle.resume():
            fail(f"run {run} is {handle.status.value}, not PAUSED", EXIT_FAILED)
        status = handle.status
    if as_json:
        _tell("run", run, status, as_json)
    else:
        click.echo(f"run {run} is due now")


@click.command()
@click.argument("run", metavar="ID", type=Id())
@database_options
@json_option
def replay(run: int, database: Database, as_json: bool) -> None:
    """Queue the dead message or the failed run ID again.

    A replayed run keeps the results of its successful steps. Its attempts and crashes are counted
    from zero. If the message is not dead, the exit status is 1.

    \b
    Examples:
      pgqrs dead
      pgqrs replay 12
    """
    with database.store() as store:
        try:
            store.replay(run)
        except errors.ValidationError as e:
            fail(str(e), EXIT_FAILED)
        status, what = store.run(run).status, _what(store, run)
    _tell(what, run, status, as_json)


def _payload(text: str, what: str, limit: int) -> bytes:
    """Returns JSON from an argument, or from standard input if the argument is "-"."""
    from pgqrs.values.codec import parse_json

    if text != "-":
        try:
            return parse_json(text, what=what, limit=limit)
        except errors.ValidationError as e:
            raise errors.ValidationError(f"{e}{_as_text(text, limit)}") from None
    raw = sys.stdin.buffer.read(WHITE_SPACE_FACTOR * limit + 1) if sys.stdin is not None else b""
    if len(raw) > WHITE_SPACE_FACTOR * limit:
        raise errors.ValidationError(f"{what}, from standard input, is over the limit of {limit:,} bytes")
    return parse_json(raw, what=f"{what}, from standard input,", limit=limit)


def _as_text(text: str, limit: int) -> str:
    """Returns a hint for an argument that is no JSON: the JSON to write if the argument was meant
    as text. Usually the quotes were forgotten, or the shell removed them.
    """
    if not TEXT.fullmatch(text):
        return ""
    import shlex

    from msgspec.json import encode

    meant = encode(text)
    return f"; if this text is meant, write {shlex.quote(meant.decode())}" if len(meant) <= limit else ""


def _wait(handle: "RunHandle[object]", timeout: float | None) -> None:
    from msgspec.json import encode

    goes_on = f"run {handle.id} goes on; see: pgqrs run {handle.id}"
    try:
        result = handle.result(timeout)
    except KeyboardInterrupt:
        fail(goes_on, EXIT_INTERRUPTED)
    except errors.PgqrsConnectionError as e:
        raise errors.PgqrsConnectionError(f"{e}; {goes_on}") from e
    click.echo(output.json_text(encode(result)))


def _what(store: "Store", message_id: int) -> str:
    return "run" if store.messages.settled(message_id).is_run else "message"


def _tell(what: str, run: int, status: WorkflowStatus, as_json: bool) -> None:
    if as_json:
        output.json_document({"id": run, "status": status.value})
    elif status is WorkflowStatus.Cancelling:
        click.echo(f"{what} {run} is {status.value}: it ends before its next step")
    else:
        click.echo(f"{what} {run} is {status.value}")
