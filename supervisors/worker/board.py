"""The board: memory that a worker shares with its supervisor beside the pipe, and that outlives the
worker.

A tiny step costs less than a system call. So a worker with such steps collects its frames and sends
many at once. Until then the frames are on the board, so a finished step is not lost with its
worker. The board also says which run has the CPU, so that no frame is needed for that. The
supervisor reads this entry several times a second, and charges the run with the death of the
worker.

The board is also a gate. Before a worker enters a run's code, to begin or to continue it, the
worker writes the run's id (ENTERED) and then reads how often the supervisor has recalled runs
(RECALLS). If the worker has not yet read as many Recall frames from its pipe, it enters no run
until it has. To recall runs, the supervisor increments RECALLS and then reads ENTERED. Every other
run of the worker then belongs to the supervisor, however long the worker stays in its code
(decision 15). Each side writes before it reads, with a full barrier in between, so that at least
one side sees what the other side wrote.

Every number is written by one store of eight bytes. The last store makes the others valid. On x86,
other processes see the stores in this order. On other machines there is no board, and each frame is
sent at once.
"""

import _thread
import fcntl
import mmap
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from struct import Struct as Packed

from msgspec import Struct

from pgqrs.model.bounds import NAME_CHARS_MAX
from supervisors.worker.output import has_cpu

SIZE = 64 * 1024
NAME_BYTES_MAX = 4 * NAME_CHARS_MAX

# The frames are a stream. The board holds the bytes from START to END; START moves once they are in
# the pipe. These are the indexes of the numbers, of eight bytes each.
_START, _END, _TURN = 0, 1, 2
_ENTERED, _RECALLS = 3, 4
# Two entries. TURN says which one is valid.
_ENTRIES, _ENTRY_BYTES = 64, 2016
_FRAMES = 4096
FRAMES_BYTES_MAX = SIZE - _FRAMES

# The most reads of an entry that changes during the read. An entry that is overwritten without end
# changes always.
ENTRY_LOOKS_MAX = 100

# Message id, claim number, position, length of the step's name. Length -1: the function's own code.
_ENTRY = Packed("<qqqq")


def new_board() -> int | None:
    """Returns a descriptor to share, or None if this machine has no boards."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        fd = os.memfd_create("pgqrs-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        # A sandbox may not know or allow memfd_create.
        return None
    os.ftruncate(fd, SIZE)
    # Nobody may make the board smaller, because a process that reads a page that was cut off is
    # killed (SIGBUS).
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _numbers(memory: mmap.mmap) -> "memoryview[int]":
    """Returns the numbers at the beginning of the memory. An assignment to an item is one
    instruction. `struct.pack_into` would clear the bytes first, which another process may see.
    """
    return memoryview(memory)[: 8 * (_RECALLS + 1)].cast("Q")


class _Barrier:
    """A full memory barrier. Everything written before `cross` is visible to other processes before
    anything after `cross` is read. Taking a lock executes a locked instruction, which on x86 is a
    full barrier.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()

    def cross(self) -> None:
        self._lock.acquire()
        self._lock.release()


class OnBoard(Struct, frozen=True):
    """An entry of the board. Message 0: no run has the CPU."""

    message_id: int
    claim_no: int
    position: int
    # None: the function's own code.
    step: str | None


class Board:
    """The worker's side of the board. The constructor closes the descriptor."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        self._numbers = _numbers(self._memory)
        os.close(fd)
        self._start = self._end = self._turn = 0
        self._is_idle = False
        # The last message that had the CPU.
        self._last = 0
        self._barrier = _Barrier()
        self.recalls_heard = 0

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()

    @property
    def unsent(self) -> int:
        """The number of bytes that are not sent yet."""
        return self._end - self._start

    def has_room(self, count: int) -> bool:
        return self.unsent + count <= FRAMES_BYTES_MAX

    def put(self, frame: bytes) -> bool:
        """Adds a frame. Returns False if the board has no room for it."""
        length, unsent = len(frame), self._end - self._start
        if unsent + length > FRAMES_BYTES_MAX:
            return False
        at = _FRAMES + unsent
        self._memory[at : at + length] = frame
        self._end += length
        self._numbers[_END] = self._end
        return True

    def send(self, send: Callable[[memoryview], object]) -> None:
        """Sends all bytes that are not sent yet. If the worker dies meanwhile, some bytes are on
        the board and in the pipe. The reader recognizes them by their position in the stream.
        """
        with memoryview(self._memory) as memory, memory[_FRAMES : _FRAMES + self.unsent] as frames:
            send(frames)
        self._start = self._end
        self._numbers[_START] = self._start

    def passed(self, count: int) -> None:
        """Counts bytes of the stream that were sent without the board. Call it only when everything
        on the board has been sent.
        """
        self._start = self._end = self._end + count
        # START is written first: in between, a reader finds a negative length, and never bytes that
        # nobody wrote.
        self._numbers[_START] = self._start
        self._numbers[_END] = self._end

    def enter(self, message_id: int) -> bool:
        """Records that the worker enters a run's code. Returns False if the worker must not do so
        yet: a Recall is in its pipe, or will be soon.
        """
        self._numbers[_ENTERED] = message_id
        self._barrier.cross()
        return self._numbers[_RECALLS] == self.recalls_heard

    def leave(self) -> None:
        """Records that the worker is in no run's code."""
        self._numbers[_ENTERED] = 0

    def on_cpu(self, message_id: int, claim_no: int = 0, position: int = 0, step: str | None = None) -> None:
        """Writes which run has the CPU. Message 0: no run. The previous entry stays readable then."""
        if not message_id and self._is_idle:
            return
        self._is_idle = not message_id
        if message_id and message_id != self._last:
            self._last = message_id
            has_cpu(message_id)
        turn = self._turn + 1
        at = _ENTRIES + (turn & 1) * _ENTRY_BYTES
        if step is None:
            _ENTRY.pack_into(self._memory, at, message_id, claim_no, position, -1)
        else:
            name = step.encode()[:NAME_BYTES_MAX]
            _ENTRY.pack_into(self._memory, at, message_id, claim_no, position, len(name))
            at += _ENTRY.size
            self._memory[at : at + len(name)] = name
        self._turn = turn
        self._numbers[_TURN] = turn


class BoardReader:
    """The supervisor's side of the board, safe at any moment of the worker's life. The constructor
    closes the descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        self._numbers = _numbers(self._memory)
        os.close(fd)
        self._barrier = _Barrier()
        self._recalls = 0

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()

    def recall(self) -> None:
        """Closes the gate: until the worker reads a Recall, it enters no run other than the one
        that it is in (`entered`).
        """
        self._recalls += 1
        self._numbers[_RECALLS] = self._recalls
        self._barrier.cross()

    @property
    def entered(self) -> int:
        """Returns the id of the message whose run the worker is in, or was in last. 0: none."""
        return self._number(_ENTERED)

    @property
    def end(self) -> int:
        """Returns how many bytes the worker has written so far, into the pipe and on the board."""
        return self._number(_END)

    def unsent(self, known: int) -> bytes:
        """Returns the bytes on the board that follow the first `known` bytes of the stream. The
        result is empty while the worker is sending.
        """
        start = self._number(_START)
        end = self._number(_END)
        if not start <= known < end or end - start > FRAMES_BYTES_MAX:
            return b""
        found = self._memory[_FRAMES + known - start : _FRAMES + end - start]
        return found if self._number(_START) == start else b""

    def on_cpu(self) -> OnBoard | None:
        """Returns the current entry. None if none was written yet, or if it changed during the
        read.
        """
        turn = self._number(_TURN)
        entry = self._entry(turn)
        return entry if turn and self._number(_TURN) == turn else None

    def last_on_cpu(self) -> OnBoard | None:
        """Returns the entry of the run that has the CPU or had it last. None before the first
        entry.
        """
        for _ in range(ENTRY_LOOKS_MAX):
            if not (turn := self._number(_TURN)):
                break
            running = self._entry(turn)
            if not running.message_id and turn > 1:
                running = self._entry(turn - 1)
            if self._number(_TURN) == turn:
                return running
        return None

    def _entry(self, turn: int) -> OnBoard:
        at = _ENTRIES + (turn & 1) * _ENTRY_BYTES
        message_id, claim_no, position, length = _ENTRY.unpack_from(self._memory, at)
        at += _ENTRY.size
        name = self._memory[at : at + max(0, min(length, NAME_BYTES_MAX))]
        return OnBoard(message_id, claim_no, position, None if length < 0 else name.decode(errors="replace"))

    def _number(self, at: int) -> int:
        return self._numbers[at]
