"""`pgqrs supervise`."""

import sys
from typing import Any

import click

from pgqrs import errors
from pgqrs.cli.options import Address, Count, Database, Duration, Size, database_options
from pgqrs.program import interpreter, targets


@click.command()
@click.argument("target")
@click.option(
    "--workers",
    "-w",
    type=Count(1, 1024),
    help="Number of worker processes [default: the CPU cores that this process may use].",
)
@click.option(
    "--lanes",
    type=Count(1, 1024),
    help="Number of runs that a worker holds at a time [default: "
    "chosen from the duration of the steps; 100 for async functions].",
)
@click.option("--burst", is_flag=True, help="Exit when no message is due any more.")
@click.option(
    "--fail",
    is_flag=True,
    help="Exit with status 1 if a run ended in ERROR or a message died [default: exit with 0].",
)
@click.option(
    "--start-method",
    type=click.Choice(["fork", "spawn"]),
    help="How worker processes are started [default: fork on Linux].",
)
@click.option(
    "--drain-timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="Time that running steps get to finish after a stop signal.",
)
@click.option(
    "--lease",
    type=Duration(),
    default="15s",
    show_default=True,
    help="Time after which another supervisor may take over the work of a dead one (at least 2s).",
)
@click.option(
    "--max-runs-per-worker",
    type=Count(1),
    metavar="N",
    help="Replace a worker after this number of runs [default: never].",
)
@click.option(
    "--max-rss",
    type=Size(),
    help="Replace a worker between two runs when its memory "
    "exceeds this size, such as 2GiB [default: never].",
)
@click.option(
    "--max-read-ct",
    type=Count(1),
    help="Number of deliveries of a plain message before it is dead [default: 5].",
)
@click.option(
    "--reclaim-after",
    type=Duration(),
    help="Take over messages that pgqrs 0.15 clients have held "
    "for this time after their lock expired [default: never].",
)
@click.option(
    "--http",
    type=Address(),
    help="Serve /healthz and /readyz on this address, such as 127.0.0.1:8080 [default: off].",
)
@click.option("--quiet", "-q", is_flag=True, help="Show only the output of user code, warnings and errors.")
@database_options
def supervise(
    target: str,
    workers: int | None,
    lanes: int | None,
    burst: bool,
    fail: bool,
    start_method: Any,
    drain_timeout: float,
    lease: float,
    max_runs_per_worker: int | None,
    max_rss: int | None,
    max_read_ct: int | None,
    reclaim_after: float | None,
    http: tuple[str, int] | None,
    quiet: bool,
    database: Database,
) -> None:
    """Run the workflows and handlers of TARGET on worker processes.

    TARGET is a file (pipeline.py) or a module (my.module). Append :name to run only one function of
    it.

    SIGTERM or Ctrl-C stops the supervisor: running runs get --drain-timeout to finish, and queued
    runs stay in the database. A second signal stops each run at its next step. A third one kills
    the workers at once. Closing the terminal stops it too.
    """
    if lease < 2:
        raise click.BadParameter("a lease is 2 s at the least", param_hint="--lease")
    parsed = targets.parse(target)
    interpreter.default_signals()
    from pgqrs.cli.views import make_view
    from supervisors.loop.loop import Loop
    from supervisors.loop.view import Options

    config = database.config()
    if max_read_ct is not None:
        config.max_read_ct = max_read_ct
    if reclaim_after is not None:
        config.reclaim_after_seconds = reclaim_after
    if config.dsn.endswith(":memory:"):
        raise errors.ConfigError(
            "an in-memory database is gone with its process; supervise a file or a server"
        )
    options = Options(
        workers=workers,
        lanes=lanes,
        burst=burst,
        fail=fail,
        start_method=start_method,
        drain_timeout_s=drain_timeout,
        lease_s=lease,
        max_runs_per_worker=max_runs_per_worker,
        max_rss_bytes=max_rss,
        http=http,
    )
    sys.exit(Loop(parsed, config, options, make_view(quiet)).run())
