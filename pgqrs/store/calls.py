"""Database calls whose caller may stop waiting, for example because its task was cancelled.

The call continues in its thread, but must not commit. When the caller stops waiting (it *leaves*),
it interrupts the current statement, and a transaction that has not begun to commit is rolled back.
A commit in progress is completed. The call then has a result, and the result is undone for the
caller.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

_current = threading.local()


class Left(BaseException):
    """Raised in a call whose caller has stopped waiting. Left is not an Exception, so that no code
    takes it for a failure.
    """


class Call:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupt: Callable[[], object] | None = None
        self._left = False

    def leave(self) -> None:
        """Records that the caller has stopped waiting. A commit that has not begun is prevented.
        May be called from any thread. Does not wait; `interrupt` ends the current statement.
        """
        self._left = True

    def interrupt(self) -> None:
        """Interrupts the current statement, if there is one. Returns when the interruption was
        sent.
        """
        with self._lock:
            if self._interrupt is not None:
                with suppress(Exception):  # the statement then ends by itself, and is not committed either
                    self._interrupt()

    @contextmanager
    def made(self) -> Iterator[None]:
        """The context in which the thread executes the call."""
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
        """The context of an operation that must not be cut short, such as a commit in progress. If
        the caller stops waiting, `leave` is called instead of an interruption. It may be called
        from any thread, and decides how soon the operation ends.
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
        """Raises Left if the caller has stopped waiting."""
        if self._left:
            raise Left


def current() -> Call | None:
    """Returns the call that this thread executes. Returns None if the caller of this code always
    waits.
    """
    call: Call | None = getattr(_current, "call", None)
    return call


def interruptible(interrupt: Callable[[], object], committed: bool = False) -> AbstractContextManager[None]:
    """The context of a transaction's statements, before its commit. `interrupt` ends the current
    statement from another thread. `committed` means that the statement commits by itself, so its
    effect remains.
    """
    call = current()
    return nullcontext() if call is None else call.interruptible(interrupt, committed)
