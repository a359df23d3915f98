"""Where a supervisor says things. Whoever reads may leave, a terminal be closed, a disk be full: no reason to drop what runs."""

import errno
import os
import sys
from contextlib import suppress

from pgqrs.wording import count


class Outlet:
    """A text stream into a descriptor that never raises. It writes past Python's buffers, which would keep what a full disk refused,
    try it again when the program ends, and turn its exit code into 120."""

    def __init__(self, fd: int = 1) -> None:
        self.encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        self.deserted = False  # nobody reads it any more
        self._fd = fd
        self._terminal = os.isatty(fd)
        self._lost = 0  # lines, since the last that could be written

    def write(self, text: str) -> int:
        if self._put(text) and self._lost:
            lost, self._lost = self._lost, 0
            self._put(f"warning: {count(lost, 'line')} before this one could not be written\n")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        return self._fd

    def _put(self, text: str) -> bool:
        data = text.encode(self.encoding, "backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as e:
            if isinstance(e, BrokenPipeError) or (self._terminal and e.errno == errno.EIO):
                self._leave()
            else:
                self._lose(max(1, text.count("\n")), e)
            return False
        return True

    def _leave(self) -> None:
        self.deserted = True
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._fd)
            os.close(null)

    def _lose(self, lines: int, error: OSError) -> None:
        if not self._lost:
            with suppress(OSError):
                print(f"pgqrs: what there is to say is lost: {error}; the work goes on", file=sys.stderr)
        self._lost += lines
