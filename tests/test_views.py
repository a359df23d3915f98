"""What a supervisor shows."""

import errno
import os

from pgqrs.cli.views import PlainView


class Disk:
    """A text file on a disk that is full for a while."""

    def __init__(self) -> None:
        self.full = False
        self.text = ""

    def write(self, text: str) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.text += text

    def flush(self) -> None:
        pass


def test_lines_that_a_full_disk_refused_are_counted(capsys):
    disk = Disk()
    view = PlainView(disk)
    view.line(1, "a")
    disk.full = True
    view.line(1, "b")
    view.line(1, "c")
    disk.full = False
    view.line(1, "d")
    view.line(1, "e")
    assert disk.text.splitlines() == [
        "run 1 | a",
        "run 1 | d",
        "warning: 2 lines before this one could not be written",
        "run 1 | e",
    ]
    assert capsys.readouterr().err.count("No space left on device") == 1
