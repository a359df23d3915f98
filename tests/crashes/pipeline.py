"""What the crash tests supervise. Every step's body notes its start in a file of its own: that is the evidence."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pgqrs


def note(evidence: str) -> int:
    """Appends a line and returns how often this step of this run has started, this time included."""
    run = pgqrs.current_run()
    key = f"{run.id} {run.step}"
    fd = os.open(evidence, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{key} {os.getpid()} {time.time():.6f}\n".encode())
        text = os.pread(fd, 10_000_000, 0).decode()
    finally:
        os.close(fd)
    return sum(line.startswith(key + " ") for line in text.splitlines())


@pgqrs.step
def first(evidence: str) -> str:
    note(evidence)
    return "first"


@pgqrs.step
def slow(evidence: str, seconds: float) -> str:
    """Slow the first time only."""
    if note(evidence) == 1:
        time.sleep(seconds)
    return "slow"


@pgqrs.step
def last(evidence: str) -> str:
    note(evidence)
    return "last"


@pgqrs.workflow
def three_steps(evidence: str, seconds: float) -> list[str]:
    return [first(evidence), slow(evidence, seconds), last(evidence)]


@pgqrs.step
def big(evidence: str, characters: int) -> str:
    note(evidence)
    return random.randbytes(characters // 2).hex()  # which no database can press together


@pgqrs.workflow
def three_big_steps(evidence: str, characters: int) -> int:
    return len([big(evidence, characters) for _ in range(3)])


@pgqrs.step
def always_slow(evidence: str, seconds: float) -> None:
    note(evidence)
    time.sleep(seconds)


@pgqrs.workflow
def long_run(evidence: str, seconds: float) -> str:
    first(evidence)
    always_slow(evidence, seconds)
    return last(evidence)


@pgqrs.step(memory="200 MB")
def hungry(evidence: str, megabytes: int) -> int:
    note(evidence)
    held = bytearray(megabytes * 10**6)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(3)
    return len(held)


@pgqrs.workflow
def hungry_run(evidence: str, megabytes: int) -> str:
    first(evidence)
    try:
        hungry(evidence, megabytes)
    except MemoryError as e:
        return str(e)
    return "enough"


@pgqrs.step
def die(evidence: str, how: str, times: int) -> str:
    if note(evidence) <= times:
        DEATHS[how]()
    return how


DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": os.abort,
    "_exit(0)": lambda: os._exit(0),
    "_exit(3)": lambda: os._exit(3),
    "grandchild": lambda: (subprocess.Popen(["sleep", "30"]), os.kill(os.getpid(), signal.SIGKILL)),
}


@pgqrs.workflow
def dying(evidence: str, how: str, times: int) -> str:
    first(evidence)
    return die(evidence, how, times)


@pgqrs.step
def leave(evidence: str) -> None:
    note(evidence)
    sys.exit(4)


@pgqrs.workflow
def leaving(evidence: str) -> None:
    leave(evidence)


@pgqrs.step(timeout=0.3)
def hang_once(evidence: str) -> str:
    if note(evidence) == 1:
        time.sleep(60)
    return "went on"


@pgqrs.step(timeout=0.3, retry=pgqrs.StepRetryPolicy(2, pgqrs.BackoffStrategy.fixed(0)))
def hang_and_retry(evidence: str) -> str:
    if note(evidence) == 1:
        time.sleep(60)
    return "retried"


@pgqrs.workflow
def hanging(evidence: str, retry: bool) -> str:
    if retry:
        return hang_and_retry(evidence)
    try:
        return hang_once(evidence)
    except TimeoutError:
        return "timed out"


@pgqrs.step(retry=pgqrs.StepRetryPolicy(3, pgqrs.BackoffStrategy.fixed(0.05)))
def flaky(evidence: str) -> int:
    tries = note(evidence)
    if tries < 3:
        raise ConnectionError(f"try {tries}")
    return tries


@pgqrs.workflow
def retrying(evidence: str) -> int:
    first(evidence)
    return flaky(evidence)


@pgqrs.workflow
def pausing(evidence: str) -> str:
    first(evidence)
    pgqrs.pause("look at it")
    return last(evidence)


@pgqrs.step
async def async_slow(evidence: str, seconds: float) -> str:
    import asyncio

    note(evidence)
    await asyncio.sleep(seconds)
    return "slept"


@pgqrs.workflow
async def async_run(evidence: str, seconds: float) -> list[str]:
    return [first(evidence), await async_slow(evidence, seconds), last(evidence)]


@pgqrs.handler(queue="tasks")
def handle(payload: dict[str, str]) -> None:
    note_message(payload["evidence"])
    if payload.get("fail"):
        raise ValueError("cannot handle this")
    if Path(payload["evidence"] + ".slow").exists():
        time.sleep(0.05)


def note_message(evidence: str) -> None:
    fd = os.open(evidence, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{pgqrs.current_run().id} {os.getpid()} {time.time():.6f}\n".encode())
    os.close(fd)


@pgqrs.workflow
def printing(lines: int) -> int:
    for n in range(lines):
        print(f"line {n}")
    os.system("echo from a subprocess")
    return lines
