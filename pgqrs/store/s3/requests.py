"""Requests to S3 whose caller can stop waiting.

S3 may take a minute to answer, and nothing interrupts the driver's request, not even Ctrl-C. So
each request executes on a thread of its own. The caller waits until one of four things happens: the
answer comes, a signal raises an exception, the caller's own caller stops waiting (`calls.py`), or
all requests are severed because the process is stopping. The thread of an abandoned request ends
with the request.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from pgqrs.store.calls import current

T = TypeVar("T")


class Severed(Exception):
    """The caller has stopped waiting. It is unknown whether the request was or will be executed."""


class Silent(OSError):
    """There was no answer within the time limit."""


class Requests:
    """The requests to one S3 object. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # The number of calls of `sever`.
        self._severed = 0

    def sever(self) -> None:
        """Ends the operations in progress: each raises Severed. Operations that begin later are not
        affected.
        """
        with self._changed:
            self._severed += 1
            self._changed.notify_all()

    @contextmanager
    def operation(self, leaves: bool = True) -> Iterator["Operation"]:
        """Yields an operation: several requests and the pauses between them. With `leaves`, the
        operation raises Severed if its caller has stopped waiting.
        """
        operation = Operation(self._changed, lambda: self._severed)
        call = current()
        if call is None or not leaves:
            yield operation
            return
        with call.hurried(operation.leave):
            yield operation


class Operation:
    def __init__(self, changed: threading.Condition, severed: Callable[[], int]) -> None:
        self._changed = changed
        self._severed = severed
        self._since = severed()
        self._left = False

    def leave(self) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def answer(self, ask: Callable[[], T], within_s: float = float("inf")) -> T:
        """Calls `ask` on a thread, and returns or raises its outcome. Raises Silent if it takes
        longer than `within_s`. Raises Severed if the wait is ended.
        """
        answer = _Answer(ask, self._changed)
        try:
            threading.Thread(target=answer.find, name="pgqrs-s3", daemon=True).start()
        except RuntimeError:  # the interpreter is shutting down, or no more threads can be started
            answer.find()
        if not self._wait(lambda: answer.over, within_s):
            raise Silent(f"no answer within {within_s:g} s")
        return answer.result()

    def pause(self, seconds: float) -> None:
        """Waits for this time. Raises Severed if the wait is ended."""
        self._wait(lambda: False, seconds)

    def _wait(self, over: Callable[[], bool], within_s: float) -> bool:
        until = time.monotonic() + within_s
        with self._changed:
            while not over():
                if self._left or self._severed() != self._since:
                    raise Severed("nobody waits for it any more")
                if (left_s := until - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
        return True


class _Answer(Generic[T]):
    def __init__(self, ask: Callable[[], T], changed: threading.Condition) -> None:
        self._ask = ask
        self._changed = changed
        self._found: Any = None
        self._error: BaseException | None = None
        self.over = False

    def find(self) -> None:
        try:
            self._found = self._ask()
        except BaseException as e:
            self._error = e
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def result(self) -> T:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # avoids a reference cycle with its own traceback
        found: T = self._found
        return found
