"""What processes take, by /proc: CPU seconds by kind, and memory."""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.1

Readings = dict[int, tuple[str, float]]  # by process id: its kind, and its CPU seconds so far


class Watch:
    """Looks at a supervisor, its children and the server's processes again and again, in a thread of its own: of a process that
    ends, the last tenth of a second is not seen."""

    def __init__(self, supervisor: int, postmaster: int | None) -> None:
        self._supervisor = supervisor
        self._postmaster = postmaster
        self._seen: Readings = {}
        self._base: Readings | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        self._seen |= readings(self._supervisor, self._postmaster)

    def begin(self) -> None:
        """What was used until now does not count."""
        self._look()
        self._base = dict(self._seen)

    def end(self) -> dict[str, float]:
        """CPU seconds by kind of process."""
        self._over.set()
        self._thread.join()
        self._look()
        spent: defaultdict[str, float] = defaultdict(float)
        for pid, (kind, seconds) in self._seen.items():
            spent[kind] += seconds - (self._base or {}).get(pid, (kind, 0.0))[1]
        return dict(spent)


def readings(supervisor: int, postmaster: int | None) -> Readings:
    found: Readings = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid, parent = int(stat.parent.name), int(fields[1])
        if pid == supervisor:
            kind = "supervisor"
        elif parent == supervisor:
            kind = "workers"  # and the nursery, which sleeps once they have started
        elif postmaster is not None and postmaster in (pid, parent):
            kind = "PostgreSQL"
        else:
            continue
        found[pid] = (kind, (int(fields[11]) + int(fields[12])) / _TICKS)
    return found


def children(pid: int) -> list[int]:
    return sorted(p for p, (kind, _) in readings(pid, None).items() if kind == "workers")


def resident_bytes(pid: int) -> int:
    """The most that it ever held at once."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024


def private_bytes(pid: int) -> int:
    """What nobody else has: what a fork shares with its parent is not in it."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Private_") * 1024


def _kilobytes(file: Path, prefix: str) -> int:
    return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(prefix))


def cpu_seconds_over(supervisor: int, postmaster: int | None, seconds: float) -> dict[str, float]:
    watch = Watch(supervisor, postmaster)
    watch.begin()
    time.sleep(seconds)
    return watch.end()
