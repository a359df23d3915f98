"""A run that its caller drives: `Run` by message, `StepGuard` by step. The blocking twins of `pgqrs.Run` and its kind."""

import random
from datetime import datetime
from typing import Any

import msgspec

from pgqrs import errors
from pgqrs.arguments import durations, names, times
from pgqrs.arguments.durations import Duration
from pgqrs.config import Config
from pgqrs.model.records import QueueMessage, iso
from pgqrs.model.states import StepResultStatus, WorkflowStatus
from pgqrs.model.writes import Claim
from pgqrs.store import running
from pgqrs.store.running import Failure, Held, RunState
from pgqrs.store.store import MessageStore
from pgqrs.values import codec

NON_RETRYABLE = "NON_RETRYABLE"  # the code of a step's failure that is for good


class Run:
    """One run of a workflow, made once for each message.

    Its writes hold while its message is still held by the same claim; ClaimLostError says that it is not. The states and
    what may follow which: `states.RUN_TRANSITIONS`, where ending or pausing a QUEUED run starts it on the way.
    """

    def __init__(
        self, messages: MessageStore, config: Config, state: RunState, held: Held, at: datetime | None = None
    ) -> None:
        self._messages = messages
        self._config = config
        self._state = state
        self._held = held
        self._at = at
        self._archives = False

    @classmethod
    def of_message(cls, messages: MessageStore, config: Config, message: QueueMessage) -> "Run":
        """The message's run, made if it has none. Raises WorkflowNotFoundError for a queue without a workflow."""
        state = running.make(messages.database, message)
        claim = (
            None
            if message.consumer_worker_id is None
            else Claim(message.id, message.consumer_worker_id, message.claim_no)
        )
        return cls(messages, config, state, Held(state.id, message.id, claim))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(message_id={self.message_id}, id={self._state.id}, {self._state.status.value})"

    def id(self) -> int:
        """The number of the run's row, as in 0.15. `Store.run` and the command line take `message_id` instead."""
        return self._state.id

    @property
    def message_id(self) -> int:
        """The id by which `Store.run` and the command line know it."""
        return self._held.message_id

    @property
    def status(self) -> WorkflowStatus:
        """As of the last call that looked: see `refresh`."""
        return self._state.status

    @property
    def input(self) -> Any:
        """What the message holds: {"input": X} after a trigger of X."""
        return codec.without_bound(_decoded(self._state.input))

    @property
    def output(self) -> Any:
        """As of the last call that looked."""
        return _decoded(self._state.output)

    @property
    def current_time(self) -> str | None:
        """What `with_time` was told, as ISO 8601 text in UTC; None: the database's clock."""
        return iso(self._at)

    def with_time(self, time: str | datetime) -> "Run":
        """The same run for which it is that time: its steps' retries go by it."""
        return self._copy(self._state, times.moment(time))

    def refresh(self) -> "Run":
        """The same run as it is now."""
        return self._copy(running.look(self._messages.database, self._state.id), self._at)

    # Its life

    def start(self) -> None:
        """RUNNING; from PAUSED at once, whatever the resume time. Raises ValidationError for a run that ended or is being
        cancelled, naming its state."""
        self._state = running.start(self._messages.database, self._held)

    def success(self, result: Any) -> None:
        """SUCCESS (CANCELLED where that was asked for meanwhile). A run that is SUCCESS keeps its first result."""
        output = self._encoded(result, "the result of the run")
        self._state = running.succeed(self._messages.database, self._held, output, self._archives)

    def complete(self, result: Any) -> None:
        """Another name for `success`."""
        self.success(result)

    def fail(self, error: str) -> None:
        """ERROR. A run that is ERROR keeps its first error."""
        if not isinstance(error, str):
            raise TypeError(f"an error is text, not {type(error).__name__}")
        self._state = running.fail(
            self._messages.database, self._held, self._encoded(errors.storable(error), "the error")
        )

    def pause(self, message: str, resume_after_seconds: Duration) -> None:
        """PAUSED, with this text as its error. The message stays with whoever holds it."""
        seconds = durations.seconds(resume_after_seconds)
        self._state = running.pause(self._messages.database, self._held, errors.storable(message), seconds)

    def cancel(self) -> WorkflowStatus:
        """Cancels the run, and returns its status.

        A run that was started, and any run whose message a consumer holds, is CANCELLING: it becomes CANCELLED when its
        driver acquires the next step (which raises RunCancelledError) or reports success. Any other run is CANCELLED at once.
        A run that ended stays as it ended. Where the driver of a CANCELLING run has died, `RunHandle.cancel` ends the run.
        """
        return self._messages.cancel(self._held.message_id, by_driver=True)

    # Its steps

    def acquire_step(self, step_name: str, current_time: str | datetime | None = None) -> "StepResult":
        """What is recorded of a step, or the right (and a guard) to execute it.

        Raises StepNotReadyError before its retry is due, RetriesExhaustedError once it has failed for good,
        RunCancelledError where the run was to be cancelled: it is, then.
        """
        at = self._time(current_time)
        names.checked(step_name, "step")
        found = running.acquire_step(self._messages.database, self._held, step_name, at)
        if found.done:
            return StepResult(StepResultStatus.Skipped, _decoded(found.output), None)
        return StepResult(StepResultStatus.Execute, None, StepGuard(self, step_name, at))

    def complete_step(self, name: str, output: Any) -> None:
        """Records its result, whether it was acquired or not. A step that has one keeps it."""
        raw = self._encoded(output, f"the result of step {names.checked(name, 'step')!r}")
        running.complete_step(self._messages.database, self._held, name, raw)

    def fail_step(self, name: str, error: Any, current_time: str | datetime | None = None) -> None:
        """Fails it: for good, or as a dict {"is_transient": True, "code": …, "message": …, "retry_after": seconds} for a
        while."""
        self._fail_step(name, _failure(error), self._time(current_time))

    # Inside

    @property
    def messages(self) -> MessageStore:
        return self._messages

    def archive_on_success(self) -> "Run":
        """A run whose success archives its message, in the same transaction."""
        self._archives = True
        return self

    def next_retry(self) -> datetime | None:
        """When the first of its steps that wait for a retry is due, or the run itself, if it is paused."""
        return running.due_again(self._messages.database, self._state.id)

    def _fail_step(self, name: str, failure: Failure, at: datetime | None) -> None:
        names.checked(name, "step")
        running.fail_step(self._messages.database, self._held, name, failure, random.random, at)

    def _time(self, given: str | datetime | None) -> datetime | None:
        return self._at if given is None else times.moment(given)

    def _copy(self, state: RunState, at: datetime | None) -> "Run":
        copy = Run(self._messages, self._config, state, self._held, at)
        copy._archives = self._archives
        return copy

    def _encoded(self, value: Any, what: str) -> bytes:
        return codec.encode(codec.with_json_keys(value), what=what, limit=self._config.max_payload_size_bytes)


class StepResult(msgspec.Struct, frozen=True):
    """What `acquire_step` found. `guard` to execute it by, None where `value` is its recorded result."""

    status: StepResultStatus
    value: Any
    guard: "StepGuard | None"


class StepGuard:
    """The right to say how a step ended: once, and the first word counts."""

    def __init__(self, run: Run, name: str, at: datetime | None) -> None:
        self._run = run
        self._name = name
        self._at = at

    def __repr__(self) -> str:
        return f"StepGuard({self._name!r} of run {self._run.message_id})"

    def success(self, result: Any) -> None:
        """Records its result."""
        self._run.complete_step(self._name, result)

    def fail(self, error: str) -> None:
        """For good."""
        self._run._fail_step(self._name, _failure(error), self._at)

    def fail_transient(self, code: str, message: str, retry_after: Duration | None = None) -> None:
        """Until it is tried again: after `retry_after`, else after a back-off; after three retries for good."""
        after_s = None if retry_after is None else durations.seconds(retry_after)
        self._run._fail_step(self._name, Failure(code, message, True, after_s), self._at)


_TOLD_OF_A_FAILURE = ("is_transient", "code", "type", "message", "retry_after")


def result_of(state: RunState | None) -> tuple[bool, Any]:
    """(whether the run has ended, its result). Raises PgqrsError holding the stored error, RunCancelledError."""
    if state is None or not state.status.terminal:
        return False, None
    if state.status is WorkflowStatus.Success:
        return True, _decoded(state.output)
    if state.status is WorkflowStatus.Cancelled:
        raise errors.RunCancelledError(f"Workflow run {state.message_id} was cancelled")
    told = (state.error or b"null").decode()
    described = _decoded(state.error)
    trace = described.get("traceback") if isinstance(described, dict) else None
    if trace:  # a supervisor's record: what is left is what 0.15 records, and the type
        kept = {k: v for k, v in described.items() if k in _TOLD_OF_A_FAILURE}
        told = msgspec.json.encode(kept).decode()
    error = errors.PgqrsError(
        f"Workflow run {state.message_id} failed: {told}; its steps: pgqrs run {state.message_id}"
    )
    if trace:
        error.add_note(str(trace))
    raise error


def _failure(error: Any) -> Failure:
    """What a caller says of a failure. Text, and a dict that says nothing of transience, is for good."""
    if isinstance(error, dict) and "message" in error:
        transient = bool(error.get("is_transient", False))
        after = error.get("retry_after")
        return Failure(
            str(error.get("code") or ("TRANSIENT_ERROR" if transient else NON_RETRYABLE)),
            str(error["message"]),
            transient,
            None if after is None else durations.seconds(after),
        )
    if isinstance(error, str):
        return Failure(NON_RETRYABLE, error, False)
    return Failure(NON_RETRYABLE, msgspec.json.encode(error).decode(), False)


def _decoded(raw: bytes | None) -> Any:
    return None if raw is None else msgspec.json.decode(raw)
