"""`pgqrs stacks`."""

import os
import signal
import sys
from pathlib import Path

import click

from pgqrs.cli.options import EXIT_FAILED, EXIT_USAGE, Id, fail


@click.command()
@click.argument("pid", metavar="PID", type=Id())
def stacks(pid: int) -> None:
    """Print the stack of every thread of a worker, or of all workers of a supervisor.

    PID is a worker's or a supervisor's process id. The stacks appear in the output of the
    supervisor. This also works while a worker executes C code, and does not interrupt it. The
    supervisor's panel shows the ids of its workers; `pgqrs workers` shows those of supervisors.

    \b
    Example:
      pgqrs stacks 4711
    """
    why_not = _no_worker(pid)
    workers = [pid] if why_not is None else [p for p in _children(pid) if _no_worker(p) is None]
    if not workers:
        fail(str(why_not), EXIT_USAGE)
    refused = [worker for worker in workers if not _ask(worker)]
    if refused == workers:
        sys.exit(EXIT_FAILED)


def _ask(worker: int) -> bool:
    try:
        os.kill(worker, signal.SIGUSR1)
    except OSError as e:
        click.echo(f"pgqrs: process {worker} cannot be asked: {e.strerror}", err=True)
        return False
    click.echo(f"worker {worker} was asked; its supervisor prints what it says")
    return True


def _children(pid: int) -> list[int]:
    """Returns the child processes of all threads of a process, or none if it has ended."""
    try:
        listed = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return sorted(int(child) for children in listed for child in children.split())


def _no_worker(pid: int) -> str | None:
    """Returns why a process is not a worker of a supervisor, or None if it is one. The signal that
    requests stacks would end any other process.
    """
    if not Path("/proc/self/status").exists():
        return "this works on Linux only"
    try:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
    except OSError:
        return f"there is no process {pid} on this machine"
    try:
        parent = Path(f"/proc/{status['PPid']}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # the first process has no parent
        parent = []
    listens = int(status["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1
    if not listens or not ({"supervise", "supervisors"} & set(parent)):
        return (
            f"process {pid} is neither a supervisor with workers nor "
            "one of them; for the pids of supervisors: pgqrs workers"
        )
    return None
