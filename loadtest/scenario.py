"""A scenario: measurements beside each other, and their aims."""

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

Measure = Callable[[], float]


class Aim(Struct, frozen=True, omit_defaults=True):
    """Bounds: at least where more is better, at most where less is better."""

    # The ratio of pgqrs to the side: the median of the rounds.
    ratio: float | None = None
    # The 95 % confidence bound of the same ratio.
    ratio_bound: float | None = None
    # The value of the side itself.
    value: float | None = None


class Scenario(Struct, frozen=True):
    """`sides` are in the order in which they are measured and shown, pgqrs first. `aims` are by a
    side's name.
    """

    name: str
    unit: str
    better: Literal["more", "less"]
    sides: Mapping[str, Measure]
    aims: Mapping[str, Aim] = {}
    # The number of rounds, if the scenario needs another one than the rest.
    rounds: int | None = None
    # Whether its sides are several values of pgqrs, which have no ratio to each other.
    apart: bool = False
    # The chart that shows it.
    chart: str = ""
