"""What a run is made of, as the code inside it sees it: steps that are recorded once and remembered ever after.

Where the records go is none of this module's business: a `History` holds what was recorded before, and a `Journal` is
told when a step begins and what becomes of it; behind it is a pipe to a supervisor, a store, or a list in a test. The
order that makes a run durable is held here:

    a step's body starts only when its history knew no result and `begin` has returned, and `begin` returns only when
    every earlier step of the run is durable (unless the step is pure); a step's result reaches the workflow only as the
    decoded form of what was recorded, so the first time is like every replay.
"""

import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, Protocol, cast

import msgspec
from msgspec import Struct

from pgqrs import codec, durations, errors
from pgqrs.retry import StepRetryPolicy
from pgqrs.signature import Signature
from pgqrs.states import WorkflowStatus
from pgqrs.writes import RecordedStep, Step

PAYLOAD_BYTES_MAX = 1024 * 1024
# What user code may raise to fail. Not Suspended, which takes the run off its worker; and in async code not GeneratorExit and
# CancelledError either, which are the event loop's.
ASYNC_FAILURES = (Exception, SystemExit, KeyboardInterrupt)
FAILURES = (*ASYNC_FAILURES, GeneratorExit)

STEPS_MAX = 100_000  # of one run: more than that is a loop that never ends


class StepDefinition(Struct, frozen=True):
    """What `@pgqrs.step` knows. `timeout_s` and `memory_bytes` None: no limit. A pure step may start before the one before it
    is durable."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    is_async: bool
    retry: StepRetryPolicy | None = None
    timeout_s: float | None = None
    pure: bool = False
    memory_bytes: int | None = None


class Definition(Struct, frozen=True):
    """What `@pgqrs.workflow` and `@pgqrs.handler` know."""

    kind: Literal["workflow", "handler"]
    name: str
    queue: str
    function: Callable[..., Any]
    signature: Signature
    is_async: bool
    timeout_s: float | None = None  # of a whole run, or of one delivery


class StepCall(Struct, frozen=True):
    """One call of a step in one run: `name` is the step's, with #2, #3, … from its second call on.

    `retry_count` is how often it was tried before; `retry_in_s` when it will be tried again should this attempt fail,
    None if it will not.
    """

    name: str
    position: int
    pure: bool = False
    timeout_s: float | None = None
    retry_count: int = 0
    retry_in_s: float | None = None
    memory_bytes: int | None = None


class Suspended(BaseException):
    """Takes a run off its worker without ending it: it waits for a retry, pauses, was cancelled or handed back.

    Not an Exception, so that a workflow's `except Exception` lets it through.
    """


class Journal(Protocol):
    """Where the checkpoints of one run go."""

    def begin(self, call: StepCall) -> None:
        """The call's body starts when this returns, which it does when all that was recorded before is durable (at once
        if the call is pure)."""

    def record(self, step: Step) -> None:
        """Takes a result. Returns at once. Raises Suspended where the run leaves its worker here."""


class AsyncJournal(Protocol):
    """The same for a run on an event loop: only waiting differs."""

    async def begin(self, call: StepCall) -> None: ...

    def body(self, awaitable: Awaitable[Any]) -> Awaitable[Any]:
        """The step's body, to be awaited in its place."""
        ...

    def record(self, step: Step) -> None: ...

    def wait(self, awaitable: Awaitable[None]) -> None:
        """Waits from synchronous code inside the run: a plain step that an async workflow calls."""


class Clocks(Struct, frozen=True):
    """The time and the chance that a run may use."""

    now_s: Callable[[], float]
    cpu_s: Callable[[], float]
    random: Callable[[], float]


class Context:
    """One execution of one run or message. `pgqrs.current_run()` hands it out."""

    def __init__(
        self,
        definition: Definition,
        run_id: int,
        attempt: int,
        history: "History",
        journal: Journal | AsyncJournal,
        clocks: Clocks,
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
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
        self._thread = threading.get_ident()
        self._calls: dict[str, int] = {}
        self._position = 0

    @property
    def step(self) -> str | None:
        """The name of the step whose body is running, None between steps."""
        call = _step.get()
        return call.name if call else None

    @property
    def key(self) -> str:
        """The same for every attempt of this step of this run, and for no other: an idempotency key for the outside."""
        return "/".join([self.workflow, str(self.id), *([self.step] if self.step else [])])

    @property
    def position(self) -> int:
        """Of the step to come, counted from 0."""
        return self._position

    def enter(self, name: str, definition: StepDefinition | None = None) -> StepCall:
        """The next call of a step, numbered; steps ask for it themselves. Raises WrongThreadError, and ValidationError past
        the most steps that a run may call."""
        if threading.get_ident() != self._thread:
            raise errors.WrongThreadError(
                f"step {name!r} was called from thread {threading.current_thread().name!r}; "
                "a run's steps are called from the thread that the run started on"
            )
        if self._position >= STEPS_MAX:
            raise errors.ValidationError(
                f"run {self.id} has called {STEPS_MAX:,} steps; split it into several runs"
            )
        count = self._calls[name] = self._calls.get(name, 0) + 1
        position, self._position = self._position, self._position + 1
        full = name if count == 1 else f"{name}#{count}"
        if definition is None:
            return StepCall(full, position)
        return StepCall(
            full, position, definition.pure, definition.timeout_s, memory_bytes=definition.memory_bytes
        )


_context: contextvars.ContextVar[Context | None] = contextvars.ContextVar("pgqrs_context", default=None)
_step: contextvars.ContextVar[StepCall | None] = contextvars.ContextVar("pgqrs_step", default=None)
_inside_worker = False


def mark_worker() -> None:
    """From now on this process runs steps for a supervisor: one that is called outside a run is a mistake."""
    global _inside_worker
    _inside_worker = True


def current_run() -> Context:
    """The run that this code is part of. Raises ValidationError outside one."""
    context = _context.get()
    if context is None:
        raise errors.ValidationError("pgqrs.current_run() was called outside a run")
    return context


def running() -> Context | None:
    return _context.get()


class Waits(Protocol):
    """A journal of a run in a supervisor's worker: the supervisor is told what the run waits for, since it may be the only one
    that could do it."""

    def waits(self, run_id: int, workflow: str, blocks: bool) -> None:
        """The run waits for that one from now on. `blocks`: nothing else can go on in its worker meanwhile."""
        ...

    def look(self) -> None:
        """Raises Suspended where the run is to leave its worker instead, InternalError where the wait could never end."""
        ...

    def waited(self) -> None:
        """The wait is over."""
        ...


def waits() -> Waits | None:
    """Whom a wait for another run is to be told, None outside a supervisor's worker and in a thread that the run did not start on."""
    context = _context.get()
    if context is None or not hasattr(context.journal, "waits") or threading.get_ident() != context._thread:
        return None
    return cast(Waits, context.journal)


# Recorded history


class History:
    """The recorded steps of a run, and the check that a replay takes the same ones."""

    def __init__(self, steps: Sequence[RecordedStep], ordered: bool) -> None:
        self._by_name = {s.name: s for s in steps}
        self._at = {s.position: s for s in steps}
        self._ordered = ordered
        self._unreached = {s.name for s in steps}

    def find(self, call: StepCall) -> RecordedStep | None:
        """What is recorded of this call: its result, or with the status RETRY the attempts that failed.

        Raises ReplayMismatchError when the run took another step here before. Where steps run concurrently
        (`ordered` false) their order may differ between replays, so there only names count."""
        if self._ordered:
            then = self._at.get(call.position)
            if then is not None and then.name != call.name:
                raise errors.ReplayMismatchError(
                    f"step {call.position + 1} of this run is now {call.name!r}, but {then.name!r} was recorded; "
                    "a workflow must call the same steps in the same order on every replay"
                )
        self._unreached.discard(call.name)
        return self._by_name.get(call.name)

    def finish(self) -> None:
        """Raises ReplayMismatchError when the run is at its end and recorded steps were never called."""
        if self._unreached:
            first = min(self._unreached, key=lambda n: self._by_name[n].position)
            raise errors.ReplayMismatchError(
                f"the run ended without calling step {first!r}, which was recorded; "
                "a workflow must call the same steps in the same order on every replay"
            )


# Steps


def call_step(definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A plain step's call: recorded inside a run, a plain call outside one and inside another step."""
    context = _enclosing(definition)
    if context is None:
        return definition.function(*args, **kwargs)
    call, known = _enter(context, definition)
    if known is not None:
        return _settled(definition, known.status, known.output, known.error)
    begun = context.journal.begin(call)
    if begun is not None:
        context.journal.wait(begun)  # type: ignore[union-attr]
    attempt = _Attempt(context, definition, call)
    try:
        token = _step.set(call)
        try:
            value = definition.function(*args, **kwargs)
        finally:
            _step.reset(token)
    except FAILURES as e:
        step = attempt.failed(e)
    else:
        step = attempt.succeeded(value)
    context.journal.record(step)
    return _settled(definition, step.status, step.output, step.error)


async def call_async_step(definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same for an `async def` step."""
    context = _enclosing(definition)
    if context is None:
        return await definition.function(*args, **kwargs)
    if not context.is_async:
        raise errors.ValidationError(
            f"step {definition.name!r} is async but workflow {context.workflow!r} is not; make the workflow `async def`"
        )
    call, known = _enter(context, definition)
    if known is not None:
        return _settled(definition, known.status, known.output, known.error)
    import asyncio  # not at the top: most worker processes have no use for it, and each fork of one would carry it

    journal = cast(AsyncJournal, context.journal)  # as an async run has
    await journal.begin(call)
    attempt = _Attempt(context, definition, call)
    limit = asyncio.timeout(definition.timeout_s)
    try:
        with _inside(call):
            async with limit:
                value = await journal.body(definition.function(*args, **kwargs))
    except ASYNC_FAILURES as e:
        over = TimeoutError(
            f"step {call.name!r} was cancelled at its time limit of {definition.timeout_s or 0:g} s"
        )
        step = attempt.failed(over if isinstance(e, TimeoutError) and limit.expired() else e)
    else:
        step = attempt.succeeded(value)
    context.journal.record(step)
    return _settled(definition, step.status, step.output, step.error)


def step_under_way() -> StepCall | None:
    """Whose body the current context is in."""
    return _step.get()


def pause(text: str = "paused", resume_after: float | timedelta | str | None = None) -> None:
    """Takes the run off its worker until `resume_after` (seconds, timedelta or text such as "10m") has passed or
    `handle.resume()` is called. Recorded like a step: a replay passes it. Raises ValidationError outside a run."""
    context = current_run()
    if context.kind != "workflow" or _step.get() is not None:
        raise errors.ValidationError(
            "pgqrs.pause() is for the workflow itself, not for a step or a plain handler"
        )
    wait_s = None if resume_after is None else durations.seconds(resume_after)
    call = context.enter("pause")
    if context.history.find(call) is None:
        output = codec.encode(text, what="the text of a pause", limit=context.payload_bytes_max)
        context.journal.record(
            Step(call.position, call.name, WorkflowStatus.Paused, output=output, retry_in_s=wait_s)
        )


def _enclosing(definition: StepDefinition) -> Context | None:
    """The run that this call of a step belongs to, if it is to be recorded."""
    context = _context.get()
    if context is None:
        if _inside_worker and threading.current_thread() is not threading.main_thread():
            raise errors.WrongThreadError(
                f"step {definition.name!r} was called from thread {threading.current_thread().name!r}, which is in no "
                "run; a run's steps are called from the thread that the run started on"
            )
        return None
    if context.kind != "workflow" or _step.get() is not None:
        return None
    return context


def _enter(context: Context, definition: StepDefinition) -> tuple[StepCall, RecordedStep | None]:
    """The call, and its record if it needs no further attempt."""
    call = context.enter(definition.name, definition)
    known = context.history.find(call)
    if known is not None and known.status != "RETRY":
        return call, known
    tried = known.retry_count if known else 0
    policy = definition.retry
    delay_s = (
        policy.delay(tried + 1, context.clocks.random) if policy and tried < policy.max_attempts else None
    )
    return msgspec.structs.replace(call, retry_count=tried, retry_in_s=delay_s), None


class _Attempt:
    """One execution of a step's body, from its first instant to what is to be recorded of it."""

    def __init__(self, context: Context, definition: StepDefinition, call: StepCall) -> None:
        self._context = context
        self._definition = definition
        self._call = call
        self._began_s = context.clocks.now_s()
        self._began_cpu_s = context.clocks.cpu_s()

    def succeeded(self, value: Any) -> Step:
        what = f"the result of step {self._definition.name!r}"
        try:
            output = codec.encode(value, what=what, limit=self._context.payload_bytes_max)
        except errors.PgqrsError as e:
            return self._step(
                WorkflowStatus.Error, error=_encoded_error(e)
            )  # trying again would give the same
        return self._step(WorkflowStatus.Success, output=output)

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
                    retry_in_s = backoff  # what it says is no duration; that the step failed is what counts
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
        )


def _encoded_error(error: BaseException) -> bytes:
    return msgspec.json.encode(errors.describe(error))


def _settled(definition: StepDefinition, status: str, output: bytes | None, error: bytes | None) -> Any:
    """A step's result as the workflow gets it, the first time and on every replay: from what was recorded."""
    if status == WorkflowStatus.Success:
        return codec.decode(
            output or b"null", definition.signature.returns, what=f"the result of step {definition.name!r}"
        )
    raise errors.rebuild(msgspec.json.decode(error or b"null"))


@contextmanager
def _inside(call: StepCall) -> Iterator[None]:
    token = _step.set(call)
    try:
        yield
    finally:
        _step.reset(token)


# Runs


class Refused(Exception):
    """A run that ends in ERROR; `error` is what is to be recorded, raw JSON."""

    def __init__(self, error: BaseException, code: str | None = None) -> None:
        told = errors.describe(error, code)
        super().__init__(told["message"])
        self.error = msgspec.json.encode(told)


def execute(definition: Definition, context: Context, payload: bytes) -> bytes:
    """Runs a workflow or handler on a message's payload and returns its result as JSON. Raises Refused where it fails,
    Suspended where it leaves off."""
    with _run(context):
        try:
            args, kwargs = _arguments(definition, payload)
            value = definition.function(*args, **kwargs)
            context.history.finish()
            return _result(definition, context, value)
        except FAILURES as e:
            raise Refused(e) from e


async def execute_async(definition: Definition, context: Context, payload: bytes) -> bytes:
    """The same for an `async def`."""
    import asyncio

    with _run(context):
        try:
            args, kwargs = _arguments(definition, payload)
            value = await definition.function(*args, **kwargs)
            context.history.finish()
            return _result(definition, context, value)
        except BaseExceptionGroup as e:
            # A TaskGroup wraps what one of its tasks raised. That the run leaves its worker goes before any failure beside it.
            if e.subgroup(Suspended) is not None:
                raise Suspended from e
            raise Refused(e) from e
        except asyncio.CancelledError as e:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the loop is being closed
            raise Refused(e) from e  # of a task that the workflow cancelled itself
        except ASYNC_FAILURES as e:
            raise Refused(e) from e


def _arguments(definition: Definition, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    if definition.kind == "workflow":
        payload = codec.unwrap_input(payload)
    return definition.signature.decode_input(payload)


def _result(definition: Definition, context: Context, value: Any) -> bytes:
    if definition.kind == "handler":
        return b"null"  # nobody could read it
    what = f"the result of workflow {definition.name!r}"
    return codec.encode(value, what=what, limit=context.payload_bytes_max)


@contextmanager
def _run(context: Context) -> Iterator[None]:
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)
