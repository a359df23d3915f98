"""The decorators of pgqrs 0.15, for functions that take their `Run` as the first argument.

Import them with `from pgqrs.decorators import workflow, step`. Functions for a supervisor use
`@pgqrs.workflow` and `@pgqrs.step` instead, which need no such argument.

A step of this module is identified by its `__name__` alone: a second call on the same run returns
the recorded result. Plain functions work with the blocking `Run`, and `async def` functions with
either kind.
"""

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from pgqrs import errors
from pgqrs.manual.runs import Run
from pgqrs.model.states import StepResultStatus, WorkflowStatus
from pgqrs.store.waiting import drive

P = ParamSpec("P")
R = TypeVar("R")

# These exceptions do not fail the run: it continues later, or has ended already.
PASSED_THROUGH = (
    errors.TransientStepError,
    errors.StepNotReadyError,
    errors.RetriesExhaustedError,
    errors.PausedError,
    errors.RunCancelledError,
    errors.ClaimLostError,
)


class WorkflowDef(Generic[P, R]):
    """A decorated workflow. Calling it with a run starts the run, calls the function, and records
    how the run ended. Without further arguments, the function receives the run's recorded input.
    """

    __slots__ = ("_func", "name", "run")

    def __init__(self, name: str, run: Callable[..., R], func: Callable[..., R]) -> None:
        self.name = name
        self.run = run
        self._func = func

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        return self.run(*args, **kwargs)

    def __repr__(self) -> str:
        return f"WorkflowDef({self.name!r})"


def workflow(*, name: str) -> Callable[[Callable[Concatenate[Any, P], R]], WorkflowDef[P, R]]:
    """Makes a function a workflow with this name. A run of another workflow may be passed to it,
    because the names are not compared.
    """
    if not isinstance(name, str):
        raise TypeError("Workflow name must be a string")
    if not name:
        raise ValueError("Workflow name cannot be empty")

    def decorate(func: Callable[Concatenate[Any, P], R]) -> WorkflowDef[P, R]:
        @functools.wraps(func)
        def run(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            _refuse_other(ctx, "a workflow")
            return _started(func, _run_workflow(func, ctx, args, kwargs))

        return WorkflowDef(name, _as_async(run, func), func)

    return decorate


def step(func: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Makes a function a step: its body is executed once per run, and its result is recorded."""

    @functools.wraps(func)
    def wrapper(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_other(ctx, "a step")
        return _started(func, _run_step(func, ctx, args, kwargs))

    return _as_async(wrapper, func)


async def _run_workflow(func: Callable[..., Any], ctx: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    try:
        await _value(ctx.start())
    except errors.ValidationError:
        now = await _value(ctx.refresh())
        if now.status is WorkflowStatus.Success:
            return now.output
        raise
    if not args and not kwargs and ctx.input:
        given = ctx.input
        given = given["input"] if isinstance(given, dict) and "input" in given else given
        if given is not None or _takes_input(func):
            args = (given,)
    try:
        result = await _value(func(ctx, *args, **kwargs))
        await _value(ctx.success(result))
    except PASSED_THROUGH:
        raise
    except Exception as e:
        await _value(ctx.fail(str(e)))
        raise
    return result


async def _run_step(func: Callable[..., Any], ctx: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    acquired = await _value(ctx.acquire_step(func.__name__, current_time=ctx.current_time))
    if acquired.status is StepResultStatus.Skipped:
        return acquired.value
    guard = acquired.guard
    try:
        result = await _value(func(ctx, *args, **kwargs))
        await _value(guard.success(result))
    except errors.TransientStepError as e:
        code = getattr(e, "code", None) or "TRANSIENT_ERROR"
        await _value(guard.fail_transient(code, str(e), getattr(e, "retry_after", None)))
        raise
    except PASSED_THROUGH:
        raise
    except Exception as e:
        await _value(guard.fail(str(e)))
        raise
    return result


async def _value(found: Any) -> Any:
    """Returns the value that `found` stands for: awaits it if it comes from an async object."""
    return await found if inspect.isawaitable(found) else found


def _takes_input(func: Callable[..., Any]) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    kinds = [p.kind for p in inspect.signature(func).parameters.values()]
    return sum(k in positional for k in kinds) > 1 or inspect.Parameter.VAR_POSITIONAL in kinds


def _started(func: Callable[..., Any], coroutine: Coroutine[Any, Any, Any]) -> Any:
    return coroutine if inspect.iscoroutinefunction(func) else drive(coroutine)


def _as_async(wrapper: Callable[..., Any], func: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the wrapper a coroutine function if the wrapped function is one, as in 0.15."""
    if not inspect.iscoroutinefunction(func):
        return wrapper

    @functools.wraps(func)
    async def awaited(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        return await wrapper(ctx, *args, **kwargs)

    return awaited


def _refuse_other(ctx: object, what: str) -> None:
    from pgqrs.clients.aio import Run as AsyncRun

    if not isinstance(ctx, Run | AsyncRun):
        raise TypeError(f"First argument to {what} must be a Run instance, got {type(ctx)}")


__all__ = ["WorkflowDef", "step", "workflow"]
