"""Detects whether the kernel killed a process for lack of memory. A SIGKILL does not say who sent
it, but the control group has a counter.
"""

import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# The kernel counts before it kills, and freeing a large process's memory takes a while. A death
# after this time has another reason.
DYING_S = 10.0


class OutOfMemory:
    """Counts the kills by the out-of-memory killer in this process's control group (version 2 or
    1), or on the whole machine if there is no such counter.
    """

    def __init__(
        self, root: Path = ROOT, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = next((f for f in _candidates(root, proc) if _count(f) is not None), None)
        self._clock = clock
        self._seen = self._count_now()
        self._dying: deque[float] = (
            deque()
            # When each kill was seen that has not been matched to a dead process.
        )

    def look(self) -> None:
        """Drops kills that are too old to explain a death. The loop calls this regularly."""
        now, counted = self._clock(), self._count_now()
        if counted is not None:
            self._dying += [now] * (counted - (self._seen or 0))
            self._seen = counted
        while self._dying and now - self._dying[0] > DYING_S:
            self._dying.popleft()

    def took(self) -> bool:
        """Returns whether the out-of-memory killer killed a process that died of SIGKILL. Each
        counted kill explains one death.
        """
        self.look()
        if not self._dying:
            return False
        self._dying.popleft()
        return True

    def _count_now(self) -> int | None:
        return None if self._file is None else _count(self._file)


def _candidates(root: Path, proc: Path) -> list[Path]:
    """Returns the counters to try. The group's own file comes first; a container sees its group as
    the root.
    """
    found = []
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                found += [root / path.lstrip("/") / "memory.events", root / "memory.events"]
            elif "memory" in controllers.split(","):
                v1 = root / "memory"
                found += [v1 / path.lstrip("/") / "memory.oom_control", v1 / "memory.oom_control"]
    return [*found, proc / "vmstat"]


def _count(file: Path) -> int | None:
    with suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.M):
            return int(found[1])
    return None
