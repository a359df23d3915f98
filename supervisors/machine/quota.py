"""How much CPU this process may use: its CPU affinity, and the quota of its control group."""

import math
import os
from collections.abc import Callable
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")


def cores() -> int:
    """Returns the number of cores that this process may use, by affinity and quota, rounded up."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = quota_cpus(MEMBERSHIP, MOUNTED)
    return there if quota is None else max(1, min(there, math.ceil(quota)))


def quota_cpus(membership: Path, mounted: Path) -> float | None:
    """Returns the smallest quota of the process's control group and the groups above it, in CPUs.
    None: there is no quota, or it cannot be read.
    """
    quotas: list[float] = []
    for line in _lines(membership):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            quotas += _along(path, [mounted, mounted / "unified"], _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _along(path, [mounted / controllers, mounted / "cpu"], _quota_v1)
    return min(quotas, default=None)


def _along(path: str, roots: list[Path], quota: Callable[[Path], float | None]) -> list[float]:
    """Returns the quotas of a group and all groups above it. In a container, the path may be the
    path on the host, of which the container sees only the top.
    """
    below = Path(path.lstrip("/"))
    groups = [root / p for root in roots for p in (below, *below.parents)]
    return [found for found in map(quota, groups) if found is not None]


def _quota_v2(group: Path) -> float | None:
    words = " ".join(_lines(group / "cpu.max")).split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(group: Path) -> float | None:
    quota, period = (" ".join(_lines(group / f"cpu.cfs_{w}_us")) for w in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """Returns quota / period. Returns None for "max", for -1, and for text that is no number."""
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
