"""What user code prints: caught by line in the worker, tagged with its run, read by the supervisor.

Python's own prints carry the run that printed them, so lanes do not mix; what C code or a subprocess writes to the same
descriptor carries no tag, and is the supervisor's to guess (the run that has the CPU).
"""

import io
import os
import re
import sys
from collections.abc import Iterator

from pgqrs import flow

_TAG, _END = b"\x1e", b"\x1f"
STACK_LINES_MAX = 400
LINE_BYTES_MAX = 8192  # a longer line is cut into several


class TaggedStream(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr: whole lines go to `fd`, each with its run."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._partial: dict[int | None, str] = {}

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        context = flow.running()
        run = context.id if context else None
        lines = (self._partial.pop(run, "") + text).split("\n")
        if lines[-1]:
            self._partial[run] = lines[-1]
        if len(lines) > 1:
            self._emit(run, lines[:-1])
        return len(text)

    def flush(self) -> None:
        for run in list(self._partial):
            self._emit(run, [self._partial.pop(run)])

    def finish(self, run: int) -> None:
        """The run prints nothing more: its last line may lack an end."""
        if run in self._partial:
            self._emit(run, [self._partial.pop(run)])

    def _emit(self, run: int | None, lines: list[str]) -> None:
        tag = _TAG + str(run).encode() + _END if run is not None else b""
        data = b"".join(tag + line.encode("utf-8", "replace") + b"\n" for line in lines)
        while data:
            data = data[os.write(self._fd, data) :]


def finish_lines(run: int) -> None:
    """Of a run that leaves this worker."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TaggedStream):
            stream.finish(run)


class LineReader:
    """Bytes in, (run, line) out. `run` None: untagged."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[tuple[int | None, str]]:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        while len(self._buffer) > LINE_BYTES_MAX:
            lines.append(self._buffer[:LINE_BYTES_MAX])
            self._buffer = self._buffer[LINE_BYTES_MAX:]
        for line in lines:
            yield _parsed(line)

    def rest(self) -> Iterator[tuple[int | None, str]]:
        if self._buffer:
            line, self._buffer = self._buffer, b""
            yield _parsed(line)


class Stacks:
    """Where a worker's threads were: the lines that faulthandler wrote among the others, until some time."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._lines: list[str] = []

    def take(self, line: str, now: float) -> bool:
        """Whether it is one of them."""
        if now > self._until or not _STACK_LINE.match(line) or len(self._lines) >= STACK_LINES_MAX:
            return False
        self._lines.append(line)
        return True

    @property
    def text(self) -> str | None:
        return "\n".join(self._lines).strip("\n") or None


_STACK_LINE = re.compile(r'(Current thread|Thread) 0x|  File "|  \.\.\.|$')


def _parsed(line: bytes) -> tuple[int | None, str]:
    run: int | None = None
    if line.startswith(_TAG):
        tag, _, line = line[1:].partition(_END)
        run = int(tag) if tag.isdigit() else None
    return run, line.decode("utf-8", "replace")
