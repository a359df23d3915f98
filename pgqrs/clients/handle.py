"""The handle of a run: what `store.trigger` and `store.run` return."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pgqrs import errors
from pgqrs.arguments import durations
from pgqrs.arguments.durations import Duration
from pgqrs.flows import flow
from pgqrs.model.recorded_error import RecordedError
from pgqrs.model.records import RunRecord, StepRecord
from pgqrs.model.states import WorkflowStatus
from pgqrs.store.store import Settled
from pgqrs.store.waiting import Blocking, Ways, drive, patiently
from pgqrs.values import codec

if TYPE_CHECKING:
    from pgqrs.clients.blocking import Store

R = TypeVar("R")

POLL_MIN_S, POLL_MAX_S = 0.002, 0.25


class RunHandle(Generic[R]):
    """The handle of one run. `id` is the id of the run's message. `result` waits for the end of the
    run.
    """

    def __init__(self, store: "Store", run_id: int, returns: Any) -> None:
        self._store = store
        self._returns = returns
        self.id = run_id

    def __repr__(self) -> str:
        return f"RunHandle({self.id})"

    @property
    def status(self) -> WorkflowStatus:
        """The run's current status. Each access queries the database. Raises RunNotFoundError."""
        return self._settled().status

    def result(self, timeout: Duration | None = None) -> R:
        """Waits until the run ends, and returns its result, converted to the function's return
        annotation.

        Raises TimeoutError if the run has not ended after `timeout` (seconds, a timedelta or text
        such as "5m"). The run then continues.

        Raises RunFailedError if the run failed: `error` is the recorded error and `__cause__` the
        rebuilt exception. Raises RunCancelledError if the run was cancelled. Raises SupervisorError
        inside a `store.workers()` block whose supervisor has died.

        If the caller is itself a run, the supervisor starts an additional worker for the awaited
        run. Raises InternalError if an additional worker cannot help.
        """
        return drive(self.wait(Blocking(), timeout))

    async def wait(self, ways: Ways, timeout: Duration | None) -> R:  # noqa: ASYNC109
        """Implements `result` for both the blocking and the async handle."""
        deadline = None if timeout is None else time.monotonic() + durations.seconds(timeout)

        async def look() -> Settled:
            """Reads the run's state. An outage of the database does not end the wait, because the
            run continues without this program.
            """
            left_s = max(0.0, deadline - time.monotonic()) if deadline is not None else math.inf
            patience_s = min(self._store.config.connection_timeout_seconds, left_s)
            return await patiently(ways, patience_s, lambda: ways.call(self._settled))

        settled = await look()
        told = None if settled.status.terminal else flow.waits()
        if told is not None:
            workflow = (await ways.call(self.record)).workflow
            told.waits(self.id, workflow, isinstance(ways, Blocking))
        try:
            settled = await self._until_terminal(settled, ways, look, told, deadline, timeout)
        finally:
            if told is not None:
                told.waited()
        return self._outcome(settled)

    async def _until_terminal(
        self,
        settled: Settled,
        ways: Ways,
        look: Callable[[], Awaitable[Settled]],
        told: "flow.Waits | None",
        deadline: float | None,
        timeout: Duration | None,  # noqa: ASYNC109
    ) -> Settled:
        wait_s = POLL_MIN_S
        while not settled.status.terminal:
            self._store._refuse_without_workers()
            if deadline is not None and time.monotonic() >= deadline:
                raise errors.TimeoutError(
                    f"run {self.id} is still {settled.status.value} after "
                    f"{durations.text(durations.seconds(timeout or 0))}; "
                    "is a supervisor running for its workflow?"
                )
            await ways.sleep(
                wait_s if deadline is None else max(0.0, min(wait_s, deadline - time.monotonic()))
            )
            wait_s = min(wait_s * 1.5, POLL_MAX_S)
            if told is not None:
                told.look()
            settled = await look()
        return settled

    def _outcome(self, settled: Settled) -> R:
        if settled.status is WorkflowStatus.Success:
            decoded = codec.decode(
                settled.output or b"null", self._returns, what=f"the result of run {self.id}"
            )
            return cast(R, decoded)
        if settled.status is WorkflowStatus.Cancelled:
            raise errors.RunCancelledError(f"run {self.id} was cancelled")
        raise _failure(self.id, settled)

    def cancel(self, now: bool = False) -> WorkflowStatus:
        """Cancels the run and returns its status after the call.

        A run that no worker holds becomes CANCELLED at once. Any other run stays CANCELLING until
        its next step begins. With `now`, the run becomes CANCELLED in any case, and the supervisor
        kills the worker that executes it within about a second. A run that has ended keeps its
        status.
        """
        return self._store._ready().cancel(self.id, now)

    def resume(self) -> bool:
        """Ends the pause of a run. Returns False if the run is not paused."""
        messages = self._store._ready()
        resumed = messages.resume(self.id)
        if resumed and (queue := messages.queue_of_workflow(self.record().workflow)):
            messages.database.hint([queue])
        return resumed

    def record(self) -> RunRecord:
        """Returns the run's current record. Raises RunNotFoundError."""
        return self._store._ready().run(self.id)

    def steps(self) -> list[StepRecord]:
        """Returns the run's recorded steps, in the order of their calls."""
        return self._store._ready().steps(self.id)

    def _settled(self) -> Settled:
        return self._store._ready().settled(self.id)


def _failure(run_id: int, settled: Settled) -> errors.RunFailedError:
    told = RecordedError.read(settled.error or settled.dead_reason or "no reason recorded")
    short = errors.without_traceback(told.message)
    if told.whole is not None:
        short = f"{told.type or 'error'}: {short}"
    error = errors.RunFailedError(f"run {run_id} failed: {short}; its steps: pgqrs run {run_id}")
    error.run_id = run_id
    error.error = {"message": told.message} if told.whole is None else told.whole
    if told.type:
        error.__cause__ = errors.rebuild(told.whole)
    elif told.traceback:
        error.add_note(told.traceback)
    elif told.whole is None and short != told.message:
        error.add_note(told.message)
    return error
