"""What test_frames.py supervises: workers whose last words are cut short, or were never words at all."""

import os
import signal
import struct
from collections.abc import Callable

import pgqrs
from supervisors import wire
from supervisors.worker.board import _FRAMES, Board
from supervisors.worker.journal import Outbox
from tests.crashes.pipeline import note

HEAD = struct.Struct("!IB")

GARBAGE = {
    "noise": bytes(range(256)),
    "another version": HEAD.pack(3, 9) + b"xx",
    "no end of a length": HEAD.pack(2**32 - 1, wire.VERSION),
    "no length": HEAD.pack(0, wire.VERSION),
    "not msgpack": HEAD.pack(3, wire.VERSION) + b"\xc1\xc1",
    "not of this protocol": HEAD.pack(5, wire.VERSION) + b"\x93\x01\x02\x03",
    "what only a supervisor says": wire.encode(wire.Drain(at_boundary=True)),
}


class Cut:
    """Bytes that this process may still send before it dies; None: as many as it likes."""

    after: int | None = None
    told = ""  # where to write down how many checkpoints were sent whole


def send(self: Board, send: Callable[[memoryview], object]) -> None:
    """Stands in for Board.send: all that is on the board outlives the worker, however much of it is in the pipe."""
    frames = self._memory[_FRAMES : _FRAMES + self.unsent]
    if Cut.after is not None and len(frames) > Cut.after:
        send(memoryview(frames)[: Cut.after])
        die(frames.count(b"Checkpoint"))
    if Cut.after is not None:
        tell(frames.count(b"Checkpoint"))
        Cut.after = None if b"Finished" in frames else Cut.after - len(frames)
    whole_send(self, send)


def flush(self: Outbox) -> None:
    """Stands in for Outbox.flush of a worker without a board."""
    if self._board is not None:
        whole_flush(self)
        return
    frames, self._frames = self._frames, []
    data = b"".join(frames)
    if Cut.after is not None and len(data) > Cut.after:
        self._sock.sendall(data[: Cut.after])
        die(whole(frames, Cut.after))
    if Cut.after is not None:
        tell(whole(frames, len(data)))
        Cut.after = None if any(b"Finished" in frame for frame in frames) else Cut.after - len(data)
    if data:
        self._sock.sendall(data)


def whole(frames: list[bytes], sent: int) -> int:
    """Checkpoints among these frames that are in the first bytes with all of theirs."""
    count = 0
    for frame in frames:
        sent -= len(frame)
        count += sent >= 0 and b"Checkpoint" in frame
    return count


def tell(checkpoints: int) -> None:
    with open(Cut.told, "a") as file:
        file.write("." * checkpoints)


def die(checkpoints: int) -> None:
    tell(checkpoints)
    open(Cut.told + ".died", "x").close()
    os.kill(os.getpid(), signal.SIGKILL)


whole_send, whole_flush = Board.send, Outbox.flush
Board.send, Outbox.flush = send, flush  # type: ignore[method-assign]


@pgqrs.step
def begin(evidence: str, after: int) -> str:
    Cut.after, Cut.told = (after if note(evidence) == 1 else None), evidence + ".sent"
    return "begun"


@pgqrs.step
def go_on(evidence: str) -> str:
    note(evidence)
    return "went on"


@pgqrs.workflow
def torn(evidence: str, after: int) -> list[str]:
    return [begin(evidence, after), go_on(evidence)]


@pgqrs.step
def babble(evidence: str, what: str) -> str:
    if note(evidence) == 1:
        # Its pipe is the one socket that a worker has.
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    os.write(fd, GARBAGE[what])
            except OSError:
                continue
        signal.pause()
    return what


@pgqrs.workflow
def babbling(evidence: str, what: str) -> str:
    go_on(evidence)
    return babble(evidence, what)
