"""`pgqrs stacks`."""

import os
import signal
from pathlib import Path

import click

from pgqrs.cli.options import EXIT_FAILED, EXIT_USAGE, Id, fail


@click.command()
@click.argument("pid", metavar="PID", type=Id())
def stacks(pid: int) -> None:
    """Have the worker process PID say where each of its threads is.

    The answer comes in its supervisor's output, and works in the middle of a C call too; the worker goes on undisturbed. The
    pids of workers are in the supervisor's panel. A step that is killed at its time limit has been asked before: see its error.

    \b
    Example:
      pgqrs stacks 4711
    """
    why_not = _no_worker(pid)
    if why_not:
        fail(why_not, EXIT_USAGE)
    try:
        os.kill(pid, signal.SIGUSR1)
    except OSError as e:
        fail(f"process {pid} cannot be asked: {e.strerror}", EXIT_FAILED)
    click.echo(f"worker {pid} was asked; its supervisor prints what it says")


def _no_worker(pid: int) -> str | None:
    """Why this is not a worker of a supervisor: the signal would end any other process."""
    if not Path("/proc/self/status").exists():
        return "this works on Linux only"
    try:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        parent = Path(f"/proc/{status['PPid']}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return f"there is no process {pid} on this machine"
    listens = int(status["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1
    if not listens or not ({"supervise", "supervisors"} & set(parent)):
        return f"process {pid} is no worker of a pgqrs supervisor; their pids are in its panel"
    return None
