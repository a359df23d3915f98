"""What the runs of a simulation do when they are executed: made up from the seed, and the same on every attempt."""

import random
from typing import Literal

from msgspec import Struct

Fate = Literal["ok", "retry", "fail", "crash", "poison", "hang", "pause"]

FATES: list[tuple[Fate, int]] = [
    ("ok", 60), ("retry", 8), ("fail", 3), ("crash", 8), ("poison", 2), ("hang", 4), ("pause", 4),
]  # fmt: skip
RETRIES = 2
TIMEOUT_S = 2.0


class StepPlan(Struct):
    """`times` is how often the body comes to its bad end before it goes well; a poison never does."""

    fate: Fate
    times: int
    seconds: float


class RunPlan(Struct):
    is_workflow: bool
    steps: list[StepPlan]


def make_plan(rng: random.Random, only_messages: bool = False) -> RunPlan:
    """`only_messages`: none is a workflow, so that whole turns are of what handlers ended."""
    if only_messages or rng.random() < 0.2:
        fate: Fate = rng.choices(["ok", "fail", "crash", "poison"], [75, 10, 10, 5])[0]  # type: ignore[assignment]
        return RunPlan(False, [StepPlan(fate, rng.randint(1, 2), _seconds(rng))])
    fates = [f for f, _ in FATES]
    weights = [w for _, w in FATES]
    steps = [
        StepPlan(rng.choices(fates, weights)[0], rng.randint(1, 2), _seconds(rng))
        for _ in range(rng.randint(1, 5))
    ]
    return RunPlan(True, steps)


def _seconds(rng: random.Random) -> float:
    return rng.choice([0.0005, 0.005, 0.02, 0.1, 0.4]) * (0.5 + rng.random())
