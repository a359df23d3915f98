"""What a worker shares with its supervisor beside the pipe: a page of memory, which outlives it.

A tiny step costs less than a system call, so a worker that runs such steps gathers its frames and sends many at once. Until then
they stand on the board: what a worker has finished is not lost with it. The board also says who has the CPU, which no frame needs
to say then: a death is charged to that, and now and then the supervisor looks who it is.

The board is also a gate. Before a worker goes into a run's code, to begin it or to go on with it, the worker writes the run's id
down (ENTERED) and then reads how often the supervisor has recalled runs (RECALLS). Where the worker has not yet heard of one
recall in its pipe, it goes into nothing before it has. The supervisor counts RECALLS up and then reads ENTERED: every other run
that the worker has is then the supervisor's, however long the worker stays in its code (decision 15). Each side writes before it
reads, with a full barrier between, so that at least one of the two sees what the other wrote.

Every number is written by one store of eight bytes, the one that makes the rest valid last. That order is seen as such by another
process on x86; on other machines there is no board, and each frame is sent as it comes.
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

# The frames are a stream, in which the board holds the bytes from START to END; START moves once they are in the pipe.
# Numbers are named by which they are, of eight bytes each.
_START, _END, _TURN = 0, 1, 2
_ENTERED, _RECALLS = 3, 4
_ENTRIES, _ENTRY_BYTES = 64, 2016  # two, of which TURN says which one is valid
_FRAMES = 4096
FRAMES_BYTES_MAX = SIZE - _FRAMES

ENTRY_LOOKS_MAX = (
    100  # at an entry that changes under the reader's eyes, as one does that is scribbled over without an end
)

# Message, claim number, position, length of the step's name; -1: the function's own code.
_ENTRY = Packed("<qqqq")


def new_board() -> int | None:
    """A descriptor to be shared, None where there are no boards."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        fd = os.memfd_create("pgqrs-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:  # a sandbox that does not know or allow it
        return None
    os.ftruncate(fd, SIZE)
    # Whoever reads a page that was cut off is killed (SIGBUS): nobody may make the board smaller.
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _numbers(memory: mmap.mmap) -> "memoryview[int]":
    """The numbers at the beginning. An item is stored by one instruction; `struct.pack_into` clears the bytes first, and another
    process may see them so."""
    return memoryview(memory)[: 8 * (_RECALLS + 1)].cast("Q")


class _Barrier:
    """What was written before `cross` is visible to other processes before anything after it is read: taking a lock is a locked
    instruction, which on x86 is a full barrier."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()

    def cross(self) -> None:
        self._lock.acquire()
        self._lock.release()


class OnBoard(Struct, frozen=True):
    """Message 0: nobody has the CPU."""

    message_id: int
    claim_no: int
    position: int
    step: str | None  # None: the function's own code


class Board:
    """The worker's side. Closes the descriptor."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        self._numbers = _numbers(self._memory)
        os.close(fd)
        self._start = self._end = self._turn = 0
        self._is_idle = False
        self._last = 0  # message that had the CPU
        self._barrier = _Barrier()
        self.recalls_heard = 0

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()

    @property
    def unsent(self) -> int:
        """In bytes."""
        return self._end - self._start

    def has_room(self, count: int) -> bool:
        return self.unsent + count <= FRAMES_BYTES_MAX

    def put(self, frame: bytes) -> bool:
        """False where there is no room for it."""
        length, unsent = len(frame), self._end - self._start
        if unsent + length > FRAMES_BYTES_MAX:
            return False
        at = _FRAMES + unsent
        self._memory[at : at + length] = frame
        self._end += length
        self._numbers[_END] = self._end
        return True

    def send(self, send: Callable[[memoryview], object]) -> None:
        """All that is unsent. Who dies in here leaves some in both places, which the reader tells by their place in the stream."""
        with memoryview(self._memory) as memory, memory[_FRAMES : _FRAMES + self.unsent] as frames:
            send(frames)
        self._start = self._end
        self._numbers[_START] = self._start

    def passed(self, count: int) -> None:
        """So many bytes of the stream went another way, with nothing unsent before them."""
        self._start = self._end = self._end + count
        # START first: in between there is less than nothing here, and not what nobody wrote.
        self._numbers[_START] = self._start
        self._numbers[_END] = self._end

    def enter(self, message_id: int) -> bool:
        """The worker goes into this run's code. False where it must not yet: a Recall is in its pipe, or will soon be."""
        self._numbers[_ENTERED] = message_id
        self._barrier.cross()
        return self._numbers[_RECALLS] == self.recalls_heard

    def leave(self) -> None:
        """The worker is in no run's code."""
        self._numbers[_ENTERED] = 0

    def on_cpu(self, message_id: int, claim_no: int = 0, position: int = 0, step: str | None = None) -> None:
        """Message 0: nobody; who it was before then stays to be read."""
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
    """The supervisor's side, safe at any moment of the worker's life. Closes the descriptor."""

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
        """From now on the worker goes into no other run than the one that it is in (`entered`), until it reads a Recall."""
        self._recalls += 1
        self._numbers[_RECALLS] = self._recalls
        self._barrier.cross()

    @property
    def entered(self) -> int:
        """The message whose run the worker is in, or was in last; 0: it is in none."""
        return self._number(_ENTERED)

    @property
    def end(self) -> int:
        """How many bytes the worker has said so far: through the pipe, and here."""
        return self._number(_END)

    def unsent(self, known: int) -> bytes:
        """What follows the first `known` bytes of the stream, as far as it is here. Empty where the worker is just sending."""
        start = self._number(_START)
        end = self._number(_END)
        if not start <= known < end or end - start > FRAMES_BYTES_MAX:
            return b""
        found = self._memory[_FRAMES + known - start : _FRAMES + end - start]
        return found if self._number(_START) == start else b""

    def on_cpu(self) -> OnBoard | None:
        """None where nothing is to be read: not yet, or just now."""
        turn = self._number(_TURN)
        entry = self._entry(turn)
        return entry if turn and self._number(_TURN) == turn else None

    def last_on_cpu(self) -> OnBoard | None:
        """The same, but for nobody who it was before; None only before the first."""
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
