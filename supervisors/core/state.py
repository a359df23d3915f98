"""What the core knows: its functions and settings, the runs it holds, its workers, its queues. Data only."""

from collections import Counter
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pgqrs.flows.retry import BackoffStrategy
from pgqrs.model.turns import Watermark
from pgqrs.model.writes import Claim, Claimed, Place, RecordedStep, Step, Write
from supervisors import wire
from supervisors.core.events import Kind, Note, NoteLevel
from supervisors.core.states import RUNS, WORKERS, RunState, WorkerState, follow

POLL_MIN_S = 0.005
# Of a run's steps, kept for the death of its worker; with more, it is claimed anew.
RECORDED_BYTES_MAX = 64 * 1024
RECORDED_STEP_BYTES = 400  # the objects of one

Limit = Literal["time", "memory", "run"]  # of a step, of its process, of the whole run


class Function(Struct, frozen=True):
    """One workflow or handler that the workers know, and where its messages are."""

    name: str
    kind: wire.Kind
    is_async: bool
    queue: str
    queue_id: int
    workflow_id: int | None
    timeout_s: float | None = None  # of a whole run, or of one delivery of a message


# Work that a worker should have at hand to be busy until it is committed: 20 lanes of 10 ms steps. Each turn costs some 3 ms of CPU
# on both sides, so few turns are good for the steps.
COMMIT_HIDE_S = 0.2


class Settings(Struct, frozen=True):
    workers: int
    lanes: int | None = None  # of each worker; None follows the measured step time
    read_ct_max: int = 5
    poll_max_s: float = 0.35
    drain_timeout_s: float = 30.0
    burst: bool = False
    max_runs_per_worker: int | None = None
    max_rss_bytes: int | None = None
    handler_backoff: BackoffStrategy = BackoffStrategy.exponential(1.0, 60.0)
    commit_hide_s: float = COMMIT_HIDE_S
    gather_s: float = 0.0  # even a turn that somebody waits for waits this long for company
    database: str = ""  # its identity, for the workers


class Waited(Struct, frozen=True):
    """The run that one waits for. `blocks`: nothing else goes on in the worker of the one that waits."""

    run: int
    workflow: str
    blocks: bool


class Run(Struct, eq=False):
    """A message that we hold."""

    claim: Claim
    function: Function
    claimed: Claimed
    crashes: int
    state: RunState = RunState.WAITING
    worker: int | None = None
    begun: bool = False  # its row says so of this attempt, or will
    unsaved: int = 0  # writes on their way
    # Since it was claimed; None: too much to keep.
    recorded: list[Step] | None = msgspec.field(default_factory=list)
    recorded_bytes: int = 0
    bytes: int = 0  # of its payload and its history, as they were sent to a worker
    cancelling: bool = False
    waits_for: Waited | None = None  # another run
    deadline: float | None = None  # when its own time is over, in monotonic seconds
    unexplained: int = 0  # workers that died with it and in nobody's code, since it last recorded a step
    refused: Write | None = None  # the database refused what it wrote: this last write says so
    outcome: Literal["finished", "failed"] | None = None  # counts once it is recorded
    id: int = 0  # the message's

    def __post_init__(self) -> None:
        self.id = self.claim.message_id

    @property
    def isolated(self) -> bool:
        """To be alone in its worker. An event loop is for all of its kind."""
        return self.crashes > 0 and not self.function.is_async

    @property
    def started(self) -> bool:
        return self.state is RunState.STARTED

    @property
    def ending(self) -> bool:
        return self.state is RunState.ENDING

    def become(self, state: RunState) -> None:
        if state not in RUNS[self.state]:
            follow(RUNS, self.state, state)
        self.state = state

    def note(self, text: str, level: NoteLevel) -> Note:
        return Note(text, level, self.id, is_message=self.function.kind == "handler")

    def begin_anew(self) -> None:
        """Under the same claim: its function is called another time."""
        self.claimed = replace(self.claimed, attempt=self.claimed.attempt + 1)
        self.begun = False

    def record(self, step: Step) -> None:
        self.unexplained = 0
        self.recorded_bytes += RECORDED_STEP_BYTES + len(step.output or b"") + len(step.error or b"")
        if self.recorded_bytes > RECORDED_BYTES_MAX:
            self.recorded = None
        elif self.recorded is not None:
            self.recorded.append(step)

    def history(self) -> tuple[RecordedStep, ...]:
        """What was recorded of it, before it was claimed and since."""
        if not self.recorded:
            return self.claimed.steps
        latest = {s.name: s for s in self.claimed.steps}
        for s in self.recorded:
            latest[s.name] = s.recorded
        return tuple(latest.values())


class OnCpu(Struct, frozen=True):
    """What a worker said it is running, and since when."""

    run: int
    step: str | None
    position: int
    since: float
    deadline: float | None
    limit: Limit  # which it would be over then
    retry_count: int
    retry_in_s: float | None
    memory_bytes: int | None = None
    place: Place | None = None  # of the step


class WantedBack(Struct, frozen=True):
    """What to take back from a worker: how many runs at most, the last sent first; `begun`: also those that wait there for a
    commit."""

    count: int
    begun: bool = False


class Worker(Struct, eq=False):
    id: int
    kind: Kind
    launched_at: float
    pid: int | None = None
    gated: bool = False  # runs can be recalled from it without its help
    state: WorkerState = WorkerState.STARTING
    runs: dict[int, Run] = msgspec.field(default_factory=dict)
    on_cpu: OnCpu | None = None
    last_run: int | None = None  # that had the CPU: what it printed may be read after it has ended
    exclusive: bool = False  # carries one isolated run and nothing beside it
    reserved: bool = False  # being emptied for one
    over_limit: OnCpu | None = None  # what we are killing it for
    given: int = 0  # runs, those that it gave back apart
    killing: str | None = None  # why we are killing it
    dumped: OnCpu | None = None  # was asked where it was in this, shortly before its time was over
    kill_at: float | None = None  # when to stop asking nicely
    revoking: bool = False
    revoked_at: float = -1.0  # when it was last asked for runs, or a recall gave none
    given_at: float = 0.0  # its last run

    bytes: int = 0  # that its runs were sent with
    of_queue: Counter[int] = msgspec.field(default_factory=Counter)  # how many of its runs, by their queue

    # Lost runs that it was told to stop, and has not yet.
    leaving: set[int] = msgspec.field(default_factory=set)
    # Runs that were recalled from it, of which it has not yet heard: it goes into none of them, but cannot get them again.
    recalled: set[int] = msgspec.field(default_factory=set)
    # It is in one step, and has been for so long that it gets nothing more and loses what it has not begun.
    stands: bool = False
    # Runs that said they leave, or were told to stop at once, and since when their code has not ended.
    left: dict[int, float] = msgspec.field(default_factory=dict)
    stray: int = 0  # the run that it was in at the last look, and does not have
    noted: OnCpu | None = None  # what it was told of that it holds others up
    noted_use: tuple[float, float] | None = (
        None  # when its CPU time was last looked at since then, and that time
    )
    waits: int = 0  # how many of its runs wait for another run
    spare_since: float | None = None  # it stood in for a blocked one, and has nothing to do
    blocked: bool = False  # a run in it waits for another: somebody else does its work meanwhile
    wanted_back: WantedBack | None = None  # by the Recall under way

    @property
    def ready(self) -> bool:
        """Whether it executes what it has, and is not being killed."""
        return self.state is WorkerState.READY or self.state is WorkerState.RETIRING

    def become(self, state: WorkerState) -> None:
        self.state = follow(WORKERS, self.state, state)

    @property
    def holds_up(self) -> bool:
        """Whether it still is in the code that holds other runs up."""
        return self.noted is not None and self.noted is self.on_cpu

    def take(self, run: Run) -> None:
        assert run.id not in self.runs, "a message is at a worker once"
        self.runs[run.id] = run
        self.bytes += run.bytes
        self.of_queue[run.function.queue_id] += 1

    def leave(self, run_id: int) -> Run | None:
        run = self.runs.pop(run_id, None)
        if run is not None:
            if run.waits_for is not None:
                self.waits -= 1
                self.blocked = self.blocked and not run.waits_for.blocks
            self.bytes -= run.bytes
            self.of_queue[run.function.queue_id] -= 1
        return run


class Queue(Struct, eq=False):
    function: Function
    consumer_id: int | None = None
    after: Watermark | None = None
    wanted: int = 0  # asked for by a claim under way
    looking: bool = False  # what is under way only looks whether there is anything, and claims nothing
    listed: int = 0  # the number of its entry in the scheduling's heap; an older one is of the past
    backlog: bool = False  # the last claim got all that it asked for
    again_at: float = 0.0  # when to look next, ahead of the backlog, for what was claimed before
    odd: bool = False  # the next such claim takes the larger half of an odd limit for that
    message_bytes: float = 0.0  # a moving average: payload and history of one message
    hinted: bool = False
    next_claim_at: float = 0.0
    full_scan_at: float = 0.0
    lapsed_at: float = 0.0  # when to look for lapsed messages next
    lapsed: bool = False  # the claim under way does
    poll_s: float = POLL_MIN_S
    empty: bool = False  # the last look at the whole of it found nothing
    step_s: float = 0.02  # a moving average: how long this queue's steps take
    measured: bool = False  # else that is a guess
    apart: bool = False  # its runs have waited for one another in a worker

    @property
    def wanting(self) -> bool:
        return self.wanted > 0
