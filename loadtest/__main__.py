"""What pgqrs does a second, beside the bare database and beside its peers, measured in one run.

Every measure has a fresh database; its backlog is enqueued before the clock starts; the sides of a scenario take turns, and what
counts is the median of the rounds and of their ratios. PostgreSQL is a private one with fsync and synchronous_commit on.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from loadtest.scenarios import Bench, Scenario
from supervisors.view import cores
from tests.postgres_server import PostgresServer


class Found(Struct, frozen=True):
    """Of each side, in rounds; `ratios` of ours to each other side, round by round."""

    scenario: str
    unit: str
    better: str
    values: dict[str, list[float]]
    ratios: dict[str, list[float]]
    aims: dict[str, float]
    note: str


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the counts and one round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--only", metavar="WORDS", help="scenarios with these words in their names")
    parser.add_argument("--no-peers", action="store_true", help="leave out what has to be installed first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    rounds = 1 if args.quick else max(1, args.rounds)
    results = []
    with PostgresServer.start(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        bench = Bench(server, Path(folder), 0.1 if args.quick else 1.0, peers=not args.no_peers)
        for scenario in bench.scenarios():
            if args.only is None or args.only in scenario.name:
                found = measure(scenario, rounds)
                results.append(found)
                print(told(found, bench.cpu.get(scenario.name, [])), flush=True)
    context = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "rounds": rounds}
    print("\n" + ", ".join(f"{k} {v}" for k, v in context.items()))
    if args.json:
        found_all = [{f: getattr(r, f) for f in Found.__struct_fields__} for r in results]
        args.json.write_text(json.dumps(context | {"results": found_all, "cpu": bench.cpu}, indent=1) + "\n")
    return 0


def measure(scenario: Scenario, rounds: int) -> Found:
    values: dict[str, list[float]] = {side: [] for side in scenario.sides}
    for _ in range(rounds):
        for side, take in scenario.sides.items():
            values[side].append(take())
    first, *others = values
    ratios = {o: [a / b for a, b in zip(values[first], values[o], strict=True)] for o in others}
    return Found(
        scenario.name, scenario.unit, scenario.better, values, ratios, dict(scenario.aims), scenario.note
    )


def told(found: Found, cpu: list[dict[str, float]]) -> str:
    lines = [f"\n{found.scenario}" + (f" (aim: {found.note})" if found.note else "")]
    for side, values in found.values.items():
        line = f"  {side:44} {number(statistics.median(values)):>9} {found.unit}"
        if len(values) > 1:
            line += f"  {number(min(values))} to {number(max(values))}"
        if side in found.aims:
            ratio, aim = statistics.median(found.ratios[side]), found.aims[side]
            reached = ratio >= aim if found.better == "more" else ratio <= aim
            bound = "at least" if found.better == "more" else "at most"
            line += f"; ours is {ratio:.2f} of it, aim {bound} {aim:g}: {'reached' if reached else 'missed'}"
        elif side in found.ratios and not found.note:
            line += f"; ours is {statistics.median(found.ratios[side]):.2f} of it"
        lines.append(line)
    if cpu:
        kinds = sorted({k for each in cpu for k in each})
        spent = ", ".join(f"{k} {statistics.median(e.get(k, 0.0) for e in cpu) * 1e6:,.0f}" for k in kinds)
        lines.append(f"  CPU µs for each: {spent}")
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def machine() -> str:
    memory = next(
        (line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line),
        "0",
    )
    return f"{cores()} cores, {int(memory) // 2**20} GB, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
