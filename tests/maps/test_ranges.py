"""Maps as data: segments of outcomes, and what is missing of a range."""

import pytest

from pgqrs.model.maps import Line, gaps, read, written
from pgqrs.model.writes import Claim, Claimed, Range, RecordedStep
from supervisors.core import ranges
from supervisors.core.state import Function, Run


def line(
    item: int, value: bytes = b"1", failed: bool = False, seconds: float = 0.5, attempts: int = 1
) -> Line:
    return Line(item, failed, value, seconds, attempts)


def test_a_segment_is_read_as_it_was_written():
    lines = [
        line(5, b'"a"'),
        line(6, b'{"code": "X"}', failed=True, attempts=3),
        line(7, b"null", seconds=1e-5),
    ]
    segment = written(lines)
    assert (segment.first, segment.count, segment.failed) == (5, 3, 1)
    assert list(read(5, segment.took, segment.data)) == lines


def test_line_breaks_between_json_tokens_do_not_split_a_line():
    segment = written([line(0, b"[1,\n2]"), line(1, b'"\\n"')])
    assert [x.value for x in read(0, segment.took, segment.data)] == [b"[1, 2]", b'"\\n"']


def test_outcomes_that_are_not_consecutive_are_no_segment():
    with pytest.raises(AssertionError):
        written([line(0), line(2)])


@pytest.mark.parametrize(
    ("whole", "taken", "missing"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(0, 3), (5, 6)], [(3, 5), (6, 10)]),
        ([(0, 10), (10, 20)], [(8, 10)], [(0, 8), (10, 20)]),
        ([(0, 10), (10, 20)], [(3, 4), (10, 12), (19, 20)], [(0, 3), (4, 10), (12, 19)]),
        ([(0, 4), (4, 8)], [(0, 4)], [(4, 8)]),
    ],
)
def test_what_is_missing(whole, taken, missing):
    assert list(gaps(whole, taken)) == missing


STEP = Function("double.map", "map", False, "double.map", 1, None)


def run(count: int, known: tuple[int, ...] = ()) -> Run:
    steps = tuple(RecordedStep(f"#{p}", p, "SUCCESS", None, None, 0) for p in known)
    return Run(
        Claim(1, 2, 3),
        STEP,
        Claimed(Claim(1, 2, 3), b"", 1, steps=steps, range=Range(9, 100, 100 + count)),
        0,
    )


def test_a_worker_gets_about_a_second_of_work():
    assert ranges.share_of(run(1000), 0.01) == 100
    assert ranges.share_of(run(1000), 60.0) == 1
    assert ranges.share_of(run(1000), 1e-9) == 1000


def test_items_that_have_ended_are_not_counted_in_the_share():
    assert ranges.share_of(run(10, known=(0, 1, 2)), 0.5) == 5


def test_half_of_what_has_not_begun_is_taken_or_all_behind_a_long_item():
    assert ranges.half_of(run(11), 0, stands=False) == 6
    assert ranges.half_of(run(11), 0, stands=True) == 1
    assert ranges.half_of(run(2), 0, stands=False) == 1


def test_nothing_is_taken_from_a_range_at_its_last_item_or_in_its_retries():
    assert ranges.half_of(run(11), 10, stands=True) is None
    retrying = run(11)
    retrying.last = 10
    assert ranges.half_of(retrying, 4, stands=True) is None
