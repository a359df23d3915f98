"""CPU-bound work through pgqrs against a bare ProcessPoolExecutor, in interleaved pairs.

    python3 dev.py load [--runs 1000] [--pairs 5] [--workers 2] [--json FILE]

The backlog is enqueued before the clock starts; the clock runs from the start of the first step's body to the last
message's archiving (for the pool: to its last result). PostgreSQL is a private one with fsync and synchronous_commit on.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psycopg

import pgqrs
from loadtest import cpu_steps
from pgqrs import targets
from pgqrs.cli.views import PlainView
from pgqrs.config import Config
from supervisors.loop import Loop
from supervisors.view import Options, cores
from tests.postgres_server import PostgresServer


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=cpu_steps.ITERATIONS, help="of each step's loop")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    pairs: list[tuple[float, float]] = []
    with PostgresServer.start(durable=True) as server:
        measure_pool(max(2, args.runs // 20), args.workers, args.iterations)  # warm-up
        for n in range(args.pairs):
            database = f"load_{n}"
            server.create_database(database)
            ours = measure_pgqrs(server.dsn(database), args.runs, args.workers, args.iterations)
            pool = measure_pool(args.runs, args.workers, args.iterations)
            pairs.append((ours, pool))
            print(
                f"pair {n + 1}: pgqrs {ours:.2f} s, ProcessPoolExecutor {pool:.2f} s, ratio {ours / pool:.3f}",
                flush=True,
            )
    ratios = sorted(ours / pool for ours, pool in pairs)
    print(
        f"\n{args.runs} runs of three CPU-bound steps on {args.workers} workers, PostgreSQL, every step durable"
    )
    print(
        f"ratio pgqrs / ProcessPoolExecutor: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )
    print(f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()}")
    if args.json:
        told = {
            "pairs": pairs,
            "ratios": ratios,
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "machine": machine(),
        }
        args.json.write_text(json.dumps(told | {"command": sys.argv}, indent=1) + "\n")
    return 0


def measure_pgqrs(dsn: str, runs: int, workers: int, iterations: int) -> float:
    with tempfile.TemporaryDirectory() as folder, pgqrs.connect(dsn) as store:
        mark = Path(folder) / "started"
        store.install()
        store.trigger_many(cpu_steps.three_cpu_steps, [((i, iterations, str(mark)), {}) for i in range(runs)])
        target = targets.parse(cpu_steps.__file__)
        code = Loop(target, Config(dsn), Options(workers=workers, burst=True), PlainView(quiet=True)).run()
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                "select extract(epoch from max(archived_at)), count(archived_at) from pgqrs_messages"
            ).fetchone()
        assert row is not None, "an aggregate has a row"
        if code or row[1] != runs:
            raise SystemExit(f"only {row[1]} of {runs} runs were archived (exit code {code})")
        return float(row[0]) - cpu_steps.started_at(mark)


def measure_pool(runs: int, workers: int, iterations: int) -> float:
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers) as pool:
        mark = Path(folder) / "started"
        for _ in pool.map(cpu_steps.three_steps, range(runs), [iterations] * runs, [str(mark)] * runs):
            pass
        return time.time() - cpu_steps.started_at(mark)


def commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def machine() -> str:
    memory = next(
        (line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line),
        "0",
    )
    return f"{cores()} cores, {int(memory) // 2**20} GB, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
