"""What crosses the pipe: every frame comes through whole, however the bytes are cut, and nothing else does."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Place, RecordedStep, Step
from supervisors import wire

SUCCESS, ERROR, PAUSED = WorkflowStatus.Success, WorkflowStatus.Error, WorkflowStatus.Paused

STEPS = (
    RecordedStep("a", 0, "SUCCESS", b'{"x": 1}', None, 0),
    RecordedStep("é#2", 1, "RETRY", None, b'"\xf0\x9f\x8e\x89"', 3),
)
DOWN = [
    wire.Execute(1, 2, "flow", "workflow", b'{"input": 1}', 3, STEPS),
    wire.Execute(2**62, 1, "plain", "handler", b"", 1, ()),
    wire.History(1, STEPS),
    wire.Committed(((1, 2), (3, 4))),
    wire.Revoke(4),
    wire.Recall(((1, 2), (3, 4))),
    wire.Recall(()),
    wire.Cancel(1, 2),
    wire.WaitRefused(1, 2, "for ever"),
    wire.Drain(True),
    wire.Drain(False),
    wire.Lease(12345.5),
    wire.Welcome("0123abcd"),
]
UP = [
    wire.Ready(4711),
    wire.Started(1, 2),
    wire.Started(1, 2, "step", 7, 600.0, 1, 2.5),
    wire.Checkpoint(1, 2, Step(0, "a", SUCCESS, b"1", None, 0.25, 0.125)),
    wire.Checkpoint(1, 2, Step(0, "a", ERROR, None, b'{"message": "no"}', 0.25, 0.125, retry_count=2)),
    wire.StepFailed(1, 2, Step(0, "a", ERROR, None, b"1", 0.5, retry_count=1, retry_in_s=60.0)),
    wire.Paused(1, 2, Step(3, "pause", PAUSED, b'"lunch"')),
    wire.Paused(1, 2, Step(3, "pause#2", PAUSED, b'""', retry_in_s=60.0, place=Place("", 1), ended=4)),
    wire.Finished(1, 2, b"null"),
    wire.Failed(1, 2, b"{}"),
    wire.Returned((1, 2, 3)),
    wire.Returned(()),
    wire.Waiting(1, 2, 3, "flow", True),
    wire.Waiting(1, 2),
    wire.Left(1),
    wire.Idle(),
]
SIDES = {"worker": DOWN, "supervisor": UP}


def parse(side, *chunks):
    parser = wire.Parser(side)
    return [frame for chunk in chunks for frame in parser.feed(chunk)]


def frame_of(body, version=wire.VERSION, length=None):
    return struct.pack("!IB", len(body) + 1 if length is None else length, version) + body


@pytest.mark.parametrize(("side", "frame"), [(s, f) for s, fs in SIDES.items() for f in fs], ids=repr)
def test_a_frame_comes_through_as_it_was(side, frame):
    assert parse(side, wire.encode(frame)) == [frame]


def test_every_kind_of_frame_is_tried_here():
    for union, frames in ((wire.Down, DOWN), (wire.Up, UP)):
        assert {type(f) for f in frames} == set(union.__args__)


@pytest.mark.parametrize("side", SIDES)
@given(data=st.data())
def test_wherever_the_stream_is_cut_the_frames_are_the_same(side, data):
    frames = data.draw(st.lists(st.sampled_from(SIDES[side]), max_size=12))
    stream = b"".join(map(wire.encode, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(side, *chunks) == frames


def test_byte_by_byte_is_a_way_to_cut_it():
    stream = b"".join(map(wire.encode, UP))
    assert parse("supervisor", *(stream[i : i + 1] for i in range(len(stream)))) == UP


@given(st.data())
def test_a_stream_that_breaks_off_leaves_its_whole_frames_and_is_torn(data):
    frames = data.draw(st.lists(st.sampled_from(UP), min_size=1, max_size=5))
    encoded = [wire.encode(f) for f in frames]
    stream = b"".join(encoded)
    cut = data.draw(st.integers(0, len(stream)))
    ends = [sum(map(len, encoded[: i + 1])) for i in range(len(encoded))]
    parser = wire.Parser("supervisor")
    assert list(parser.feed(stream[:cut])) == frames[: sum(e <= cut for e in ends)]
    assert parser.torn == (cut not in [0, *ends])


@pytest.mark.parametrize("side", SIDES)
@given(junk=st.binary(max_size=200))
def test_garbage_is_a_wire_error_and_nothing_else(side, junk):
    try:
        parse(side, junk)
    except wire.WireError:
        pass


@pytest.mark.parametrize("side", SIDES)
@given(body=st.binary(min_size=1, max_size=100))
def test_a_well_framed_garbage_is_a_wire_error_and_nothing_else(side, body):
    try:
        parse(side, frame_of(body))
    except wire.WireError:
        pass


@given(data=st.data())
def test_a_frame_with_a_wrong_byte_is_a_frame_or_a_wire_error(data):
    side = data.draw(st.sampled_from(list(SIDES)))
    raw = bytearray(wire.encode(data.draw(st.sampled_from(SIDES[side]))))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        parse(side, bytes(raw))
    except wire.WireError:
        pass


def test_another_version_is_refused():
    body = wire.encode(wire.Idle())[5:]
    assert parse("supervisor", frame_of(body)) == [wire.Idle()]
    with pytest.raises(wire.WireError, match="version 2"):
        parse("supervisor", frame_of(body, version=2))


@pytest.mark.parametrize("length", [0, 1, wire.FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_at_once(length):
    with pytest.raises(wire.WireError, match="not a frame"):
        parse("worker", frame_of(b"", length=length))


def test_a_frame_of_the_other_direction_is_refused():
    with pytest.raises(wire.WireError):
        parse("worker", wire.encode(wire.Ready(1)))
    with pytest.raises(wire.WireError):
        parse("supervisor", wire.encode(wire.Drain(True)))


def test_frames_before_a_broken_one_are_handed_out_first():
    parser, got = wire.Parser("supervisor"), []
    stream = parser.feed(wire.encode(wire.Idle()) + wire.encode(wire.Ready(1)) + frame_of(b"\xc1"))
    got += [next(stream), next(stream)]
    with pytest.raises(wire.WireError):
        next(stream)
    assert got == [wire.Idle(), wire.Ready(1)]


def test_a_frame_over_the_limit_is_refused_where_it_is_made(monkeypatch):
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 1000)
    assert parse("supervisor", wire.encode(wire.Finished(1, 1, b"x" * 900)))
    with pytest.raises(wire.WireError, match=r"a Finished of 1,\d+ bytes is over the limit of 1,000"):
        wire.encode(wire.Finished(1, 1, b"x" * 1000))


def test_the_largest_frame_that_can_be_made_can_be_read(monkeypatch):
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 1000)
    room = 1000
    while True:
        try:
            raw = wire.encode(wire.Finished(1, 1, b"x" * room))
            break
        except wire.WireError:
            room -= 1
    assert len(parse("supervisor", raw)) == 1


def test_a_payload_crosses_without_being_looked_at():
    junk = bytes(range(256)) * 100
    [frame] = parse("worker", wire.encode(wire.Execute(1, 1, "f", "handler", junk, 1, ())))
    assert frame.payload == junk
    assert junk in msgspec.msgpack.encode(frame)
