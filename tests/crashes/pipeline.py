"""What the crash tests supervise. Every step's body notes its start in a file of its own: that is the evidence."""

import ctypes
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

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
def greedy(evidence: str, size_bytes: int, times: int) -> str:
    """Takes so much memory, page by page, as often as that."""
    if note(evidence) <= times:
        held = bytearray(size_bytes)
        held[::4096] = b"x" * len(held[::4096])
    return "satisfied"


@pgqrs.workflow
def greedy_run(evidence: str, size_bytes: int, times: int) -> list[str]:
    return [first(evidence), greedy(evidence, size_bytes, times), last(evidence)]


@pgqrs.step
def die(evidence: str, how: str, times: int) -> str:
    if note(evidence) <= times:
        DEATHS[how]()
    return how


DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": os.abort,
    "SIGBUS": lambda: beyond_the_end_of_a_mapped_file(),
    "_exit(0)": lambda: os._exit(0),
    "_exit(3)": lambda: os._exit(3),
    "_exit(7) by a thread": lambda: (threading.Thread(target=os._exit, args=(7,)).start(), time.sleep(30)),
    "grandchild": lambda: (subprocess.Popen(["sleep", "30"]), os.kill(os.getpid(), signal.SIGKILL)),
}


def beyond_the_end_of_a_mapped_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
        mapped[0]


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


@pgqrs.step(timeout=0.4)
def hold_the_gil(evidence: str) -> int:
    note(evidence)
    return cast(int, 7 ** (4 * 10**8))  # minutes in C, which looks at no signal


@pgqrs.step(timeout=0.4)
def stop_itself(evidence: str) -> None:
    note(evidence)
    os.kill(os.getpid(), signal.SIGSTOP)


@pgqrs.workflow
def stuck(evidence: str, how: str) -> str:
    first(evidence)
    try:
        (hold_the_gil if how == "in C" else stop_itself)(evidence)
    except TimeoutError:
        return "timed out"
    return "came back"


@pgqrs.step
def out_of_address_space(evidence: str) -> int:
    note(evidence)
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped_pages * resource.getpagesize() + 100 * 2**20, limits[1]))
    try:
        return len(bytearray(2**30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pgqrs.workflow
def limited(evidence: str) -> int:
    first(evidence)
    try:
        return out_of_address_space(evidence)
    except MemoryError:
        last(evidence)
        return -1


class Unruly:
    def __del__(self) -> None:
        raise RuntimeError("raised while it was collected")


@pgqrs.step
def collect(evidence: str) -> str:
    note(evidence)
    Unruly()
    return "collected"


@pgqrs.workflow
def unruly(evidence: str) -> list[str]:
    return [first(evidence), collect(evidence), last(evidence)]


@pgqrs.step
def leave_a_child(evidence: str) -> None:
    if note(evidence) == 1:
        child = subprocess.Popen(["sleep", "30"], close_fds=False, start_new_session=True)
        Path(evidence + ".child").write_text(str(child.pid))
        Path(evidence + ".died").write_text(f"{time.time():.6f}")
        os.kill(os.getpid(), signal.SIGKILL)


@pgqrs.workflow
def leaving_a_child(evidence: str) -> str:
    leave_a_child(evidence)
    return last(evidence)


@pgqrs.step(timeout=1.0)
def multiply(evidence: str) -> None:
    note(evidence)
    while True:
        with suppress(BlockingIOError):  # there are as many as there may be
            os.fork()


@pgqrs.workflow
def multiplying(evidence: str) -> list[str]:
    before = first(evidence)
    try:
        multiply(evidence)
    except TimeoutError:
        return [before, "stopped", last(evidence)]
    return []


@pgqrs.step
def wait_for(evidence: str, gate: str) -> str:
    """The first time only."""
    if note(evidence) == 1:
        while not Path(gate).exists():
            time.sleep(0.001)
    return "waited"


@pgqrs.step
def talk(evidence: str, seconds: float) -> str:
    note(evidence)
    time.sleep(seconds)
    for _ in range(100):
        print("x" * 200)
    return "said"


@pgqrs.workflow
def talks(evidence: str, seconds: float) -> str:
    return talk(evidence, seconds)


@pgqrs.workflow
def gated(evidence: str, gate: str) -> list[str]:
    return [first(evidence), wait_for(evidence, gate), last(evidence)]


@pgqrs.workflow
def busy_between_steps(evidence: str, gate: str) -> list[str]:
    """In its own code the first time only."""
    done = first(evidence)
    if note(evidence) == 1:
        while not Path(gate).exists():
            time.sleep(0.001)
    return [done, last(evidence)]


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


@pgqrs.step
def sizes() -> dict[str, int]:
    return {"zebra": 1000, "ox": 800, "a": 1}


@pgqrs.step
def describe(name: str) -> str:
    return f"this is {name}"


@pgqrs.step
def die_once(mark: str) -> None:
    if not os.path.exists(mark):
        open(mark, "w").close()
        os._exit(1)


@pgqrs.workflow
def described(mark: str) -> list[tuple[str, str]]:
    told = [(name, describe(name)) for name in sizes()]
    die_once(mark)
    return told


@pgqrs.workflow
def printing(lines: int) -> int:
    for n in range(lines):
        print(f"line {n}")
    os.system("echo from a subprocess")
    return lines


async def die_later(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@pgqrs.step
async def async_die(evidence: str, how: str) -> None:
    import asyncio

    note(evidence)
    if how == "in its body":
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "in a task":
        await asyncio.gather(die_later(0.2), die_later(0.3))
    else:
        await asyncio.sleep(0.2)
        await asyncio.to_thread(os.abort)


@pgqrs.workflow
async def async_dying(evidence: str, how: str) -> None:
    await async_die(evidence, how)


def is_open(gate: str) -> bool:
    return Path(gate).exists()


@pgqrs.step
async def async_busy(evidence: str, gate: str) -> str:
    import asyncio

    note(evidence)
    for _ in range(6000):
        if is_open(gate):
            return "through"
        await asyncio.sleep(0.01)
    return "waited in vain"


@pgqrs.workflow
async def async_gated(evidence: str, gate: str) -> str:
    return await async_busy(evidence, gate)
