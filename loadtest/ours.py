"""A backlog, and a supervisor that drains it: how long, and whose CPU it took."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
from msgspec import Struct

import pgqrs
from loadtest.mark import VARIABLE, started_at
from tests.postgres_server import PostgresServer

_TICKS = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.1


class Drained(Struct, frozen=True):
    seconds: float  # from the first body's start to the last message's archiving, both by the same clock
    cpu_s: dict[str, float]  # by kind of process; a tenth of a second of each is not seen


def drain(
    dsn: str,
    target: str,
    fill: Callable[[pgqrs.Store], object],
    count: int,
    workers: int = 2,
    server: PostgresServer | None = None,
) -> Drained:
    """Raises RuntimeError unless the database says that every message was archived."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        with pgqrs.connect(dsn) as store:
            store.install()
            fill(store)
        settle(dsn)
        options = ["--dsn", dsn, "--workers", str(workers), "--burst"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqrs", "supervise", target, *options],
            env=os.environ | {VARIABLE: str(mark)},
            stdout=subprocess.DEVNULL,
        )
        cpu_of: dict[int, tuple[str, float]] = {}
        while process.poll() is None:
            look(process.pid, server.process.pid if server else None, cpu_of)
            time.sleep(LOOK_S)
        ended_at, archived = ends(dsn)
        if process.returncode or archived != count:
            raise RuntimeError(
                f"{archived:,} of {count:,} messages were archived, exit code {process.returncode}"
            )
        cpu: Counter[str] = Counter()
        for kind, seconds in cpu_of.values():
            cpu[kind] += seconds
        return Drained(ended_at - started_at(mark), dict(cpu))


def settle(dsn: str) -> None:
    """What filling has left to do is not to be done meanwhile."""
    if not dsn.startswith("sqlite"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")


def ends(dsn: str) -> tuple[float, int]:
    """When the last message was archived (epoch seconds), and how many are."""
    if dsn.startswith("sqlite"):
        with sqlite3.connect(dsn.removeprefix("sqlite://")) as file:
            last, count = file.execute(
                "select (julianday(max(archived_at)) - 2440587.5) * 86400, count(archived_at) from pgqrs_messages"
            ).fetchone()
    else:
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                "select extract(epoch from max(archived_at)), count(archived_at) from pgqrs_messages"
            ).fetchone()
            assert row is not None, "an aggregate has a row"
            last, count = row
    return float(last or 0.0), int(count)


def look(supervisor: int, postmaster: int | None, cpu_of: dict[int, tuple[str, float]]) -> None:
    """Notes the CPU seconds so far of every process that belongs to one of the two."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid, parent = int(stat.parent.name), int(fields[1])
        kind = (
            "supervisor"
            if pid == supervisor
            else "workers"
            if parent == supervisor
            else "postgres"
            if postmaster is not None and postmaster in (pid, parent)
            else None
        )
        if kind:
            cpu_of[pid] = (kind, (int(fields[11]) + int(fields[12])) / _TICKS)
