"""Which writes make up a turn."""

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Claim, Settle, Step, Write
from supervisors.core import outgoing
from supervisors.core.outgoing import AGAIN_MAX_S, AGAIN_S, Outgoing


def write(n: int, output: bytes = b"1", position: int = 0) -> Write:
    return Write(Claim(n, 1, 1), step=Step(position, f"s{position}", WorkflowStatus.Success, output))


def holding(*writes: Write) -> Outgoing:
    out = Outgoing()
    for w in writes:
        out.add(w, 100.0)
    return out


def test_a_turn_is_bounded_by_its_writes(monkeypatch):
    monkeypatch.setattr(outgoing, "TURN_WRITES_MAX", 2)
    writes = [write(n) for n in range(5)]
    out = holding(*writes)
    assert [out.take(101.0)[0] for _ in range(4)] == [writes[:2], writes[2:4], writes[4:], []]


def test_a_turn_is_bounded_by_the_bytes_of_its_values(monkeypatch):
    monkeypatch.setattr(outgoing, "TURN_BYTES_MAX", 100)
    writes = [write(n, b"x" * 40) for n in range(5)]
    out = holding(*writes)
    assert [len(out.take(101.0)[0]) for _ in range(4)] == [2, 2, 1, 0]


def test_what_is_taken_or_dropped_takes_no_room(monkeypatch):
    monkeypatch.setattr(outgoing, "WRITES_BYTES_MAX", 2 * write(1).size)
    for leave in (lambda out: out.take(101.0), Outgoing.clear):
        out = holding(write(1))
        assert out.has_room
        out.add(write(2), 100.0)
        assert not out.has_room
        leave(out)
        out.add(write(3), 102.0)
        assert out.has_room
        out.add(write(4), 102.0)
        assert not out.has_room


def test_results_and_errors_count_as_steps_do(monkeypatch):
    monkeypatch.setattr(outgoing, "TURN_BYTES_MAX", 100)
    ended = Settle(WorkflowStatus.Error, b"x" * 30, b"x" * 30)
    out = holding(*(Write(Claim(n, 1, 1), settle=ended) for n in range(3)))
    assert len(out.take(101.0)[0]) == 1


def test_a_write_over_the_bound_goes_alone(monkeypatch):
    monkeypatch.setattr(outgoing, "TURN_BYTES_MAX", 100)
    writes = [write(1), write(2, b"x" * 500), write(3)]
    out = holding(*writes)
    assert [out.take(101.0)[0] for _ in range(3)] == [[w] for w in writes]


def test_what_is_left_is_as_old_as_the_turn_that_left_it(monkeypatch):
    monkeypatch.setattr(outgoing, "TURN_WRITES_MAX", 1)
    out = holding(write(1), write(2))
    out.take(105.0)
    assert out.oldest == 105.0
    out.take(106.0)
    assert out.oldest is None


def test_what_was_put_off_is_tried_again_after_a_while():
    out = holding(write(1))
    [taken], _ = out.take(101.0)
    out.put_off([taken], 101.0)
    assert out.take(101.0 + AGAIN_S / 2) == ([], ())
    assert out.next_again() == 101.0 + AGAIN_S
    assert out.take(101.0 + AGAIN_S) == ([], [taken])


def test_later_writes_of_the_same_claim_go_behind_it_and_others_go_on():
    out = holding(write(1))
    out.put_off(out.take(101.0)[0], 101.0)
    later, other = write(1, position=1), write(2)
    for w in (later, other):
        out.add(w, 101.0)
    assert out.take(101.01) == ([other], ())
    out.put_off([], 101.01)
    assert out.take(102.0) == ([], [write(1), later])


def test_while_it_is_tried_again_later_writes_of_its_claim_still_wait():
    out = holding(write(1))
    out.put_off(out.take(101.0)[0], 101.0)
    _, again = out.take(102.0)
    later = write(1, position=1)
    out.add(later, 102.0)
    out.put_off(again, 102.0)
    assert out.take(102.0) == ([], ())
    assert out.take(110.0) == ([], [write(1), later])


def test_once_it_is_written_its_claim_goes_the_usual_way_again():
    out = holding(write(1))
    out.put_off(out.take(101.0)[0], 101.0)
    out.take(102.0)
    out.put_off([], 102.0)
    assert (out.next_again(), out.locked_since) == (None, None)
    out.add(write(1, position=1), 103.0)
    assert out.take(103.0) == ([write(1, position=1)], ())


def test_the_longer_the_lock_the_rarer_the_tries():
    out, now = holding(write(1)), 101.0
    again, pauses = out.take(now)[0], []
    for _ in range(8):
        out.put_off(again, now)
        pauses.append(round(out.next_again() - now, 6))
        now = out.next_again()
        again = out.take(now)[1]
    assert pauses[:3] == [AGAIN_S, AGAIN_S * 2, AGAIN_S * 4]
    assert pauses[-1] == AGAIN_MAX_S
    assert out.locked_since == 101.0


def test_nothing_is_left_of_a_lost_lease():
    out = holding(write(1), write(2))
    out.put_off([write(3)], 101.0)
    out.clear()
    assert (bool(out), out.oldest, out.next_again(), out.take(200.0)) == (False, None, None, ([], ()))
