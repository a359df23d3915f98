"""A supervisor over a database: one that drains a backlog and ends, and one that stays."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from msgspec import Struct

from loadtest.counters import counting
from loadtest.mark import VARIABLE, started_at
from loadtest.processes import cpu_seconds, since
from tests.postgres_server import PostgresServer

LOOK_S = 0.02


class Drained(Struct, frozen=True):
    # From the first body's start to the last message's archiving, both by the same clock.
    seconds: float
    # CPU seconds by kind of process from then on, and the counters of PostgreSQL for the whole
    # drain.
    spent: dict[str, float]


def drain(
    dsn: str, target: str, count: int, workers: int, server: PostgresServer | None, *options: str
) -> Drained:
    """Raises RuntimeError unless the database says that `count` more messages were archived."""
    _, before = ends(dsn)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        count_up = counting(server, dsn) if server else dict
        postmaster = server.process.pid if server else None
        process = subprocess.Popen(
            command(dsn, target, workers, "--burst", *options),
            env=os.environ | {VARIABLE: str(mark)},
            stdout=subprocess.DEVNULL,
        )
        try:
            while not mark.exists() and not _ended(process, os.WNOHANG):
                time.sleep(LOOK_S)
            before_work = cpu_seconds(process.pid, postmaster)
            _ended(process)
            cpu = since(before_work, cpu_seconds(process.pid, postmaster))
        finally:
            process.terminate()
            code = process.wait()
        ended_at, archived = ends(dsn)
        if code or archived - before != count:
            raise RuntimeError(f"{archived - before:,} of {count:,} messages were archived, exit code {code}")
        spent = {f"CPU s, {kind}": seconds for kind, seconds in cpu.items()} | count_up()
        return Drained(ended_at - started_at(mark), spent)


def _ended(process: subprocess.Popen[bytes], options: int = 0) -> bool:
    """Waits for the end of the process, or looks once with WNOHANG. Does not reap it: until then
    /proc has its CPU times.
    """
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | options) is not None


def command(dsn: str, target: str, workers: int, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "pgqrs", "supervise", target, "--dsn", dsn, "--workers", str(workers), *options
    ]  # fmt: skip


@contextmanager
def supervising(
    dsn: str, target: str, workers: int, mark: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a supervisor until the block ends, and then drains it. The supervisor notes in `mark`
    when the first body started.
    """
    process = subprocess.Popen(
        command(dsn, target, workers),
        env=os.environ | {VARIABLE: str(mark or os.devnull)},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ends(dsn: str) -> tuple[float, int]:
    """Returns when the last message was archived (epoch seconds), and how many are archived."""
    if dsn.startswith("sqlite"):
        with sqlite3.connect(dsn.removeprefix("sqlite://")) as file:
            last, count = file.execute(
                "select (julianday(max(archived_at)) - 2440587.5) "
                "* 86400, count(archived_at) from pgqrs_messages"
            ).fetchone()
    else:
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                "select extract(epoch from max(archived_at)), count(archived_at) from pgqrs_messages"
            ).fetchone()
            assert row is not None, "an aggregate has a row"
            last, count = row
    return float(last or 0.0), int(count)
