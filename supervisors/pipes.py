"""The workers' pipes, as the supervisor holds them: frames down, frames and output up, and the last word of the dead."""

import os
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct

from supervisors import events, wire
from supervisors.board import OnBoard
from supervisors.launch import Child
from supervisors.oom import OutOfMemory
from supervisors.output import LineReader, Stacks

OUTBOX_BYTES_MAX = 1024 * 1024 * 1024  # unread by a worker: more than any one run and what may be beside it
READ_BYTES = 1024 * 1024
GOODBYE_S = 1.0
STACKS_WITHIN_S = 1.0  # of being asked: what looks like stacks later is somebody else's word


class _Pipe(Struct):
    child: Child
    parser: wire.Parser
    received: int = 0  # bytes, through the pipe
    known: int = 0  # the same with what was read from the board before it came
    outbox: bytearray = msgspec.field(default_factory=bytearray)
    lines: LineReader = msgspec.field(default_factory=LineReader)
    killed: bool = False  # by us
    cause: str | None = None  # why, where the core did not order that
    stacks: Stacks | None = None  # what it says of its threads since it was asked


class Pipes:
    """`handle` takes what the core should know; `show` a line of output, with its worker and, where known, its run."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        handle: Callable[[events.Event], None],
        show: Callable[[int, int | None, str], None],
    ) -> None:
        self._selector = selector
        self._handle = handle
        self._show = show
        self._pipes: dict[int, _Pipe] = {}
        self._unsent: set[int] = set()  # whose outbox has something new
        self._oom = OutOfMemory()

    def adopt(self, child: Child) -> None:
        n = child.worker
        self._pipes[n] = _Pipe(child, wire.Parser("supervisor"))
        self._selector.register(child.sock, selectors.EVENT_READ, lambda: self._read(n))
        self._selector.register(child.output_fd, selectors.EVENT_READ, lambda: self._read_output(n))
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._bury(n))
        self._handle(events.Launched(n, child.pid))

    def send(self, n: int, frame: wire.Down) -> None:
        """With the next `flush`. What is for a worker that is gone is dropped."""
        if (pipe := self._pipes.get(n)) is None:
            return
        pipe.outbox += wire.encode(frame)
        if len(pipe.outbox) > OUTBOX_BYTES_MAX:
            self._kill_for(pipe, f"was killed because it left {len(pipe.outbox):,} bytes unread")
            return
        self._unsent.add(n)

    def flush(self) -> None:
        unsent, self._unsent = self._unsent, set()
        for n in unsent:
            if pipe := self._pipes.get(n):
                self._flush(pipe)

    def dump(self, n: int) -> None:
        """Asks for the stacks of all its threads: they come with its Exited."""
        if pipe := self._pipes.get(n):
            pipe.stacks = Stacks(time.monotonic() + STACKS_WITHIN_S)
            pipe.child.dump()

    def kill(self, n: int, force: bool) -> None:
        if pipe := self._pipes.get(n):
            pipe.killed |= force
            if not force and _idle(pipe.child):
                # It leaves as a program does. One that does not is killed with `force` soon after.
                with suppress(OSError):
                    pipe.child.sock.shutdown(socket.SHUT_WR)
            else:
                pipe.child.kill(force)

    def pids(self) -> set[int]:
        """Of the workers that are not yet buried."""
        return {pipe.child.pid for pipe in self._pipes.values()}

    def look_around(self) -> None:
        """Now and then: at what the kernel has killed, for it to be told from what dies much later."""
        self._oom.look()

    def close(self) -> None:
        """Idle workers end by themselves when their pipe is closed, and say what they still have to say."""
        deadline = time.monotonic() + GOODBYE_S
        for pipe in self._pipes.values():
            with suppress(OSError):
                pipe.child.sock.shutdown(socket.SHUT_WR)
        for n, pipe in self._pipes.items():
            while time.monotonic() < deadline and not select.select([pipe.child.pidfd], [], [], 0.01)[0]:
                self._read_output(n)
            pipe.child.kill(force=True)
            self._drain_output(n, pipe)
        for pipe in self._pipes.values():
            pipe.child.reap()
            pipe.child.close()

    def _read(self, n: int) -> None:
        if (pipe := self._pipes.get(n)) is None:
            return
        try:
            data = pipe.child.sock.recv(READ_BYTES)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            # Its end is closed, but only the pidfd says that it is dead.
            self._forget(pipe.child.sock.fileno())
        elif data:
            self._take(n, pipe, data)
        if pipe.outbox:
            self._flush(pipe)

    def _take(self, n: int, pipe: _Pipe, data: bytes) -> None:
        pipe.received += len(data)
        new = pipe.received - pipe.known
        if new > 0:
            pipe.known = pipe.received
            self._parse(n, pipe, data if new == len(data) else data[-new:])

    def look_at_boards(self, is_known: Callable[[int, OnBoard], bool]) -> None:
        """Now and then: what workers have not sent yet, and who has the CPU there, where the core does not know."""
        for n, pipe in list(self._pipes.items()):
            self._read_unsent(n, pipe)
            running = pipe.child.board and pipe.child.board.on_cpu()
            if running and running.message_id and not is_known(n, running):
                self._say_who_runs(n, running)

    def _read_unsent(self, n: int, pipe: _Pipe) -> None:
        if pipe.child.board is not None and pipe.cause is None:
            unsent = pipe.child.board.unsent(pipe.known)
            pipe.known += len(unsent)
            self._parse(n, pipe, unsent)

    def _say_who_runs(self, n: int, running: OnBoard) -> None:
        """As the worker itself would have."""
        frame: wire.Up = wire.Idle()
        if running.message_id:
            frame = wire.Started(running.message_id, running.claim_no, running.step, running.position)
        self._handle(events.Received(n, frame))

    def _parse(self, n: int, pipe: _Pipe, data: bytes) -> None:
        try:
            for frame in pipe.parser.feed(data):
                self._handle(events.Received(n, frame))  # type: ignore[arg-type]
        except wire.WireError as e:
            self._kill_for(pipe, f"was killed for what it sent: {e}")
            self._forget(pipe.child.sock.fileno())

    def _kill_for(self, pipe: _Pipe, cause: str) -> None:
        pipe.killed, pipe.cause = True, cause
        pipe.child.kill(force=True)

    def _flush(self, pipe: _Pipe) -> None:
        sock = pipe.child.sock
        try:
            sent = sock.send(pipe.outbox)
            del pipe.outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:
            pipe.outbox.clear()  # it is dying: the pidfd will say so
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if pipe.outbox else 0)
        with suppress(KeyError, ValueError):
            key = self._selector.get_key(sock)
            if key.events != wanted:
                self._selector.modify(sock, wanted, key.data)

    def _read_output(self, n: int) -> None:
        if (pipe := self._pipes.get(n)) is None:
            return
        try:
            data = os.read(pipe.child.output_fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._forget(pipe.child.output_fd)
        self._show_lines(n, pipe, data)

    def _drain_output(self, n: int, pipe: _Pipe) -> None:
        with suppress(OSError):
            while data := os.read(pipe.child.output_fd, READ_BYTES):
                self._show_lines(n, pipe, data)

    def _show_lines(self, n: int, pipe: _Pipe, data: bytes) -> None:
        for run, text in pipe.lines.feed(data):
            if run is None and pipe.stacks is not None and pipe.stacks.take(text, time.monotonic()):
                continue
            self._show(n, self._probably(pipe) if run is None else run, text)

    def _probably(self, pipe: _Pipe) -> int | None:
        """Whose line without a run is, such as a subprocess's: his who has the CPU or had it last."""
        running = pipe.child.board and pipe.child.board.last_on_cpu()
        return running.message_id or None if running else None

    def _bury(self, n: int) -> None:
        """A worker is dead. First everything that it sent, then how it ended."""
        pipe = self._pipes[n]
        child = pipe.child
        name, code, cpu_s, rss = child.reap()
        with suppress(OSError):
            while data := child.sock.recv(READ_BYTES):
                self._take(n, pipe, data)
        self._read_unsent(n, pipe)
        oom = name == "SIGKILL" and not pipe.killed and self._oom.took()
        by_its_own = oom or name not in ("SIGKILL", "SIGTERM")  # those come from outside, or from us
        if running := child.board and (
            # A thread that async code waits for has no entry of its own.
            child.board.last_on_cpu() if child.kind == "async" and by_its_own else child.board.on_cpu()
        ):
            self._say_who_runs(n, running)
        self._drain_output(n, pipe)
        for run, text in pipe.lines.rest():
            self._show(n, run, text)
        for fd in (child.sock.fileno(), child.output_fd, child.pidfd):
            self._forget(fd)
        child.close()
        del self._pipes[n]
        stacks = pipe.stacks.text if pipe.stacks else None
        self._handle(events.Exited(n, name, code, cpu_s, rss, oom, pipe.cause, stacks))

    def _forget(self, fd: int) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(fd)


def _idle(child: Child) -> bool:
    """That it runs nothing, where that can be seen."""
    running = None if child.board is None else child.board.on_cpu()
    return running is not None and not running.message_id
