"""CPU seconds by kind of process, and memory, from /proc."""

import os
import time
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(supervisor: int, postmaster: int | None) -> dict[str, float]:
    """Returns the CPU seconds so far, by kind of process. Ended processes are included, because the
    kernel adds their time to the process that reaped them. So nothing has to watch during a
    measurement. The time of a zombie can still be read.
    """
    own, of_reaped = _cpu(supervisor)
    found = {"supervisor": own, "workers": of_reaped + sum(sum(_cpu(pid)) for pid in children(supervisor))}
    if postmaster is not None:
        found["PostgreSQL"] = sum(_cpu(postmaster)) + sum(sum(_cpu(pid)) for pid in children(postmaster))
    return found


def since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {kind: seconds - before[kind] for kind, seconds in after.items()}


def cpu_seconds_over(supervisor: int, postmaster: int | None, seconds: float) -> dict[str, float]:
    before = cpu_seconds(supervisor, postmaster)
    time.sleep(seconds)
    return since(before, cpu_seconds(supervisor, postmaster))


def _cpu(pid: int) -> tuple[float, float]:
    """Returns the CPU time of the process, and that of the children it has reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        # The process was reaped just now.
        return 0.0, 0.0
    user, system, reaped_user, reaped_system = (int(field) / _TICKS for field in fields[11:15])
    return user + system, reaped_user + reaped_system


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return sorted(found)


def resident_bytes(pid: int) -> int:
    """The most memory that the process ever held at once."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024


def private_bytes(pid: int) -> int:
    """The memory that only this process has, without what a fork shares with its parent."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Private_") * 1024


def _kilobytes(file: Path, prefix: str) -> int:
    return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(prefix))
