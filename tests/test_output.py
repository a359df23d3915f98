"""What user code prints, on its way from a worker to whoever looks."""

import os

from pgqrs import flow
from supervisors import output
from supervisors.output import LineReader, TaggedStream


class Running:
    def __init__(self, run: int) -> None:
        self.id = run


def read(fd: int) -> list[tuple[int | None, str]]:
    return list(LineReader().feed(os.read(fd, 65536)))


def test_a_last_line_without_an_end_is_shown_when_its_run_leaves(monkeypatch) -> None:
    readable, writable = os.pipe()
    stream = TaggedStream(writable)
    monkeypatch.setattr(output.sys, "stdout", stream)
    for run in (1, 2):
        monkeypatch.setattr(flow, "running", lambda run=run: Running(run))
        stream.write("whole\nhalf")
    assert read(readable) == [(1, "whole"), (2, "whole")]
    output.finish_lines(1)
    output.finish_lines(1)
    output.finish_lines(3)
    assert read(readable) == [(1, "half")], "and what the other has begun is left to it"
    stream.flush()
    assert read(readable) == [(2, "half")]
    os.close(readable)
    os.close(writable)
