"""Steps that mean their supervisor ill: they write what they like into their worker's pipe, its output and its board."""

import gc
import mmap
import os
import random
import subprocess
import sys
import time

import pgqrs
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Step
from supervisors import wire
from supervisors.worker import board


def pipes() -> list[int]:
    """Every socket that this process holds; its pipe to the supervisor is among them."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                found.append(fd)
        except OSError:
            continue
    return found


def boards() -> list[mmap.mmap]:
    return [m for m in gc.get_objects() if isinstance(m, mmap.mmap) and len(m) == board.SIZE] or _all_maps()


def _all_maps() -> list[mmap.mmap]:
    """mmap objects are not tracked by the collector: by way of their holders."""
    held = (getattr(o, "_memory", None) for o in gc.get_objects() if type(o).__name__ == "Board")
    return [m for m in held if isinstance(m, mmap.mmap)]


def noise(chance: random.Random) -> None:
    for fd in pipes():
        os.write(fd, chance.randbytes(chance.randrange(1, 5000)))


def lies(chance: random.Random) -> None:
    """Frames of the right shape."""
    ids = [chance.randrange(1, 30), pgqrs.current_run().id, 2**63 - 1]
    frame = chance.choice(
        [
            wire.Started(
                chance.choice(ids), 1, "x", chance.choice([0, 2**40]), chance.choice([None, float("nan")])
            ),
            wire.Checkpoint(
                chance.choice(ids), 1, Step(0, chance.choice(["", "a\0b", "y"]), WorkflowStatus.Success, b"{")
            ),
            wire.Finished(chance.choice(ids), 1, chance.choice([b"1", b"\xff"])),
            wire.Returned((chance.choice(ids),)),
            wire.Ready(1),
        ]
    )
    for fd in pipes():
        os.write(fd, wire.encode(frame))


def flood(chance: random.Random) -> None:
    """Frames that are sound, and have no end."""
    frames = wire.encode(wire.Idle()) * 1000
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        for fd in pipes():
            os.write(fd, frames)


def steps(chance: random.Random) -> None:
    """More results than its run has steps."""
    run = pgqrs.current_run()
    claim_no = 1
    frames = b"".join(
        wire.encode(
            wire.Checkpoint(run.id, claim_no, Step(n % 1000, f"s{n}", WorkflowStatus.Success, b"1" * 1000))
        )
        for n in range(500)
    )
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        for fd in pipes():
            os.write(fd, frames)


def output(chance: random.Random) -> None:
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        os.write(chance.choice([1, 2]), chance.randbytes(4000))
        os.write(1, b"\x1e%d%b\x1fx\n" % (chance.randrange(30), chance.choice([b"", b"+", b"!"])))
        os.write(1, b"\x1e" + b"9" * 5000 + b"\x1f\n")


def scribble(chance: random.Random) -> None:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        for memory in boards():
            at = chance.choice([0, 8, 16, chance.randrange(board.SIZE - 8)])
            memory[at : at + 8] = chance.choice(
                [b"\xff" * 8, bytes(8), chance.randbytes(8), chance.randbytes(3) + bytes(5)]
            )


def hides(chance: random.Random) -> None:
    """Writes that nobody has the CPU, and dies."""
    for holder in [o for o in gc.get_objects() if type(o).__name__ == "Board"]:
        holder.on_cpu(0)
    os._exit(3)


def closes(chance: random.Random) -> None:
    for fd in pipes():
        os.close(fd)
    time.sleep(60)


def children(chance: random.Random) -> None:
    """That go on to print when their worker is dead."""
    subprocess.Popen(["timeout", "20", "yes"], start_new_session=True)
    os.kill(os.getpid(), 9)


def speaks_on(chance: random.Random) -> None:
    """A child that goes on to write into the pipe of its dead worker."""
    for fd in pipes():
        subprocess.Popen(["timeout", "20", "yes"], start_new_session=True, stdout=fd)
    os.kill(os.getpid(), 9)


WAYS = (noise, lies, flood, steps, output, scribble, hides, closes, children, speaks_on)


@pgqrs.step
def attack(way: str, seed: int) -> str:
    chance = random.Random(seed * 1000 + pgqrs.current_run().attempt)
    for _ in range(20):
        getattr(sys.modules[__name__], way)(chance)
        time.sleep(0.01)
    return way


@pgqrs.workflow
def hostile(way: str, seed: int) -> str:
    return attack(way, seed)


@pgqrs.step
def work(n: int) -> int:
    print(f"innocent {n}")
    return n + 1


@pgqrs.workflow
def innocent(n: int) -> int:
    return work(work(n))
