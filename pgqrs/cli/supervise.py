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
    help="Worker processes [default: the cores this process may use].",
)
@click.option(
    "--lanes",
    type=Count(1, 1024),
    help="Runs at hand in each worker; with 1, none waits behind a long step [default: follows the step time; 100 for async def].",
)
@click.option("--burst", is_flag=True, help="Work off what is there, then exit.")
@click.option(
    "--fail",
    is_flag=True,
    help="Exit with 1 where a run ended in ERROR or a message was given up [default: with 0].",
)
@click.option(
    "--start-method",
    type=click.Choice(["fork", "spawn"]),
    help="How workers are made [default: fork on Linux].",
)
@click.option(
    "--drain-timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long a stop waits for what runs.",
)
@click.option(
    "--lease",
    type=Duration(),
    default="15s",
    show_default=True,
    help="After how long another may take over from a dead one (2s or more).",
)
@click.option(
    "--max-runs-per-worker",
    type=Count(1),
    metavar="N",
    help="Replace a worker after so many runs [default: never].",
)
@click.option(
    "--max-rss",
    type=Size(),
    help="Replace a worker that holds more memory than this, such as 2GiB, between runs [default: never].",
)
@click.option(
    "--max-read-ct",
    type=Count(1),
    help="Deliveries of a plain message before it is dead [default: 5].",
)
@click.option(
    "--reclaim-after",
    type=Duration(),
    help="Take over what clients of pgqrs 0.15 hold, so long after its time is over [default: never].",
)
@click.option(
    "--http",
    type=Address(),
    help="Answer /healthz and /readyz on this address, such as 127.0.0.1:8080 [default: no].",
)
@click.option("--quiet", "-q", is_flag=True, help="Only what user code prints, and what goes wrong.")
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

    TARGET is a file (pipeline.py) or a module (my.module), each with :name for one function of it only. SIGTERM or
    Ctrl-C drains: what runs is finished, the rest handed back; a second one stops at the next step, a third at once. A
    terminal that is closed drains too.
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
