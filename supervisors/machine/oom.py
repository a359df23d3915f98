"""Whether the kernel has killed for want of memory: a SIGKILL does not say who sent it, the control group's count does."""

import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# The kernel counts before it kills, and to give a large process's memory back takes a while. Later deaths have other reasons.
DYING_S = 10.0


class OutOfMemory:
    """Counts what the out-of-memory killer took in this process's control group (version 2 or 1); where there is no such
    count, on the whole machine."""

    def __init__(
        self, root: Path = ROOT, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = next((f for f in _candidates(root, proc) if _count(f) is not None), None)
        self._clock = clock
        self._seen = self._count_now()
        self._dying: deque[float] = (
            deque()
        )  # of those that were seen and are not yet buried: when they were seen

    def look(self) -> None:
        """Now and then: what is counted long before a death had nothing to do with it."""
        now, counted = self._clock(), self._count_now()
        if counted is not None:
            self._dying += [now] * (counted - (self._seen or 0))
            self._seen = counted
        while self._dying and now - self._dying[0] > DYING_S:
            self._dying.popleft()

    def took(self) -> bool:
        """Whether a process that died of SIGKILL was one of those it took. Each that was counted answers for one."""
        self.look()
        if not self._dying:
            return False
        self._dying.popleft()
        return True

    def _count_now(self) -> int | None:
        return None if self._file is None else _count(self._file)


def _candidates(root: Path, proc: Path) -> list[Path]:
    """The group's own file first; a container sees its group as the root of the tree."""
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
