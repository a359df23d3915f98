"""The output of a supervisor. A closed pipe, a slow reader, a closed terminal or a full disk
neither ends nor delays the supervisor.
"""

import atexit
import errno
import os
import select
import sys
import threading
from collections import deque
from contextlib import suppress

from pgqrs.model.wording import count

# The most output that is buffered for a slow reader. Further output is dropped.
WAITING_BYTES_MAX = 8 * 1024 * 1024
WRITE_BYTES = 64 * 1024
# How long the program waits at exit while no byte of the remaining output is read.
LAST_WORDS_S = 2.0


class Outlet:
    """A text stream to a descriptor that never raises and never blocks. A thread writes to the
    descriptor.

    The stream bypasses Python's buffers. These would keep output that a full disk refused, write it
    again at exit, and change the exit status to 120.
    """

    def __init__(self, fd: int = 1) -> None:
        self.encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        # Whether the reader has closed the other end.
        self.deserted = False
        self._fd = fd
        self._terminal = os.isatty(fd)
        # Lines refused since the last successful write.
        self._refused = 0
        # Lines dropped since the buffer last had room.
        self._dropped = 0
        self._waiting: deque[bytes] = deque()
        # Includes the data that the thread is writing.
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def waiting_bytes(self) -> int:
        """The number of bytes that the thread has not written yet."""
        return self._waiting_bytes

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) > WAITING_BYTES_MAX:
                self._dropped += _lines(data)
                return len(text)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                told = f"warning: {count(dropped, 'line')} before this one found no reader and were dropped\n"
                data = told.encode(self.encoding, "backslashreplace") + data
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._start()
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        pass

    def settle(self, patience_s: float = LAST_WORDS_S) -> bool:
        """Waits until all output is written, or until nothing was written for `patience_s`. Returns
        whether all output was written.
        """
        with self._changed:
            while before := self._waiting_bytes:
                self._changed.wait_for(lambda before=before: self._waiting_bytes < before, patience_s)  # type: ignore[misc]
                if self._waiting_bytes >= before:
                    atexit.unregister(self.settle)  # the wait happened here and must not be repeated at exit
                    return False
        return True

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        return self._fd

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="pgqrs-output", daemon=True)
        self._thread.start()
        atexit.register(self.settle)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = self._waiting.popleft()
                while self._waiting and len(data) + len(self._waiting[0]) <= WRITE_BYTES:
                    data += self._waiting.popleft()
            if self._put(data) and self._refused:
                refused, self._refused = self._refused, 0
                self._put(
                    f"warning: {count(refused, 'line')} before this one could not be written\n".encode()
                )
            with self._changed:
                self._waiting_bytes -= len(data)
                self._changed.notify_all()

    def _put(self, data: bytes) -> bool:
        left = data
        try:
            while left:
                left = left[self._write(left) :]
        except OSError as e:
            if isinstance(e, BrokenPipeError) or (self._terminal and e.errno == errno.EIO):
                self._leave()
            else:
                self._refuse(_lines(left), e)
            return False
        return True

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # another process has set the shared descriptor non-blocking
            select.select([], [self._fd], [])
            return 0

    def _leave(self) -> None:
        self.deserted = True
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._fd)
            os.close(null)

    def _refuse(self, lines: int, error: OSError) -> None:
        if not self._refused:
            with suppress(OSError):
                print(f"pgqrs: what there is to say is lost: {error}; the work goes on", file=sys.stderr)
        self._refused += lines


def _lines(data: bytes) -> int:
    return max(1, data.count(b"\n"))
