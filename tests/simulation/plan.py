"""What the runs of a simulation do when they are executed: derived from the seed, and the same on
every attempt.
"""

import random
from typing import Literal

from msgspec import Struct

Fate = Literal["ok", "retry", "fail", "crash", "poison", "hang", "pause"]

FATES: list[tuple[Fate, int]] = [
    ("ok", 60), ("retry", 8), ("fail", 3), ("crash", 8), ("poison", 2), ("hang", 4), ("pause", 4),
]  # fmt: skip
RETRIES = 2
STEPS_MAX = 5
TIMEOUT_S = 2.0


class StepPlan(Struct):
    """`times` is how often the body fails in its way before it succeeds. A poison never
    succeeds.
    """

    fate: Fate
    times: int
    seconds: float
    # Whether the step has a time limit. A step that hangs always has one.
    limited: bool = False
    # The length of a pause. None: until somebody resumes the run.
    resume_after_s: float | None = None


class RunPlan(Struct):
    is_workflow: bool
    steps: list[StepPlan]


def make_plan(rng: random.Random, only_messages: bool = False) -> RunPlan:
    """`only_messages`: no run is a workflow, so that whole turns consist of the results of
    handlers.
    """
    if only_messages or rng.random() < 0.2:
        fate: Fate = rng.choices(["ok", "fail", "crash", "poison"], [75, 10, 10, 5])[0]  # type: ignore[assignment]
        return RunPlan(False, [StepPlan(fate, rng.randint(1, 2), _seconds(rng))])
    return RunPlan(True, [_make_step(rng) for _ in range(rng.randint(1, STEPS_MAX))])


def _make_step(rng: random.Random) -> StepPlan:
    [fate] = rng.choices([f for f, _ in FATES], [w for _, w in FATES])
    limited = fate == "hang" or rng.random() < 0.3
    return StepPlan(fate, rng.randint(1, 2), _seconds(rng), limited, rng.choice([0.2, 1.0, None]))


def make_item(rng: random.Random) -> StepPlan:
    """An item of a map. It takes longer than its neighbours now and then."""
    fate: Fate = rng.choices(["ok", "retry", "fail", "crash", "poison"], [85, 6, 3, 4, 1])[0]  # type: ignore[assignment]
    return StepPlan(fate, rng.randint(1, 2), _seconds(rng) * rng.choice([0.2, 0.2, 0.2, 2.0]))


def _seconds(rng: random.Random) -> float:
    return rng.choice([0.0005, 0.005, 0.02, 0.1, 0.4]) * (0.5 + rng.random())
