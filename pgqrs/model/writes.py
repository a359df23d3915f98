"""The writes that the holder of a claim may make. The core of the supervisor decides them, and the
store executes them.

A write belongs to one claim. It has up to three parts: changes of the run, of a step, and of the
message. The store executes all writes of a turn in one transaction, and executes a write only while
its claim is live. See `pgqrs.store.turns`.
"""

from typing import Annotated

from msgspec import Meta, Struct

from pgqrs.model.bounds import PATH_CHARS_MAX, Count, Number, Position, Seconds, StepName
from pgqrs.model.states import WorkflowStatus


class Claim(Struct, frozen=True):
    """The right to write to a message. The claim is live while the message's row contains these
    three numbers.
    """

    message_id: int
    consumer_id: int
    claim_no: int


class Place(Struct, frozen=True, array_like=True):
    """Identifies a call of a step, so that a replay finds the call's record.

    `path` is the task that called the step, as its way through the run's tree of tasks. "" is the
    run's own task, and "branch.2/fetch.1" is the first `fetch` task that the second `branch` task
    created. `count` numbers the calls of that task from 0. `fingerprint` is a signed 64-bit hash of
    the arguments, or None if the step's arguments are not compared.
    """

    path: Annotated[str, Meta(max_length=PATH_CHARS_MAX)]
    count: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    fingerprint: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class RecordedStep(Struct, frozen=True, array_like=True):
    """A step's row as a replay needs it. `output` and `error` are raw JSON.

    `status` is SUCCESS, ERROR, or RETRY. RETRY means that attempts have failed, and that another
    attempt is due `retry_in_s` after the run was claimed. `place` is None in rows of versions that
    did not record it. `ended` numbers from 1 the order in which the workflow received the results.
    It is None for a step whose result the workflow has not received.
    """

    name: str
    position: int
    status: str
    output: bytes | None
    error: bytes | None
    retry_count: int
    place: Place | None = None
    ended: int | None = None
    retry_in_s: float = 0.0


class Range(Struct, frozen=True):
    """The part of a map that a message stands for: the items from `first` to before `end`."""

    map_id: int
    first: int
    end: int


class Claimed(Struct, frozen=True):
    """A message that a claim took. `status` is the status of its run. It is None if no run has
    begun or the queue has no workflow. `age_s` is the time since the run first started, by the
    database's clock.
    """

    claim: Claim
    payload: bytes
    read_ct: int
    status: WorkflowStatus | None = None
    attempt: int = 0
    crash_count: int = 0
    steps: tuple[RecordedStep, ...] = ()
    age_s: float | None = None
    # Why the rows of this message cannot be used: another program has written invalid values.
    unreadable: str | None = None
    # For a range of a map. `steps` are then its items that have ended or wait for another attempt.
    range: Range | None = None


class Begin(Struct, frozen=True):
    """Sets the run's row to RUNNING, and creates the row if needed. A run in CANCELLING stays
    CANCELLING.
    """

    workflow_id: int
    attempt: int


class Settle(Struct, frozen=True):
    """Sets the run's row to this status. If the run is CANCELLING and did not fail, sets it to
    CANCELLED instead.
    """

    status: WorkflowStatus
    output: bytes | None = None
    error: bytes | None = None


class Crash(Struct, frozen=True):
    """The death of a worker while it was executing this run."""

    cause: str  # "signal", "exit", "oom", "timeout"
    text: str
    step: str | None
    position: int
    crash_count: int  # of the run, including this crash
    pid: int
    signal: str | None = None
    exit_code: int | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None


class Step(Struct, frozen=True, array_like=True):
    """A step's result, as the worker sends it and as its row stores it. It is recorded once: a row
    that is SUCCESS never changes.

    `output` and `error` are raw JSON. `status` is SUCCESS, or ERROR with an `error`. A call of
    `pgqrs.pause()` is PAUSED until its row is written, with its text as `output`. `retry_in_s`:
    when the step is retried, or the run continues after a pause; None: never. `ended`: see
    RecordedStep. `peak_rss_bytes`: the most memory that the worker's process has held so far.
    """

    position: Position
    name: StepName
    status: WorkflowStatus
    output: bytes | None = None
    error: bytes | None = None
    seconds: Seconds = 0.0
    cpu_seconds: Seconds | None = None
    peak_rss_bytes: Number | None = None
    pid: Count | None = None
    retry_count: Count = 0
    retry_in_s: Seconds | None = None
    place: Place | None = None
    ended: Count | None = None

    @property
    def recorded(self) -> RecordedStep:
        """The row of this step, as a replay reads it."""
        again = self.status is WorkflowStatus.Error and self.retry_in_s is not None
        return RecordedStep(
            self.name,
            self.position,
            "RETRY" if again else self.status.value,
            self.output,
            self.error,
            self.retry_count,
            self.place,
            self.ended,
            (self.retry_in_s or 0.0) if again else 0.0,
        )


class Release(Struct, frozen=True):
    """Releases the message. If `delay_s` is None, the message keeps its place in the queue.
    `refund` subtracts the delivery from read_ct.
    """

    delay_s: float | None = None
    refund: bool = True


class Archive(Struct, frozen=True):
    """Archives the message. `dead_reason` says why, if it becomes a dead letter."""

    dead_reason: str | None = None


class Write(Struct, frozen=True):
    claim: Claim
    begin: Begin | None = None
    step: Step | None = None
    crash: Crash | None = None
    settle: Settle | None = None
    message: Release | Archive | None = None
    # The outcome of an item of a range, or its failed attempt. `position` counts from the range's
    # first item.
    item: Step | None = None
    # The range ends before this item from now on. The items after it are a message of their own.
    cut: int | None = None
    # Resets the run's crash count, because its step is a checkpoint.
    forgives: bool = False
    # The handler of a plain message has begun. Its delivery counts even if its supervisor dies.
    delivers: bool = False

    @property
    def size(self) -> int:
        """The size of the write's values in bytes, ignoring numbers and names."""
        step, settle = self.step or self.item, self.settle
        return (
            (len(step.output or b"") + len(step.error or b"") if step else 0)
            + (len(settle.output or b"") + len(settle.error or b"") if settle else 0)
        )  # fmt: skip


class Outcome(Struct, frozen=True):
    """The outcome of a write. If `applied` is False, the claim was not live, and nothing was
    written.

    `status` is the run's status after the write, or None for a message without a run. `failure` is
    set if the database refused the values. Then nothing of the write was stored.
    """

    write: Write
    applied: bool
    status: WorkflowStatus | None = None
    failure: str | None = None
