"""Measures a scenario, its sides in turn."""

import statistics
import sys
import time

from loadtest.bench import Bench
from loadtest.results import Found, number
from loadtest.scenario import Scenario


def measure(scenario: Scenario, bench: Bench, rounds: int) -> Found:
    """Measures each side in each round. A side that fails is reported and left out from then on,
    because the other sides' results may be worth an hour.
    """
    rounds = scenario.rounds or rounds
    values: dict[str, list[float]] = {side: [] for side in scenario.sides}
    costs: dict[str, list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    for n in range(rounds):
        for side, take in scenario.sides.items():
            if side in failed:
                continue
            began = time.monotonic()
            _say(f"{scenario.name}: {side}, round {n + 1} of {rounds} …")
            bench.cost = {}
            try:
                values[side].append(take())
            except Exception as error:
                failed[side] = f"{type(error).__name__}: {error}"
                _say(f" failed: {failed[side]}\n")
            else:
                if bench.cost:
                    costs.setdefault(side, []).append(bench.cost)
                _say(f" {number(values[side][-1])} {scenario.unit} ({time.monotonic() - began:.0f} s)\n")
    ours = next(iter(scenario.sides))
    if ours in failed:
        values = {}
    return Found(
        scenario.name,
        scenario.unit,
        scenario.better,
        {side: v for side, v in values.items() if side not in failed},
        dict(scenario.aims),
        scenario.apart,
        scenario.chart,
        {side: _medians(each) for side, each in costs.items()},
        failed,
    )


def _medians(each: list[dict[str, float]]) -> dict[str, float]:
    return {
        kind: statistics.median(costs.get(kind, 0.0) for costs in each)
        for kind in sorted({k for e in each for k in e})
    }


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
