"""The simulation on many seeds, the seeds that failed once, and the proof that each check can
fail.
"""

import re
from pathlib import Path

import pytest

from tests.simulation.__main__ import KEPT, simulate
from tests.simulation.plants import PLANTS
from tests.simulation.world import EVENTS_MIN, FAULTS_MIN

SEEDS = 150
PLANT_SEEDS_MAX = 100


def kept() -> list[tuple[int, bool]]:
    """Returns (seed, whether it is a brief one)."""
    told = [line.partition("#")[0].split() for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    return [(int(words[0]), "brief" in words) for words in told if words]


def seeds() -> list[object]:
    return [pytest.param(seed, marks=[] if seed < 15 else [pytest.mark.slow]) for seed in range(SEEDS)]


@pytest.mark.parametrize("seed", seeds())
def test_everything_holds(seed: int) -> None:
    result = simulate(seed)
    assert result.violation is None, "\n".join([*result.trace, result.violation])
    assert result.events >= EVENTS_MIN
    assert sum(result.faults.values()) >= FAULTS_MIN


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_brief_seed_has_its_share_of_trouble(seed: int) -> None:
    result = simulate(seed, brief=True)
    assert result.violation is None, "\n".join([*result.trace, result.violation])
    assert result.events >= EVENTS_MIN
    assert sum(result.faults.values()) >= FAULTS_MIN


@pytest.mark.parametrize(("seed", "brief"), kept())
def test_what_failed_once_holds_now(seed: int, brief: bool) -> None:
    assert simulate(seed, brief=brief).violation is None


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
