"""Drives the coroutine of each task of an async run, so that the run knows its tasks and plain
steps can wait in them.

A task's coroutine runs inside a greenlet. So plain code deep in the coroutine can wait for an
awaitable while the event loop continues with other tasks. A plain step needs this, because it waits
for a commit before its body starts. Whenever the coroutine continues, the scope of its task becomes
the current one, and the worker is told which code has the CPU.
"""

import asyncio
import contextvars
import hashlib
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

import greenlet

from pgqrs import errors
from pgqrs.flows.scope import Scope, current, task_name


class Driven(Coroutine[Any, Any, Any]):
    """A coroutine that is driven inside a greenlet. `context` is the context that its task runs in."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        goes_on: Callable[[], None],
        scope: Scope | None,
        context: contextvars.Context,
    ) -> None:
        self._coroutine = coroutine
        self._goes_on = goes_on
        self._scope = scope
        self._context = context
        self._side: greenlet.greenlet | None = None
        # What a plain step waits for.
        self._awaited: Generator[Any, Any, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        # Attributes for display, such as the name and the current line.
        return getattr(self._coroutine, name)

    def send(self, value: Any) -> Any:
        return self._go_on(value, None)

    def throw(self, *problem: Any) -> Any:
        error = problem[0] if len(problem) == 1 else problem[1] if problem[1] is not None else problem[0]()
        return self._go_on(None, error)

    def close(self) -> None:
        if self._awaited is not None:
            self._awaited.close()
            self._awaited = None
            if self._side is not None:
                # Leaves the plain code that waits.
                self._side.throw(greenlet.GreenletExit)
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        answer: Any = None
        problem: BaseException | None = None
        while True:
            try:
                value = self._go_on(answer, problem)
            except StopIteration as e:
                return e.value
            answer = problem = None
            try:
                answer = yield value
            except BaseException as e:
                problem = e

    def _go_on(self, answer: Any, problem: BaseException | None) -> Any:
        """Continues the coroutine to the next object that the loop should wait for. When the
        coroutine ends, raises StopIteration with its result.
        """
        if self._scope is not None:
            current.set(self._scope)
        self._goes_on()
        while True:
            if self._awaited is not None:
                try:
                    return self._awaited.send(answer) if problem is None else self._awaited.throw(problem)
                except StopIteration as e:
                    answer, problem = e.value, None
                except BaseException as e:
                    answer, problem = None, e
                self._awaited = None
            if self._side is None:
                self._side = greenlet.greenlet(self._drive)
                self._side.gr_context = self._context
            kind, value = self._side.switch(answer, problem)
            if kind == "done":
                raise StopIteration(value)
            if kind == "failed":
                raise value
            if kind == "yield":
                return value
            self._awaited = value.__await__()
            answer = problem = None

    def _drive(self, answer: Any, problem: BaseException | None) -> tuple[str, Any]:
        try:
            while True:
                if problem is None:
                    value = self._coroutine.send(answer)
                else:
                    value = self._coroutine.throw(problem)
                answer, problem = _hub().switch(("yield", value))
        except StopIteration as e:
            return ("done", e.value)
        except BaseException as e:
            return ("failed", e)

    @staticmethod
    def wait(awaitable: Awaitable[Any]) -> Any:
        """Awaits `awaitable` for plain code inside a driven coroutine."""
        try:
            hub = _hub()
        except errors.ValidationError:
            if isinstance(awaitable, Coroutine):
                awaitable.close()
            raise
        answer, problem = hub.switch(("await", awaitable))
        if problem is not None:
            raise problem
        return answer


def _hub() -> greenlet.greenlet:
    parent = greenlet.getcurrent().parent
    if parent is None:
        raise errors.ValidationError(
            "a plain step was called from a callback of the event loop, which cannot wait; call it from a "
            "coroutine, for example one that the callback makes a task of"
        )
    return parent


class BranchLoop(asyncio.SelectorEventLoop):
    """An event loop that makes each task of a run a branch of this run, whatever task factory is
    set.
    """

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        parent = current.get()
        if parent is None or not isinstance(coro, Coroutine):
            return super().create_task(coro, **options)
        context: contextvars.Context = options.pop("context", None) or contextvars.copy_context()
        scope = parent.child(task_name(coro))
        lane: Lane = parent.context.journal  # type: ignore[assignment]
        driven = Driven(coro, lane.goes_on, scope, context)
        task = BranchTask(driven, scope=scope, loop=self, context=context, **options)
        lane.tasks.add(task)
        task.add_done_callback(lane.over, context=contextvars.Context())
        return task


class Lane(Protocol):
    """What the tasks of a run need from its lane."""

    tasks: "set[asyncio.Task[Any]]"

    def goes_on(self) -> None: ...

    def over(self, task: "asyncio.Task[Any]") -> None: ...


class BranchTask(asyncio.Task[Any]):
    """A task whose hash follows from its path, so that a set of tasks has the same order on every
    replay.
    """

    def __init__(self, coroutine: Any, *, scope: Scope, **options: Any) -> None:
        path = f"{scope.context.id}:{scope.path}".encode("utf-8", "surrogatepass")
        self._hash = int.from_bytes(hashlib.blake2b(path, digest_size=7).digest(), "little")
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._hash


def walk_in_order() -> None:
    """Makes `asyncio.as_completed` create the tasks of a run in the order of its coroutines, from
    now on. Otherwise it iterates over a set of them, in the order of their addresses. The code of
    the function is replaced and not its name, because a module may have imported the name already.
    """
    if hasattr(asyncio.tasks, "_pgqrs_in_order"):
        return
    given = types.FunctionType(
        asyncio.as_completed.__code__,
        vars(asyncio.tasks),
        "as_completed",
        None,
        asyncio.as_completed.__closure__,
    )

    def in_order(fs: Any, timeout: Any) -> Any:
        if current.get() is not None and not asyncio.isfuture(fs) and not asyncio.iscoroutine(fs):
            fs = [asyncio.ensure_future(f) for f in dict.fromkeys(fs)]
        return given(fs, timeout=timeout)

    def as_completed(fs: Any, *, timeout: Any = None) -> Any:
        return _pgqrs_in_order(fs, timeout)  # type: ignore[name-defined]  # noqa: F821

    asyncio.tasks._pgqrs_in_order = in_order  # type: ignore[attr-defined]
    asyncio.as_completed.__code__ = as_completed.__code__
