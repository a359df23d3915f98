"""The output of user code: tagged with its run in the worker, read by line in the supervisor.

A worker has one pipe for all its output. `sys.stdout` and `sys.stderr` write whole lines there,
each with a tag that names the run whose code printed it, so that lanes do not mix. Output of C
code, of a subprocess or of `os.write(1, …)` has no tag. When the CPU passes from one run to another
while such bytes are unread, the worker adds a mark that names the run which had the CPU until then.
Otherwise the board says which run has the CPU.

    RS digits US text        a line of that run; without digits, of no run
    RS digits + US text      the beginning of such a line, flushed before its end
    RS digits ! US           the untagged lines before this mark are that run's
    RS digits @ US           the untagged lines after this mark are that run's: without a board
    text                     untagged

The supervisor trusts none of it. It reads any bytes as lines of limited length, and a tag counts
only if the worker was given that run (credible.py).
"""

import fcntl
import io
import os
import re
import select
import sys
import termios
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from pgqrs.flows import flow
from pgqrs.model.printable import printable

STACK_LINES_MAX = 400
STACK_BYTES_MAX = 64 * 1024
# A longer line is cut into several.
LINE_BYTES_MAX = 8192
# The lines whose ends the reader waits for. With more, the oldest is shown without its end.
BEGUN_MAX = 64
# How long the reader waits for the end of a line.
BEGUN_S = 1.0
# The bytes that one write puts into a pipe without bytes of another writer in between.
_ONE_PIECE = 4096


# In the worker


class _Kept(Struct):
    parts: list[bytes] = msgspec.field(default_factory=list)
    bytes: int = 0


class RunBuffer(io.BufferedWriter):
    """`sys.stdout.buffer` of a worker: keeps the unfinished line of each run and thread, and passes
    whole lines on.

    If one run closes the buffer, for example, the other runs are not affected.
    """

    def __init__(self, fd: int, name: str) -> None:
        raw = io.FileIO(fd, "wb", closefd=False)
        # The name of Python's own stream.
        raw.name = name
        super().__init__(raw)
        self._fd = fd
        # The beginnings of lines, by run and thread.
        self._kept: dict[tuple[int | None, int], _Kept] = {}
        # The runs whose line has begun in the pipe.
        self._told: set[int | None] = set()

    def write(self, data: Any, /) -> int:
        new = bytes(data)
        with _lock:
            run = _run()
            key = (run, threading.get_ident())
            end = new.rfind(b"\n") + 1
            if end:
                kept = self._kept.pop(key, None)
                self._put(run, b"".join((*kept.parts, new[:end])) if kept else new[:end])
            if end < len(new):
                self._keep(key, new[end:] if end else new)
        return len(new)

    def flush(self) -> None:
        """Writes the caller's unfinished line to the pipe. The line may continue later."""
        with _lock:
            self._flush((_run(), threading.get_ident()))

    def flush_all(self) -> None:
        with _lock:
            for key in list(self._kept):
                self._flush(key)

    def finish(self, run: int) -> None:
        """Writes the run's last line, which may lack an end, because the run prints nothing more."""
        if not self._kept and not self._told:
            return
        with _lock:
            kept = [key for key in self._kept if key[0] == run]
            if run in self._told and not kept:
                self._put(run, b"\n")
            for key in kept:
                self._put(run, b"".join((*self._kept.pop(key).parts, b"\n")))

    def forget(self) -> None:
        """Forgets unfinished lines in a forked child, because they belong to the parent."""
        self._kept, self._told = {}, set()

    def close(self) -> None:
        self.flush()

    def _keep(self, key: tuple[int | None, int], new: bytes) -> None:
        kept = self._kept.setdefault(key, _Kept())
        kept.parts.append(new)
        kept.bytes += len(new)
        if kept.bytes >= LINE_BYTES_MAX:
            self._flush(key)

    def _flush(self, key: tuple[int | None, int]) -> None:
        if (kept := self._kept.pop(key, None)) is None:
            return
        begun, run = b"".join(kept.parts), key[0]
        if not _tagging:
            _write(self._fd, begun)
            return
        self._told.add(run)
        begun = begun.replace(_RS, _SHOWN_RS)
        while begun:
            at = cut(begun)
            _write(self._fd, _tag(run, b"+") + begun[:at] + b"\n")
            begun = begun[at:]

    def _put(self, run: int | None, lines: bytes) -> None:
        """Writes whole lines of the run to the pipe."""
        self._told.discard(run)
        if not _tagging:
            _write(self._fd, lines)
            return
        if _RS in lines:
            lines = lines.replace(_RS, _SHOWN_RS)
        tag = _tag(run)
        lines = tag + lines[:-1].replace(b"\n", b"\n" + tag) + b"\n"
        at = 0
        while at < len(lines):
            end = len(lines) if len(lines) - at <= _ONE_PIECE else lines.rfind(b"\n", at, at + _ONE_PIECE) + 1
            # One line is longer than that.
            if not end:
                end = lines.index(b"\n", at) + 1
            _write(self._fd, lines[at:end])
            at = end


class RunStream(io.TextIOWrapper):
    """`sys.stdout` and `sys.stderr` of a worker."""

    def __init__(self, fd: int, name: str) -> None:
        self.lines = RunBuffer(fd, name)
        super().__init__(
            self.lines, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True
        )
        self.mode = "w"  # type: ignore[misc]

    def reconfigure(self, **options: Any) -> None:
        """Reconfigures the stream, but keeps `write_through`: text kept here would belong to no
        run.
        """
        super().reconfigure(**options | {"write_through": True})


def catch_output() -> None:
    """Makes `print` write through this module from now on. Until `tag_output`, output passes
    unchanged.
    """
    sys.stdout = sys.__stdout__ = _streams["stdout"] = RunStream(1, "<stdout>")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _streams["stderr"] = RunStream(2, "<stderr>")  # type: ignore[misc]


def tag_output() -> None:
    """Marks this process as a worker, whose descriptor 1 is a pipe to its supervisor."""
    global _tagging
    _tagging = True


def has_cpu(run: int, on_board: bool = True) -> None:
    """Called when `run` gets the CPU. If another run has written output that bypassed Python, a
    mark attributes it to that run. Without a board, a mark also names the run that following output
    belongs to.
    """
    global _on_cpu, _prints, _looked_at
    before, _on_cpu = _on_cpu, run
    if not _tagging or before == run:
        return
    if not on_board:
        with suppress(OSError):
            _write(1, _tag(run, b"@") + b"\n")
    elif before is not None:
        if not _prints:
            now = time.monotonic()
            if now - _looked_at < LOOK_EVERY_S:
                return
            _looked_at = now
        try:
            fcntl.ioctl(1, termios.FIONREAD, _unread)
        except OSError:
            # User code has replaced descriptor 1.
            return
        if _unread[0]:
            _prints = True
            _write(1, _tag(before, b"!") + b"\n")


def finish_lines(run: int) -> None:
    """Completes the lines of a run that leaves this worker."""
    for name, stream in _streams.items():
        current = getattr(sys, name)
        if current is not stream and current is not None:
            # User code has replaced the stream, perhaps by one that uses this buffer.
            with suppress(Exception):
                current.flush()
        stream.lines.finish(run)


def finish_output() -> None:
    """Writes everything that is left when this process ends."""
    for stream in (sys.stdout, sys.stderr, *_streams.values()):
        with suppress(Exception):
            stream.flush()
    for stream in _streams.values():
        with suppress(OSError):
            stream.lines.flush_all()


_RS, _US = b"\x1e", b"\x1f"
_SHOWN_RS = b"\\x1e"

# One lock for both streams, because they share a pipe.
_lock = threading.RLock()
_streams: dict[str, RunStream] = {}
_tagging = False
_on_cpu: int | None = None
# Looking into the pipe is a system call, which costs as much as a tiny step. Until untagged output
# was found for the first time, one look per LOOK_EVERY_S is enough.
LOOK_EVERY_S = 0.001
_prints = False
_looked_at = 0.0
_unread = array("i", [0])


def _run() -> int | None:
    """Returns the run whose code calls. A thread that a step has started has no context of its own:
    there it is the run that has the CPU.
    """
    context = flow.running()
    return context.id if context is not None else _on_cpu


def _tag(run: int | None, kind: bytes = b"") -> bytes:
    return b"\x1e%b%b\x1f" % (b"" if run is None else str(run).encode(), kind)


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            # asyncio's pipes or a child process have made the shared descriptor non-blocking.
            select.select([], [fd], [])


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for stream in _streams.values():
        stream.lines.forget()


os.register_at_fork(after_in_child=_after_fork)


# In the supervisor


class Line(NamedTuple):
    """A line of output. If `run` is None, the line belongs to no run, or (`raw`) to the run that
    has the CPU.
    """

    run: int | None
    text: str
    raw: bool = False


class LineReader:
    """Turns any bytes into lines. Keeps at most one unfinished line of each of BEGUN_MAX runs."""

    def __init__(self) -> None:
        self._buffer = b""
        # The run that has the CPU, by the last mark that says so.
        self._holder: int | None = None
        self._begun: dict[int | None, bytes] = {}
        self._begun_at = 0.0

    def feed(self, data: bytes, now: float = 0.0) -> list[Line]:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        found: list[Line] = []
        for line in lines:
            self._take(line, found, now)
        while len(self._buffer) > LINE_BYTES_MAX + _TAG_BYTES_MAX:
            self._buffer = self._continued(self._buffer, found, now)
        return found

    def overdue(self, now: float) -> list[Line]:
        """Returns unfinished lines that have waited for a while, because somebody may wait for
        their text.
        """
        if self._begun and now - self._begun_at > BEGUN_S:
            return self._ended()
        return []

    def rest(self) -> list[Line]:
        """Returns the remaining lines when the output has ended."""
        found: list[Line] = []
        if self._buffer:
            self._take(self._buffer, found, 0.0)
            self._buffer = b""
        return found + self._ended()

    def _take(self, line: bytes, found: list[Line], now: float) -> None:
        if _RS not in line:
            _add(found, self._holder, line, raw=True)
            return
        untagged, *tagged = _TAG.split(line)
        if untagged:
            _add(found, self._holder, untagged, raw=True)
        for digits, kind, text in zip(*[iter(tagged)] * 3, strict=True):
            self._take_tagged(int(digits) if digits else None, kind, text, found, now)

    def _take_tagged(self, run: int | None, kind: bytes, text: bytes, found: list[Line], now: float) -> None:
        if kind == b"!":
            _resolve(found, run)
            return
        if kind == b"@":
            self._holder = run
            return
        before = self._begun.pop(run, None)
        line = (before or b"") + text
        if kind != b"+":
            if line or before is None:
                _add(found, run, line)
            return
        while len(line) >= LINE_BYTES_MAX:
            at = cut(line)
            _add(found, run, line[:at])
            line = line[at:]
        if not self._begun:
            self._begun_at = now
        self._begun[run] = line
        if len(self._begun) > BEGUN_MAX:
            oldest = next(iter(self._begun))
            _add(found, oldest, self._begun.pop(oldest))

    def _continued(self, line: bytes, found: list[Line], now: float) -> bytes:
        """Cuts a line before its end has come. Returns the rest of the line, after the tag of the
        first part.
        """
        at = cut(line, LINE_BYTES_MAX + _TAG_BYTES_MAX)
        tag = _TAG.match(line)
        self._take(line[:at], found, now)
        return (tag[0] if tag and tag[2] not in (b"!", b"@") else b"") + line[at:]

    def _ended(self) -> list[Line]:
        begun, self._begun = self._begun, {}
        return [line for run, text in begun.items() if text for line in _lines(run, text, raw=False)]


_TAG = re.compile(rb"\x1e(\d{0,19})([+!@]?)\x1f")
_TAG_BYTES_MAX = 22


def cut(line: bytes, at_most: int = LINE_BYTES_MAX) -> int:
    """Returns where to cut a line that may be too long. The cut is never within a character."""
    if len(line) <= at_most:
        return len(line)
    at = at_most
    while at > at_most - 4 and line[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _add(found: list[Line], run: int | None, text: bytes, raw: bool = False) -> None:
    found.extend(_lines(run, text, raw))


def _lines(run: int | None, text: bytes, raw: bool) -> Iterator[Line]:
    text = text.removesuffix(b"\r")
    while len(text) > LINE_BYTES_MAX:
        at = cut(text)
        yield Line(run, text[:at].decode("utf-8", "replace"), raw)
        text = text[at:]
    yield Line(run, text.decode("utf-8", "replace"), raw)


def _resolve(found: list[Line], run: int | None) -> None:
    for at in range(len(found) - 1, -1, -1):
        line = found[at]
        if line.raw and line.run is None:
            found[at] = Line(run, line.text, raw=True)


class Stacks:
    """The stacks of a worker's threads. faulthandler writes them among the other lines, so lines
    are collected here until `until`.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self._lines: list[str] = []
        self._bytes = 0

    def take(self, line: str, now: float) -> bool:
        """Takes the line if it belongs to the stacks. Returns whether it does."""
        if now > self._until or not _STACK_LINE.match(line) or len(self._lines) >= STACK_LINES_MAX:
            return False
        line = printable(line)
        self._bytes += len(line)
        if self._bytes <= STACK_BYTES_MAX:
            self._lines.append(line)
        return True

    @property
    def text(self) -> str | None:
        return "\n".join(self._lines).strip("\n") or None


_STACK_LINE = re.compile(r'(Current thread|Thread) 0x|  File "|  \.\.\.|$')
