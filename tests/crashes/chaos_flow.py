"""What the chaos run executes: three steps of 5 ms, each of which writes down that it started."""

import os
import time

import pgqrs

STEP_S = 0.005


def note(evidence: str, number: int) -> None:
    run = pgqrs.current_run()
    fd = os.open(evidence, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    # A line of its own also behind one that a kill tore: the kernel heeds it between two pages of a file.
    os.write(fd, f"\n{run.id} {number} {os.getpid()} {time.monotonic():.6f}\n".encode())
    os.close(fd)


def work() -> None:
    until = time.process_time() + STEP_S
    while time.process_time() < until:
        pass


@pgqrs.step
def one(evidence: str) -> int:
    note(evidence, 1)
    work()
    return 1


@pgqrs.step
def two(evidence: str) -> int:
    note(evidence, 2)
    work()
    return 2


@pgqrs.step
def three(evidence: str) -> int:
    note(evidence, 3)
    work()
    return 3


@pgqrs.workflow
def three_steps(evidence: str) -> list[int]:
    return [one(evidence), two(evidence), three(evidence)]
