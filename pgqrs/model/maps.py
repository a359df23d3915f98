"""Maps: one step over many items. The item is the unit of record, and a range of items is the unit
that supervisors claim.

Items and outcomes are stored by segments of text, one line for each item. `data` has the JSON value
of each outcome, with ERROR before it if the item failed. `took` has the seconds of each item,
followed by "*" and the number of attempts if there were several.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from msgspec import Struct

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Step

ERROR = "!"
# The most items of a segment, and of a range.
SEGMENT_MAX = 1000
SEGMENT_BYTES_MAX = 256 * 1024


class Line(Struct, frozen=True):
    """The outcome of one item as it is stored. `value` is the JSON of the result, or of the error if
    the item `failed`.
    """

    item: int
    failed: bool
    value: bytes
    seconds: float
    attempts: int


class Segment(Struct, frozen=True):
    """The outcomes of consecutive items, as one row of the database."""

    first: int
    count: int
    failed: int
    took: str
    data: str


def written(lines: Sequence[Line]) -> Segment:
    """Returns the row for the outcomes of consecutive items."""
    assert all(after.item == before.item + 1 for before, after in pairwise(lines))
    return Segment(
        lines[0].item,
        len(lines),
        sum(line.failed for line in lines),
        ",".join(map(_took, lines)),
        "\n".join((ERROR if line.failed else "") + _one_line(line.value) for line in lines),
    )


def read(first: int, took: str, data: str) -> Iterator[Line]:
    """Reads the outcomes of a row."""
    for n, (text, spent) in enumerate(zip(data.split("\n"), took.split(","), strict=True)):
        failed = text.startswith(ERROR)
        seconds, _, attempts = spent.partition("*")
        value = (text[1:] if failed else text).encode()
        yield Line(first + n, failed, value, float(seconds), int(attempts or 1))


def line_of(first: int, step: Step) -> Line:
    """The outcome of an item. A range's worker numbers the items from 0; `first` is the range's
    first item.
    """
    failed = step.status is not WorkflowStatus.Success
    value = step.error if failed else step.output
    return Line(first + step.position, failed, value or b"null", step.seconds, step.retry_count + 1)


def gaps(whole: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yields the parts of the ranges `whole` that are in no range of `taken`. Both are ascending,
    and a range goes from its first item to before its second number. No part crosses the border of
    a range of `whole`.
    """
    rest = iter(taken)
    held = next(rest, None)
    for first, end in whole:
        at = first
        while at < end:
            while held is not None and held[1] <= at:
                held = next(rest, None)
            if held is None or held[0] >= end:
                yield at, end
                break
            if held[0] > at:
                yield at, held[0]
            at = held[1]


def _took(line: Line) -> str:
    seconds = f"{line.seconds:.3g}"
    return seconds if line.attempts == 1 else f"{seconds}*{line.attempts}"


def _one_line(value: bytes) -> str:
    """JSON has line breaks only between its tokens, where a space means the same."""
    text = value.decode()
    return text.replace("\n", " ") if "\n" in text else text
