"""A run as its own code sees it: steps whose results are recorded once and replayed afterwards.

This module does not know where records are stored. A `History` holds the results that were recorded
earlier. A `Journal` receives the begin and the result of each step. It is implemented by a pipe to
a supervisor, by a store, or by a list in a test. This module keeps the two rules that make a run
durable:

- A step's body starts only if the history has no result for it and `begin` has returned. `begin`
  returns when every earlier step of the run is durable, or at once if the step is pure.
- The workflow receives a step's result only as decoded from the record. The first execution
  therefore behaves like every replay.
"""

import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.arguments import durations
from pgqrs.flows.history import History, Names
from pgqrs.flows.retry import StepRetryPolicy
from pgqrs.flows.scope import Scope, StepCall, current
from pgqrs.model.bounds import STEPS_MAX
from pgqrs.model.states import Kind, WorkflowStatus
from pgqrs.model.writes import RecordedStep, Step
from pgqrs.values import codec
from pgqrs.values.fingerprint import Fingerprints, folded
from pgqrs.values.signature import Signature

if TYPE_CHECKING:
    from pgqrs.flows.handover import Handover

PAYLOAD_BYTES_MAX = 1024 * 1024
# The error code of a step that its own workflow cancelled.
CANCELLED = "CANCELLED"


class StepDefinition(Struct, frozen=True):
    """The settings of a step. None in `timeout_s` or `memory_bytes` means no limit. A pure step may
    start before the previous step is durable.
    """

    name: str
    function: Callable[..., Any]
    signature: Signature
    is_async: bool
    retry: StepRetryPolicy | None = None
    timeout_s: float | None = None
    pure: bool = False
    memory_bytes: int | None = None
    # Whether a replay compares the arguments of a call with the recorded ones.
    compare: bool = True
    # The parameters by position, None for one that has no keyword. See fingerprint.folded.
    positions: tuple[str | None, ...] = ()


class Definition(Struct, frozen=True):
    """The settings of what a worker executes."""

    kind: Kind
    name: str
    queue: str
    function: Callable[..., Any]
    signature: Signature
    is_async: bool
    # Limits a whole run, or one delivery of a message.
    timeout_s: float | None = None
    # 1: a worker finishes one such run before it starts another. None: a worker may execute other
    # runs while this one waits for a commit.
    lanes: int | None = None
    # The step that the items of a map are given to.
    step: StepDefinition | None = None


class Suspended(BaseException):
    """Removes a run from its worker without ending the run: it waits for a retry, is paused, was
    cancelled, or is handed back to the supervisor.

    Suspended is not an Exception, so that `except Exception` in a workflow does not catch it.
    """


class Journal(Protocol):
    """The interface that receives a run's checkpoints."""

    def begin(self, call: StepCall) -> None:
        """Returns when the body of the call may start: when everything that was recorded before is
        durable, or at once if the step is pure.
        """

    def record(self, step: Step) -> None:
        """Accepts a result and returns at once. Raises Suspended if the run must leave its worker
        at this point.
        """


class AsyncJournal(Protocol):
    """The interface that receives the checkpoints of a run on an event loop."""

    async def begin(self, call: StepCall) -> None: ...

    def record(self, step: Step) -> None: ...

    def tried(self, step: Step) -> None:
        """Accepts a failed attempt of a step, and returns at once. The step is retried in this
        worker.
        """

    @property
    def leaving(self) -> bool:
        """Whether the run is leaving its worker. If a step ends now, it ends for that reason."""

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Awaits `awaitable` for synchronous code inside the run: an async workflow has called a
        plain step.
        """


class Clocks(Struct, frozen=True):
    """The clocks and the source of random numbers that a run uses."""

    now_s: Callable[[], float]
    cpu_s: Callable[[], float]
    random: Callable[[], float]


class Context:
    """One execution of one run or message. `pgqrs.current_run()` returns it."""

    def __init__(
        self,
        definition: Definition,
        run_id: int,
        attempt: int,
        history: "History",
        journal: Journal | AsyncJournal,
        clocks: Clocks,
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
        database: str = "",
    ) -> None:
        self.id = run_id
        self.attempt = attempt
        self.workflow = definition.name
        self.kind = definition.kind
        self.is_async = definition.is_async
        self.history = history
        self.journal = journal
        self.clocks = clocks
        self.payload_bytes_max = payload_bytes_max
        self.database = database
        # Set once Suspended was raised in this execution. Nothing that the function does afterwards
        # is recorded.
        self.suspended = False
        # Whether an async run has created a task of its own.
        self.branched = False
        self.names = Names(history.names)
        # Created for the first call that needs it.
        self._fingerprints: Fingerprints | None = None
        self._thread = threading.get_ident()
        self._position = 0
        self._handover: Handover | None = None
        # The map, and the first item of the range, that this context executes.
        self.of_map: tuple[int, int] | None = None

    @property
    def step(self) -> str | None:
        """The name of the step whose body is executing, or None between steps."""
        call = step_under_way()
        return call.name if call else None

    @property
    def key(self) -> str:
        """An idempotency key for external systems: the same for every attempt of this step of this
        run, and different for any other.

        Within a run, the key depends on the task that calls the step and on the arguments, not on
        the order of calls. It begins with the identity of the database, so that runs of other
        databases have different keys even if their ids are equal.
        """
        call = step_under_way()
        if self.of_map is not None and call is not None:
            map_id, first = self.of_map
            of_item = f"{call.step}/map/{map_id}/{first + call.position}"
            return f"{self.database}/{of_item}" if self.database else of_item
        parts = [self.workflow, str(self.id), *([self._key_of(call)] if call else [])]
        if self.database and not self.history.is_of_older_version:
            parts.insert(0, self.database)
        return "/".join(parts)

    def _key_of(self, call: StepCall) -> str:
        place = call.place
        if place is None or self.history.is_of_older_version:
            return call.name
        where = f"@{place.path}" if place.path else ""
        what = "" if not place.fingerprint else f":{place.fingerprint & (2**64 - 1):016x}"
        which = f"#{call.equal}" if call.equal > 1 else ""
        return f"{call.step}{where}{what}{which}"

    @property
    def position(self) -> int:
        """The position of the next step call, counted from 0."""
        return self._position

    @property
    def handover(self) -> "Handover":
        """The order in which the code of an async run receives the results of its steps."""
        if self._handover is None:
            # Imported here because it imports asyncio.
            from pgqrs.flows.handover import Handover

            self._handover = Handover(self, self.history.steps)
        return self._handover

    def enter(
        self,
        scope: Scope,
        definition: StepDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[StepCall, RecordedStep | None] | RecordedStep:
        """Registers the next call of a step. Returns the recorded result if there is one. Otherwise
        returns the call, with the record of its failed attempts or None.

        Raises WrongThreadError and ReplayMismatchError, and ValidationError if the run exceeds
        STEPS_MAX calls.
        """
        if threading.get_ident() != self._thread:
            raise errors.WrongThreadError(
                f"step {definition.name!r} was called from thread {threading.current_thread().name!r}; "
                "a run's steps are called from the thread that the run started on"
            )
        if self._position >= STEPS_MAX:
            raise errors.ValidationError(
                f"run {self.id} has called {STEPS_MAX:,} steps; split it into several runs"
            )
        position, self._position = self._position, self._position + 1
        arguments = folded(args, kwargs, definition.positions) if kwargs else args
        place, equal = scope.next_place(
            definition.name, self._fingerprint(arguments) if definition.compare else None
        )
        known = self.history.find(definition.name, place, definition.pure, arguments)
        if known is None:
            name, tried = self.names.new(definition.name, place.path), 0
        elif known.status == "RETRY":
            name, tried = known.name, known.retry_count
        else:
            return known
        call = StepCall(
            name,
            position,
            definition.pure,
            definition.timeout_s,
            tried,
            None if definition.retry is None else self.retry_in_s(definition.retry, tried),
            definition.memory_bytes,
            definition.name,
            place,
            equal,
        )
        return call, known

    def _fingerprint(self, arguments: tuple[Any, ...]) -> int:
        if not arguments:
            return 0
        if self._fingerprints is None:
            self._fingerprints = Fingerprints(str(self.id).encode())
        return self._fingerprints.of(arguments)

    def retry_in_s(self, policy: StepRetryPolicy, tried: int) -> float | None:
        """The delay before the next attempt if this one fails after `tried` others, or None if no
        attempt follows.
        """
        return policy.delay(tried + 1, self.clocks.random) if tried < policy.max_attempts else None

    def next_try(self, definition: StepDefinition, call: StepCall) -> StepCall:
        """Returns the call for the next attempt, after an attempt has failed."""
        tried = call.retry_count + 1
        policy = definition.retry
        retry_in_s = None if policy is None else self.retry_in_s(policy, tried)
        return msgspec.structs.replace(call, retry_count=tried, retry_in_s=retry_in_s)


_inside_worker = False


def mark_worker() -> None:
    """Marks this process as a worker of a supervisor. In a worker, a call of a step outside a run
    is a mistake.
    """
    global _inside_worker
    _inside_worker = True


def current_run() -> Context:
    """Returns the run that the calling code belongs to. Raises ValidationError outside a run."""
    context = running()
    if context is None:
        raise errors.ValidationError("pgqrs.current_run() was called outside a run")
    return context


def running() -> Context | None:
    scope = current.get()
    return None if scope is None else scope.context


def step_under_way() -> StepCall | None:
    """Returns the call of the step whose body is executing, or None."""
    scope = current.get()
    return None if scope is None else scope.step


class Waits(Protocol):
    """A journal in a supervisor's worker that also reports waits for other runs. The supervisor
    must know of the wait, because no other supervisor may be there to execute the awaited run.
    """

    def waits(self, run_id: int, workflow: str, blocks: bool) -> None:
        """Reports that the run waits for the run `run_id` of `workflow`. With `blocks`, nothing
        else can execute in this worker during the wait.
        """
        ...

    def look(self) -> None:
        """Raises Suspended if the run must leave its worker now, and InternalError if the wait
        could never end.
        """
        ...

    def waited(self) -> None:
        """Reports that the wait has ended."""
        ...


def waits() -> Waits | None:
    """Returns the journal that a wait is reported to. Returns None outside a supervisor's worker,
    and in a thread other than the run's own.
    """
    context = running()
    if context is None or not hasattr(context.journal, "waits") or threading.get_ident() != context._thread:
        return None
    return cast(Waits, context.journal)


# Steps


_PAUSE = StepDefinition("pause", lambda: None, Signature(lambda: None), False, compare=False)


def call_step(definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a plain step. Inside a run the call is recorded. Outside a run and inside another step
    it is an ordinary call.
    """
    scope = _enclosing(definition)
    if scope is None:
        return definition.function(*args, **kwargs)
    context = scope.context
    if context.is_async:
        journal = cast(AsyncJournal, context.journal)
        return journal.wait(_settled_side_by_side(scope, definition, args, kwargs))
    entered = context.enter(scope, definition, args, kwargs)
    if isinstance(entered, RecordedStep):
        return _settled(definition, entered.status, entered.output, entered.error)
    call, _ = entered
    try:
        context.journal.begin(call)
        attempt = Attempt(context, definition, call)
        scope.step = call
        try:
            value = definition.function(*args, **kwargs)
        except BaseException as e:
            if leaves(e):
                raise
            step = attempt.failed(e)
        else:
            step = attempt.succeeded(value)
        finally:
            scope.step = None
        context.journal.record(step)
    except Suspended:
        context.suspended = True
        raise
    return _settled(definition, step.status, step.output, step.error)


def call_async_step(
    definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Coroutine[Any, Any, Any]:
    """Calls an `async def` step and returns its coroutine. The place of the call in the run is
    fixed now, not when the coroutine is awaited.
    """
    scope = _enclosing(definition)
    if scope is None:
        return definition.function(*args, **kwargs)  # type: ignore[no-any-return]
    if not scope.context.is_async:
        raise errors.ValidationError(
            f"step {definition.name!r} is async but workflow "
            f"{scope.context.workflow!r} is not; make the workflow `async def`"
        )
    coroutine: Any = _settled_side_by_side(scope, definition, args, kwargs)
    coroutine.__name__ = coroutine.__qualname__ = definition.name
    return coroutine  # type: ignore[no-any-return]


def _settled_side_by_side(
    scope: Scope, definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Coroutine[Any, Any, Any]:
    """Calls a step in an async run, where other steps may be in progress at the same time."""
    entered = scope.context.enter(scope, definition, args, kwargs)
    if isinstance(entered, RecordedStep):
        return _recalled(scope.context, definition, entered)
    return _carried_out(scope.context, definition, *entered, args, kwargs)


async def _recalled(context: Context, definition: StepDefinition, known: RecordedStep) -> Any:
    if known.error is not None and _was_cancelled(known.error):
        await context.handover.cancelled_again(known.ended)
    await context.handover.turn(known.ended)
    return _settled(definition, known.status, known.output, known.error)


async def _carried_out(
    context: Context,
    definition: StepDefinition,
    call: StepCall,
    tried: RecordedStep | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Executes a step, including its retries. `tried` holds the attempts that failed in earlier
    executions of the run.
    """
    try:
        if tried is not None and tried.retry_in_s > 0 and context.branched:
            await _back_off(context, _waiting(call, tried))
        step = await _attempted(context, definition, call, args, kwargs)
        while step.retry_in_s is not None:
            await _back_off(context, step)
            call = context.next_try(definition, call)
            step = await _attempted(context, definition, call, args, kwargs)
    except Suspended:
        context.suspended = True
        raise
    await context.handover.turn(step.ended)
    return _settled(definition, step.status, step.output, step.error)


async def _attempted(
    context: Context,
    definition: StepDefinition,
    call: StepCall,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Step:
    """Executes one attempt of a step. Records it, unless a retry follows. If the workflow cancels
    the step, the cancellation is recorded as the result.
    """
    # Imported here because most worker processes do not need asyncio, and every fork would carry it.
    import asyncio

    journal, handover = cast(AsyncJournal, context.journal), context.handover
    attempt = Attempt(context, definition, call)
    limit = None
    scope = current.get()
    assert scope is not None, "a step is carried out inside its run"
    handover.began()
    begun = False
    try:
        await journal.begin(call)
        handover.bodies += 1
        begun = True
        attempt.begins()
        scope.step = call
        if not definition.is_async:
            value = definition.function(*args, **kwargs)
        elif definition.timeout_s is None:
            value = await definition.function(*args, **kwargs)
        else:
            async with asyncio.timeout(definition.timeout_s) as limit:
                value = await definition.function(*args, **kwargs)
    except BaseException as e:
        if leaves(e) or isinstance(e, GeneratorExit):
            raise
        if isinstance(e, asyncio.CancelledError) and _is_being_cancelled():
            if journal.leaving:
                raise
            journal.record(attempt.cancelled(e, handover.ends()))
            handover.passed(handover.ended)
            raise
        over = TimeoutError(
            f"step {call.name!r} was cancelled at its time limit of {definition.timeout_s or 0:g} s"
        )
        step = attempt.failed(over if isinstance(e, TimeoutError) and limit and limit.expired() else e)
    else:
        step = attempt.succeeded(value)
    finally:
        scope.step = None
        handover.bodies -= begun
        handover.over()
    if step.retry_in_s is None:
        step = msgspec.structs.replace(step, ended=handover.ends())
        journal.record(step)
    return step


async def _back_off(context: Context, step: Step) -> None:
    """Waits until a step's retry is due. During the wait the run leaves its worker, unless another
    step of the run is in progress.
    """
    wait_s = step.retry_in_s or 0.0
    if not context.branched or context.handover.is_alone():
        context.journal.record(step)
    cast(AsyncJournal, context.journal).tried(step)
    until = context.clocks.now_s() + wait_s
    if await context.handover.alone(wait_s):
        left_s = max(0.0, until - context.clocks.now_s())
        context.journal.record(msgspec.structs.replace(step, retry_in_s=left_s))


def _waiting(call: StepCall, tried: RecordedStep) -> Step:
    """Returns the record of a step whose earlier attempts (`tried`) failed and whose retry is not
    due yet. The run records it once more if it leaves its worker for the rest of the wait.
    """
    return Step(
        tried.position,
        call.name,
        WorkflowStatus.Error,
        error=tried.error,
        retry_count=tried.retry_count,
        retry_in_s=tried.retry_in_s,
        place=call.place,
    )


def _is_being_cancelled() -> bool:
    """Whether the task was cancelled from outside. Otherwise the step's body raised CancelledError
    itself.
    """
    import asyncio

    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def pause(text: str = "paused", resume_after: float | timedelta | str | None = None) -> None:
    """Removes the run from its worker until `resume_after` (seconds, a timedelta or text such as
    "10m") has passed or `handle.resume()` is called.

    The pause is recorded like a step, so a replay skips it. Raises ValidationError outside a run,
    in a step and in a plain handler.
    """
    context, scope = current_run(), current.get()
    if scope is None or context.kind != "workflow" or scope.step is not None:
        raise errors.ValidationError(
            "pgqrs.pause() is for the workflow itself, not for a step or a plain handler"
        )
    wait_s = None if resume_after is None else durations.seconds(resume_after)
    entered = context.enter(scope, _PAUSE, (), {})
    if not isinstance(entered, RecordedStep):
        call, _ = entered
        output = codec.encode(text, what="the text of a pause", limit=context.payload_bytes_max)
        ended = context.handover.ends() if context.is_async else call.position + 1
        with _suspending(context):
            context.journal.record(
                Step(
                    call.position,
                    call.name,
                    WorkflowStatus.Paused,
                    output=output,
                    retry_in_s=wait_s,
                    place=call.place,
                    ended=ended,
                )
            )
    elif context.is_async:
        cast(AsyncJournal, context.journal).wait(context.handover.turn(entered.ended))


def _enclosing(definition: StepDefinition) -> Scope | None:
    """Returns the scope of a step call that is to be recorded, or None for a plain call."""
    scope = current.get()
    if scope is None:
        if _inside_worker and threading.current_thread() is not threading.main_thread():
            raise errors.WrongThreadError(
                f"step {definition.name!r} was called from thread {threading.current_thread().name!r}, "
                "which is in no run; a run's steps are called from the thread that the run started on"
            )
        return None
    if scope.context.kind != "workflow" or scope.step is not None:
        return None
    return scope


@contextmanager
def _suspending(context: Context) -> Iterator[None]:
    """Marks the run as suspended, even if the function swallows the Suspended raised inside."""
    try:
        yield
    except Suspended:
        context.suspended = True
        raise


def leaves(error: BaseException) -> bool:
    """Whether an exception only removes the run from its worker. Such an exception is no failure of
    the code that it passes through.
    """
    if isinstance(error, Suspended):
        return True
    greenlets = sys.modules.get("greenlet")
    return greenlets is not None and isinstance(error, greenlets.GreenletExit)


def _was_cancelled(error: bytes) -> bool:
    told = msgspec.json.decode(error)
    return isinstance(told, dict) and told.get("code") == CANCELLED


class Attempt:
    """One execution of a step's body, and the record of it."""

    def __init__(self, context: Context, definition: StepDefinition, call: StepCall) -> None:
        self._context = context
        self._definition = definition
        self._call = call
        self._began_s = context.clocks.now_s()
        self._began_cpu_s = context.clocks.cpu_s()

    def begins(self) -> None:
        self._began_s = self._context.clocks.now_s()
        self._began_cpu_s = self._context.clocks.cpu_s()

    def cancelled(self, error: BaseException, ended: int) -> Step:
        step = self._step(WorkflowStatus.Error, error=_encoded_error(error, CANCELLED))
        return msgspec.structs.replace(step, ended=ended)

    def succeeded(self, value: Any) -> Step:
        what = f"the result of step {self._definition.name!r}"
        try:
            output = codec.encode(
                value,
                what=what,
                limit=self._context.payload_bytes_max,
                annotation=self._definition.signature.checked_result,
            )
        except errors.PgqrsError as e:
            return self._step(
                WorkflowStatus.Error,
                error=_encoded_error(e),
                # A retry would give the same result.
            )
        return self._step(WorkflowStatus.Success, output=output)

    def unfit(self, error: BaseException) -> Step:
        """The arguments do not fit the step. Another attempt would find the same."""
        return self._step(WorkflowStatus.Error, error=_encoded_error(error))

    def failed(self, error: BaseException) -> Step:
        retry_in_s = self._call.retry_in_s
        if isinstance(error, errors.TransientStepError):
            policy = self._definition.retry or StepRetryPolicy()
            if self._call.retry_count < policy.max_attempts:
                wanted = getattr(error, "retry_after", None)
                backoff = policy.delay(self._call.retry_count + 1, self._context.clocks.random)
                try:
                    retry_in_s = backoff if wanted is None else durations.seconds(wanted)
                except errors.ValidationError:
                    retry_in_s = backoff  # an invalid duration must not hide that the step failed
        if retry_in_s is None:
            return self._step(WorkflowStatus.Error, error=_encoded_error(error))
        return self._step(
            WorkflowStatus.Error,
            error=_encoded_error(error),
            retry_count=self._call.retry_count + 1,
            retry_in_s=retry_in_s,
        )

    def _step(
        self,
        status: WorkflowStatus,
        output: bytes | None = None,
        error: bytes | None = None,
        retry_count: int | None = None,
        retry_in_s: float | None = None,
    ) -> Step:
        return Step(
            self._call.position,
            self._call.name,
            status,
            output,
            error,
            seconds=self._context.clocks.now_s() - self._began_s,
            cpu_seconds=max(0.0, self._context.clocks.cpu_s() - self._began_cpu_s),
            retry_count=self._call.retry_count if retry_count is None else retry_count,
            retry_in_s=retry_in_s,
            place=self._call.place,
        )


def _encoded_error(error: BaseException, code: str | None = None) -> bytes:
    return msgspec.json.encode(errors.describe(error, code))


def _settled(definition: StepDefinition, status: str, output: bytes | None, error: bytes | None) -> Any:
    """Returns the value, or raises the exception, that a step's record describes. The first
    execution and each replay use this function, so that both behave the same.
    """
    if status == WorkflowStatus.Success:
        return codec.decode(
            output or b"null", definition.signature.returns, what=f"the result of step {definition.name!r}"
        )
    raise errors.rebuild(msgspec.json.decode(error or b"null"), definition.function)


# Runs


class Refused(Exception):
    """Ends a run in ERROR. `error` is the JSON to record."""

    def __init__(self, error: BaseException, code: str | None = None) -> None:
        told = errors.describe(error, code)
        super().__init__(told["message"])
        self.error = msgspec.json.encode(told)


def execute(definition: Definition, context: Context, payload: bytes) -> bytes:
    """Runs a workflow or handler on a message's payload, and returns its result as JSON.

    Raises Refused if the function fails. Raises Suspended if the run leaves its worker, even if the
    function swallowed that exception and whatever it did afterwards.
    """
    with running_in(context):
        try:
            args, kwargs = _arguments(definition, payload)
            value = definition.function(*args, **kwargs)
            _refuse_suspended(context)
            context.history.finish()
            return _result(definition, context, value)
        except BaseException as e:
            _refuse_suspended(context)
            if leaves(e):
                raise
            raise Refused(e) from e


async def execute_async(definition: Definition, context: Context, payload: bytes) -> bytes:
    """Runs an `async def` workflow or handler, like `execute`."""
    import asyncio

    with running_in(context):
        try:
            args, kwargs = _arguments(definition, payload)
            value = await definition.function(*args, **kwargs)
            _refuse_suspended(context)
            context.history.finish()
            return _result(definition, context, value)
        except asyncio.CancelledError as e:
            _refuse_suspended(context)
            if _is_being_cancelled():
                raise  # the event loop is being closed
            raise Refused(e) from e  # the workflow cancelled its own task
        except BaseException as e:
            _refuse_suspended(context)
            if leaves(e) or isinstance(e, GeneratorExit):
                raise
            raise Refused(e) from e


def _refuse_suspended(context: Context) -> None:
    if context.suspended:
        raise Suspended


def _arguments(definition: Definition, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    if definition.kind == "workflow":
        return definition.signature.decode_payload(payload)
    return definition.signature.decode_input(payload)


def _result(definition: Definition, context: Context, value: Any) -> bytes:
    if definition.kind == "handler":
        return b"null"  # no client can read a handler's result
    what = f"the result of workflow {definition.name!r}"
    return codec.encode(
        value, what=what, limit=context.payload_bytes_max, annotation=definition.signature.checked_result
    )


@contextmanager
def running_in(context: Context) -> Iterator[None]:
    token = current.set(Scope(context))
    try:
        yield
    finally:
        current.reset(token)
