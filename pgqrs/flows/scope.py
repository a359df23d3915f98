"""The place in a run where the current code executes: the task and, inside a step, the step.

A plain run has one scope. An async run has one scope for each of its tasks. The tasks form a tree:
a task's path consists of its parent's path, the name of its coroutine, and its number among the
parent's tasks of that name. Because of the names, tasks that a library creates for itself do not
shift the numbers of the user's tasks.
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
    """One call of a step in one run. `name` is the name of its record, and `step` the step's own
    name.

    `position` counts the calls of the whole run from 0. `equal` is n for the n-th call of the task
    with this name and these arguments, from 1. `retry_count` is the number of earlier attempts.
    `retry_in_s` is the delay before a retry if this attempt fails, or None if no retry follows.
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
    """One task of a run. `step` is the call whose body the task executes, or None in the workflow's
    own code.
    """

    __slots__ = ("_calls", "_equal", "_tasks", "context", "path", "step")

    def __init__(self, context: "Context", path: str = "", step: StepCall | None = None) -> None:
        self.context = context
        self.path = path
        self.step = step
        self._calls = 0
        self._equal: dict[tuple[str, int | None], int] = {}
        self._tasks: dict[str, int] = {}

    def child(self, name: str) -> "Scope":
        """Returns the scope of a task that this task creates now. If a step's body creates the
        task, the new task belongs to that body.
        """
        if self.step is not None:
            return Scope(self.context, self.path, self.step)
        number = self._tasks[name] = self._tasks.get(name, 0) + 1
        path = f"{self.path}/{name}.{number}" if self.path else f"{name}.{number}"
        self.context.branched = True
        return Scope(self.context, path if len(path) <= PATH_CHARS_MAX else short(path))

    def next_place(self, name: str, fingerprint: int | None) -> tuple[Place, int]:
        """Returns the place of the next call of this task, and its number among equal calls, from 1."""
        count, self._calls = self._calls, self._calls + 1
        alike = name, fingerprint
        equal = self._equal[alike] = self._equal.get(alike, 0) + 1
        return Place(self.path, count, fingerprint), equal


current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("pgqrs_scope", default=None)


def task_name(coroutine: Any) -> str:
    """Returns the name of a task in paths. It is the same in every process and on every Python version."""
    name = getattr(coroutine, "__name__", None) or type(coroutine).__name__
    return str(name).replace("/", "_")
