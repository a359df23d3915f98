"""python3 dev.py run simulate: the number of seeds, the first seed and the number of processes; or
one seed with its trace.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from msgspec import Struct

from tests.simulation.invariants import Violation
from tests.simulation.plants import PLANTS, planted
from tests.simulation.world import World

KEPT = Path(__file__).with_name("failed_seeds.txt")
CHUNK = 25


class Result(Struct):
    seed: int
    events: int
    faults: dict[str, int]
    violation: str | None
    trace: list[str]


def simulate(seed: int, plant: str | None = None, brief: bool = False) -> Result:
    world = World(seed, brief)
    violation = None
    with planted(plant):
        try:
            world.run()
        except Violation as e:
            violation = str(e)
        except Exception as e:
            violation = f"exception: {type(e).__name__}: {e}"
    return Result(seed, world.events, dict(world.faults), violation, world.trace)


def several(seeds: range, plant: str | None, brief: bool) -> list[Result]:
    # A seed creates many objects, few of them garbage, so the collector looks for garbage less
    # often.
    gc.set_threshold(50_000)
    results = []
    for seed in seeds:
        results.append(simulate(seed, plant, brief))
        if plant is not None and results[-1].violation:
            break
    return results


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py run simulate",
        description="Run the supervisor's core on the real store in simulated time, with faults, and check what must hold.",
    )
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many (default 200)")
    parser.add_argument(
        "--from", dest="first", type=int, default=0, metavar="N", help="the first one (default 0)"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), metavar="N", help="default: one for each core"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="one only, with what happened last in it")
    parser.add_argument(
        "--plant", metavar="NAME", choices=[*PLANTS, "all"], help="with a bug, until it is found"
    )
    parser.add_argument(
        "--brief",
        action="store_true",
        help="seeds with less trouble each, several times as many in the same time",
    )
    parser.add_argument("--list-plants", action="store_true", help="the bugs that can be planted")
    arguments = parser.parse_args(argv)
    if arguments.list_plants:
        for name, (_, violation) in PLANTS.items():
            print(f"{name:52} found as {violation.replace(' ', ' or ')}")
        return 0
    if arguments.seed is not None:
        result = simulate(arguments.seed, arguments.plant, arguments.brief)
        print("\n".join(result.trace))
        print(f"seed {result.seed}: {result.events} events; {result.violation or 'everything holds'}")
        return 1 if result.violation else 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.plant is None:
        return all_hold(seeds, arguments.brief, arguments.processes)
    names = list(PLANTS) if arguments.plant == "all" else [arguments.plant]
    return max(is_found(name, seeds, arguments.brief, arguments.processes) for name in names)


def all_hold(seeds: range, brief: bool, processes: int) -> int:
    began, events, failed, faults, done = time.monotonic(), 0, 0, Counter[str](), 0
    told_at = began
    for result in run(seeds, None, brief, processes):
        done += 1
        events += result.events
        faults.update(result.faults)
        if result.violation:
            failed += 1
            print(f"seed {result.seed}: {result.violation}", flush=True)
            keep(result.seed, brief, result.violation)
        if time.monotonic() - told_at > 10:
            told_at = time.monotonic()
            print(
                f"{done:,} of {len(seeds):,} seeds, {failed} failed, {done / (told_at - began):.1f} seeds/s",
                flush=True,
            )
    seconds = time.monotonic() - began
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(faults.items()))
    print(
        f"{done:,} seeds, {failed} failed: {events:,} events, {sum(faults.values()):,} faults ({kinds}); "
        f"{done / seconds:.1f} seeds/s, {events / seconds:,.0f} events/s"
    )
    return 1 if failed else 0


def is_found(name: str, seeds: range, brief: bool, processes: int) -> int:
    expected = PLANTS[name][1].split()
    tried = 0
    for result in run(seeds, name, brief, processes):
        tried += 1
        if result.violation:
            kind = result.violation.partition(":")[0]
            as_expected = kind in expected
            print(
                f"{name}: found by seed {result.seed}, the {tried}. tried, as {result.violation[:160]}",
                flush=True,
            )
            if not as_expected:
                print(f"  which is not one of: {', '.join(expected)}")
            return 0 if as_expected else 1
    print(f"{name}: NOT found in {tried:,} seeds", flush=True)
    return 1


def run(seeds: range, plant: str | None, brief: bool, processes: int) -> Iterable[Result]:
    chunks = [seeds[n : n + CHUNK] for n in range(0, len(seeds), CHUNK)]
    if processes <= 1 or len(chunks) == 1 or plant is not None:
        for chunk in chunks:
            yield from several(chunk, plant, brief)
        return
    with ProcessPoolExecutor(processes) as pool:
        for results in pool.map(partial(several, plant=plant, brief=brief), chunks):
            yield from results


def keep(seed: int, brief: bool, violation: str) -> None:
    """Stores a failed seed. The tests execute it from now on."""
    known = KEPT.read_text().split("\n") if KEPT.exists() else []
    line = f"{seed}{' brief' * brief}  # {violation.partition(':')[0]}"
    if line not in known:
        with KEPT.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
