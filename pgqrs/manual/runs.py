"""Runs driven by the program itself: `Run` and `StepGuard`. These are the blocking twins of
`pgqrs.Run` and `pgqrs.StepGuard`.
"""

import random
from datetime import datetime
from typing import Any

import msgspec

from pgqrs import errors
from pgqrs.arguments import durations, names, times
from pgqrs.arguments.durations import Duration
from pgqrs.config import Config
from pgqrs.model.recorded_error import RecordedError
from pgqrs.model.records import QueueMessage, iso
from pgqrs.model.states import StepResultStatus, WorkflowStatus
from pgqrs.model.writes import Claim
from pgqrs.store import runs_by_hand
from pgqrs.store.runs_by_hand import Failure, Held, RunRow
from pgqrs.store.store import MessageStore
from pgqrs.values import codec

# The error code of a step failure that is not retried.
NON_RETRYABLE = "NON_RETRYABLE"


class Run:
    """One run of a workflow. Each message has at most one run.

    A write succeeds only while the message is still held by the same claim. Otherwise it raises
    ClaimLostError. `states.RUN_TRANSITIONS` defines which status may follow which. If a QUEUED run
    is ended or paused, this also starts it.
    """

    def __init__(
        self, messages: MessageStore, config: Config, state: RunRow, held: Held, at: datetime | None = None
    ) -> None:
        self._messages = messages
        self._config = config
        self._state = state
        self._held = held
        self._at = at
        self._archives = False

    @classmethod
    def of_message(cls, messages: MessageStore, config: Config, message: QueueMessage) -> "Run":
        """Returns the run of a message. Creates it if there is none. Raises WorkflowNotFoundError
        if the queue has no workflow.
        """
        state = runs_by_hand.make(messages.database, message)
        claim = (
            None
            if message.consumer_worker_id is None
            else Claim(message.id, message.consumer_worker_id, message.claim_no)
        )
        return cls(messages, config, state, Held(state.id, message.id, claim))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(message_id={self.message_id}, "
            f"id={self._state.id}, {self._state.status.value})"
        )

    def id(self) -> int:
        """The number of the run's row, as in 0.15. `Store.run` and the command line take
        `message_id` instead.
        """
        return self._state.id

    @property
    def message_id(self) -> int:
        """The id that `Store.run` and the command line take."""
        return self._held.message_id

    @property
    def status(self) -> WorkflowStatus:
        """The status when a call last read the run. `refresh` reads it again."""
        return self._state.status

    @property
    def input(self) -> Any:
        """The payload of the run's message: {"input": X} after a trigger with X."""
        return codec.without_bound(_decoded(self._state.input))

    @property
    def output(self) -> Any:
        """The output when a call last read the run."""
        return _decoded(self._state.output)

    @property
    def current_time(self) -> str | None:
        """The time given to `with_time`, as ISO 8601 text in UTC. None means the database's clock."""
        return iso(self._at)

    def with_time(self, time: str | datetime) -> "Run":
        """Returns the same run with its clock set to `time`. The clock decides when retries of its
        steps are due.
        """
        return self._copy(self._state, times.moment(time))

    def refresh(self) -> "Run":
        """Reads the run again, and returns it."""
        return self._copy(runs_by_hand.look(self._messages.database, self._state.id), self._at)

    # State changes

    def start(self) -> None:
        """Sets the run to RUNNING. A PAUSED run may be started before its resume time. Raises
        ValidationError, which names the status, if the run has ended or is being cancelled.
        """
        self._state = runs_by_hand.start(self._messages.database, self._held)

    def success(self, result: Any) -> None:
        """Sets the run to SUCCESS with this result. If the cancellation of the run was requested,
        sets it to CANCELLED instead. A run in SUCCESS keeps its first result.
        """
        output = self._encoded(result, "the result of the run")
        self._state = runs_by_hand.succeed(self._messages.database, self._held, output, self._archives)

    def complete(self, result: Any) -> None:
        """Another name for `success`."""
        self.success(result)

    def fail(self, error: str) -> None:
        """Sets the run to ERROR with this error. A run in ERROR keeps its first error."""
        if not isinstance(error, str):
            raise TypeError(f"an error is text, not {type(error).__name__}")
        self._state = runs_by_hand.fail(
            self._messages.database, self._held, self._encoded(errors.storable(error), "the error")
        )

    def pause(self, message: str, resume_after_seconds: Duration) -> None:
        """Sets the run to PAUSED, with `message` as its error. The run's message stays with its
        holder.
        """
        seconds = durations.seconds(resume_after_seconds)
        self._state = runs_by_hand.pause(
            self._messages.database, self._held, errors.storable(message), seconds
        )

    def cancel(self) -> WorkflowStatus:
        """Cancels the run, and returns its status.

        A started run, and any run whose message a consumer holds, becomes CANCELLING. It becomes
        CANCELLED when its driver acquires the next step (which raises RunCancelledError) or reports
        success. Any other run becomes CANCELLED at once. A run that has ended keeps its status. If
        the driver of a CANCELLING run has died, `RunHandle.cancel` ends the run.
        """
        return self._messages.cancel(self._held.message_id, by_driver=True)

    # Steps

    def acquire_step(self, step_name: str, current_time: str | datetime | None = None) -> "StepResult":
        """Returns the recorded result of a step, or a guard that allows the caller to execute it.

        Raises StepNotReadyError if the step's retry is not due yet, and RetriesExhaustedError if
        the step has no retries left. If the cancellation of the run was requested, sets the run to
        CANCELLED and raises RunCancelledError.
        """
        at = self._time(current_time)
        names.checked(step_name, "step")
        found = runs_by_hand.acquire_step(self._messages.database, self._held, step_name, at)
        if found.done:
            return StepResult(StepResultStatus.Skipped, _decoded(found.output), None)
        return StepResult(StepResultStatus.Execute, None, StepGuard(self, step_name, at))

    def complete_step(self, name: str, output: Any) -> None:
        """Records the result of a step. The step need not have been acquired. A step keeps its
        first result.
        """
        raw = self._encoded(output, f"the result of step {names.checked(name, 'step')!r}")
        runs_by_hand.complete_step(self._messages.database, self._held, name, raw)

    def fail_step(self, name: str, error: Any, current_time: str | datetime | None = None) -> None:
        """Records the failure of a step. A dict {"is_transient": True, "code": …, "message": …,
        "retry_after": seconds} schedules a retry; any other error is final.
        """
        self._fail_step(name, _failure(error), self._time(current_time))

    # For other modules of pgqrs

    @property
    def messages(self) -> MessageStore:
        return self._messages

    def archive_on_success(self) -> "Run":
        """Makes the run's success archive its message in the same transaction."""
        self._archives = True
        return self

    def next_retry(self) -> datetime | None:
        """Returns when the next retry of a step is due. For a paused run, returns when the run
        resumes.
        """
        return runs_by_hand.due_again(self._messages.database, self._state.id)

    def _fail_step(self, name: str, failure: Failure, at: datetime | None) -> None:
        names.checked(name, "step")
        runs_by_hand.fail_step(self._messages.database, self._held, name, failure, random.random, at)

    def _time(self, given: str | datetime | None) -> datetime | None:
        return self._at if given is None else times.moment(given)

    def _copy(self, state: RunRow, at: datetime | None) -> "Run":
        copy = Run(self._messages, self._config, state, self._held, at)
        copy._archives = self._archives
        return copy

    def _encoded(self, value: Any, what: str) -> bytes:
        return codec.encode(codec.with_json_keys(value), what=what, limit=self._config.max_payload_size_bytes)


class StepResult(msgspec.Struct, frozen=True):
    """The outcome of `acquire_step`. If the step is to be executed, `guard` records its end.
    Otherwise `guard` is None, and `value` is the recorded result.
    """

    status: StepResultStatus
    value: Any
    guard: "StepGuard | None"


class StepGuard:
    """The right to record how a step ended. Only the first report counts."""

    def __init__(self, run: Run, name: str, at: datetime | None) -> None:
        self._run = run
        self._name = name
        self._at = at

    def __repr__(self) -> str:
        return f"StepGuard({self._name!r} of run {self._run.message_id})"

    def success(self, result: Any) -> None:
        """Records the result of the step."""
        self._run.complete_step(self._name, result)

    def fail(self, error: str) -> None:
        """Records a final failure of the step."""
        self._run._fail_step(self._name, _failure(error), self._at)

    def fail_transient(self, code: str, message: str, retry_after: Duration | None = None) -> None:
        """Records a failure, and schedules a retry after `retry_after`, or after the policy's
        back-off. After three retries the failure is final.
        """
        after_s = None if retry_after is None else durations.seconds(retry_after)
        self._run._fail_step(self._name, Failure(code, message, True, after_s), self._at)


_TOLD_OF_A_FAILURE = ("is_transient", "code", "type", "message", "retry_after")


def result_of(state: RunRow | None) -> tuple[bool, Any]:
    """Returns (whether the run has ended, its result). If the run failed, raises PgqrsError with
    the stored error. If it was cancelled, raises RunCancelledError.
    """
    if state is None or not state.status.terminal:
        return False, None
    if state.status is WorkflowStatus.Success:
        return True, _decoded(state.output)
    if state.status is WorkflowStatus.Cancelled:
        raise errors.RunCancelledError(f"Workflow run {state.message_id} was cancelled")
    told = (state.error or b"null").decode()
    recorded = RecordedError.read(state.error or b"null")
    # The record was made by a supervisor. Keep the fields that 0.15 records, and the type.
    if recorded.traceback and recorded.whole is not None:
        kept = {k: v for k, v in recorded.whole.items() if k in _TOLD_OF_A_FAILURE}
        told = msgspec.json.encode(kept).decode()
    error = errors.PgqrsError(
        f"Workflow run {state.message_id} failed: {told}; its steps: pgqrs run {state.message_id}"
    )
    if recorded.traceback:
        error.add_note(recorded.traceback)
    raise error


def _failure(error: Any) -> Failure:
    """Converts a failure that a caller reports. Text is a final failure, and so is a dict without
    "is_transient".
    """
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
