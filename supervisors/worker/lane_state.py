"""What belongs to a lane though Python ties it to the thread: it changes places with the lane.

All lanes of a worker run on one thread. `threading.local` values (scoped sessions, a web framework's connections) and the
streams that `contextlib.redirect_stdout` puts in place would otherwise be seen by whichever run has the CPU. A lane starts
with what there was when the worker began. Only locals that were made by the end of the import are known.

A running event loop cannot change places: `asyncio.run()` around a plain step keeps its lane on the CPU (`holds_loop`).
What is the whole process's (the working directory, the environment, signal handlers, locks) is shared by all lanes.
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
    # By its type: asked with isinstance, a proxy may answer with an exception.
    _found = [weakref.ref(o) for o in gc.get_objects() if issubclass(type(o), threading.local)]


class LaneState:
    """Of the thread that makes it."""

    def __init__(self) -> None:
        if _found is None:
            find_locals()
        # Each local's `__dict__` is this thread's own, and the same one at every look.
        self._values = [local.__dict__ for ref in _found or () if (local := ref()) is not None]
        self._first = self._save()
        self._is_empty = not any(self._values)

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
        for current, then in zip(self._values, values, strict=True):
            if current or then:
                current.clear()
                current.update(then)

    def reset(self) -> None:
        """A lane has ended."""
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
    """By identity: what a value's own comparison would do is not ours to find out."""
    return len(now) == len(then) and all(now.get(name) is value for name, value in then.items())


def holds_loop() -> bool:
    """Whether the code that is running is inside an event loop's run."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
