"""Retries calls that meet a conflict. Only S3 reports conflicts, and nothing of such a call was
written.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pgqrs.errors import ConflictError

R = TypeVar("R")

# How long a call is retried. A distant writer loses against a near one until the near one pauses. A
# supervisor under continuous load pauses regularly (conflicts.py). A writer with a round trip of
# 300 ms needs several of these pauses.
PATIENCE_S = 60.0
# The random pause between two attempts. The first is at most this long, and the limit then grows by
# half each time.
PAUSE_S = 0.02
PAUSE_MAX_S = 0.3


def insist(
    call: Callable[[], R], wait: Callable[[float], object] | None = None, patience_s: float | None = None
) -> R:
    """Repeats a call while it meets a conflict, and returns its result. Raises ConflictError after
    `patience_s`, by default PATIENCE_S. `wait` is called for each pause.
    """
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
