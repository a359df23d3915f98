"""What a claim's holder may write: data that the core decides and the store carries out.

A write belongs to one claim and has up to three parts: what becomes of the run, of a step, of the message. The store
applies all writes of a turn in one transaction, and applies a write only while its claim is live: see
`pgqrs.store.turning`.
"""

from typing import Annotated

from msgspec import Meta, Struct

from pgqrs.model.bounds import PATH_CHARS_MAX, Count, Number, Position, Seconds, StepName
from pgqrs.model.states import WorkflowStatus


class Claim(Struct, frozen=True):
    """The right to write to a message: it holds while the message's row still carries these three numbers."""

    message_id: int
    consumer_id: int
    claim_no: int


class Place(Struct, frozen=True, array_like=True):
    """Which call of a step this is: what a replay finds the call's record by.

    `path` is the task in which the step was called, by its way through the run's tree of tasks: "" is the run's own
    task, "branch.2/fetch.1" the first `fetch` task that the second `branch` task made. `count` is the call's number
    among the calls of that task, from 0. `fingerprint` is of its arguments, 64 bits, signed; None where the step's
    arguments are not compared.
    """

    path: Annotated[str, Meta(max_length=PATH_CHARS_MAX)]
    count: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    fingerprint: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class RecordedStep(Struct, frozen=True, array_like=True):
    """A step's row as a replay needs it. `output` and `error` are raw JSON.

    `status` is SUCCESS, ERROR, or RETRY for attempts that failed, after which there is to be another one, `retry_in_s`
    from when the run was claimed. `place` is None in rows of versions that did not record it. `ended` is the order, from
    1, in which the run's results were handed to its workflow, None where there was none to hand over.
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


class Claimed(Struct, frozen=True):
    """A message that a claim took. `status` is its run's, None where no run was begun or the queue has no workflow. `age_s` is how
    long ago, by the database's clock, the run was first started."""

    claim: Claim
    payload: bytes
    read_ct: int
    status: WorkflowStatus | None = None
    attempt: int = 0
    crash_count: int = 0
    steps: tuple[RecordedStep, ...] = ()
    age_s: float | None = None
    unreadable: str | None = None  # why its rows cannot be worked with: somebody else has written there


class Begin(Struct, frozen=True):
    """The run's row becomes RUNNING, and is made if there is none. CANCELLING stays CANCELLING."""

    workflow_id: int
    attempt: int


class Settle(Struct, frozen=True):
    """The run's row takes this state. What would leave CANCELLING for anything but an error becomes CANCELLED."""

    status: WorkflowStatus
    output: bytes | None = None
    error: bytes | None = None


class Crash(Struct, frozen=True):
    """A worker died (or was killed) with this run on the CPU."""

    cause: str  # "signal", "exit", "oom", "timeout"
    text: str
    step: str | None
    position: int
    crash_count: int  # of the run, this one included
    pid: int
    signal: str | None = None
    exit_code: int | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None


class Step(Struct, frozen=True, array_like=True):
    """A step's result, as the worker made it and as its row keeps it. Recorded once: a row that is SUCCESS never changes.

    `output` and `error` are raw JSON. `status` is SUCCESS, or ERROR with an `error`; a call of `pgqrs.pause()` is PAUSED until its
    row is written, with its text as `output`. `retry_in_s`: when the step is to be tried again, or the run to go on after a pause;
    None for never. `ended`: see RecordedStep. `peak_rss_bytes`: the most memory that the worker's process has held until then.
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
        """The row that this becomes, as a replay finds it."""
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
    """The message goes back. `delay_s` None keeps its place in the queue; `refund` gives the delivery back to read_ct."""

    delay_s: float | None = None
    refund: bool = True


class Archive(Struct, frozen=True):
    """The message is done with; `dead_reason` says why if it was given up."""

    dead_reason: str | None = None


class Write(Struct, frozen=True):
    claim: Claim
    begin: Begin | None = None
    step: Step | None = None
    crash: Crash | None = None
    settle: Settle | None = None
    message: Release | Archive | None = None
    forgives: bool = False  # the crashes before it, its step being a checkpoint
    # The handler of a plain message has begun: its delivery counts, though its supervisor may die.
    delivers: bool = False

    @property
    def size(self) -> int:
        """The bytes of the values in it, without the small change of its numbers and names."""
        step, settle = self.step, self.settle
        return (
            (len(step.output or b"") + len(step.error or b"") if step else 0)
            + (len(settle.output or b"") + len(settle.error or b"") if settle else 0)
        )  # fmt: skip


class Outcome(Struct, frozen=True):
    """What became of a write. `applied` False: the claim was no longer live and nothing was written.

    `status` is the run's afterwards, None for a message without a run. `failure` is set when the database refused this
    write's values (nothing of it was written).
    """

    write: Write
    applied: bool
    status: WorkflowStatus | None = None
    failure: str | None = None
