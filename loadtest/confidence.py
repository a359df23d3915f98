"""The confidence bound of a median."""

import math
from collections.abc import Sequence
from typing import Literal

CONFIDENCE = 0.95


def median_bound(values: Sequence[float], side: Literal["upper", "lower"]) -> float | None:
    """The one-sided confidence bound of the median by the sign test: the order statistic that the
    median is beyond with a probability of at most 1 - CONFIDENCE, whatever the distribution (of 15
    values the fourth from the end). None for fewer than five values, which give no bound.
    """
    n, tail, beyond = len(values), 0.0, 0
    while beyond < n and (tail := tail + math.comb(n, beyond) / 2**n) <= 1 - CONFIDENCE:
        beyond += 1
    if beyond == 0:
        return None
    ordered = sorted(values, reverse=side == "upper")
    return ordered[beyond - 1]
