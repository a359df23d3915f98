"""Database calls whose caller may stop waiting, for example because its task was cancelled.

The call continues in its thread, but must not commit. A caller that leaves interrupts the current
statement, and a transaction that has not begun to commit is rolled back. A commit in progress is
completed. The call then has a result, and the caller that left undoes it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

_current = threading.local()


class Left(BaseException):
    """Raised in a call whose caller has left. It is not an Exception, so that no code takes it for
    a failure.
    """


class Call:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupt: Callable[[], object] | None = None
        self._left = False

    def leave(self) -> None:
        """Prevents a commit that has not begun. May be called from any thread. It does not wait;
        `interrupt` ends the current statement.
        """
        self._left = True

    def interrupt(self) -> None:
        """Interrupts the current statement, if any. Returns when the interruption was sent."""
        with self._lock:
            if self._interrupt is not None:
                with suppress(Exception):  # the statement then ends by itself, and is not committed either
                    self._interrupt()

    @contextmanager
    def made(self) -> Iterator[None]:
        """Surrounds the call, in its thread."""
        _current.call = self
        try:
            yield
        finally:
            _current.call = None

    @contextmanager
    def interruptible(self, interrupt: Callable[[], object], committed: bool) -> Iterator[None]:
        with self._lock:
            self.go_on()
            outer, self._interrupt = self._interrupt, interrupt
        try:
            yield
        finally:
            # Waits for an interruption in progress: a late one would hit the connection's next user.
            with self._lock:
                self._interrupt = outer
        if not committed:
            self.go_on()

    @contextmanager
    def hurried(self, leave: Callable[[], object]) -> Iterator[None]:
        """Surrounds an operation that cannot be interrupted, such as a commit in progress. If the
        caller leaves, `leave` is called from any thread, and decides how soon the operation ends.
        """
        with self._lock:
            self._interrupt = leave
        try:
            if self._left:
                leave()
            yield
        finally:
            with self._lock:
                self._interrupt = None

    def go_on(self) -> None:
        """Raises Left if the caller has left."""
        if self._left:
            raise Left


def current() -> Call | None:
    """Returns the call that this thread executes, or None if its caller cannot leave."""
    call: Call | None = getattr(_current, "call", None)
    return call


def interruptible(interrupt: Callable[[], object], committed: bool = False) -> AbstractContextManager[None]:
    """Surrounds the statements of a transaction, before its commit. `interrupt` ends the current
    statement from another thread. `committed` means that the statement commits by itself, so its
    effect remains.
    """
    call = current()
    return nullcontext() if call is None else call.interruptible(interrupt, committed)
