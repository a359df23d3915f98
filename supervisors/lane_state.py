"""What belongs to a lane though Python ties it to the thread: it changes places with the lane.

All lanes of a worker run on one thread. `threading.local` values (scoped sessions, a web framework's connections) and the
streams that `contextlib.redirect_stdout` puts in place would otherwise be seen by whichever run has the CPU. A lane starts
with what the thread had when the worker began.

A running event loop cannot change places: `asyncio.run()` around a plain step keeps its lane on the CPU (`holds_loop`).
What is the whole process's (the working directory, the environment, signal handlers, locks) is shared by all lanes.
"""

import ctypes
import sys
from typing import Any

# (threading.local values, sys.stdin, sys.stdout, sys.stderr)
Saved = tuple[dict[Any, Any], Any, Any, Any]


class LaneState:
    """Of the thread that makes it."""

    def __init__(self) -> None:
        self._locals = _thread_dict()
        self._first = self._save()

    def take(self) -> Saved | None:
        """What the lane that leaves the CPU has, None where it has changed nothing; the next one starts from the beginning."""
        if self._is_first():
            return None
        saved = self._save()
        self.put(self._first)
        return saved

    def put(self, saved: Saved | None) -> None:
        """A lane goes on. Whoever had the CPU before has left the thread as it was in the beginning."""
        if saved is None:
            return
        values, sys.stdin, sys.stdout, sys.stderr = saved
        if self._locals is not None and (self._locals or values):
            self._locals.clear()
            self._locals.update(values)

    def reset(self) -> None:
        """A lane has ended."""
        if not self._is_first():
            self.put(self._first)

    def _is_first(self) -> bool:
        values, stdin, stdout, stderr = self._first
        if sys.stdout is not stdout or sys.stderr is not stderr or sys.stdin is not stdin:
            return False
        return not self._locals if not values else self._locals == values

    def _save(self) -> Saved:
        return dict(self._locals or ()), sys.stdin, sys.stdout, sys.stderr


def holds_loop() -> bool:
    """Whether the code that is running is inside an event loop's run."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _thread_dict() -> dict[Any, Any] | None:
    """Where CPython keeps this thread's values of every threading.local; None on another Python."""
    if sys.implementation.name != "cpython":
        return None
    # The reference is borrowed: as a py_object it would be counted as ours, and given back once too often.
    get = ctypes.pythonapi["PyThreadState_GetDict"]
    get.restype = ctypes.c_void_p
    address = get()
    if not address:
        return None
    found = ctypes.cast(address, ctypes.py_object).value
    return found if isinstance(found, dict) else None
