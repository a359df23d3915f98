"""The supervisor's decisions about runs and workers: events in, commands out. No I/O, no clock, no
randomness; `now` is monotonic seconds.

    a message:  Claimed → Execute sent → Started → Checkpoint … → Finished
                each write goes out as `Save` and comes back as an `Outcome`;
                only then is `Committed` sent to the worker
    a worker:   Launch → Ready → busy and idle → Exited

A worker's pipe is drained before `Exited` is reported. So every frame that the worker sent has been
received, and its death can only be charged to the run that was on its CPU.

A run is in `runs` from its claim until the write that ends the claim is known to be applied. A
frame about a run that is not in `runs` under that claim is outdated, and is dropped.
"""

import math
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.turns import Taken
from pgqrs.model.wording import count
from pgqrs.model.writes import Archive, Outcome, Release, Settle, Write
from supervisors import wire
from supervisors.core import endings, ranges
from supervisors.core.beginning import begins, in_its_own_code, on_cpu, unfit
from supervisors.core.events import (
    ClaimLost,
    Command,
    Event,
    Exit,
    Exited,
    Gone,
    Held,
    Hinted,
    Hurry,
    Inside,
    Kind,
    Launched,
    LeaseLost,
    LookedAround,
    Measured,
    Note,
    Recalled,
    Received,
    Registered,
    Renewed,
    Save,
    Saved,
    Send,
    Stop,
    Tick,
)
from supervisors.core.limits import Limits, exceeded
from supervisors.core.scheduling import QUEUES_FEW, Scheduling
from supervisors.core.staffing import Staffing
from supervisors.core.state import Function, OnCpu, Queue, Run, Settings, Waited, Worker
from supervisors.core.states import RunState, WorkerState
from supervisors.core.stopping import TOLD, Happened, Level, after
from supervisors.core.waits import hopeless

NOT_OURS = "cancelled, ended or taken over by somebody else while it ran here"
# The number of consecutive deaths of workers without an executing run that are charged to no run.
# The next one is charged to a run of the worker.
UNEXPLAINED_MAX = 3
# The length of a pause without an end.
FOREVER_S = 100 * 365 * 86_400.0


class Core:
    def __init__(self, functions: Sequence[Function], settings: Settings) -> None:
        self.settings = settings
        self.queues = {f.queue_id: Queue(f) for f in functions}
        for queue in self.queues.values():
            if queue.function.kind == "map":
                # See `_hinted`.
                queue.poll_s = settings.poll_max_s
        self._queue_named = {q.function.queue: q for q in self.queues.values()}
        self.runs: dict[int, Run] = {}
        self.workers: dict[int, Worker] = {}
        self.level = Level.RUNNING
        self.exit: Exit | None = None
        self.finished = 0
        self.failed = 0
        self.crashes = 0
        # The scheduling and the limits append to the same list.
        self._orders: list[Command] = []
        self._kinds: dict[Kind, int] = {}
        if any(not f.is_async for f in functions):
            self._kinds["sync"] = settings.workers
        if any(f.is_async for f in functions):
            self._kinds["async"] = 1
        self.scheduling = Scheduling(settings, self._kinds, self.queues, self.workers, self._orders)
        self.waiting = self.scheduling.waiting
        self.limits = Limits(
            functions, settings, self.workers, self.runs, self.scheduling, self._orders, self._happened
        )
        self.staffing = Staffing(self._kinds, self.workers, self.limits, self._orders)
        # When the drain is over.
        self._deadline: float | None = None
        self._saving = 0
        self._timer: float | None = None
        self._claim_from = 0.0
        # When this supervisor's lease ends.
        self._until = -math.inf
        # Whether a dead supervisor's messages wait behind a lock. A burst waits for them.
        self._locked = False

    def handle(self, event: Event, now: float) -> list[Command]:
        """Takes one event and returns the commands that follow from it."""
        self.take(event, now)
        return self.settle(now)

    def settle(self, now: float, claim_from: float = 0.0) -> list[Command]:
        """Returns the commands that follow from all events taken since the last call. The commands
        that the events ordered come first. Then come commands that start workers and claims, as
        needed.

        Nothing is claimed before `claim_from`: if a turn waits for more writes, its claim should
        use the room that there is when the turn is sent.
        """
        self._claim_from = claim_from
        self._reconcile(now)
        self._timer = self._next_timer()
        orders = self._orders.copy()
        self._orders.clear()
        return orders

    def take(self, event: Event, now: float) -> None:
        """Records an event. Several events may be taken before one call of `settle`, which returns
        the commands that follow from all of them.
        """
        match event:
            case Received():
                self._received(event, now)
            case Saved():
                self._saved(event.outcomes, now)
            case Taken():
                self._taken(event, now)
            case Exited():
                self._exited(event, now)
            case Launched():
                if worker := self.workers.get(event.worker):
                    worker.pid, worker.gated = event.pid, event.gated
                    # The worker had no pid when it was to be killed.
                    if worker.killing is not None:
                        self.limits.kill(worker, worker.killing, force=True)
            case Hinted():
                self._hinted(event, now)
            case ClaimLost():
                queue = self.queues[event.queue_id]
                self.scheduling.answered(queue)
                self.scheduling.wake(queue, queue.next_claim_at)
            case Held():
                self._held(event)
            case Stop():
                self._happened(TOLD[event.level], now)
            case Gone():
                for claim in event.claims:
                    run = self.runs.get(claim.message_id)
                    if run is not None and run.claim == claim and not run.ending:
                        self._orders.append(run.note(NOT_OURS, "warning"))
                        self._drop(run, now)
            case Recalled():
                self._recalled(event, now)
            case Inside():
                self._inside(event, now)
            case Measured():
                self.limits.weigh(event, now)
            case LeaseLost():
                self._lease_lost(event.in_flight, now)
            case Registered():
                for queue_id, consumer_id in event.consumers.items():
                    queue = self.queues[queue_id]
                    queue.consumer_id = consumer_id
                    self.scheduling.wake(queue, queue.next_claim_at)
                self._locked = event.locked
                self._renewed(event.until)
            case LookedAround():
                if self._locked and not event.locked:
                    self._hinted(Hinted(), now)
                self._locked = event.locked
            case Renewed():
                self._renewed(event.until)
            case Tick():
                pass

    def next_timer(self) -> float | None:
        """Returns when `handle(Tick())` is due at the latest, in monotonic seconds. The last
        `settle` has computed this time.
        """
        return self._timer

    def _next_timer(self) -> float | None:
        times = [self._deadline] if self._deadline is not None else []
        times += self.limits.next_timers()
        times += self.staffing.next_timers()
        if not self.level and (due := self.scheduling.next_claim()) is not None:
            times.append(max(due, self._claim_from))
        return min(times, default=None)

    # Frames of workers

    def _received(self, event: Received, now: float) -> None:
        worker = self.workers[event.worker]
        frame = event.frame
        match frame:
            case wire.Ready():
                if worker.state is WorkerState.STARTING:
                    worker.become(WorkerState.READY)
                self._orders.append(Send(worker.id, wire.Lease(self._until)))
                if self.settings.database:
                    self._orders.append(Send(worker.id, wire.Welcome(self.settings.database)))
                if self.level:
                    self._orders.append(Send(worker.id, wire.Drain(self.level is Level.STOPPING)))
            case wire.Idle():
                worker.on_cpu = None
                # A worker without runs is new, and waits for no commit.
                if worker.given:
                    self._orders.append(Hurry())
            case wire.Left():
                worker.left.pop(frame.message_id, None)
            case wire.Returned():
                worker.revoking = False
                for message_id in frame.message_ids:
                    worker.left.pop(message_id, None)
                    if message_id in worker.recalled:
                        worker.recalled.discard(message_id)
                    elif message_id in worker.leaving:
                        worker.leaving.discard(message_id)
                    elif run := worker.leave(message_id):
                        worker.given -= 1
                        self._off_cpu(worker, message_id)
                        self._came_back(run)
            case _:
                run = worker.runs.get(frame.message_id)
                if run is not None and run.claim.claim_no == frame.claim_no and not run.ending:
                    self._of_run(worker, run, frame, now)
                elif isinstance(frame, wire.Started) and frame.message_id in worker.leaving | worker.recalled:
                    # The worker began the run before it read that the run is lost. No time limit
                    # would end the run.
                    self.limits.kill(worker, "it runs what is no longer ours", force=True)
                elif not isinstance(frame, wire.Started | wire.Checkpoint | wire.Waiting):
                    # The run ended before the worker read that it should stop.
                    worker.leaving.discard(frame.message_id)
                    worker.recalled.discard(frame.message_id)
                    if not isinstance(frame, wire.StepFailed | wire.Paused):
                        worker.left.pop(frame.message_id, None)

    def _of_run(
        self,
        worker: Worker,
        run: Run,
        frame: wire.Started
        | wire.Checkpoint
        | wire.StepFailed
        | wire.Paused
        | wire.Finished
        | wire.Failed
        | wire.Waiting,
        now: float,
    ) -> None:
        if isinstance(frame, wire.Started):
            worker.last_run = run.id
            if run.deadline is None and run.function.timeout_s is not None:
                run.deadline = now + run.function.timeout_s
            worker.on_cpu = on_cpu(worker, run, frame, now)
            if begun := begins(run):
                self._save(begun)
            return
        if isinstance(frame, wire.Waiting):
            self._waits(worker, run, frame)
            return
        if run.is_range and ranges.is_beyond(run, frame):
            self.limits.kill(worker, "it sent the outcome of an item that it was not given", force=True)
            return
        # The first step ended before its begin was reported.
        if (begun := begins(run)) and begun.begin:
            self._save(begun)
        worker.last_run = run.id
        began = worker.on_cpu.since if worker.on_cpu and worker.on_cpu.run == run.id else None
        self._off_cpu(worker, run.id)
        match frame:
            case wire.Checkpoint():
                # The function's own code continues here, until another run starts or the worker
                # reports Idle.
                step = frame.step
                worker.on_cpu = in_its_own_code(worker, run, step.position + 1, now)
                run.record(step)
                if step.retry_in_s is not None:
                    self._orders.append(endings.to_be_retried(run, step))
                if run.is_range:
                    self._save(Write(run.claim, item=step))
                else:
                    self._save(Write(run.claim, step=step), urgent=len(worker.runs) == 1)
                self._measured(run, step.seconds)
            case wire.StepFailed() if run.is_range:
                # Only items that wait for another attempt are left. They are recorded as such.
                worker.left[run.id] = now
                self._leave(worker, run, Write(run.claim, message=Release(frame.step.retry_in_s)))
            case wire.StepFailed():
                step = frame.step
                self._measured(run, step.seconds)
                self._orders.append(endings.to_be_retried(run, step))
                worker.left[run.id] = now
                self._leave(
                    worker,
                    run,
                    Write(
                        run.claim,
                        step=step,
                        settle=Settle(WorkflowStatus.Running),
                        message=Release(endings.within(run, step.retry_in_s or 0.0, now)),
                    ),
                )
            case wire.Paused():
                worker.left[run.id] = now
                step = replace(frame.step, status=WorkflowStatus.Success, output=None, retry_in_s=None)
                settle = Settle(WorkflowStatus.Paused, error=frame.step.output)
                wait_s = FOREVER_S if frame.step.retry_in_s is None else frame.step.retry_in_s
                back = Release(endings.within(run, wait_s, now))
                self._leave(worker, run, Write(run.claim, step=step, settle=settle, message=back))
            case wire.Finished():
                run.outcome = None if run.is_range else "finished"
                if frame.seconds is not None:
                    # A plain handler counts as one step.
                    self._measured(run, frame.seconds)
                elif run.function.workflow_id is None and began is not None and not run.is_range:
                    self._measured(run, now - began)
                settle_ok = (
                    Settle(WorkflowStatus.Success, output=frame.output) if run.function.workflow_id else None
                )
                self._leave(worker, run, Write(run.claim, settle=settle_ok, message=Archive()))
            case wire.Failed():
                worker.leave(run.id)
                self._end_as(run, endings.raised(run, frame.error, self.settings))
        # The queue's first run has ended without a step.
        if not run.is_range and not self.queues[run.function.queue_id].measured:
            self._measured(run, 0.0 if began is None else now - began)

    def _waits(self, worker: Worker, run: Run, frame: wire.Waiting) -> None:
        """Records that the run waits for another run, or has stopped waiting. Two rules follow. The
        awaited run must not be queued behind the waiting one. And the awaited run must find a
        worker even if every worker holds a run that waits.
        """
        before, run.waits_for = (
            run.waits_for,
            Waited(frame.of, frame.workflow, frame.blocks) if frame.of else None,
        )
        worker.waits += (run.waits_for is not None) - (before is not None)
        worker.blocked = any(r.waits_for and r.waits_for.blocks for r in worker.runs.values())
        if run.waits_for is None:
            return
        if why := hopeless(worker, run, run.waits_for, self.runs, self.workers):
            self._orders.append(Send(worker.id, wire.WaitRefused(run.id, run.claim.claim_no, why)))
        elif self.level:
            self._orders.append(Send(worker.id, wire.Cancel(run.id, run.claim.claim_no)))
        elif worker.blocked:
            self.scheduling.revoke(worker, begun=True)

    def _leave(self, worker: Worker, run: Run, write: Write) -> None:
        """Ends the claim of a run that has left its worker."""
        worker.leave(run.id)
        self._end(run, write)

    def _end(self, run: Run, write: Write, urgent: bool = False) -> None:
        run.become(RunState.ENDING)
        run.worker, run.waits_for = None, None
        if isinstance(write.message, Release) and write.message.delay_s is None:
            # A released run keeps its place, behind the watermark. A claim in the turn that
            # releases it must find it.
            queue = self.queues[run.function.queue_id]
            queue.after = None
            self.scheduling.wake(queue, 0.0)
        self._save(write, urgent)

    def _end_as(self, run: Run, ending: endings.Ending, urgent: bool = False) -> None:
        if ending.failed:
            run.outcome = "failed"
        if ending.note:
            self._orders.append(ending.note)
        self._end(run, ending.write, urgent)

    def _came_back(self, run: Run) -> None:
        """Continues a run that has left a worker without ending: the worker never started it, or
        left it at a step boundary, or died. The run continues in another worker, under the same
        claim and after its last recorded step, as soon as this step is committed.
        """
        if run.ending:
            return
        run.worker, run.waits_for = None, None
        if run.cancelling:
            self._end(
                run, Write(run.claim, settle=Settle(WorkflowStatus.Cancelled), message=Archive()), urgent=True
            )
        elif self.level or run.recorded is None:
            self._end(run, Write(run.claim, message=Release()), urgent=True)
        elif not run.unsaved:
            self.scheduling.go_on(run)
        else:
            run.become(RunState.SAVING)
            self._orders.append(Hurry())

    def _recalled(self, event: Recalled, now: float) -> None:
        """Takes runs back from a worker whose gate is closed. The worker enters no run until it has
        read which runs were taken. Every run can be taken back except the one that the worker is
        in.
        """
        worker = self.workers.get(event.worker)
        if worker is None or worker.wanted_back is None:
            return
        wanted, worker.wanted_back = worker.wanted_back, None
        able = [r for r in worker.runs.values() if r.id != event.entered and not r.ending]
        fresh = [r for r in reversed(able) if not r.started]
        begun = [r for r in reversed(able) if r.started] if wanted.begun else []
        back = (fresh + begun)[: wanted.count]
        cuts = self._cut_entered(worker, event) if wanted.cut else ()
        if not back and not cuts:
            worker.revoked_at = now
        gone = tuple((r.id, r.claim.claim_no) for r in back)
        self._orders.append(Send(worker.id, wire.Recall(gone, cuts)))
        for run in back:
            worker.leave(run.id)
            worker.recalled.add(run.id)
            worker.given -= not run.started
            self._off_cpu(worker, run.id)
            self._came_back(run)

    def _cut_entered(self, worker: Worker, event: Recalled) -> tuple[tuple[int, int, int], ...]:
        """Takes half of the items that the worker has not begun from the range that it is in, or
        all of them if it has been in one item for long.
        """
        run = worker.runs.get(event.entered)
        if run is None or not run.is_range or run.ending or event.position is None:
            return ()
        if (end := ranges.half_of(run, event.position, worker.stands)) is None:
            return ()
        self._cut(run, end)
        return ((run.id, run.claim.claim_no, end),)

    def _cut(self, run: Run, end: int) -> None:
        """Ends the range before this item, counted from its first one. The items after it become a
        message that anybody may claim.
        """
        assert run.claimed.range is not None, "only ranges are cut"
        run.end = end
        queue = self.queues[run.function.queue_id]
        # The new message has the place of the old one, behind the watermark.
        queue.after, queue.empty = None, False
        self.scheduling.wake(queue, 0.0)
        self._save(Write(run.claim, cut=run.claimed.range.first + end), urgent=True)

    def _inside(self, event: Inside, now: float) -> None:
        """Records that the worker is in the code of a run that was taken from it. The run ends in
        this worker when its code continues. Until then the worker's time in this code is limited.
        """
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        if worker.stray and worker.stray != event.message_id:
            worker.left.pop(worker.stray, None)
        worker.stray = event.message_id if event.message_id not in worker.runs else 0
        if worker.stray:
            worker.left.setdefault(worker.stray, now)

    def _off_cpu(self, worker: Worker, message_id: int) -> None:
        if worker.on_cpu and worker.on_cpu.run == message_id:
            worker.on_cpu = None

    def _measured(self, run: Run, seconds: float) -> None:
        queue = self.queues[run.function.queue_id]
        if queue.measured:
            queue.step_s += 0.1 * (seconds - queue.step_s)
        else:
            # A first step that is tiny predicts little about the steps that follow.
            queue.step_s, queue.measured = max(queue.step_s, seconds), True
        self.scheduling.measured(queue)

    # Answers of the database

    def _saved(self, outcomes: Iterable[Outcome], now: float) -> None:
        # By worker: the runs with a step that is now durable.
        durable: dict[int, list[tuple[int, int]]] = {}
        for outcome in outcomes:
            self._saving -= 1
            assert self._saving >= 0, "each write that was handed over has one outcome"
            write = outcome.write
            run = self.runs.get(write.claim.message_id)
            if run is None or run.claim != write.claim:
                continue
            run.unsaved -= 1
            assert run.unsaved >= 0, "an outcome is of a write of this claim"
            if outcome.applied and write.item is not None and write.item.retry_in_s is None:
                succeeded = write.item.status is WorkflowStatus.Success
                self.finished += succeeded
                self.failed += not succeeded
            if not outcome.applied:
                self._not_applied(run, outcome, now)
            elif write.message is not None:
                self.runs.pop(run.id)
                self.finished += run.outcome == "finished"
                self.failed += run.outcome == "failed"
                self.queues[run.function.queue_id].empty = False
            elif run.worker is not None:
                if outcome.status == WorkflowStatus.Cancelling and not run.cancelling:
                    run.cancelling = True
                    self._orders.append(Send(run.worker, wire.Cancel(run.id, run.claim.claim_no)))
                if write.step is not None and not run.cancelling:
                    durable.setdefault(run.worker, []).append((run.id, run.claim.claim_no))
            elif run.state is RunState.SAVING and not run.unsaved:
                run.cancelling = outcome.status == WorkflowStatus.Cancelling
                self._came_back(run)
        for worker, runs in durable.items():
            self._orders.append(Send(worker, wire.Committed(tuple(runs))))

    def _not_applied(self, run: Run, outcome: Outcome, now: float) -> None:
        if outcome.failure is None:
            self._orders.append(run.note(f"{NOT_OURS}; nothing was written", "warning"))
            self._drop(run, now)
            return
        if run.worker is not None and (worker := self.workers.get(run.worker)):
            self._stop_at(worker, run, now)
        if run.refused is None:
            ending = endings.refused(run, outcome.failure)
            run.refused = ending.write
            self._end_as(run, ending, urgent=True)
        elif outcome.write is run.refused:
            # The database refused even that write. The end of the lease releases the run.
            self._drop(run, now)

    def _drop(self, run: Run, now: float) -> None:
        """Forgets a run that no longer belongs to this supervisor. If a worker has the run, the
        worker is told to stop it at its next step boundary.
        """
        self.runs.pop(run.id, None)
        if run in self.waiting:
            self.waiting.remove(run)
        if run.worker is not None and (worker := self.workers.get(run.worker)):
            if worker.on_cpu and worker.on_cpu.run == run.id:
                if worker.leave(run.id):
                    worker.leaving.add(run.id)
                self.limits.kill(worker, "it runs what is no longer ours", force=True)
            else:
                self._stop_at(worker, run, now)

    def _stop_at(self, worker: Worker, run: Run, now: float) -> None:
        """Tells a worker to stop a run that no longer belongs to it. Until the worker has stopped,
        the run is not sent to this worker again: a frame about the old execution could be taken for
        one about the new execution.
        """
        if worker.leave(run.id):
            worker.leaving.add(run.id)
            self._orders.append(
                Send(worker.id, wire.Cancel(run.id, run.claim.claim_no, now=worker.kind == "async"))
            )
            # An event loop reads the order at once.
            if worker.kind == "async":
                worker.left[run.id] = now

    def _taken(self, event: Taken, now: float) -> None:
        queue = self.scheduling.taken(event, now)
        for claimed in event.messages:
            run = Run(claimed.claim, queue.function, claimed, claimed.crash_count)
            known = self.runs.get(run.id)
            if known is not None:
                # This supervisor lost the run and claimed it again.
                self._drop(known, now)
            self.runs[run.id] = run
            self._admit(run, now)

    def _admit(self, run: Run, now: float) -> None:
        status = run.claimed.status
        if run.function.timeout_s is not None and run.claimed.age_s is not None:
            run.deadline = now + run.function.timeout_s - run.claimed.age_s
        if status is WorkflowStatus.Cancelling:
            self._end(run, Write(run.claim, settle=Settle(WorkflowStatus.Cancelled), message=Archive()))
        elif status is not None and status.terminal:
            # The run has ended, but its message was left behind.
            self._end(run, Write(run.claim, message=Archive()))
        elif self.level:
            self._end(run, Write(run.claim, message=Release()))
        elif why := unfit(run):
            self._end_as(run, endings.unfit(run, why))
        else:
            if run.is_range:
                queue = self.queues[run.function.queue_id]
                if (end := ranges.share_of(run, queue.step_s if queue.measured else None)) < run.end:
                    self._cut(run, end)
            self.waiting.append(run)

    def _held(self, event: Held) -> None:
        """Releases messages that this supervisor has claimed without knowing it, because the answer
        to the claim was lost.
        """
        known = {r.claim for r in self.runs.values()}
        for claim in event.claims:
            if claim not in known:
                self._save(Write(claim, message=Release()))

    def _hinted(self, event: Hinted, now: float) -> None:
        if event.queues is None:
            few = len(self.queues) <= QUEUES_FEW
            for queue in self.queues.values():
                # Most steps are never mapped: one look serves all queues of these.
                was_used = queue.function.kind != "map" or queue.message_bytes > 0
                self.scheduling.hint(queue, now, surely=few and was_used)
        else:
            for name in event.queues:
                if named := self._queue_named.get(name):
                    self.scheduling.hint(named, now, surely=True)

    def _lease_lost(self, in_flight: int, now: float) -> None:
        self._saving = in_flight
        # Writes that were ordered and are not yet under way are dropped, like those that wait for
        # their turn.
        self._orders[:] = [c for c in self._orders if not isinstance(c, Save)]
        self._orders.append(
            Note("the lease ran out: what ran here is another's now; starting afresh", "error")
        )
        self.runs.clear()
        self.waiting.clear()
        for queue in self.queues.values():
            queue.consumer_id = None
            queue.after, queue.empty, queue.backlog = None, False, False
            self.scheduling.answered(queue)
        for worker in self.workers.values():
            worker.leaving |= worker.runs.keys()
            worker.runs.clear()
            worker.on_cpu = None
            self.limits.kill(worker, "the lease ran out", force=True)
        self._happened(Happened.LEASE_LOST, now)

    def _renewed(self, until: float) -> None:
        self._until = until
        for worker in self.workers.values():
            if worker.ready:
                self._orders.append(Send(worker.id, wire.Lease(until)))

    # Deaths

    def _exited(self, event: Exited, now: float) -> None:
        worker = self.workers.pop(event.worker)
        how = endings.how(event)
        over = exceeded(worker)
        if over is None and worker.kind == "async" and worker.on_cpu is None:
            # The event loop kept running, so no other run delayed this one: it ignored its limit.
            over = worker.over_limit
        blamed = over or (worker.on_cpu if worker.killing is None else None)
        if blamed is None and worker.over_limit is not None and worker.kind == "async":
            # The worker was killed for the limit of one run, while the code of another run held its
            # event loop.
            blamed, event = worker.on_cpu, replace(event, failure=endings.HELD_THE_LOOP)
        if blamed is None and worker.ready and worker.kind == "sync":
            blamed = self._suspect(worker, now)
        for run in worker.runs.values():
            if run.ending:
                continue
            if blamed is None or blamed.run != run.id:
                self._came_back(run)
            elif over is None:
                held = not self.level and run.recorded is not None
                self._crashed(run, endings.crashed(run, worker, event, blamed, self.settings, held))
            elif over.limit == "run":
                ending = endings.run_killed_at_limit(run, worker, event, blamed, now, self.settings)
                self._end_as(run, ending, urgent=True)
            else:
                ending = endings.step_over_limit(run, worker, event, over, now)
                self._end_as(run, ending, urgent=True)
        if worker.state is WorkerState.STARTING:
            self.limits.boot_failed(how, now)
        elif worker.killing is None and not self.level:
            self.crashes += 1
            where = f" in {blamed.step or 'its function'}" if blamed else ""
            text = f"worker {worker.id} (pid {worker.pid}) {how}{where}"
            if blamed and (charged := worker.runs.get(blamed.run)):
                self._orders.append(charged.note(text, "warning"))
            else:
                # The worker executed no run, or one that it no longer has.
                self._orders.append(Note(text, "warning", blamed.run if blamed else None))

    def _suspect(self, worker: Worker, now: float) -> OnCpu | None:
        """Returns the run that is charged if a worker died while it executed no run.

        The first UNEXPLAINED_MAX deaths of this kind are charged to no run. Then a run is charged,
        because a run that ends its worker before it begins would otherwise do so forever. A run
        that is charged by mistake is alone in its next worker, and its next checkpoint clears the
        count.
        """
        suspect = None
        for run in worker.runs.values():
            run.unexplained += 1
            if suspect is None and run.unexplained > UNEXPLAINED_MAX and not run.ending:
                suspect = run
        return None if suspect is None else OnCpu(suspect.id, None, 0, now, None, "time", 0, None)

    def _crashed(self, run: Run, ending: endings.Ending) -> None:
        """Records that the run killed its worker. When this record is committed, the run continues
        under the same claim, alone in a worker so that it cannot harm another run.
        """
        if ending.write.message is not None:
            self._end_as(run, ending, urgent=True)
            return
        run.become(RunState.SAVING)
        run.worker, run.waits_for = None, None
        run.crashes += 1
        run.begin_anew()
        if ending.note:
            self._orders.append(ending.note)
        if ending.write.item is not None:
            run.record(ending.write.item)
        self._save(ending.write, urgent=True)

    def _out_of_time(self, run: Run, now: float) -> None:
        if run in self.waiting:
            self.waiting.remove(run)
        if run.worker is not None and (worker := self.workers.get(run.worker)):
            self._stop_at(worker, run, now)
        self._end_as(run, endings.run_over_limit(run, self.settings), urgent=True)

    # Stopping

    def _happened(self, what: Happened, now: float, reason: str = "") -> None:
        then = after(self.level, what, reason)
        if isinstance(then, Exit):
            self._finish(then)
        elif then is not self.level:
            self._enter(then, now)

    def _enter(self, level: Level, now: float) -> None:
        self.level = level
        limit_s = self.settings.drain_timeout_s
        if level is Level.KILLING:
            self._deadline = None
        elif self._deadline is None:
            # A supervisor that is told twice at once skips a level, and still has a deadline.
            self._deadline = now + limit_s
        match level:
            case Level.FINISHING:
                text = f"stopping: finishing {count(self._started(), 'run')}, for at most {limit_s:g} s"
                self._orders.append(Note(text))
            case Level.STOPPING:
                self._orders.append(Note("stopping at the next step of every run", "warning"))
            case Level.KILLING:
                self._orders.append(Note("stopping now", "warning"))
        while self.waiting:
            self._end_released(self.waiting.popleft())
        for worker in self.workers.values():
            if level is Level.KILLING or worker.state is WorkerState.STARTING:
                self.limits.kill(worker, "stopping", force=True)
            else:
                for run in worker.runs.values():
                    # Perhaps no worker is left that could execute the awaited run.
                    if run.waits_for is not None:
                        self._orders.append(Send(worker.id, wire.Cancel(run.id, run.claim.claim_no)))
                if worker.gated:
                    # The worker may read its pipe late. Runs that it has not begun need not wait
                    # for that.
                    self.scheduling.revoke(worker)
                self._orders.append(Send(worker.id, wire.Drain(level is Level.STOPPING)))

    def _end_released(self, run: Run) -> None:
        self._end(run, Write(run.claim, message=Release()))

    def _started(self) -> int:
        return sum(r.started and not r.ending for r in self.runs.values())

    def _finish(self, exit: Exit) -> None:
        if self.exit is None:
            self.exit = exit
            self._orders.append(exit)

    # After every event: bring workers and claims to what is wanted

    def _reconcile(self, now: float) -> None:
        if self.exit:
            return
        self.limits.watch(now)
        for run in self.limits.overdue(now):
            self._out_of_time(run, now)
        if self._deadline is not None and now >= self._deadline:
            self._orders.append(Note("the drain's time is over: what still runs is given back", "warning"))
            self._happened(Happened.TIME_OVER, now)
        if self.level:
            if not self.runs and not self._saving and not self.scheduling.wanted:
                self._happened(Happened.EMPTY, now)
            return
        self.staffing.staff(now)
        self.scheduling.dispatch(now)
        self.scheduling.balance(now)
        if now >= self._claim_from:
            self.scheduling.claim(now)
        if self.settings.burst and not self.runs and not self._saving and self._all_empty():
            self._happened(Happened.NOTHING_TO_DO, now)

    def _all_empty(self) -> bool:
        return not self._locked and all(
            q.empty and not q.wanting and not q.hinted for q in self.queues.values()
        )

    def _save(self, write: Write, urgent: bool = False) -> None:
        self._saving += 1
        run = self.runs.get(write.claim.message_id)
        if run is not None and run.claim == write.claim:
            run.unsaved += 1
            if write.item is not None and write.item.retry_in_s is None:
                run.crashes = 0
            if write.step is not None and run.crashes:
                # This step is committed before the next crash of the run, so the count of crashes
                # starts again.
                run.crashes = 0
                write = replace(write, forgives=True)
        self._orders.append(Save(write, urgent))
