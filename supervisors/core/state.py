"""The data of the core: functions, settings, runs, workers and queues. A class here has no
behaviour beyond its own fields.
"""

from collections import Counter
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pgqrs.flows.retry import BackoffStrategy
from pgqrs.model.states import Kind as FunctionKind
from pgqrs.model.turns import Watermark
from pgqrs.model.writes import Claim, Claimed, Place, RecordedStep, Step, Write
from supervisors.core.events import Kind, Note, NoteLevel
from supervisors.core.states import RUNS, WORKERS, RunState, WorkerState, follow

POLL_MIN_S = 0.005
# The recorded steps of a run that are kept in case its worker dies. A run with more is claimed
# again.
RECORDED_BYTES_MAX = 64 * 1024
# The memory for the objects of one recorded step.
RECORDED_STEP_BYTES = 400

# The time of a step, the memory of its process, the time of the whole run.
Limit = Literal["time", "memory", "run"]


class Function(Struct, frozen=True):
    """A workflow or handler that the workers have imported, with its queue."""

    name: str
    kind: FunctionKind
    is_async: bool
    queue: str
    queue_id: int
    workflow_id: int | None
    # Limits a whole run, or one delivery of a message.
    timeout_s: float | None = None


# The work that a worker should have at hand to stay busy until a commit: 20 lanes with steps of 10
# ms. Each turn costs about 3 ms of CPU on both sides, so fewer turns leave more CPU for the steps.
COMMIT_HIDE_S = 0.2


class Settings(Struct, frozen=True):
    workers: int
    # The lanes of each worker. None: they follow the measured step time.
    lanes: int | None = None
    read_ct_max: int = 5
    poll_max_s: float = 0.35
    drain_timeout_s: float = 30.0
    burst: bool = False
    max_runs_per_worker: int | None = None
    max_rss_bytes: int | None = None
    handler_backoff: BackoffStrategy = BackoffStrategy.exponential(1.0, 60.0)
    commit_hide_s: float = COMMIT_HIDE_S
    # How long a turn waits for more writes, even if somebody waits for it.
    gather_s: float = 0.0
    # The identity of the database, for the workers.
    database: str = ""


class Waited(Struct, frozen=True):
    """The run that another run waits for. `blocks`: while it waits, the worker of the waiting run
    can execute nothing else.
    """

    run: int
    workflow: str
    blocks: bool


class Run(Struct, eq=False):
    """A message that this supervisor has claimed."""

    claim: Claim
    function: Function
    claimed: Claimed
    crashes: int
    state: RunState = RunState.WAITING
    worker: int | None = None
    # Whether the row of the run says that this attempt has begun, or a write that says so is under
    # way.
    begun: bool = False
    # The number of writes under way.
    unsaved: int = 0
    # The steps recorded since the claim. None: too many to keep.
    recorded: list[Step] | None = msgspec.field(default_factory=list)
    recorded_bytes: int = 0
    # Bytes of the payload and the history, as they were sent to a worker.
    bytes: int = 0
    cancelling: bool = False
    # The run that this run waits for.
    waits_for: Waited | None = None
    # When the run's own time is over, in monotonic seconds.
    deadline: float | None = None
    # How many workers died with the run while executing no run, since the run last recorded a step.
    unexplained: int = 0
    # The last write of a run whose values the database refused.
    refused: Write | None = None
    # Counted once the end is recorded.
    outcome: Literal["finished", "failed"] | None = None
    # The id of the message.
    id: int = 0
    # Of a range of a map, counted from its first item: before which item it ends, and the last item
    # that has ended or failed.
    end: int = 0
    last: int = -1
    is_range: bool = False

    def __post_init__(self) -> None:
        self.id = self.claim.message_id
        if self.claimed.range is not None:
            self.is_range = True
            self.end = self.claimed.range.end - self.claimed.range.first

    @property
    def isolated(self) -> bool:
        """Whether the run must be alone in its worker. An async run never is, because async runs
        share an event loop.
        """
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
        """Counts another attempt under the same claim."""
        self.claimed = replace(self.claimed, attempt=self.claimed.attempt + 1)
        self.begun = False

    def record(self, step: Step) -> None:
        self.unexplained = 0
        if self.is_range:
            # Which items have ended is enough to go on.
            assert self.recorded is not None, "a range's steps are few and small"
            self.last = max(self.last, step.position)
            self.recorded.append(replace(step, output=None, error=step.error if step.retry_in_s else None))
            return
        self.recorded_bytes += RECORDED_STEP_BYTES + len(step.output or b"") + len(step.error or b"")
        if self.recorded_bytes > RECORDED_BYTES_MAX:
            self.recorded = None
        elif self.recorded is not None:
            self.recorded.append(step)

    def history(self) -> tuple[RecordedStep, ...]:
        """Returns the steps that were recorded before the claim and since."""
        if not self.recorded:
            return self.claimed.steps
        if self.is_range:
            ended = {s.position: s for s in self.claimed.steps}
            return tuple((ended | {s.position: s.recorded for s in self.recorded}).values())
        latest = {s.name: s for s in self.claimed.steps}
        for s in self.recorded:
            latest[s.name] = s.recorded
        return tuple(latest.values())


class OnCpu(Struct, frozen=True):
    """The run and the step that a worker has reported as executing, and the time since when."""

    run: int
    step: str | None
    position: int
    since: float
    deadline: float | None
    # The limit that ends at the deadline.
    limit: Limit
    retry_count: int
    retry_in_s: float | None
    memory_bytes: int | None = None
    # The place of the step's call.
    place: Place | None = None


class WantedBack(Struct, frozen=True):
    """How many runs to take back from a worker at most, the last sent first. `begun`: also the runs
    that wait in the worker for a commit. `cut`: a part of the range of a map that the worker is
    in.
    """

    count: int
    begun: bool = False
    cut: bool = False


class Worker(Struct, eq=False):
    id: int
    kind: Kind
    launched_at: float
    pid: int | None = None
    # Whether runs can be recalled from the worker without its help.
    gated: bool = False
    state: WorkerState = WorkerState.STARTING
    runs: dict[int, Run] = msgspec.field(default_factory=dict)
    on_cpu: OnCpu | None = None
    # The last run that had the CPU. Its output may be read after its end.
    last_run: int | None = None
    # Whether the worker has one isolated run and gets no other.
    exclusive: bool = False
    # Whether the worker is being drained for an isolated run.
    reserved: bool = False
    # The limit for which the worker is being killed.
    over_limit: OnCpu | None = None
    # The number of runs given to the worker, without those that it gave back.
    given: int = 0
    # Why the worker is being killed.
    killing: str | None = None
    # The step during which the worker was asked for its stacks, shortly before the deadline.
    dumped: OnCpu | None = None
    # When to follow up with SIGKILL.
    kill_at: float | None = None
    revoking: bool = False
    # When the worker was last asked for runs, or when a recall returned none.
    revoked_at: float = -1.0
    # When the worker got its last run.
    given_at: float = 0.0

    # Bytes of the payloads and histories of its runs.
    bytes: int = 0
    # The number of its runs by queue id.
    of_queue: Counter[int] = msgspec.field(default_factory=Counter)

    # Lost runs that the worker was told to stop and has not stopped yet.
    leaving: set[int] = msgspec.field(default_factory=set)
    # Recalled runs that the worker has not read about yet. It enters none of them, but cannot get
    # them again before that.
    recalled: set[int] = msgspec.field(default_factory=set)
    # Whether the worker has been in one step for so long that it gets no further run and its runs
    # that have not begun are taken back.
    stands: bool = False
    # Runs that have reported that they leave, or were told to stop at once, but whose code has not
    # ended. With the time since when.
    left: dict[int, float] = msgspec.field(default_factory=dict)
    # The run that the worker was in at the last look although the worker does not have it.
    stray: int = 0
    # The code of which a note said that it holds up other runs.
    noted: OnCpu | None = None
    # After that note: when the worker's CPU time was last read, and its value.
    noted_use: tuple[float, float] | None = None
    # How many of its runs wait for another run.
    waits: int = 0
    # Since when the worker, a substitute of a blocked one, has been idle.
    spare_since: float | None = None
    # Whether a run in the worker blocks it while it waits for another run. Another worker does its
    # work meanwhile.
    blocked: bool = False
    # What the Recall under way should take back.
    wanted_back: WantedBack | None = None

    @property
    def ready(self) -> bool:
        """Whether the worker executes its runs and is not being killed."""
        return self.state is WorkerState.READY or self.state is WorkerState.RETIRING

    def become(self, state: WorkerState) -> None:
        self.state = follow(WORKERS, self.state, state)

    @property
    def holds_up(self) -> bool:
        """Whether the worker is still in the same code that holds up its other runs."""
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
    # The messages that a claim under way asks for.
    wanted: int = 0
    # Whether the claim under way only looks for messages and claims none.
    looking: bool = False
    # The number of the queue's entry in the scheduling's heap. An older entry is outdated.
    listed: int = 0
    # Whether the last claim got as many messages as it asked for.
    backlog: bool = False
    # When to look next for messages that were claimed before, ahead of the backlog.
    again_at: float = 0.0
    # Whether the next claim of this kind gives these messages the larger half of an odd limit.
    odd: bool = False
    # A moving average of the payload and history of one message.
    message_bytes: float = 0.0
    hinted: bool = False
    next_claim_at: float = 0.0
    full_scan_at: float = 0.0
    # When to look for lapsed messages next.
    lapsed_at: float = 0.0
    # Whether the claim under way looks for lapsed messages.
    lapsed: bool = False
    poll_s: float = POLL_MIN_S
    # Whether the last look at the whole queue found nothing.
    empty: bool = False
    # A moving average of the time that a step of this queue takes.
    step_s: float = 0.02
    # Whether `step_s` is measured. Otherwise it is a guess.
    measured: bool = False
    # Whether its runs have waited for one another in a worker.
    apart: bool = False

    @property
    def wanting(self) -> bool:
        return self.wanted > 0
