"""What the tests of maps supervise. `evidence` is a file with a line for each body that started."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pgqrs


def note(evidence: str, what: object) -> int:
    """Appends a line, and returns how many lines there are of this item, with this one."""
    fd = os.open(evidence, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{what}\n".encode())
        return os.pread(fd, 10_000_000, 0).decode().splitlines().count(str(what))
    finally:
        os.close(fd)


@dataclass
class Shape:
    name: str
    sides: int


@pgqrs.step
def double(n: int) -> int:
    return 2 * n


@pgqrs.step
def added(a: int, b: int) -> int:
    return a + b


@pgqrs.step
def grown(shape: Shape) -> Shape:
    return Shape(shape.name, shape.sides + 1)


@pgqrs.step
def picky(n: int) -> int:
    if n % 10 == 3:
        raise ValueError(f"no {n}")
    return n


@pgqrs.step(retry=pgqrs.StepRetryPolicy(max_attempts=3, backoff=pgqrs.BackoffStrategy.fixed(0.05)))
def shaky(n: int, evidence: str) -> int:
    """Succeeds at the third attempt."""
    if n % 4 == 1 and note(evidence, n) < 3:
        raise ConnectionError(f"not yet {n}")
    return n


@pgqrs.step
def noted(n: int, evidence: str, seconds: float) -> int:
    note(evidence, n)
    time.sleep(seconds)
    return n * n


@pgqrs.step
def deadly(n: int, evidence: str) -> int:
    """Item 7 kills its worker always, and item 11 the first time."""
    if n == 7 or (n == 11 and note(evidence, n) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@pgqrs.step(timeout=0.5)
def hanging(n: int) -> int:
    if n == 2:
        time.sleep(60)
    return n


@pgqrs.step
def long_first(n: int, seconds: float) -> int:
    if n == 0:
        time.sleep(seconds)
    return os.getpid()


@pgqrs.step
def keyed(n: int) -> str:
    return pgqrs.current_run().key


def program(dsn: str, folder: str) -> None:
    """A program that maps under a name: run again, it goes on."""
    with pgqrs.connect(dsn) as store:
        store.install()
        with store.workers(noted, processes=2):
            evidence = str(Path(folder) / "evidence")
            job = store.starmap(noted, [(n, evidence, 0.01) for n in range(300)], name="squares")
            assert list(job.results()) == [n * n for n in range(300)]
    print("done")


if __name__ == "__main__":
    program(*sys.argv[1:])
