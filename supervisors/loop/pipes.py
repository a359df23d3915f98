"""The supervisor's ends of the workers' pipes. It sends frames down, and reads frames and output.
When a worker dies, it reads the last bytes.

Nothing that comes through a pipe is trusted, and nothing can block the loop. Each read is bounded,
and output gets a share of the loop's time. After the death of a worker, only the bytes that were in
its pipes at that moment are read: another process may hold the worker's descriptors and write
without end. If a worker sends an invalid frame, it is killed, and the supervisor continues.
"""

import fcntl
import os
import select
import selectors
import signal
import socket
import termios
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Struct

from supervisors import wire
from supervisors.births.launch import Child
from supervisors.core import events
from supervisors.loop.hearing import Hearing
from supervisors.machine.oom import OutOfMemory
from supervisors.worker.board import ENTRY_LOOKS_MAX, OnBoard
from supervisors.worker.output import Line, LineReader, Stacks

# The most bytes that a worker may leave unread: more than any one run and the frames beside it.
OUTBOX_BYTES_MAX = 1024 * 1024 * 1024
READ_BYTES = 256 * 1024
# The most bytes of output read at once.
OUTPUT_BYTES = 64 * 1024
# The largest share of the loop's time for the output of one worker.
OUTPUT_SHARE = 0.25
# After a read of output that took no longer, the next may follow at once.
OUTPUT_FREE_S = 0.001
# The most bytes read from each descriptor of a dead worker.
LAST_BYTES_MAX = 1024 * 1024
# How long a worker may live after it has closed its pipe. Without a pipe it can end none of its
# runs.
MUTE_S = 1.0
GOODBYE_S = 1.0
# How long a supervisor that ends waits for killed workers to die.
REAP_S = 2.0
LOOKS_MAX = (
    # The most reads of a pipe and its board to receive everything sent so far. Two are enough
    # unless something is broken.
    100
)
# Stacks are accepted this long after a dump was requested. Later lines that look like stacks come
# from other code.
STACKS_WITHIN_S = 1.0


class _Pipe(Struct):
    child: Child
    hearing: Hearing
    # When the worker closed its end of the pipe.
    ended_at: float | None = None
    outbox: bytearray = msgspec.field(default_factory=bytearray)
    lines: LineReader = msgspec.field(default_factory=LineReader)
    output_ended: bool = False
    # The output is not read before this time.
    rests_until: float | None = None
    # Whether this supervisor killed the worker.
    killed: bool = False
    # Why, if the core did not order that.
    cause: str | None = None
    # The stacks of the worker's threads since they were requested.
    stacks: Stacks | None = None


class Pipes:
    """The pipes of all workers. `handle` is called with each event for the core. `show` is called
    with each line of output and its worker. If the line's run is known, `show` also gets the run,
    and whether it is a plain message.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        handle: Callable[[events.Event], None],
        show: Callable[[int, int | None, str, bool], None],
    ) -> None:
        self._selector = selector
        self._handle = handle
        self._show = show
        self._pipes: dict[int, _Pipe] = {}
        # Workers with something new in their outbox.
        self._unsent: set[int] = set()
        # Whether frames are read.
        self._listens = True
        self._oom = OutOfMemory()

    def adopt(self, child: Child) -> None:
        n = child.worker
        hearing = Hearing(n, child.board, self._handle, partial(self._distrust, n))
        self._pipes[n] = _Pipe(child, hearing)
        self._selector.register(child.sock, selectors.EVENT_READ, lambda: self._serve(n))
        self._selector.register(child.output_fd, selectors.EVENT_READ, lambda: self._read_output(n))
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._bury(n))
        self._handle(events.Launched(n, child.pid, gated=child.board is not None and child.kind == "sync"))

    def send(self, n: int, frame: wire.Down) -> None:
        """Adds a frame to those that the next `flush` sends. A frame for a dead worker is dropped."""
        if (pipe := self._pipes.get(n)) is None:
            return
        pipe.outbox += wire.encode(frame)
        pipe.hearing.credit.told(frame)
        if len(pipe.outbox) > OUTBOX_BYTES_MAX:
            self._kill_for(pipe, f"was killed because it left {len(pipe.outbox):,} bytes unread")
            return
        self._unsent.add(n)

    def flush(self) -> None:
        unsent, self._unsent = self._unsent, set()
        for n in unsent:
            if pipe := self._pipes.get(n):
                self._flush(pipe)

    def recall(self, n: int) -> None:
        """Closes the worker's gate, and reads everything that the worker sent before. The next
        Recall frame to the worker opens the gate.
        """
        if (pipe := self._pipes.get(n)) is None or (board := pipe.child.board) is None:
            return
        board.recall()
        entered, said, on_cpu = board.entered, board.end, board.last_on_cpu()
        # Bytes that left the board are in the pipe: the worker removes them from the board only
        # after all of them were sent.
        for _ in range(LOOKS_MAX):
            if pipe.hearing.known >= said or pipe.cause is not None:
                break
            self._read(n)
            pipe.hearing.look()
        else:
            self._kill_for(pipe, "was killed because its board says more than it has sent")
        known = on_cpu is not None and on_cpu.message_id == entered
        self._handle(events.Recalled(n, entered, on_cpu.position if known and on_cpu else None))

    def dump(self, n: int) -> None:
        """Requests the stacks of all threads of the worker. They are reported with its Exited."""
        if pipe := self._pipes.get(n):
            pipe.stacks = Stacks(time.monotonic() + STACKS_WITHIN_S)
            pipe.child.dump()

    def kill(self, n: int, force: bool) -> None:
        if pipe := self._pipes.get(n):
            pipe.killed |= force
            if not force and _idle(pipe.child):
                # The worker exits normally. One that does not is killed with `force` soon after.
                with suppress(OSError):
                    pipe.child.sock.shutdown(socket.SHUT_WR)
            else:
                pipe.child.kill(force)

    def stand_still(self, still: bool) -> None:
        """If `still`, stops (SIGSTOP) all workers and the processes that they have started.
        Otherwise continues them.
        """
        for pipe in self._pipes.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pipe.child.pid, signal.SIGSTOP if still else signal.SIGCONT)

    def pids(self) -> set[int]:
        """Returns the pids of the workers whose exit is not yet reported."""
        return {pipe.child.pid for pipe in self._pipes.values()}

    def look_around(self) -> None:
        """Reads the kernel's count of out-of-memory kills, so that older kills do not explain a
        later death. The loop calls this regularly.
        """
        self._oom.look()

    def listen(self, listens: bool) -> None:
        """Sets whether frames are read. While they are not, workers that send frames have to wait."""
        if listens != self._listens:
            self._listens = listens
            for pipe in self._pipes.values():
                self._watch_pipe(pipe)

    def next_timer(self) -> float | None:
        """Returns when `go_on` is due, in monotonic seconds."""
        return min((p.rests_until for p in self._pipes.values() if p.rests_until is not None), default=None)

    def go_on(self, now: float) -> None:
        """Continues to read the output of workers that had used up their share of the loop's time."""
        for n, pipe in self._pipes.items():
            if pipe.rests_until is not None and now >= pipe.rests_until:
                pipe.rests_until = None
                self._watch_output(n, pipe)

    def close(self) -> None:
        """Closes all pipes. An idle worker then exits by itself, after its last output."""
        deadline = time.monotonic() + GOODBYE_S
        for pipe in self._pipes.values():
            with suppress(OSError):
                pipe.child.sock.shutdown(socket.SHUT_WR)
        for n, pipe in self._pipes.items():
            while time.monotonic() < deadline and not select.select([pipe.child.pidfd], [], [], 0.01)[0]:
                self._read_output(n)
            pipe.child.kill(force=True)
        deadline = time.monotonic() + REAP_S
        for n, pipe in self._pipes.items():
            # With a limit, because a process that hangs in the kernel, as on a dead network drive,
            # does not die before the kernel releases it.
            if select.select([pipe.child.pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                pipe.child.reap()
            self._drain_output(n, pipe)
            pipe.child.close()

    def _serve(self, n: int) -> None:
        """Reads from or writes to the worker's pipe, which is ready for that."""
        if self._listens:
            self._read(n)
        elif (pipe := self._pipes.get(n)) and pipe.outbox:
            self._flush(pipe)

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
            # The worker has closed its end. Only the pidfd says whether it is dead.
            pipe.ended_at = pipe.ended_at or time.monotonic()
            self._forget(pipe.child.sock.fileno())
        elif data:
            pipe.hearing.come(data)
        if pipe.outbox:
            self._flush(pipe)

    def look_at_boards(
        self, is_known: Callable[[int, OnBoard], bool], is_there: Callable[[int, int], bool]
    ) -> None:
        """Reads from each board the frames that the worker has not sent yet, and which run has the
        CPU, unless the core knows that. Also shows unfinished lines that have waited for a while,
        and kills workers that have closed their pipe. The loop calls this regularly.
        """
        now = time.monotonic()
        for n, pipe in list(self._pipes.items()):
            self._show_lines(n, pipe, pipe.lines.overdue(now), now)
            if pipe.ended_at is not None and now - pipe.ended_at > MUTE_S and pipe.cause is None:
                self._kill_for(pipe, "was killed because it closed its pipe to the supervisor")
            if not self._listens:
                continue
            pipe.hearing.look()
            pipe.hearing.look_who_runs(partial(is_known, n))
            if pipe.child.board is not None and not is_there(n, entered := pipe.child.board.entered):
                self._handle(events.Inside(n, entered))

    def _distrust(self, n: int, why: str) -> None:
        pipe = self._pipes[n]
        if pipe.cause is None:
            self._kill_for(pipe, f"was killed for what it sent: {why[:CAUSE_LENGTH_MAX]}")
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
            # The worker is dying, as the pidfd will show.
            pipe.outbox.clear()
        self._watch_pipe(pipe)

    def _watch_pipe(self, pipe: _Pipe) -> None:
        """Registers the pipe at the selector for the operations that are needed now."""
        sock = pipe.child.sock
        wanted = 0
        if pipe.ended_at is None and not pipe.hearing.distrusted:
            wanted |= selectors.EVENT_READ if self._listens else 0
            wanted |= selectors.EVENT_WRITE if pipe.outbox else 0
        n = pipe.child.worker
        try:
            watched = self._selector.get_key(sock).events
        except KeyError:
            watched = 0
        if watched and not wanted:
            self._forget(sock.fileno())
        elif wanted and not watched:
            self._selector.register(sock, wanted, lambda: self._serve(n))
        elif wanted != watched:
            self._selector.modify(sock, wanted, self._selector.get_key(sock).data)

    def _watch_output(self, n: int, pipe: _Pipe) -> None:
        if not pipe.output_ended:
            self._selector.register(pipe.child.output_fd, selectors.EVENT_READ, lambda: self._read_output(n))

    def _read_output(self, n: int) -> None:
        """Reads a worker's output until its share of the loop's time is used up. A worker that
        prints more has to wait.
        """
        if (pipe := self._pipes.get(n)) is None:
            return
        began = time.monotonic()
        holder, there = self._look_at_output(pipe)
        try:
            data = os.read(pipe.child.output_fd, max(1, min(there, OUTPUT_BYTES)))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            pipe.output_ended = True
            self._forget(pipe.child.output_fd)
            return
        self._show_lines(n, pipe, pipe.lines.feed(data, began), began, holder)
        took_s = time.monotonic() - began
        if took_s > OUTPUT_FREE_S:
            pipe.rests_until = began + took_s / OUTPUT_SHARE
            self._forget(pipe.child.output_fd)

    def _look_at_output(self, pipe: _Pipe) -> tuple[int | None, int]:
        """Returns the run that has the CPU, and how many bytes of the output pipe can only be from
        this run. Bytes of the run before are followed by a mark, because the worker writes the mark
        before its board names the next run.
        """
        holder, there = self._holder(pipe), 0
        for _ in range(ENTRY_LOOKS_MAX):
            there = _readable_bytes(pipe.child.output_fd)
            before, holder = holder, self._holder(pipe)
            if holder == before:
                break
        return holder, there

    def _drain_output(self, n: int, pipe: _Pipe) -> None:
        """Reads the remaining output of a dead worker. Other processes may hold the other end of
        the pipe and continue to write.
        """
        now = time.monotonic()
        left = _readable_bytes(pipe.child.output_fd)
        with suppress(OSError):
            while left > 0 and (data := os.read(pipe.child.output_fd, min(left, OUTPUT_BYTES))):
                left -= len(data)
                self._show_lines(n, pipe, pipe.lines.feed(data, now), now)
        self._show_lines(n, pipe, pipe.lines.rest(), now)

    def _show_lines(
        self, n: int, pipe: _Pipe, lines: list[Line], now: float, holder: int | None = None
    ) -> None:
        if not lines:
            return
        if holder is None:
            holder = self._holder(pipe)
        for run, text, raw in lines:
            if raw and pipe.stacks is not None and pipe.stacks.take(text, now):
                continue
            of = next((r for r in (run, holder if raw else None) if pipe.hearing.credit.knows(r)), None)
            self._show(n, of, text, of is not None and pipe.hearing.credit.is_message(of))

    def _holder(self, pipe: _Pipe) -> int | None:
        """Returns the run that has the CPU or had it last. A line without a tag, for example of a
        subprocess, is shown as a line of this run.
        """
        running = pipe.child.board and pipe.child.board.last_on_cpu()
        return running.message_id if running else None

    def _bury(self, n: int) -> None:
        """Handles the death of a worker: reads everything that it sent, then reports how it
        ended.
        """
        pipe = self._pipes[n]
        child = pipe.child
        name, code, cpu_s, rss = child.reap()
        left = max(1, _readable_bytes(child.sock.fileno()))
        with suppress(OSError):
            while left > 0 and (data := child.sock.recv(READ_BYTES)):
                left -= len(data)
                pipe.hearing.come(data)
        oom = name == "SIGKILL" and not pipe.killed and self._oom.took()
        # SIGKILL and SIGTERM come from outside or from this supervisor.
        pipe.hearing.last_words(oom or name not in ("SIGKILL", "SIGTERM"), child.kind == "async")
        self._drain_output(n, pipe)
        for fd in (child.sock.fileno(), child.output_fd, child.pidfd):
            self._forget(fd)
        child.close()
        del self._pipes[n]
        stacks = pipe.stacks.text if pipe.stacks else None
        self._handle(events.Exited(n, name, code, cpu_s, rss, oom, pipe.cause, stacks))

    def _forget(self, fd: int) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(fd)


CAUSE_LENGTH_MAX = 300


def _readable_bytes(fd: int) -> int:
    found = array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, found)
    except OSError:
        return 0
    return min(found[0], LAST_BYTES_MAX)


def _idle(child: Child) -> bool:
    """Whether the worker is known to execute nothing."""
    running = None if child.board is None else child.board.on_cpu()
    return running is not None and not running.message_id
