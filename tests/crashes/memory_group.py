"""A control group with so much memory, below our own: where the kernel lets us make one."""

import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

ROOT = Path("/sys/fs/cgroup")
EMPTY_S = 10.0


class MemoryGroup:
    """`within` goes before a command that is to run there. It goes with its last process."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._folder = Path("/nowhere")

    @property
    def within(self) -> tuple[str, ...]:
        return ("sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh")

    def __enter__(self) -> "MemoryGroup":
        own, version = _own_group()
        folder = own / f"pgqrs-test-{os.getpid()}"
        try:
            if version == 2:
                (own / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
        except OSError as e:
            pytest.skip(f"no control group can be made here: {e}")
        self._folder = folder
        try:
            if version == 2:
                (folder / "memory.max").write_text(str(self._bytes_max))
                self._forbid_swap("memory.swap.max", 0)
            else:
                (folder / "memory.limit_in_bytes").write_text(str(self._bytes_max))
                self._forbid_swap("memory.memsw.limit_in_bytes", self._bytes_max)
        except OSError as e:
            self.__exit__(None, None, None)
            pytest.skip(f"a control group's memory cannot be limited here: {e}")
        return self

    def _forbid_swap(self, name: str, bytes_max: int) -> None:
        with suppress(FileNotFoundError):  # a kernel that does not count swap
            (self._folder / name).write_text(str(bytes_max))

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


def _own_group() -> tuple[Path, int]:
    """That which limits our memory, and the version of its interface."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in groups:
        if "memory" in controllers.split(","):
            return ROOT / "memory" / path.lstrip("/"), 1
    for number, controllers, path in groups:
        if number == "0" and not controllers:
            return ROOT / path.lstrip("/"), 2
    pytest.skip("no control group limits our memory here")
