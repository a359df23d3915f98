"""`@pgqrs.workflow`, `@pgqrs.step` and `@pgqrs.handler`: plain functions stay plain functions, and are known by name.

What a decorator learned hangs on the function as `__pgqrs__`; nothing is registered anywhere else, so importing a module
has no effect beyond the module.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pgqrs import durations, errors
from pgqrs import retry as retries
from pgqrs.durations import Duration
from pgqrs.flow import Definition, StepDefinition, call_async_step, call_step
from pgqrs.signature import Signature, signature_of

if TYPE_CHECKING:
    from pgqrs.builders import StepBuilder, WorkflowBuilder

F = TypeVar("F", bound=Callable[..., Any])

NAME_CHARS_MAX = 200  # the database holds 255, and a repeated step adds its number


@overload
def workflow() -> "WorkflowBuilder": ...
@overload
def workflow(function: F, /) -> F: ...
@overload
def workflow(
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: Duration | None = None,
    lanes: int | None = None,
) -> Callable[[F], F]: ...
def workflow(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: Duration | None = None,
    lanes: int | None = None,
) -> Any:
    """Makes a function a workflow: `store.trigger(function, …)` starts a run of it, a supervisor executes it.

    The function stays what it was; called directly it just runs. `name` is by default its `__name__`, and its `queue`
    is by default its name. `timeout` (seconds, timedelta or text such as "2h") is the time of the whole run from its first start,
    pauses, retries and restarts included: over it the run is ERROR with a TimeoutError that it cannot catch, and a plain one
    that is running is killed with its worker. Raises ValidationError for what cannot be a workflow (a generator, a lambda without a name, an
    annotation that JSON cannot carry).

    While a plain run waits for the commit of a step, its worker goes on with another run on the same thread. `lanes=1`
    keeps it from that: a worker executes one run of this workflow to its end before it turns to another one. That is for
    functions that hold a lock, change the working directory or set a signal handler across a step.

    With no argument at all it is 0.15's builder, which also accepts a function.
    """
    if lanes not in (None, 1):
        raise errors.ValidationError(
            f"lanes={lanes!r} is not a choice: 1 executes one run of the workflow at a time in a worker, None lets the worker "
            "go on with others while a run waits for a commit"
        )
    if all(told is None for told in (function, name, queue, timeout, lanes)):
        from pgqrs.builders import WorkflowBuilder

        return WorkflowBuilder()

    def decorate(f: F) -> F:
        f.__pgqrs__ = _definition("workflow", f, name, queue, timeout, lanes)  # type: ignore[attr-defined]
        return f

    return decorate if function is None else decorate(function)


def handler(*, queue: str, name: str | None = None, timeout: Duration | None = None) -> Callable[[F], F]:
    """Makes a function the handler of a queue's plain messages: it is called with each payload, converted by its
    annotation. When it returns the message is archived; when it raises, the message is delivered again after a back-off,
    up to the supervisor's `max_read_ct`, and is then dead. So it is when one delivery takes longer than `timeout` (seconds, timedelta
    or text): a plain handler is then killed with its worker, an `async` one cancelled."""

    def decorate(f: F) -> F:
        f.__pgqrs__ = _definition("handler", f, name, queue, timeout)  # type: ignore[attr-defined]
        if len(f.__pgqrs__.signature.parameters) != 1:  # type: ignore[attr-defined]
            raise errors.ValidationError(
                f"handler {f.__name__!r} must take one argument, the message's payload"
            )
        return f

    return decorate


@overload
def step() -> "StepBuilder": ...
@overload
def step(function: F, /) -> F: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: int | retries.StepRetryPolicy | None = None,
    timeout: Duration | None = None,
    memory: int | str | None = None,
    pure: bool = False,
    compare: bool = True,
) -> Callable[[F], F]: ...
def step(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    retry: int | retries.StepRetryPolicy | None = None,
    timeout: Duration | None = None,
    memory: int | str | None = None,
    pure: bool = False,
    compare: bool = True,
) -> Any:
    """Makes a function a step: inside a run its result is recorded once and remembered by every replay.

    Outside a run, and inside another step, it is a plain call. `retry` is how many more tries an exception gets, with a
    back-off between them during which the run holds no worker. `timeout` (seconds, timedelta or text such as "10m")
    ends a plain step by killing its worker process, an `async` one by cancelling it; both count as a failed try. So does a
    plain step whose process holds more than `memory` (bytes, or text such as "2 GiB"), looked at four times a second. `pure`
    declares that the step has no side effects: it may start before the step before it is durable.

    A replay finds the record of a call by the task that makes the call, the step's name and a fingerprint of the call's
    arguments; a call whose arguments differ from the recorded ones raises ReplayMismatchError before the body runs. With
    `compare=False` the arguments are not compared: for a step that is given a time stamp, a temporary path or the like.

    With no argument at all it is 0.15's builder, which also accepts a function.
    """
    if all(told is None for told in (function, name, retry, timeout, memory)) and not pure and compare:
        from pgqrs.builders import StepBuilder

        return StepBuilder()

    def decorate(f: F) -> F:
        _refuse_generator(f, "step")
        definition = StepDefinition(
            name=_checked_step_name(name or getattr(f, "__name__", "")),
            function=f,
            signature=_signature(f, "step"),
            is_async=inspect.iscoroutinefunction(f),
            retry=None if retry is None else retries.policy(retry),
            timeout_s=None if timeout is None else durations.seconds(timeout),
            pure=pure,
            memory_bytes=None if memory is None else durations.size(memory),
            compare=compare,
            positions=_positions(f),
        )
        if definition.is_async and memory is not None:
            raise errors.ValidationError(
                f"step {definition.name!r} is async: such steps share one process, whose memory is nobody's alone; "
                "a limit of memory takes a plain function"
            )
        if definition.is_async:
            # No `async def`: a call has its place among the calls of its task when it is made, not when it is awaited.
            @functools.wraps(f)
            def call_async(*args: Any, **kwargs: Any) -> Any:
                return call_async_step(definition, args, kwargs)

            call_async.__pgqrs_step__ = definition  # type: ignore[attr-defined]
            _mark_as_coroutine_function(call_async)
            return call_async  # type: ignore[return-value]

        @functools.wraps(f)
        def call(*args: Any, **kwargs: Any) -> Any:
            return call_step(definition, args, kwargs)

        call.__pgqrs_step__ = definition  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate if function is None else decorate(function)


def definition_of(function: object) -> Definition:
    """What was decorated. Raises ValidationError for anything else."""
    found = getattr(function, "__pgqrs__", None)
    if not isinstance(found, Definition):
        name = getattr(function, "__qualname__", repr(function))
        raise errors.ValidationError(f"{name} is no workflow or handler; decorate it with @pgqrs.workflow")
    return found


def definitions_in(module: ModuleType) -> list[Definition]:
    """The workflows and handlers that a module holds, its own and those it imported."""
    return distinct(
        d for value in vars(module).values() if isinstance(d := getattr(value, "__pgqrs__", None), Definition)
    )


def distinct(found: Iterable[Definition]) -> list[Definition]:
    """Each once. Raises ValidationError where two would answer to one name or one queue."""
    by_name: dict[str, Definition] = {}
    by_queue: dict[str, Definition] = {}
    for d in found:
        if by_name.setdefault(d.name, d).function is not d.function:
            raise errors.ValidationError(f"two functions are named {d.name!r}; give one of them name=…")
        if by_queue.setdefault(d.queue, d).function is not d.function:
            raise errors.ValidationError(
                f"{by_queue[d.queue].name!r} and {d.name!r} are both on queue {d.queue!r}"
            )
    return list(by_name.values())


def _definition(
    kind: Any,
    f: Callable[..., Any],
    name: str | None,
    queue: str | None,
    timeout: Duration | None,
    lanes: int | None = None,
) -> Definition:
    _refuse_generator(f, kind)
    name = _checked_name(kind, name or getattr(f, "__name__", ""))
    return Definition(
        kind=kind,
        name=name,
        queue=_checked_name("queue", queue or name),
        function=f,
        signature=_signature(f, kind),
        is_async=inspect.iscoroutinefunction(f),
        timeout_s=None if timeout is None else durations.seconds(timeout),
        lanes=lanes,
    )


def _positions(f: Callable[..., Any]) -> tuple[str | None, ...]:
    """The parameters that an argument without a keyword can go to, None for one that only such an argument can."""
    found: list[str | None] = []
    for parameter in inspect.signature(f).parameters.values():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            found.append(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            found.append(None)
    return tuple(found)


def _mark_as_coroutine_function(f: Any) -> None:
    """For those who ask whether it is one, such as a test runner or a web framework."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(f)
    else:
        import asyncio.coroutines  # not at the top: a program without async steps has no use for it

        f._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def _refuse_generator(f: Callable[..., Any], kind: str) -> None:
    if inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f):
        raise errors.ValidationError(f"{kind} {f.__name__!r} is a generator; return a list instead")


def _signature(f: Callable[..., Any], kind: str) -> Signature:
    if not callable(f):
        raise errors.ValidationError(f"@pgqrs.{kind} decorates functions, not {f!r}")
    return signature_of(f, inputs=kind != "step")


def _checked_step_name(name: str | None) -> str:
    if name and "#" in name:
        raise errors.ValidationError(
            f"{name!r} cannot name a step: '#' numbers the calls of a step that is called more than once"
        )
    return _checked_name("step", name)


def _checked_name(kind: str, name: str | None) -> str:
    if name == "<lambda>":
        raise errors.ValidationError(
            f"a lambda has no name to know the {kind} by; give it name=…, or write a def"
        )
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise errors.ValidationError(
            f"{name!r} cannot name a {kind}: 1 to {NAME_CHARS_MAX} printable characters"
        )
    return name
