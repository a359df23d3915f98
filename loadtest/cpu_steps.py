"""The work of the CPU comparison: three steps of some 10 ms of pure Python, a fixed number of iterations each."""

import os
import time
from pathlib import Path

import pgqrs

ITERATIONS = 140_000  # about 10 ms on the machine that the published numbers come from; the ratio does not depend on it
_marked = False


def burn(seed: int, iterations: int, mark: str) -> int:
    _mark_start(mark)
    value = seed
    for i in range(iterations):
        value = (value * 31 + i) & 0xFFFF
    return value


def three_steps(seed: int, iterations: int, mark: str) -> int:
    """The same work with nothing recorded."""
    for _ in range(3):
        seed = burn(seed, iterations, mark)
    return seed


@pgqrs.step
def burn_step(seed: int, iterations: int, mark: str) -> int:
    return burn(seed, iterations, mark)


@pgqrs.workflow
def three_cpu_steps(seed: int, iterations: int, mark: str) -> int:
    for _ in range(3):
        seed = burn_step(seed, iterations, mark)
    return seed


def _mark_start(mark: str) -> None:
    """The first body of all writes down when it started: that is when the clock starts, whatever the start-up took."""
    global _marked
    if not _marked:
        _marked = True
        try:
            fd = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return
        os.write(fd, repr(time.time()).encode())
        os.close(fd)


def started_at(mark: Path) -> float:
    return float(mark.read_text())
