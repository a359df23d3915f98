"""Where in a run the code stands that is running: in which of the run's tasks, and in which step's body, if in any.

A plain run has one scope. An async run has one for each of its tasks, which form a tree: a task's path is that of the
task that made it, the name of its coroutine, and its number among the tasks of that name there. Names keep the tasks that
a library makes for itself from shifting the numbers of the user's own.
"""

import contextvars
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pgqrs.flows.history import short
from pgqrs.model.bounds import PATH_CHARS_MAX
from pgqrs.model.writes import Place

if TYPE_CHECKING:
    from pgqrs.flows.flow import Context


class StepCall(Struct, frozen=True):
    """One call of a step in one run: `name` is what it is recorded under, `step` the step's own name.

    `position` counts the calls of the whole run, from 0, as they were made. `equal` says that this is the n-th call of
    its task with this name and these arguments, from 1. `retry_count` is how often the call was tried before;
    `retry_in_s` when it will be tried again should this attempt fail, None if it will not.
    """

    name: str
    position: int
    pure: bool = False
    timeout_s: float | None = None
    retry_count: int = 0
    retry_in_s: float | None = None
    memory_bytes: int | None = None
    step: str = ""
    place: Place | None = None
    equal: int = 1


class Scope:
    """One task of a run. `step` is the call whose body the task is in, None in the workflow's own code."""

    __slots__ = ("_calls", "_equal", "_tasks", "context", "path", "step")

    def __init__(self, context: "Context", path: str = "", step: StepCall | None = None) -> None:
        self.context = context
        self.path = path
        self.step = step
        self._calls = 0
        self._equal: dict[tuple[str, int | None], int] = {}
        self._tasks: dict[str, int] = {}

    def child(self, name: str) -> "Scope":
        """The scope of a task that this one makes now. In a step's body it is a part of that body."""
        if self.step is not None:
            return Scope(self.context, self.path, self.step)
        number = self._tasks[name] = self._tasks.get(name, 0) + 1
        path = f"{self.path}/{name}.{number}" if self.path else f"{name}.{number}"
        self.context.branched = True
        return Scope(self.context, path if len(path) <= PATH_CHARS_MAX else short(path))

    def next_place(self, name: str, fingerprint: int | None) -> tuple[Place, int]:
        """Of the call that this task makes now, and which of its equal calls it is, from 1."""
        count, self._calls = self._calls, self._calls + 1
        alike = name, fingerprint
        equal = self._equal[alike] = self._equal.get(alike, 0) + 1
        return Place(self.path, count, fingerprint), equal


current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("pgqrs_scope", default=None)


def task_name(coroutine: Any) -> str:
    """What a task's path calls it: the same in every process, on every Python."""
    name = getattr(coroutine, "__name__", None) or type(coroutine).__name__
    return str(name).replace("/", "_")
