"""The start of a run in a worker, and the record of what has the CPU there. These functions decide
nothing and keep no state of their own.
"""

import math

from pgqrs.model.writes import Begin, Write
from supervisors import wire
from supervisors.core.limits import ASYNC_GRACE_S
from supervisors.core.state import OnCpu, Run, Worker
from supervisors.core.states import RunState


def unfit(run: Run) -> str | None:
    """Returns why no worker can be sent the run, or None."""
    claimed, most = run.claimed, wire.VALUE_BYTES_MAX
    if claimed.unreadable is not None:
        return claimed.unreadable
    if len(claimed.payload) > most:
        return f"its payload is {len(claimed.payload):,} bytes, and a worker can be sent {most:,}"
    if claimed.steps and (why := wire.unfit_steps(claimed.steps)):
        return f"a row in the database cannot be read: of its steps, {why}"
    for step in claimed.steps:
        size = len(step.output or b"") + len(step.error or b"") + len(step.name.encode(errors="replace"))
        if size > most:
            return (
                f"what is recorded of its step {step.name[:80]!r} is "
                f"{size:,} bytes, and a worker can be sent {most:,}"
            )
    return None


def begins(run: Run) -> Write | None:
    """Marks the run as begun. Returns the write that records the beginning of this attempt. Returns
    None if the beginning was recorded before.
    """
    if run.state is not RunState.STARTED:
        run.become(RunState.STARTED)
    if run.begun:
        return None
    run.begun = True
    if run.is_range:
        return None
    workflow_id = run.function.workflow_id
    if workflow_id is None:
        return Write(run.claim, delivers=True)
    return Write(run.claim, begin=Begin(workflow_id, run.claimed.attempt + 1))


def on_cpu(worker: Worker, run: Run, frame: wire.Started, now: float) -> OnCpu:
    """Returns what the worker executes now. The deadline is the nearer of two: the step's and the
    run's.
    """
    grace = ASYNC_GRACE_S if worker.kind == "async" else 0.0
    of_step = math.inf if frame.timeout_s is None else now + frame.timeout_s
    of_run = math.inf if run.deadline is None else run.deadline
    deadline = min(of_step, of_run)
    return OnCpu(
        run.id,
        frame.step,
        frame.position,
        now,
        None if deadline == math.inf else deadline + grace,
        "run" if of_run < of_step else "time",
        frame.retry_count,
        frame.retry_in_s,
        frame.memory_bytes,
        frame.place,
    )


def in_its_own_code(worker: Worker, run: Run, position: int, now: float) -> OnCpu:
    if run.deadline is not None:
        return on_cpu(worker, run, wire.Started(run.id, 0, position=position), now)
    return OnCpu(run.id, None, position, now, None, "time", 0, None)
