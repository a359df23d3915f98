"""A few hundred seeds on every run, those that failed once, and the proof that each check can fail."""

import re
from pathlib import Path

import pytest

from tests.simulation.__main__ import KEPT, simulate
from tests.simulation.plants import PLANTS
from tests.simulation.world import EVENTS_MIN, FAULTS_MIN

SEEDS = 150
PLANT_SEEDS_MAX = 100


def kept() -> list[int]:
    return [int(line.split()[0]) for line in KEPT.read_text().splitlines() if line] if KEPT.exists() else []


def seeds() -> list[object]:
    return [pytest.param(seed, marks=[] if seed < 15 else [pytest.mark.slow]) for seed in range(SEEDS)]


@pytest.mark.parametrize("seed", seeds())
def test_everything_holds(seed: int) -> None:
    result = simulate(seed)
    assert result.violation is None, "\n".join([*result.trace, result.violation])
    assert result.events >= EVENTS_MIN
    assert sum(result.faults.values()) >= FAULTS_MIN


@pytest.mark.parametrize("seed", kept())
def test_what_failed_once_holds_now(seed: int) -> None:
    assert simulate(seed).violation is None


def test_a_seed_is_a_seed() -> None:
    assert simulate(7) == simulate(7)


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: str) -> None:
    for seed in range(PLANT_SEEDS_MAX):
        violation = simulate(seed, plant).violation
        if violation:
            assert violation.partition(":")[0] in PLANTS[plant][1].split()
            return
    pytest.fail(f"not found in {PLANT_SEEDS_MAX} seeds")


def test_every_check_has_a_bug_that_it_finds() -> None:
    folder = Path(__file__).parent
    sources = "".join((folder / f"{name}.py").read_text() for name in ("invariants", "world"))
    checks = set(re.findall(r'Violation\(\s*f?"([a-z-]+):', sources)) - {"too-many-events"}
    assert len(checks) >= 10
    assert checks <= {violation for _, told in PLANTS.values() for violation in told.split()}
