"""Decides what follows when a run ends or leaves its worker without having returned: the write to
the database, and whether the run is given up. Pure functions.
"""

from msgspec import Struct

from pgqrs.flows.flow import Definition
from pgqrs.model.recorded_error import RecordedError
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Archive, Begin, Crash, Release, Settle, Step, Write
from supervisors.core.events import Exited, Note
from supervisors.core.state import Function, OnCpu, Run, Settings, Worker

HELD_THE_LOOP = "was killed for holding its event loop beyond the time limit of what else runs there:"
# A run is given up after this many deaths of its workers without a checkpoint in between.
CRASHES_MAX = 5


class Ending(Struct, frozen=True):
    """What follows when a run leaves its worker. `write` goes to the database, and `note` to the
    log. `failed`: the run has ended, and counts as failed.
    """

    write: Write
    note: Note | None = None
    failed: bool = False


def raised(run: Run, told: bytes, settings: Settings) -> Ending:
    """The function raised an exception. A workflow ends in ERROR. A plain message is delivered
    again while it has deliveries left.
    """
    reason = _reason(told)
    if run.function.workflow_id is not None:
        settle = Settle(WorkflowStatus.Error, error=told)
        note = run.note(f"failed: {reason}", "error")
        return Ending(Write(run.claim, settle=settle, message=Archive(reason)), note, failed=True)
    return _undelivered(run, reason, settings)


def unfit(run: Run, why: str) -> Ending:
    """No worker can be sent the run, now or later."""
    workflow_id = run.function.workflow_id
    note = run.note(f"given up: {why}", "error")
    if workflow_id is None:
        return Ending(Write(run.claim, message=Archive(why)), note, failed=True)
    settle = Settle(WorkflowStatus.Error, error=_error("NON_RETRYABLE", "pgqrs.errors.ValidationError", why))
    begin = Begin(workflow_id, run.claimed.attempt + 1)
    return Ending(Write(run.claim, begin=begin, settle=settle, message=Archive(why)), note, failed=True)


def to_be_retried(run: Run, step: Step) -> Note:
    delay_s = round(step.retry_in_s or 0.0, 3)
    text = f"step {step.name!r} failed, again in {delay_s:g} s: {_reason(step.error or b'null')}"
    return run.note(text, "warning")


def _undelivered(run: Run, reason: str, settings: Settings) -> Ending:
    tries = run.claimed.read_ct
    if tries >= settings.read_ct_max:
        note = run.note(f"dead after {tries} deliveries: {reason}", "error")
        return Ending(Write(run.claim, message=Archive(reason)), note, failed=True)
    # The middle of the back-off's jitter. This module has no randomness, and the deliveries of a
    # queue are spread anyway.
    delay = settings.handler_backoff.delay(tries, lambda: 0.5)
    text = f"delivery {tries} of {settings.read_ct_max} failed, again in {round(delay, 3):g} s: {reason}"
    note = run.note(text, "warning")
    return Ending(Write(run.claim, message=Release(delay, refund=False)), note)


def refused(run: Run, failure: str) -> Ending:
    """The database refused the values that the run wrote."""
    told = _error("NON_RETRYABLE", "pgqrs.errors.DatabaseError", failure)
    settle = Settle(WorkflowStatus.Error, error=told) if run.function.workflow_id is not None else None
    write = Write(run.claim, settle=settle, message=Archive(failure[:500]))
    return Ending(write, run.note(f"the database refused its values: {failure}", "error"), failed=True)


def crashed(
    run: Run, worker: Worker, event: Exited, cpu: OnCpu, settings: Settings, held: bool = False
) -> Ending:
    """The worker died while the run was on its CPU. `held`: if the run is a workflow that may crash
    again, its claim is kept.
    """
    where = f" in step {cpu.step!r}" if cpu.step else ""
    text = f"worker (pid {worker.pid}) {how(event)}{where}"
    if run.is_range:
        return _item_crashed(run, worker, event, cpu, text)
    if run.function.workflow_id is None:
        if run.claimed.read_ct >= settings.read_ct_max:
            note = run.note(f"dead after {run.claimed.read_ct} deliveries: {text}", "error")
            reason = f"{text}, delivery {run.claimed.read_ct}"
            return Ending(Write(run.claim, message=Archive(reason)), note, failed=True)
        return Ending(Write(run.claim, message=Release(refund=False)))
    crash = _crash(
        "oom" if event.oom else "signal" if event.signal else "exit", text, run, worker, event, cpu
    )
    if crash.crash_count < CRASHES_MAX:
        return Ending(Write(run.claim, crash=crash, message=None if held else Release()))
    reason = f"its worker died {crash.crash_count} times without a checkpoint between: {text}"
    settle = Settle(WorkflowStatus.Error, error=_error("CRASHED", "pgqrs.errors.WorkerCrashed", reason))
    write = Write(run.claim, crash=crash, settle=settle, message=Archive(reason))
    return Ending(write, run.note(f"given up: {reason}", "error"), failed=True)


def _item_crashed(run: Run, worker: Worker, event: Exited, cpu: OnCpu, text: str) -> Ending:
    """The worker died in an item of a map. The item is tried again, alone in its worker, and fails
    at its last crash. The others go on either way.
    """
    crashes = run.crashes + 1
    if crashes < CRASHES_MAX or cpu.position >= run.end:
        return Ending(Write(run.claim))
    reason = f"its worker died {crashes} times: {text}"
    item = Step(
        cpu.position,
        cpu.step or f"{run.function.name}#{cpu.position}",
        WorkflowStatus.Error,
        error=_error("CRASHED", "pgqrs.errors.WorkerCrashed", reason),
        cpu_seconds=event.cpu_seconds,
        peak_rss_bytes=event.peak_rss_bytes,
        pid=worker.pid,
    )
    return Ending(Write(run.claim, item=item), run.note(f"item {item.name} given up: {reason}", "error"))


def step_over_limit(run: Run, worker: Worker, event: Exited, cpu: OnCpu, now: float) -> Ending:
    """The worker was killed because its step exceeded a limit. This is recorded as a failure of the
    step. If the step has tries left, it is retried. Otherwise it raises in the replay of its
    workflow.
    """
    memory = cpu.limit == "memory"
    text = f"step {cpu.step!r} was killed at its {cpu.limit} limit"
    if memory:
        text += f" of {cpu.memory_bytes or 0:,} bytes"
    told = RecordedError(
        "MEMORY" if memory else "TIMEOUT",
        "builtins.MemoryError" if memory else "builtins.TimeoutError",
        text,
        is_transient=cpu.retry_in_s is not None,
        traceback=event.stacks or "",
    )
    step = Step(
        cpu.position,
        cpu.step or "",
        WorkflowStatus.Error,
        error=told.encode(),
        seconds=now - cpu.since,
        cpu_seconds=event.cpu_seconds,
        peak_rss_bytes=event.peak_rss_bytes,
        pid=worker.pid,
        retry_count=cpu.retry_count + (1 if cpu.retry_in_s is not None else 0),
        retry_in_s=cpu.retry_in_s,
        place=cpu.place,
    )
    if run.is_range:
        # The other items need not wait for the retry.
        return Ending(Write(run.claim, item=step, message=Release()), run.note(text, "warning"))
    again_s = None if cpu.retry_in_s is None else within(run, cpu.retry_in_s, now)
    write = Write(run.claim, step=step, message=Release(again_s))
    return Ending(write, run.note(text, "warning"))


def within(run: Run, delay_s: float, now: float) -> float:
    """Returns the wait, shortened if it would outlast the run's own time limit. The run is then
    claimed when the limit is over, and ends.
    """
    return delay_s if run.deadline is None else max(0.0, min(delay_s, run.deadline - now + 0.01))


def run_killed_at_limit(
    run: Run, worker: Worker, event: Exited, cpu: OnCpu, now: float, settings: Settings
) -> Ending:
    """The worker was killed because the run on its CPU exceeded the run's own time limit. The step
    is not retried, even if its policy has tries left.
    """
    where = f" in step {cpu.step!r}" if cpu.step else ""
    text = f"{over_time(run.function)}: killed{where}"
    if run.function.workflow_id is None:
        return _undelivered(run, text, settings)
    crash = _crash("timeout", text, run, worker, event, cpu)
    return _timed_out(run, text, crash, event.stacks or "")


def run_over_limit(run: Run, settings: Settings) -> Ending:
    """The run exceeded its own time limit while it waited in its queue or in a worker."""
    text = over_time(run.function)
    return _undelivered(run, text, settings) if run.function.workflow_id is None else _timed_out(run, text)


def _timed_out(run: Run, text: str, crash: Crash | None = None, traceback: str = "") -> Ending:
    told = RecordedError("TIMEOUT", "builtins.TimeoutError", text, traceback=traceback)
    settle = Settle(WorkflowStatus.Error, error=told.encode())
    write = Write(run.claim, crash=crash, settle=settle, message=Archive(text))
    return Ending(write, run.note(text, "error"), failed=True)


def over_time(of: Function | Definition) -> str:
    what = "the run" if of.kind == "workflow" else "the delivery"
    return f"{what} was over its time limit of {of.timeout_s or 0:g} s"


def _crash(cause: str, text: str, run: Run, worker: Worker, event: Exited, cpu: OnCpu) -> Crash:
    return Crash(
        cause=cause,
        text=text,
        step=cpu.step,
        position=cpu.position,
        crash_count=run.crashes + 1,
        pid=worker.pid or 0,
        signal=event.signal,
        exit_code=event.exit_code,
        cpu_seconds=event.cpu_seconds,
        peak_rss_bytes=event.peak_rss_bytes,
    )


def _error(code: str, kind: str, message: str) -> bytes:
    return RecordedError(code, kind, message).encode()


def _reason(told: bytes) -> str:
    """Returns an error that a worker described, as one line."""
    return RecordedError.read(told).line[:500]


def how(event: Exited) -> str:
    """Returns how a worker ended, as a phrase that follows "the worker"."""
    if event.failure:
        return event.failure
    if event.oom:
        return f"was killed by the kernel for want of memory ({event.signal})"
    if event.signal:
        return f"was killed by {event.signal}" + (" from outside" if event.signal == "SIGKILL" else "")
    return f"exited with code {event.exit_code}"
