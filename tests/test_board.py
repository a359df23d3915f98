"""The page that a worker shares: what is read of it at any moment is what was written, or nothing."""

import os
import random
import socket

import msgspec
import pytest

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Step
from supervisors import wire
from supervisors.worker import board, journal
from supervisors.worker.board import Board, BoardReader, OnBoard
from supervisors.worker.journal import Outbox

pytestmark = pytest.mark.skipif(board.new_board() is None, reason="no boards on this machine")


@pytest.fixture
def both():
    fd = board.new_board()
    reader = BoardReader(os.dup(fd))
    yield Board(fd), reader
    reader.close()


def test_what_is_unsent_is_read_from_where_the_pipe_left_off(both):
    writer, reader = both
    writer.put(b"one")
    writer.put(b"two")
    assert [reader.unsent(n) for n in range(7)] == [b"onetwo", b"netwo", b"etwo", b"two", b"wo", b"o", b""]
    sent = []
    writer.send(lambda frames: sent.append(bytes(frames)))
    assert sent == [b"onetwo"]
    assert (reader.unsent(0), reader.unsent(6)) == (b"", b"")
    writer.put(b"three")
    assert (reader.unsent(5), reader.unsent(6), reader.unsent(8)) == (b"", b"three", b"ree")


def test_who_dies_while_it_sends_leaves_the_rest(both):
    writer, reader = both
    writer.put(b"onetwo")
    with pytest.raises(KeyboardInterrupt):
        writer.send(interrupted)
    assert reader.unsent(2) == b"etwo"


def test_a_sandbox_that_allows_no_shared_page_has_no_boards(monkeypatch):
    def refused(name, flags):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert board.new_board() is None


def interrupted(frames):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "says",
    [
        lambda outbox: outbox.begins(8, 1),
        lambda outbox: outbox.tells(wire.Started(8, 1)),
        lambda outbox: outbox.add(wire.Idle()),
        lambda outbox: outbox.flush(),
    ],
    ids=["begins", "tells", "add", "flush"],
)
def test_a_child_that_user_code_forked_says_nothing_in_its_parents_name(both, says):
    writer, reader = both
    ours, theirs = socket.socketpair()
    outbox = Outbox(theirs, writer)
    outbox.begins(7, 1)
    outbox.add(wire.Left(7))
    unsent = reader.unsent(0)
    if (child := os.fork()) == 0:
        try:
            says(outbox)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 70
    assert (reader.on_cpu(), reader.unsent(0)) == (OnBoard(7, 1, 0, None), unsent)
    theirs.close()
    assert ours.recv(100) == b""
    ours.close()


def test_what_is_too_large_goes_past_it(both):
    writer, reader = both
    assert not writer.has_room(board.FRAMES_BYTES_MAX + 1)
    writer.passed(100_000)
    assert reader.unsent(50_000) == reader.unsent(100_000) == b""
    writer.put(b"x")
    assert (reader.unsent(99_999), reader.unsent(100_000)) == (b"", b"x")


def test_who_has_the_cpu(both):
    writer, reader = both
    assert reader.on_cpu() is None
    writer.on_cpu(7, 2, 3, "päng#2")
    assert reader.on_cpu() == OnBoard(7, 2, 3, "päng#2")
    writer.on_cpu(8, 1)
    assert reader.on_cpu() == OnBoard(8, 1, 0, None)
    writer.on_cpu(9, 1, 0, "\N{PARTY POPPER}" * 255)
    assert reader.on_cpu() == OnBoard(9, 1, 0, "\N{PARTY POPPER}" * 255)
    writer.on_cpu(0)
    writer.on_cpu(0)
    assert reader.on_cpu() == OnBoard(0, 0, 0, None)
    assert reader.last_on_cpu().message_id == 9


def test_who_was_last_on_the_cpu_is_told_while_that_changes(monkeypatch):
    """A subprocess's line is read at any moment; it must not lose its run because the worker is just becoming idle."""
    fd = board.new_board()
    reader = BoardReader(os.dup(fd))
    writer = Board(fd)
    writer.on_cpu(9, 1)
    entry = reader._entry

    def changing(turn):
        found = entry(turn)
        writer.on_cpu(0)
        return found

    monkeypatch.setattr(reader, "_entry", changing)
    assert reader.last_on_cpu().message_id == 9


def test_nobody_was_on_the_cpu_before_the_first():
    fd = board.new_board()
    assert BoardReader(os.dup(fd)).last_on_cpu() is None
    os.close(fd)


def test_the_stream_is_whole_whichever_way_its_bytes_come():
    """As `Pipes` reads it: some through the socket, some from the board and again through the socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    fd = board.new_board()
    reader = BoardReader(os.dup(fd))
    outbox = Outbox(theirs, Board(fd))
    rng = random.Random(7)
    parser = wire.Parser("supervisor")
    received = known = 0
    frames = []

    def read_pipe():
        nonlocal received, known
        try:
            data = ours.recv(rng.choice([10, 1000, 1 << 20]))
        except BlockingIOError:
            return
        received += len(data)
        if (new := received - known) > 0:
            known = received
            frames.extend(parser.feed(data[-new:]))

    said = []
    for n in range(1, 3001):
        size = rng.choice([1, 10, 100, 30_000, 70_000]) if n % 50 == 0 else rng.randrange(50)
        said.append(wire.Finished(n, 1, b"x" * size))
        outbox.add(said[-1])
        if rng.random() < 0.1:
            outbox.flush()
        if rng.random() < 0.2:
            unsent = reader.unsent(known)
            known += len(unsent)
            frames.extend(parser.feed(unsent))
        for _ in range(rng.choice([0, 1, 3])):
            read_pipe()
    outbox.flush()
    while received < known or len(frames) < len(said):
        read_pipe()
    assert frames == said
    reader.close()
    ours.close()
    theirs.close()


def test_what_comes_after_a_full_board_was_sent_waits_from_then_on():
    """And not from when the frames came that filled the board."""
    now = [100.0]
    clocks = msgspec.structs.replace(journal.CLOCKS, now_s=lambda: now[0])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = board.new_board()
        outbox = Outbox(theirs, Board(os.dup(fd)), clocks)
        reader = BoardReader(fd)
        large = wire.Finished(1, 1, b"1" * (board.FRAMES_BYTES_MAX // 2))
        outbox.add(large)
        now[0] += journal.HOLD_S * 1.1
        outbox.add(large)
        known = len(ours.recv(board.FRAMES_BYTES_MAX))
        assert known, "the first was sent to make room"
        outbox.begins(2, 1)
        assert reader.unsent(known), "the second waits for company"
        now[0] += journal.HOLD_S * 1.1
        outbox.begins(2, 1)
        assert reader.unsent(known) == b""
        reader.close()


@pytest.mark.parametrize("takes_s", [None, 0.001, 2 * journal.HOLD_S], ids=["unknown", "short", "long"])
def test_a_frame_waits_for_company_only_beside_a_step_that_was_short(takes_s):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = board.new_board()
        outbox, reader = Outbox(theirs, Board(os.dup(fd))), BoardReader(fd)
        outbox.begins(1, 1, 0, "short", "short")
        if takes_s is not None:
            step = Step(0, "short", WorkflowStatus.Success, b"1", seconds=takes_s)
            outbox.ended(wire.Checkpoint(1, 1, step), "short")
        outbox.add(wire.Idle())
        outbox.begins(1, 1, 1, "short#2", "short")
        assert bool(reader.unsent(0)) == (takes_s == 0.001)
        reader.close()
