"""What a supervisor shows, and that nothing it is shown on can end it."""

import errno
import os
from collections.abc import Iterator

import pytest

from pgqrs.cli.outlet import Outlet
from pgqrs.cli.views import PanelView, PlainView
from supervisors.loop.view import State

QUIET = State((), finished=0, failed=0, crashes=0, held=0, stopping=0, away=None, backlog=None)


@pytest.fixture
def disk(tmp_path) -> Iterator[int]:
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def replaced_by(fd: int, path: str) -> int:
    """What it was before."""
    before, other = os.dup(fd), os.open(path, os.O_WRONLY)
    os.dup2(other, fd)
    os.close(other)
    return before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_lines_that_a_full_disk_refused_are_counted(disk, tmp_path, capsys):
    out = Outlet(disk)
    view = PlainView(out)

    def say(*texts):
        for text in texts:
            view.line(1, text)
            assert out.settle()

    say("a")
    before = replaced_by(disk, "/dev/full")
    say("b", "c")
    os.dup2(before, disk)
    os.close(before)
    say("d", "e")
    assert (tmp_path / "out").read_text().splitlines() == [
        "run 1 | a",
        "run 1 | d",
        "warning: 2 lines before this one could not be written",
        "run 1 | e",
    ]
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert not view.deserted


def test_a_pipe_that_nobody_reads_is_deserted():
    readable, writable = os.pipe()
    out = Outlet(writable)
    view = PlainView(out)
    view.line(1, "a")
    assert os.read(readable, 100) == b"run 1 | a\n"
    assert not view.deserted
    os.close(readable)
    view.line(1, "b")
    view.line(1, "c")
    assert out.settle()
    assert view.deserted
    os.close(writable)


def test_a_panel_on_a_terminal_that_was_closed_is_deserted():
    ours, theirs = os.openpty()
    out = Outlet(theirs)
    view = PanelView(out)
    view.state(QUIET)
    assert out.settle()
    assert not view.deserted
    os.close(ours)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(theirs, b"x")
    view.line(1, "a")
    view.state(QUIET)
    view.ended(0, "drained", QUIET)
    assert view.deserted
    os.close(theirs)


def test_what_the_terminal_cannot_show_is_written_as_far_as_it_can(disk, tmp_path):
    out = Outlet(disk)
    out.encoding = "ascii"
    PlainView(out).line(1, "a → b")
    assert out.settle()
    assert (tmp_path / "out").read_text() == "run 1 | a \\u2192 b\n"
