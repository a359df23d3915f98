"""The same work on each backend: enqueue one by one and in bulk, then runs of one step and of three
steps under a supervisor.

    python3 dev.py run python -m loadtest.backends [--runs 2000] [--workers 2]
        [--latency-ms 60] [--only turso,s3]

`turso-shared` is Turso with its experimental multi-process WAL.

PostgreSQL is a private server with fsync and synchronous_commit on. S3 is an emulator behind a
proxy that delays each request. A drain is measured from the start of the first body to the
archiving of the last message.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pgqrs
from loadtest import small_steps
from loadtest.mark import VARIABLE
from loadtest.results import commit, machine
from pgqrs.cli.views import PlainView
from pgqrs.clients.blocking import Store
from pgqrs.config import TURSO_SHARED, Config
from pgqrs.program import targets
from pgqrs.store import open_database
from supervisors.loop.loop import Loop
from supervisors.loop.view import Options
from tests.postgres_server import PostgresServer
from tests.s3.faults import Proxy
from tests.s3_server import S3Server

BACKENDS = ("postgres", "sqlite", "turso", "turso-shared", "s3")
ONE_BY_ONE = 100
AT_ONCE = 5000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="loadtest.backends", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency-ms", type=float, default=60.0, help="of each request to S3")
    parser.add_argument("--only", default=",".join(BACKENDS))
    args = parser.parse_args()
    print(
        "| backend | enqueue, one call each | enqueue_many | "
        "one-step runs | three-step runs | PUTs of the two drains |"
    )
    print("|---|---|---|---|---|---|")
    for backend in args.only.split(","):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            dsns, proxy = addresses(backend, folder, stack)
            if proxy is not None:
                proxy.latency_s = args.latency_ms / 1000
            one, many = enqueued(dsns[0])
            puts = proxy.puts if proxy else 0
            drains = [
                drained(dsn, workflow, args.runs, args.workers, folder)
                for dsn, workflow in zip(
                    dsns[1:], (small_steps.one_step, small_steps.three_steps), strict=True
                )
            ]
            sent = f"{proxy.puts - puts}" if proxy else ""
            rates = [one, many, *drains]
            print(f"| {backend} | " + " | ".join(f"{r:,.0f}/s" for r in rates) + f" | {sent} |", flush=True)
    print(f"\n{time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()}: {' '.join(sys.argv[1:])}")
    return 0


def addresses(backend: str, folder: Path, stack: ExitStack) -> tuple[list[str], Proxy | None]:
    """Returns three empty databases, each with its schema."""
    proxy = None
    if backend == "postgres":
        server = stack.enter_context(PostgresServer.start(durable=True))
        dsns = [server.create_database(f"load_{n}") for n in range(3)]
    elif backend == "s3":
        s3 = stack.enter_context(S3Server.start())
        proxy = stack.enter_context(Proxy(s3).running())
        os.environ.update(s3.environment(proxy.endpoint), XDG_CACHE_HOME=str(folder))
        dsns = [s3.new_dsn() for _ in range(3)]
    elif backend == "turso-shared":
        dsns = [f"turso://{folder}/{n}.db?{TURSO_SHARED}" for n in range(3)]
    else:
        dsns = [f"{backend}://{folder}/{n}.db" for n in range(3)]
    for dsn in dsns:
        with pgqrs.connect(dsn) as store:
            store.install()
    return dsns, proxy


def enqueued(dsn: str) -> tuple[float, float]:
    """Returns messages per second: with one call each, and in one call."""
    with pgqrs.connect(dsn) as store:
        store.enqueue("load", 0)
        began = time.monotonic()
        for n in range(ONE_BY_ONE):
            store.enqueue("load", n)
        one = ONE_BY_ONE / (time.monotonic() - began)
        began = time.monotonic()
        store.enqueue_many("load", range(AT_ONCE))
        return one, AT_ONCE / (time.monotonic() - began)


def drained(dsn: str, workflow: object, runs: int, workers: int, folder: Path) -> float:
    """Returns runs per second."""
    mark = folder / f"started {time.monotonic()}"
    os.environ[VARIABLE] = str(mark)
    with Store(Config(dsn), insist=True) as store:
        store.trigger_many(workflow, [((), {}) for _ in range(runs)])  # type: ignore[arg-type]
    target = targets.parse(f"{small_steps.__file__}:{workflow.__name__}")  # type: ignore[attr-defined]
    code = Loop(target, Config(dsn), Options(workers=workers, burst=True), PlainView(quiet=True)).run()
    with closing(open_database(Config(dsn))) as database, database.reading() as tx:
        rows = tx.run("archived_messages", queue_id=1)
    if code or len(rows) != runs:
        raise SystemExit(f"only {len(rows)} of {runs} runs were archived (exit code {code})")
    return runs / (small_steps.seconds_since_start(mark, max(row[9] for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
