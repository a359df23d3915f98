"""A real `pgqrs supervise` for a test, and what its steps wrote down."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pgqrs.clients.blocking import Store
from pgqrs.config import Config

T = TypeVar("T")

DRAIN_S = 4.0  # of a supervisor at the end of its block
LOOK_S = 0.005  # between two looks: more often takes the processor from what is waited for


def connected(dsn: str) -> Store:
    """A store for use beside a supervisor: on S3, where the two may meet, calls are made again."""
    return Store(Config(dsn), insist=True)


PIPELINE = Path(__file__).with_name("pipeline.py")


class Start(NamedTuple):
    """A step's body started."""

    run: int
    step: str
    pid: int
    at: float


def supervise(dsn: str, *options: str, target: str = str(PIPELINE)) -> list[str]:
    return [sys.executable, "-m", "pgqrs", "supervise", target, "--dsn", dsn, *options]


class Supervised:
    """`within` goes before the command: how to run it on another host."""

    def __init__(
        self, dsn: str, log: Path, *options: str, target: str = str(PIPELINE), within: Sequence[str] = ()
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*within, *supervise(dsn, *options, target=target)],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text()

    def workers(self) -> list[int]:
        """Its children that lead a process group of their own and are not the nursery: the forked workers."""
        found = []
        for pid in children(self.pid):
            with_name = Path(f"/proc/{pid}/oom_score_adj")
            try:
                if with_name.read_text().strip() == "500":
                    found.append(pid)
            except OSError:
                continue
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self._ends()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _ends(self) -> None:
        """Lets what runs finish, but not a step of a minute: told twice more, a supervisor stops now."""
        try:
            self.process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            for _ in range(2):
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)  # for the one before to be heard
            self.process.wait(15)


def children(pid: int) -> list[int]:
    """Those that live."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in listed.read_text().split()]
        except OSError:
            continue
    return [child for child in found if _lives(child)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def zombies(parent: int) -> int:
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        count += int(of) == parent and state == "Z"
    return count


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def starts(evidence: Path) -> list[Start]:
    if not evidence.exists():
        return []
    lines = [line.split(" ") for line in evidence.read_text().splitlines()]
    return [Start(int(run), step, int(pid), float(at)) for run, step, pid, at in lines]


def eventually(look: Callable[[], T], timeout: float = 20, what: str | Callable[[], str] = "") -> T:
    """What `look` returns once it is true. `what` is said where it never is; a function is asked then."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what or look}")
        time.sleep(LOOK_S)
    return seen


def kill(pid: int, number: int = signal.SIGKILL) -> float:
    """Sends the signal and returns when, in the steps' clock."""
    at = time.time()
    os.kill(pid, number)
    return at
