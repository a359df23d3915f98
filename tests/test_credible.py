"""What a worker may say: whatever else comes is refused where it is read, and never reaches the core."""

import math
import os
import random
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgqrs.model.bounds import DURATION_S_MAX, STEPS_MAX
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Place, Step
from supervisors import wire
from supervisors.births.launch import Child
from supervisors.core import events
from supervisors.loop import credible
from supervisors.loop.credible import Credit, is_json
from supervisors.loop.pipes import Pipes
from supervisors.worker import board
from supervisors.worker.board import Board, BoardReader

EXECUTE = wire.Execute(7, 1, "f", "workflow", b"null", 1, ())
SUCCESS, ERROR, PAUSED = WorkflowStatus.Success, WorkflowStatus.Error, WorkflowStatus.Paused
CHECKPOINT = wire.Checkpoint(
    7, 1, Step(0, "step", SUCCESS, b"1", None, 0.1, 0.1, place=Place("", 0, -(2**63)), ended=1)
)

SOUND: tuple[wire.Up, ...] = (
    wire.Ready(1),
    wire.Idle(),
    wire.Returned(()),
    wire.Started(7, 1),
    wire.Started(7, 1, "step", STEPS_MAX, DURATION_S_MAX, 3, 0.0, 2**40),
    CHECKPOINT,
    wire.Checkpoint(
        7, 1, Step(3, "é" * 255 + "#100000", ERROR, None, b'{"message": "x"}', 0.0, 0.0, 2**40, retry_count=5)
    ),
    wire.StepFailed(7, 1, Step(1, "step", ERROR, None, b"{}", 0.1, 0.1, 1, retry_count=1, retry_in_s=60.0)),
    wire.Paused(7, 1, Step(2, "pause", PAUSED, b'"until later\\nor so"')),
    wire.Finished(7, 1, '{"é": "\u2028"}'.encode(), 0.1),
    wire.Failed(7, 1, b"null"),
    wire.Left(7),
    wire.Waiting(7, 1, 8, "work"),
    wire.Returned((7,)),
)


def credit() -> Credit:
    found = Credit()
    found.told(EXECUTE)
    return found


def test_what_a_worker_of_ours_says_is_believed() -> None:
    found = credit()
    for frame in SOUND:
        found.check(next(iter(wire.Parser("supervisor").feed(wire.encode(frame)))))  # type: ignore[arg-type]


BAD_VALUES: dict[str, tuple[object, ...]] = {
    "message_id": (0, -1, 2**63, 2**64 - 1),
    "claim_no": (-1, 2**63),
    "position": (-1, STEPS_MAX + 1, 2**40),
    "name": ("", "x" * 2000, "a\0b", "\ud800"),
    "step": ("", "x" * 2000, "a\0b"),
    "output": (b"", b"{", b"nan", b"1 2", b'"\xff"', b"[" * 100_000, b'"\n"'),
    "error": (b"", b"no json"),
    "seconds": (-1.0, math.nan, math.inf, 1e300),
    "cpu_seconds": (-1.0, math.nan),
    "timeout_s": (math.nan, math.inf, -math.inf, DURATION_S_MAX * 2),
    "retry_in_s": (math.nan, -5.0, 1e18),
    "retry_count": (-1, 2**31),
    "memory_bytes": (-1, 2**63),
    "peak_rss_bytes": (-1, 2**64 - 1),
    "pid": (-1, 2**40),
    "ended": (-1, 2**31),
    "of": (-1, 2**63),
    "workflow": ("a\0b", "x" * (wire.TEXT_LENGTH_MAX + 1)),
    "place": (Place("a\0b", 0), Place("x" * 500, 0), Place("", -1), Place("", 0, 2**63)),
    "message_ids": ((0,), (-7,), tuple(range(1, wire.RETURNED_MAX + 2))),
}


BAD_OF_STEP: dict[str, tuple[object, ...]] = {
    "name": BAD_VALUES["step"],
    "status": ("", "RUNNING", WorkflowStatus.Cancelled, WorkflowStatus.Running),
}
OfStep = wire.Checkpoint | wire.StepFailed | wire.Paused


@pytest.mark.parametrize(
    ("frame", "field", "value"),
    [
        (frame, field, value)
        for frame in SOUND
        for field in frame.__struct_fields__
        if not isinstance(frame, OfStep) or field != "step"
        for value in BAD_VALUES.get(field, ())
    ]
    + [
        (frame, field, value)
        for frame in SOUND
        if isinstance(frame, OfStep)
        for field in Step.__struct_fields__
        for value in (*BAD_VALUES.get(field, ()), *BAD_OF_STEP.get(field, ()))
    ],
    ids=lambda v: (
        type(v).__name__ if isinstance(v, msgspec.Struct) else str(v)[:20] if isinstance(v, str) else ""
    ),
)
def test_no_field_holds_what_no_database_takes(frame: wire.Up, field: str, value: object) -> None:
    with pytest.raises((wire.WireError, UnicodeEncodeError)):
        hear(changed(frame, field, value))


def changed(frame: wire.Up, field: str, value: object) -> wire.Up:
    if not isinstance(frame, OfStep) or field not in Step.__struct_fields__:
        return msgspec.structs.replace(frame, **{field: value})
    return msgspec.structs.replace(frame, step=msgspec.structs.replace(frame.step, **{field: value}))


def hear(frame: wire.Up) -> None:
    """As the supervisor does, which was told of run 7 alone."""
    [heard] = wire.Parser("supervisor").feed(wire.encode(frame))
    credit().check(heard)  # type: ignore[arg-type]


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"]))
       | st.integers(-(2**63), 2**63), lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)))  # fmt: skip
def test_all_that_the_codec_writes_is_json(value: object) -> None:
    assert is_json(msgspec.json.encode(value))


@pytest.mark.parametrize(
    "frame",
    [
        msgspec.structs.replace(CHECKPOINT, message_id=8),
        wire.Started(8, 1),
        wire.Finished(8, 1, b"1"),
        wire.Returned((7, 8)),
    ],
)
def test_of_a_run_that_it_was_never_given_a_worker_says_nothing(frame: wire.Up) -> None:
    with pytest.raises(wire.WireError, match="never given"):
        credit().check(frame)


def test_a_run_that_has_left_may_still_be_spoken_of() -> None:
    """What was sent before the worker heard that the run is another's is of the past, and no lie."""
    found = credit()
    found.check(wire.Finished(7, 1, b"1"))
    found.check(wire.Finished(7, 1, b"1"))
    assert found.knows(7)
    assert not found.knows(8)
    assert not found.knows(None)


def test_what_is_remembered_of_runs_that_left_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credible, "REMEMBERED_MAX", 3)
    found = credit()
    for message_id in range(100, 110):
        found.told(msgspec.structs.replace(EXECUTE, message_id=message_id))
        found.check(wire.Finished(message_id, 1, b"1"))
    assert [n for n in range(100, 110) if found.knows(n)] == [107, 108, 109]
    assert found.knows(7), "it is there still, however many came after it"


@pytest.mark.parametrize("frame", [CHECKPOINT, SOUND[7], SOUND[8]])
def test_a_plain_message_has_no_steps(frame: wire.Up) -> None:
    found = Credit()
    found.told(msgspec.structs.replace(EXECUTE, kind="handler"))
    found.check(wire.Started(7, 1))
    with pytest.raises(wire.WireError, match="no steps"):
        found.check(frame)


def test_no_run_has_more_steps_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credible, "STEPS_MAX", 3)
    found = credit()
    for _ in range(3):
        found.check(CHECKPOINT)
    with pytest.raises(wire.WireError, match="more than 3 steps"):
        found.check(CHECKPOINT)
    found.told(EXECUTE)
    found.check(CHECKPOINT)


@pytest.mark.parametrize("frame", [wire.Idle(), wire.Returned(()), wire.Started(7, 1)])
def test_who_says_nothing_new_without_an_end_is_refused(
    frame: wire.Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credible, "SAYS_NOTHING_MAX", 5)
    found = credit()
    for _ in range(3):
        for _ in range(5):
            found.check(frame)
        found.told(wire.Lease(1.0))
    for _ in range(5):
        found.check(frame)
    with pytest.raises(wire.WireError, match="nothing new"):
        found.check(frame)


@pytest.mark.parametrize("frame", [CHECKPOINT, *SOUND[7:11], SOUND[13]])
def test_what_follows_a_run_s_end_says_nothing_new(frame: wire.Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credible, "SAYS_NOTHING_MAX", 5)
    found = credit()
    found.check(wire.Finished(7, 1, b"1"))
    for _ in range(5):
        found.check(frame)
    with pytest.raises(wire.WireError, match="nothing new"):
        found.check(frame)


def test_it_is_ready_once() -> None:
    found = credit()
    found.check(wire.Ready(1))
    with pytest.raises(wire.WireError, match="ready before"):
        found.check(wire.Ready(1))


def test_the_run_that_it_has_had_longest_is_the_suspect() -> None:
    found = credit()
    found.told(msgspec.structs.replace(EXECUTE, message_id=8, claim_no=3))
    assert found.suspect() == wire.Started(7, 1)
    found.check(wire.Finished(7, 1, b"1"))
    assert found.suspect() == wire.Started(8, 3)
    found.check(wire.Returned((8,)))
    assert found.suspect() is None


# The parser

FRAME_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([type(f).__name__ for f in SOUND] + ["Execute", "Nothing"]),
    st.lists(FRAME_LIKE, max_size=11),
)
@example("Returned", [[-1]])
@example("Started", [7, 1, None, 2**64 - 1])
def test_a_frame_of_any_fields_is_sound_or_refused(tag: str, fields: list[object]) -> None:
    body = msgspec.msgpack.encode([tag, *fields])
    data = (len(body) + 1).to_bytes(4, "big") + bytes([wire.VERSION]) + body
    found = credit()
    try:
        for frame in wire.Parser("supervisor").feed(data):
            found.check(frame)  # type: ignore[arg-type]
    except wire.WireError:
        pass


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_frames_or_refused(data: bytes, cut: int) -> None:
    parser = wire.Parser("supervisor")
    try:
        for piece in (data[:cut], data[cut:]):
            list(parser.feed(piece))
    except wire.WireError:
        pass


def test_a_frame_that_is_nested_without_an_end_is_refused() -> None:
    body = b"\x92\xa8Returned" + b"\x91" * 100_000
    data = (len(body) + 1).to_bytes(4, "big") + bytes([wire.VERSION]) + body
    with pytest.raises(wire.WireError):
        list(wire.Parser("supervisor").feed(data))


# The pipes


class Worker:
    """A real process as far as the supervisor can see, whose ends a test holds."""

    def __init__(self, with_board: bool = True) -> None:
        self.selector = selectors.DefaultSelector()
        self.heard: list[events.Event] = []
        self.shown: list[tuple[int | None, str]] = []
        self.pipes = Pipes(self.selector, self.hear, lambda n, run, text, _: self.shown.append((run, text)))
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        self._process = process
        ours, self.end = socket.socketpair()
        ours.setblocking(False)
        readable, self.output = os.pipe()
        os.set_blocking(readable, False)
        reader = None
        if with_board and (fd := board.new_board()) is not None:
            reader = BoardReader(os.dup(fd))
            self.board = Board(fd)
        pidfd = os.pidfd_open(process.pid)
        self.pipes.adopt(Child(1, process.pid, ours, readable, pidfd, reader))
        self.pipes.send(1, EXECUTE)

    def hear(self, event: events.Event) -> None:
        self.heard.append(event)

    def turn(self, seconds: float = 0.0) -> None:
        for key, _ in self.selector.select(seconds):
            key.data()

    def death(self) -> events.Exited:
        deadline = time.monotonic() + 10
        while not (found := [e for e in self.heard if isinstance(e, events.Exited)]):
            assert time.monotonic() < deadline, "it lives on"
            self.turn(1.0)
            self.pipes.look_at_boards(lambda n, running: False, lambda *_: True)
        return found[0]

    @property
    def is_dead(self) -> bool:
        return any(isinstance(e, events.Exited) for e in self.heard)

    @property
    def received(self) -> list[wire.Up]:
        return [e.frame for e in self.heard if isinstance(e, events.Received)]

    def close(self) -> None:
        self.pipes.close()
        self.selector.close()
        self.end.close()
        os.close(self.output)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


needs_boards = pytest.mark.skipif(board.new_board() is None, reason="no boards on this machine")


@pytest.mark.parametrize(
    "frame",
    [
        wire.Started(8, 1),
        changed(CHECKPOINT, "position", 2**62),
        wire.Finished(7, 1, b"no json"),
    ],
)
def test_a_lie_costs_its_worker_and_is_named(worker: Worker, frame: wire.Up) -> None:
    worker.end.send(wire.encode(CHECKPOINT) + wire.encode(frame) + wire.encode(wire.Finished(7, 1, b"1")))
    death = worker.death()
    assert death.failure is not None
    assert death.failure.startswith("was killed for what it sent: ")
    assert worker.received == [CHECKPOINT], "what came before it counts, what comes after it does not"


def test_a_mistake_in_the_core_costs_one_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def hear(event: events.Event) -> None:
        if isinstance(event, events.Received):
            raise KeyError("a mistake")
        worker.heard.append(event)

    worker.pipes._pipes[1].hearing._handle = hear
    worker.end.send(wire.encode(CHECKPOINT))
    assert "KeyError" in str(worker.death().failure)


def test_a_worker_that_closes_its_pipe_is_killed(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisors.loop.pipes.MUTE_S", 0.1)
    worker.end.close()
    assert "closed its pipe" in str(worker.death().failure)


@needs_boards
def test_what_the_board_showed_must_come_through_the_pipe(worker: Worker) -> None:
    worker.board.put(wire.encode(CHECKPOINT))
    worker.pipes.look_at_boards(lambda n, running: True, lambda *_: True)
    assert worker.received == [CHECKPOINT]
    worker.end.send(wire.encode(wire.Finished(7, 1, b"12345")))
    assert "do not say the same" in str(worker.death().failure)


@needs_boards
@pytest.mark.parametrize("seed", range(20))
def test_a_board_that_is_scribbled_over_costs_its_worker_at_most(worker: Worker, seed: int) -> None:
    chance = random.Random(seed)
    memory = worker.board._memory
    for _ in range(200):
        match chance.randrange(4):
            case 0:
                memory[:] = chance.randbytes(board.SIZE)
            case 1:
                at = 8 * chance.randrange(3)
                memory[at : at + 8] = chance.choice([bytes(8), b"\xff" * 8, chance.randbytes(2) + bytes(6)])
            case 2:
                at = chance.randrange(0, 4096, 8)
                memory[at : at + 8] = chance.randbytes(8)
            case 3:
                worker.board.on_cpu(chance.choice([7, 8]), 1, 2**40, chance.choice([None, "a\0b", "x"]))
        worker.pipes.look_at_boards(lambda n, running: False, lambda *_: True)
        if worker.is_dead:
            break
        os.write(worker.output, b"whose\n")
        worker.turn()
    for frame in worker.received:
        credit().check(frame)
    assert {run for run, _ in worker.shown} <= {7, None}


@needs_boards
def test_who_writes_nonsense_on_the_board_is_charged_all_the_same(worker: Worker) -> None:
    worker.board.on_cpu(99, 1)
    assert "on its board" in str(worker.death().failure)
    assert worker.received == [wire.Started(7, 1)]


@needs_boards
def test_a_death_in_nobody_s_code_is_not_that_of_the_run_before(worker: Worker) -> None:
    worker.board.on_cpu(7, 1)
    worker.board.on_cpu(0)
    os.kill(worker._process.pid, signal.SIGSEGV)
    assert worker.death().signal == "SIGSEGV"
    assert worker.received == [wire.Idle()]


@needs_boards
def test_a_board_that_never_holds_still_holds_nobody_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = worker.pipes._pipes[1].child.board
    assert reader is not None
    turns = iter(range(1, 10**9))
    monkeypatch.setattr(reader, "_number", lambda at: next(turns))
    assert reader.last_on_cpu() is None


@needs_boards
def test_nobody_makes_a_board_smaller() -> None:
    """Whoever reads what was cut off is killed by SIGBUS."""
    fd = board.new_board()
    assert fd is not None
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_what_does_not_read_frames_makes_its_workers_wait(worker: Worker) -> None:
    worker.pipes.listen(False)
    worker.end.send(wire.encode(CHECKPOINT))
    worker.turn()
    assert worker.received == []
    worker.pipes.listen(True)
    worker.turn(5.0)
    assert worker.received == [CHECKPOINT]


# Output


def test_a_tag_of_a_run_that_the_worker_was_never_given_is_not_believed(worker: Worker) -> None:
    os.write(worker.output, b"\x1e7\x1fours\n\x1e8\x1fforged\n\x1e99999999999999999999\x1fmore\n\x1e8!\x1f\n")
    worker.turn(5.0)
    assert worker.shown == [(7, "ours"), (None, "forged"), (None, "\x1e99999999999999999999\x1fmore")]


@pytest.mark.slow
def test_output_without_an_end_leaves_the_loop_most_of_its_time() -> None:
    worker = Worker(with_board=False)
    flood = subprocess.Popen(["yes"], stdout=worker.output)
    try:
        reading_s, looks = 0.0, 0
        began = time.monotonic()
        while (now := time.monotonic()) - began < 2.0:
            worker.pipes.go_on(now)
            timer = worker.pipes.next_timer()
            ready = worker.selector.select(0.1 if timer is None else max(0.0, min(0.1, timer - now)))
            before = time.monotonic()
            for key, _ in ready:
                key.data()
            took_s = time.monotonic() - before
            reading_s += took_s
            looks += 1
        assert looks > 5, "and it is read still"
        assert reading_s < 0.5 * 2.0
        assert {text for _, text in worker.shown} == {"y"}
    finally:
        flood.kill()
        flood.wait()
        worker.close()


def test_of_a_dead_worker_that_much_is_read_as_there_was() -> None:
    """A process that it left behind may write to its output and its pipe for ever."""
    worker = Worker(with_board=False)
    floods = [
        subprocess.Popen(["yes"], stdout=worker.output),
        subprocess.Popen(["yes"], stdout=worker.end.fileno()),
    ]
    try:
        worker._process.kill()
        began = time.monotonic()
        worker.death()
        assert time.monotonic() - began < 5.0
    finally:
        for flood in floods:
            flood.kill()
            flood.wait()
        worker.close()
