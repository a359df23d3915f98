"""State that belongs to a lane although Python ties it to the thread. It is swapped when another
lane continues.

All lanes of a worker run on one thread. Without the swap, a run would see the `threading.local`
values of another run (scoped sessions, a web framework's connections), and the streams that another
run's `contextlib.redirect_stdout` has put in place. A lane starts with the values that existed when
the worker began. Only locals that were created by the end of the import are known.

A running event loop cannot be swapped: `asyncio.run()` around a plain step keeps its lane on the
CPU (`holds_loop`). All lanes share the state of the whole process: the working directory, the
environment, signal handlers, locks.
"""

import gc
import sys
import threading
import weakref
from typing import Any

# The values of each local, and sys.stdin, sys.stdout, sys.stderr
Saved = tuple[list[dict[str, Any]], Any, Any, Any]

_found: "list[weakref.ref[threading.local]] | None" = None


def find_locals() -> None:
    """Finds every threading.local of this process. Called before `gc.freeze`, which hides them."""
    global _found
    # By its type, because isinstance may raise an exception for a proxy.
    _found = [weakref.ref(o) for o in gc.get_objects() if issubclass(type(o), threading.local)]


class LaneState:
    """The state that this module swaps, for the thread that creates the object."""

    def __init__(self) -> None:
        if _found is None:
            find_locals()
        # Each local's `__dict__` is this thread's own, and the same object at every look.
        self._values = [local.__dict__ for ref in _found or () if (local := ref()) is not None]
        self._first = self._save()
        self._is_empty = not any(self._values)

    def take(self) -> Saved | None:
        """Returns the state of the lane that leaves the CPU, or None if the lane has changed
        nothing. The next lane starts from the first state.
        """
        if self._is_first():
            return None
        saved = self._save()
        self.put(self._first)
        return saved

    def put(self, saved: Saved | None) -> None:
        """Restores the state of a lane that continues. The lane before it has left the thread in
        the first state.
        """
        if saved is None:
            return
        values, sys.stdin, sys.stdout, sys.stderr = saved
        for current, then in zip(self._values, values, strict=True):
            if current or then:
                current.clear()
                current.update(then)

    def reset(self) -> None:
        """Restores the first state, because a lane has ended."""
        if not self._is_first():
            self.put(self._first)

    def _is_first(self) -> bool:
        values, stdin, stdout, stderr = self._first
        if sys.stdout is not stdout or sys.stderr is not stderr or sys.stdin is not stdin:
            return False
        if self._is_empty:
            return not any(self._values)
        return all(map(_same, self._values, values))

    def _save(self) -> Saved:
        return [dict(values) for values in self._values], sys.stdin, sys.stdout, sys.stderr


def _same(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Compares two states by identity, because the comparison of values could execute user code."""
    return len(now) == len(then) and all(now.get(name) is value for name, value in then.items())


def holds_loop() -> bool:
    """Whether the executing code is inside `asyncio.run()` or another run of an event loop."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
