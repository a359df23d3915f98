"""What processes take, by /proc: CPU seconds by kind, and memory."""

import os
import time
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(supervisor: int, postmaster: int | None) -> dict[str, float]:
    """So far, by kind of process. Those that have ended are in it, by the account that the kernel keeps for whoever reaped them:
    nothing has to watch while time is measured. Of a zombie it still tells."""
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
    """Its own, and that of the children it has reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0  # it was reaped just now
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
    """The most that it ever held at once."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024


def private_bytes(pid: int) -> int:
    """What nobody else has: what a fork shares with its parent is not in it."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Private_") * 1024


def _kilobytes(file: Path, prefix: str) -> int:
    return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(prefix))
