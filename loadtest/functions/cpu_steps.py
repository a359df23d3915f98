"""The work for the CPU comparison: three steps of about 10 ms of pure Python, a fixed number of
iterations each.
"""

import pgqrs
from loadtest.mark import mark_start

# About 10 ms on the machine of the published numbers. The ratio does not depend on it.
ITERATIONS = 140_000


def burn(seed: int, iterations: int) -> int:
    mark_start()
    value = seed
    for i in range(iterations):
        value = (value * 31 + i) & 0xFFFF
    return value


def three_steps(seed: int, iterations: int) -> int:
    """The same work with nothing recorded."""
    for _ in range(3):
        seed = burn(seed, iterations)
    return seed


@pgqrs.step
def burn_step(seed: int, iterations: int) -> int:
    return burn(seed, iterations)


@pgqrs.workflow
def three_cpu_steps(seed: int, iterations: int) -> int:
    for _ in range(3):
        seed = burn_step(seed, iterations)
    return seed
