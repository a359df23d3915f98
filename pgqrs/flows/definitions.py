"""The decorators `@pgqrs.workflow`, `@pgqrs.step` and `@pgqrs.handler`.

Decorated functions stay plain functions. A decorator stores its definition on the function as
`__pgqrs__`. The definitions of each module are also kept while the module lives, so that a
supervisor detects a name that was rebound to something else.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakKeyDictionary

from pgqrs import errors
from pgqrs.arguments import durations
from pgqrs.arguments.durations import Duration
from pgqrs.flows import retry as retries
from pgqrs.flows.flow import Definition, StepDefinition, call_async_step, call_step
from pgqrs.values.signature import Signature, signature_of

if TYPE_CHECKING:
    from pgqrs.compat.builders import StepBuilder, WorkflowBuilder

F = TypeVar("F", bound=Callable[..., Any])

# The database holds 255 characters. A repeated step appends its number.
NAME_CHARS_MAX = 200
# What follows the step's name in the name of the queue of its maps.
MAP_SUFFIX = ".map"


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
    """Makes a function a workflow: `store.trigger(function, …)` starts a run, and a supervisor
    executes it.

    A direct call of the function is an ordinary call. `name` defaults to the function's `__name__`,
    and `queue` defaults to `name`.

    `timeout` (seconds, a timedelta or text such as "2h") limits the whole run from its first start,
    including pauses, retries and restarts. A run that exceeds it ends in ERROR with a TimeoutError
    that the run cannot catch. If a plain run is executing at that moment, its worker is killed.

    While a plain run waits for the commit of a step, its worker executes another run on the same
    thread. With `lanes=1`, a worker finishes one run of this workflow before it starts another run.
    Use that for functions that hold a lock, change the working directory or set a signal handler
    across steps.

    Raises ValidationError for a function that cannot be a workflow: a generator, a lambda without a
    name, or a function with an annotation that JSON cannot represent.

    Without any argument, this returns the workflow builder of 0.15, which also accepts a function.
    """
    if lanes not in (None, 1):
        raise errors.ValidationError(
            f"lanes={lanes!r} is not a choice: 1 executes one run of the workflow at a time in a worker, "
            "None lets the worker go on with others while a run waits for a commit"
        )
    if all(told is None for told in (function, name, queue, timeout, lanes)):
        from pgqrs.compat.builders import WorkflowBuilder

        return WorkflowBuilder()

    def decorate(f: F) -> F:
        return _defined(f, _definition("workflow", f, name, queue, timeout, lanes))

    return decorate if function is None else decorate(function)


def handler(*, queue: str, name: str | None = None, timeout: Duration | None = None) -> Callable[[F], F]:
    """Makes a function the handler of a queue's plain messages. The function receives each payload,
    converted to its annotation.

    When the function returns, the message is archived. When the function raises, the message is
    delivered again after a back-off. After `max_read_ct` deliveries (a setting of the supervisor)
    the message is dead.

    `timeout` (seconds, a timedelta or text) limits one delivery. Exceeding it counts as a failure:
    a plain handler is killed with its worker, and an `async` one is cancelled.
    """

    def decorate(f: F) -> F:
        definition = _definition("handler", f, name, queue, timeout)
        if len(definition.signature.parameters) != 1:
            raise errors.ValidationError(
                f"handler {definition.name!r} must take one argument, the message's payload"
            )
        return _defined(f, definition)

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
    """Makes a function a step: inside a run its result is recorded once, and every replay returns
    this result.

    A call outside a run, or inside another step, is an ordinary call.

    `retry` is the number of retries after an exception, or a policy. The run holds no worker during
    the back-off between attempts.

    `timeout` (seconds, a timedelta or text such as "10m") limits one attempt. A plain step that
    exceeds it is killed with its worker process, and an `async` one is cancelled. `memory` (bytes,
    or text such as "2 GiB") limits the memory of a plain step's process, which is checked four
    times a second. Exceeding either limit counts as a failed attempt.

    `pure` declares that the step has no side effects: it may start before the previous step is
    durable.

    A replay finds the record of a call by the task that makes the call, the step's name and a
    fingerprint of the arguments. If the arguments differ from the recorded ones, the call raises
    ReplayMismatchError before the body runs. `compare=False` skips this comparison. It is meant for
    a step that receives a timestamp, a temporary path or the like.

    Without any argument, this returns the step builder of 0.15, which also accepts a function.
    """
    if all(told is None for told in (function, name, retry, timeout, memory)) and not pure and compare:
        from pgqrs.compat.builders import StepBuilder

        return StepBuilder()

    def decorate(f: F) -> F:
        _refuse_order(f, "step")
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
                f"step {definition.name!r} is async: such steps share one process, whose memory is "
                "nobody's alone; a limit of memory takes a plain function"
            )
        if definition.is_async:
            # This is not an `async def`, because a call takes its place among the calls of its task
            # when it is made, not when it is awaited.
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
    """Returns the definition of a decorated function. Raises ValidationError for any other object,
    including one that wraps a decorated function: workers would execute the function without the
    wrapper.
    """
    found = getattr(function, "__pgqrs__", None)
    if isinstance(found, Definition) and found.function is function:
        return found
    step = getattr(function, "__pgqrs_step__", None)
    if isinstance(step, StepDefinition) and getattr(function, "__wrapped__", None) is step.function:
        return map_of(step)
    inner = found if isinstance(found, Definition) else _wrapped(function)
    if inner is not None:
        raise errors.ValidationError(_misplaced(function, inner))
    if isinstance(function, ModuleType):
        raise errors.ValidationError(
            f"{function.__name__} is a module; pass its workflows and handlers, which are functions"
        )
    name = getattr(function, "__qualname__", repr(function))
    raise errors.ValidationError(f"{name} is no workflow or handler; decorate it with @pgqrs.workflow")


def refuse_replaced(module: ModuleType) -> None:
    """Raises ValidationError if the module binds the name of a workflow, handler or step to a
    wrapper of it, for example because of a decorator above pgqrs's own. Workers would ignore the
    wrapper.
    """
    for definition in _made.get(module, ()):
        held: Any = module
        for part in definition.function.__qualname__.split("."):
            held = getattr(held, part, None)
        if held is None or held is definition.function or not _wraps(held, definition):
            continue
        raise errors.ValidationError(_misplaced(held, definition))
    for name, value in vars(module).items():
        # Compare the type itself: a lazy proxy may raise an exception in `isinstance`.
        if type(value) is functools._lru_cache_wrapper and (step := getattr(value, "__pgqrs_step__", None)):
            raise errors.ValidationError(
                f"{name}: a cache above @pgqrs.step answers in the place of step "
                f"{step.name!r}, which a run then does not record; write the cache "
                "below @pgqrs.step, or leave it out: a run's steps are remembered"
            )


def definitions_in(module: ModuleType) -> list[Definition]:
    """Returns the workflows and handlers in a module's namespace, including imported ones. Raises
    ValidationError as `definition_of` does.
    """
    return distinct(
        definition_of(value)
        for value in list(vars(module).values())
        if isinstance(_attribute(value, "__pgqrs__"), Definition)
    )


def step_of(function: object) -> StepDefinition:
    """Returns the definition of a decorated step. Raises ValidationError for anything else."""
    step = getattr(function, "__pgqrs_step__", None)
    if isinstance(step, StepDefinition):
        return step
    name = getattr(function, "__qualname__", repr(function))
    raise errors.ValidationError(f"{name} is no step; decorate it with @pgqrs.step")


def map_of(step: StepDefinition) -> Definition:
    """Returns what a worker executes for the items of a map of this step. Raises ValidationError if
    the step is async.
    """
    if step.is_async:
        raise errors.ValidationError(
            f"step {step.name!r} is async; a map takes a plain step, which it runs on every core"
        )
    name = step.name + MAP_SUFFIX
    return Definition("map", name, name, step.function, step.signature, False, lanes=1, step=step)


def maps_in(module: ModuleType) -> list[Definition]:
    """Returns what a worker executes for maps of the steps in a module's namespace. Of two steps
    with one name neither can be mapped.
    """
    steps: dict[str, list[StepDefinition]] = {}
    for value in list(vars(module).values()):
        step = _attribute(value, "__pgqrs_step__")
        if isinstance(step, StepDefinition) and not step.is_async:
            others = steps.setdefault(step.name, [])
            if step not in others:
                others.append(step)
    return [map_of(same[0]) for same in steps.values() if len(same) == 1]


def distinct(found: Iterable[Definition]) -> list[Definition]:
    """Removes duplicates. Raises ValidationError if two definitions share a name or a queue."""
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


# Wrappers in the place of a decorated function

_made: WeakKeyDictionary[ModuleType, list[Definition]] = WeakKeyDictionary()
_ORDER = {"workflow": "@pgqrs.workflow", "handler": "@pgqrs.handler(queue=…)"}


def _defined(f: F, definition: Definition) -> F:
    try:
        f.__pgqrs__ = definition  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise errors.ValidationError(
            f"{definition.name!r} is a {type(f).__name__}, which "
            f"cannot be a {definition.kind}; write a def that calls it"
        ) from None
    module = sys.modules.get(getattr(f, "__module__", None) or "")
    if module is not None and "<locals>" not in getattr(f, "__qualname__", "<locals>"):
        _made.setdefault(module, []).append(definition)
    return f


def _misplaced(outer: object, inner: Definition) -> str:
    decorator = _ORDER[inner.kind]
    if inspect.ismethod(outer):
        return (
            f"{inner.kind} {inner.name!r} is a method here, bound to {type(outer.__self__).__name__}, of "
            f"which a worker knows nothing; make it a function, or write @staticmethod above {decorator}"
        )
    what = f"{getattr(outer, '__qualname__', type(outer).__qualname__)} ({type(outer).__name__})"
    return (
        f"{what} wraps {inner.kind} {inner.name!r}, and the workers would run {inner.name!r} without it; "
        f"write {decorator} above all other decorators"
    )


def _wrapped(outer: object) -> Definition | None:
    """Returns the definition inside a partial or a wrapper, or None."""
    for name in ("func", "__wrapped__", "__func__"):
        inner = _attribute(outer, name)
        if isinstance(found := _attribute(inner, "__pgqrs__"), Definition):
            return found
    held = [_content(cell) for cell in _attribute(outer, "__closure__") or ()]
    if not isinstance(outer, type | ModuleType):
        held += list((_attribute(outer, "__dict__") or {}).values())
    for value in held:
        found = _attribute(value, "__pgqrs__")
        if isinstance(found, Definition) and found.function is value:
            return found
    return None


def _wraps(outer: object, inner: Definition) -> bool:
    found = _attribute(outer, "__pgqrs__")
    if isinstance(found, Definition) and found.function is outer:
        return False  # the name was rebound to another workflow
    if not isinstance(outer, type) and not inspect.isroutine(outer) and callable(outer):
        return True  # a callable object has replaced the function
    return found is inner or _wrapped(outer) is inner


def _attribute(value: object, name: str) -> Any:
    """Returns an attribute. Returns None if the attribute is missing, or if reading it raises, as
    it may in a lazy proxy.
    """
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _refuse_order(f: Any, kind: str) -> None:
    """Raises ValidationError for an object that a decorator of pgqrs cannot be placed above."""
    if isinstance(f, staticmethod | classmethod):
        told = "staticmethod" if isinstance(f, staticmethod) else "classmethod"
        raise errors.ValidationError(
            f"@pgqrs.{kind} stands above @{told}, which hides the "
            f"function from it; write @{told} above @pgqrs.{kind}"
        )
    if isinstance(f, property):
        raise errors.ValidationError(f"@pgqrs.{kind} cannot decorate a property; write a method")
    if isinstance(f, type):
        raise errors.ValidationError(
            f"@pgqrs.{kind} decorates functions, not the class {f.__qualname__}; write a def that makes one"
        )
    found = _attribute(f, "__pgqrs__")
    if isinstance(found, Definition):
        if found.function is not f:
            raise errors.ValidationError(_misplaced(f, found))
        raise errors.ValidationError(
            f"{found.name!r} is a {found.kind} already, and cannot be a {kind} as well; "
            + (
                f"write {_ORDER[found.kind]} above @pgqrs.step"
                if kind == "step"
                else "give each a function of its own"
            )
        )
    if kind == "step" and _attribute(f, "__pgqrs_step__") is not None:
        raise errors.ValidationError(
            f"{f.__pgqrs_step__.name!r} is a step already, or wraps one; write @pgqrs.step once"
        )
    if kind != "step" and (first := _bound_to(f)):
        raise errors.ValidationError(
            f"{kind} {f.__qualname__!r} takes {first!r}, and a worker has no object to give it; make it a "
            f"function, or write @staticmethod above {_ORDER[kind]}"
        )


def _bound_to(f: Any) -> str | None:
    """Returns `self` or `cls` if the function is a method that takes it, else None."""
    around = getattr(f, "__qualname__", "").rpartition(".")[0]
    if not around or around.endswith("<locals>") or not inspect.isfunction(f):
        return None
    first = next(iter(inspect.signature(f).parameters), None)
    return first if first in ("self", "cls") else None


def _definition(
    kind: Any,
    f: Callable[..., Any],
    name: str | None,
    queue: str | None,
    timeout: Duration | None,
    lanes: int | None = None,
) -> Definition:
    _refuse_order(f, kind)
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
    """Returns the parameters that accept a positional argument: the name, or None if it is
    positional-only.
    """
    found: list[str | None] = []
    for parameter in inspect.signature(f).parameters.values():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            found.append(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            found.append(None)
    return tuple(found)


def _mark_as_coroutine_function(f: Any) -> None:
    """Marks a function as a coroutine function for callers that check, such as test runners and web
    frameworks.
    """
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(f)
    else:
        # Imported here because a program without async steps does not need asyncio.
        import asyncio.coroutines

        f._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def _refuse_generator(f: Callable[..., Any], kind: str) -> None:
    if inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f):
        raise errors.ValidationError(f"{kind} {f.__name__!r} is a generator; return a list instead")


def _signature(f: Callable[..., Any], kind: str) -> Signature:
    if not callable(f):
        raise errors.ValidationError(f"@pgqrs.{kind} decorates functions, not {f!r}")
    try:
        return signature_of(f, inputs=kind != "step")
    except errors.PgqrsError:
        raise
    except ValueError as e:  # a function written in C
        raise errors.ValidationError(
            f"the parameters of {f!r} are unknown, so it cannot be a {kind}: {e}; write a def that calls it"
        ) from e


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
