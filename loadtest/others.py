"""Peers, each at a pinned version in an environment of its own, made on first use beside the project's."""

import subprocess
import sys
import time
import venv
from pathlib import Path

from msgspec import Struct

PROGRAMS = Path(__file__).with_name("peers")
ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".venv" / "loadtest-peers"


class Peer(Struct, frozen=True):
    name: str
    requirement: str
    program: str
    batch: int
    processes: int = 2


PGQUEUER = Peer("PgQueuer 1.6.0", "pgqueuer[asyncpg]==1.6.0", "pgqueuer_drain.py", batch=100)
PGQRS_0_15 = Peer("pgqrs 0.15.3", "pgqrs==0.15.3", "pgqrs_0_15_drain.py", batch=100)


def python_of(peer: Peer) -> Path:
    folder = ENVIRONMENTS / peer.program.removesuffix(".py")
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", peer.requirement], check=True)
        (folder / "made").touch()
    return python


def drain(peer: Peer, dsn: str, count: int) -> float:
    """Seconds for its processes, started and connected before, to empty a queue of `count` no-op jobs."""
    command = [str(python_of(peer)), str(PROGRAMS / peer.program)]
    subprocess.run([*command, "fill", dsn, str(count)], check=True, stdout=subprocess.DEVNULL)
    drainers = [
        subprocess.Popen(
            [*command, "drain", dsn, str(peer.batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(peer.processes)
    ]
    for each in drainers:
        assert each.stdout is not None
        while (line := each.stdout.readline()) != "ready\n":
            if not line:
                sys.exit(f"{peer.name} ended before it was ready")
    began = time.perf_counter()
    for each in drainers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in drainers:
        if each.wait():
            sys.exit(f"{peer.name} failed")
    return time.perf_counter() - began
