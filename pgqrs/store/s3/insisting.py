"""Calls that are made again when they meet a conflict, which only S3 tells of: nothing of them was written."""

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pgqrs.errors import ConflictError

R = TypeVar("R")

# How long a call is made again. A distant writer loses against a near one as long as the near one does not rest; a supervisor that
# has work without an end rests from time to time (conflicts.py). A writer with a round trip of 300 ms needs a few of these rests.
PATIENCE_S = 60.0
# Between two tries, by chance: the first pause is up to so long, and each that follows up to half as much longer.
PAUSE_S = 0.02
PAUSE_MAX_S = 0.3


def insist(
    call: Callable[[], R], wait: Callable[[float], object] | None = None, patience_s: float | None = None
) -> R:
    """What the call returns. Raises ConflictError after `patience_s`, which is PATIENCE_S unless given. `wait` is how a pause is
    spent."""
    for pause_s in _pauses(PATIENCE_S if patience_s is None else patience_s):
        try:
            return call()
        except ConflictError:
            (wait or time.sleep)(pause_s)
    return call()


def _pauses(patience_s: float) -> Iterator[float]:
    until = time.monotonic() + patience_s
    longest_s = PAUSE_S
    while time.monotonic() < until:
        yield random.uniform(0, longest_s)
        longest_s = min(longest_s * 1.5, PAUSE_MAX_S)
