"""What a scenario is: measures beside each other, and what is aimed at."""

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

Measure = Callable[[], float]


class Aim(Struct, frozen=True, omit_defaults=True):
    """Bounds: at least where more is better, at most where less is."""

    ratio: float | None = None  # of ours to the side; the median of the rounds
    ratio_bound: float | None = None  # of the same ratio's 95 % confidence bound
    value: float | None = None  # of the side itself


class Scenario(Struct, frozen=True):
    """`sides` in the order in which they are measured and shown, ours first. `aims` by a side's name."""

    name: str
    unit: str
    better: Literal["more", "less"]
    sides: Mapping[str, Measure]
    aims: Mapping[str, Aim] = {}
    rounds: int | None = None  # where it needs another number of them than the rest
    apart: bool = False  # its sides are several values of ours, which have no ratio to each other
    chart: str = ""  # the picture that shows it
