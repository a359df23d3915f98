"""A call into a database on behalf of somebody who may stop waiting for it, as a cancelled task does.

The call goes on in its thread; what it must not do is commit. Whoever leaves interrupts the statement under way, and what
has not begun to commit is rolled back. A commit that was under way already is seen through: then the call has a result, and
whoever left undoes it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

_current = threading.local()


class Left(BaseException):
    """Nobody waits for this call any more. Not an Exception: nothing on the way must take it for a failure."""


class Call:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupt: Callable[[], object] | None = None
        self._left = False

    def leave(self) -> None:
        """From any thread: what has not begun to commit will not. Does not wait; `interrupt` ends the statement under way."""
        self._left = True

    def interrupt(self) -> None:
        """Returns when the statement under way, if any, has been told."""
        with self._lock:
            if self._interrupt is not None:
                with suppress(Exception):  # the statement then ends by itself, and is not committed either
                    self._interrupt()

    @contextmanager
    def made(self) -> Iterator[None]:
        """Around the call, in its thread."""
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
            # Waits for an interruption under way: one that came late would hit the connection's next user.
            with self._lock:
                self._interrupt = outer
        if not committed:
            self.go_on()

    @contextmanager
    def hurried(self, leave: Callable[[], object]) -> Iterator[None]:
        """Around what no interruption ends, such as a commit under way: `leave` is told, from any thread, that nobody waits for
        it any more, and decides how soon it ends."""
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
        """Raises Left where nobody waits any more."""
        if self._left:
            raise Left


def current() -> Call | None:
    """The call that this thread is making, if it makes one for somebody who may leave."""
    call: Call | None = getattr(_current, "call", None)
    return call


def interruptible(interrupt: Callable[[], object], committed: bool = False) -> AbstractContextManager[None]:
    """Around a transaction's statements, before its commit. `interrupt` ends the one under way, from another thread.
    `committed`: the statement commits by itself, so what has ended in here has happened."""
    call = current()
    return nullcontext() if call is None else call.interruptible(interrupt, committed)
