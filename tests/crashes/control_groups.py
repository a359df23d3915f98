"""A control group below our own, with so much memory or so many processes: where the kernel lets us make one."""

import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

ROOT = Path("/sys/fs/cgroup")
EMPTY_S = 10.0


class ControlGroup:
    """`within` goes before a command that is to run there. It goes with its last process."""

    controller: str

    def __init__(self) -> None:
        self._folder = Path("/nowhere")

    def _limit(self, version: int) -> None:
        raise NotImplementedError

    def _set(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))

    @property
    def within(self) -> tuple[str, ...]:
        return ("sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh")

    def __enter__(self) -> Self:
        own, version = _own_group(self.controller)
        folder = own / f"pgqrs-test-{os.getpid()}"
        try:
            if version == 2:
                (own / "cgroup.subtree_control").write_text(f"+{self.controller}")
            folder.mkdir()
        except OSError as e:
            pytest.skip(f"no control group can be made here: {e}")
        self._folder = folder
        try:
            self._limit(version)
        except OSError as e:
            self.__exit__(None, None, None)
            pytest.skip(f"a control group's {self.controller} cannot be limited here: {e}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The kernel keeps it for as long as a process in it is on its way out."""
        deadline = time.monotonic() + EMPTY_S
        while True:
            try:
                self._folder.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


class MemoryGroup(ControlGroup):
    controller = "memory"

    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self._bytes_max = bytes_max

    def _limit(self, version: int) -> None:
        self._set("memory.max" if version == 2 else "memory.limit_in_bytes", self._bytes_max)
        with suppress(FileNotFoundError):  # a kernel that does not count swap
            if version == 2:
                self._set("memory.swap.max", 0)
            else:
                self._set("memory.memsw.limit_in_bytes", self._bytes_max)


class ProcessesGroup(ControlGroup):
    """Threads count as well, and what is dead until it is reaped."""

    controller = "pids"

    def __init__(self, processes_max: int) -> None:
        super().__init__()
        self._processes_max = processes_max

    def _limit(self, version: int) -> None:
        self._set("pids.max", self._processes_max)


def _own_group(controller: str) -> tuple[Path, int]:
    """That of ours which this controller limits, and the version of its interface."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in groups:
        if controller in controllers.split(","):
            return ROOT / controller / path.lstrip("/"), 1
    for number, controllers, path in groups:
        if number == "0" and not controllers:
            return ROOT / path.lstrip("/"), 2
    pytest.skip(f"no control group limits our {controller} here")
