"""The limits of workers: time, memory, number of runs, and attempts to start. Part of the core:
this module only decides.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from supervisors.core.events import Command, Dump, Kill, Measured, Note
from supervisors.core.scheduling import Scheduling
from supervisors.core.state import Function, OnCpu, Run, Settings, Worker
from supervisors.core.states import WorkerState
from supervisors.core.stopping import Happened

KILL_GRACE_S = 1.0
# The time for a run's code to end (its `finally` blocks) after the run was told to leave its
# worker.
LEAVES_S = 5.0
# How long code between two steps may execute before a warning, while other runs are in the worker.
HOLDS_UP_S = 10.0
# After that warning: if the code uses less than this share of the CPU for this long, it waits and
# does not compute.
WAITS_S, WAITS_SHARE = 2.0, 0.05
DUMP_BEFORE_S = 0.1
BOOT_DEADLINE_S = 60.0
RESTARTS_MAX, RESTARTS_WINDOW_S = 5, 30.0
# The delay after a second failed start. It doubles with each further failure, because the cause may
# pass.
START_AGAIN_S, START_AGAIN_MAX_S = 0.25, 5.0
# `async def` code ends itself at its limit, unless it holds its event loop.
ASYNC_GRACE_S = 5.0


class Limits:
    """Works on the workers and runs of the core, and changes them. Appends its commands to
    `orders`, and calls `happened` when no worker can be started any more.
    """

    def __init__(
        self,
        functions: Iterable[Function],
        settings: Settings,
        workers: Mapping[int, Worker],
        runs: Mapping[int, Run],
        scheduling: Scheduling,
        orders: list[Command],
        happened: Callable[[Happened, float, str], None],
    ) -> None:
        self._timed = any(f.timeout_s is not None for f in functions)
        self._settings = settings
        self._workers = workers
        self._runs = runs
        self._scheduling = scheduling
        self._orders = orders
        self._happened = happened
        self._boot_failures: deque[float] = deque()
        self._start_from: float | None = None

    def next_timers(self) -> Iterator[float]:
        """The times at which a limit may be reached, in monotonic seconds."""
        for worker in self._workers.values():
            if worker.kill_at is not None:
                yield worker.kill_at
            cpu = worker.on_cpu
            if worker.left and worker.killing is None:
                yield min(worker.left.values()) + LEAVES_S
            if cpu and cpu.deadline is not None and worker.killing is None:
                yield cpu.deadline if worker.dumped is cpu else _soft_limit(cpu)
            if worker.state is WorkerState.STARTING:
                yield worker.launched_at + BOOT_DEADLINE_S
        if self._timed:
            yield from (deadline for _, deadline in self._timed_off_cpu())
        if self._start_from is not None:
            yield self._start_from

    def watch(self, now: float) -> None:
        """Kills workers that have exceeded a limit: the time of a step or a run, or the time to
        start, to leave a run or to die. Requests a worker's stacks shortly before its deadline.
        Ends workers that have served their number of runs.
        """
        if self._start_from is not None and now >= self._start_from:
            self._start_from = None
        for worker in self._workers.values():
            cpu = worker.on_cpu
            self._say_what_holds_others_up(worker, now)
            if self.has_served(worker) and not worker.runs and worker.killing is None:
                self.kill(worker, "it has served", force=False)
                worker.kill_at = now + KILL_GRACE_S
            if worker.kill_at is not None and now >= worker.kill_at:
                self.kill(worker, "it did not stop", force=True)
            elif worker.killing is None and cpu and cpu.deadline is not None and now >= cpu.deadline:
                worker.over_limit = cpu
                self.kill(worker, "time limit", force=False)
                worker.kill_at = now + KILL_GRACE_S
            elif worker.killing is None and cpu and worker.dumped is not cpu and now >= _soft_limit(cpu):
                worker.dumped = cpu
                self._orders.append(Dump(worker.id))
            elif worker.killing is None and worker.left and now >= min(worker.left.values()) + LEAVES_S:
                self._end_stubborn(worker, min(worker.left, key=worker.left.__getitem__))
            elif worker.state is WorkerState.STARTING and now >= worker.launched_at + BOOT_DEADLINE_S:
                self.kill(worker, "it never became ready", force=True)
                self.boot_failed("was not ready in time", now)

    def _end_stubborn(self, worker: Worker, run: int) -> None:
        text = (
            f"its code went on for {LEAVES_S:g} s after it was to leave worker {worker.id} (pid "
            f"{worker.pid}), which is killed for that, and nobody is charged; a bare `except:` or `except "
            "BaseException:` around a step must raise again"
        )
        self._orders.append(Note(text, "warning", run))
        self.kill(worker, "a run did not leave it", force=True)

    def _say_what_holds_others_up(self, worker: Worker, now: float) -> None:
        """Warns of code between two steps that has executed for long. It may wait for a lock that
        another run of this worker holds.
        """
        cpu = worker.on_cpu
        if cpu is None or cpu is worker.noted or cpu.step is not None or now < cpu.since + HOLDS_UP_S:
            return
        run = self._runs.get(cpu.run)
        others = len(worker.recalled) + sum(r.started and r is not run for r in worker.runs.values())
        if worker.kind == "sync" and run is not None and run.function.workflow_id is not None and others:
            worker.noted, worker.noted_use = cpu, None
            text = (
                f"its code between two steps has kept worker {worker.id} (pid {worker.pid}) for "
                f"{HOLDS_UP_S:g} s, in which other runs ({others}) wait or waited; where it wants a lock "
                "that one of them holds across a step, declare @pgqrs.workflow(lanes=1) (see: pgqrs stacks)"
            )
            self._orders.append(run.note(text, "warning"))

    def _end_mutual_wait(self, worker: Worker, cpu_s: float, now: float) -> None:
        """Kills a worker if its run seems to wait for another run of the same worker, for example
        because that run holds a lock. The sign: the run's code has occupied the worker for
        HOLDS_UP_S, and has used no CPU for WAITS_S. From then on each worker executes runs of these
        functions one at a time.
        """
        at, used_s = worker.noted_use or (now, cpu_s)
        if worker.noted_use is None or now - at >= WAITS_S:
            worker.noted_use = now, cpu_s
        if now - at < WAITS_S or cpu_s - used_s > WAITS_SHARE * (now - at):
            return
        run, names = worker.noted.run if worker.noted else None, set[str]()
        for each in worker.runs.values():
            if each.started:
                self._scheduling.set_apart(each.function)
                names.add(each.function.name)
        text = (
            f"its code waits, as it seems for what another run of worker {worker.id} (pid "
            f"{worker.pid}) holds across a step: the worker is killed for that, nobody is "
            "charged, and from now on this supervisor's workers execute runs of "
            f"{', '.join(sorted(names))} one at a time, as with @pgqrs.workflow(lanes=1)"
        )
        self._orders.append(Note(text, "warning", run))
        self.kill(worker, "runs in it wait for one another", force=True)

    def has_served(self, worker: Worker) -> bool:
        """Whether the worker has served its number of runs. It then gets no further run, and ends
        after the runs that it has.
        """
        most = self._settings.max_runs_per_worker
        return worker.state is WorkerState.RETIRING or (most is not None and worker.given >= most)

    def overdue(self, now: float) -> list[Run]:
        """Returns the runs that have exceeded their own time limit and have no CPU. They can be
        ended without killing a worker.
        """
        if not self._timed:
            return []
        return [run for run, deadline in self._timed_off_cpu() if now >= deadline]

    def _timed_off_cpu(self) -> Iterator[tuple[Run, float]]:
        """Yields each run that has a time limit of its own and no CPU, with its deadline. Called
        after every event, unless no function has a time limit.
        """
        for run in self._runs.values():
            if run.deadline is not None and self._off_cpu(run):
                yield run, run.deadline

    def _off_cpu(self, run: Run) -> bool:
        if run.ending:
            return False
        worker = self._workers.get(run.worker) if run.worker is not None else None
        if worker is None:
            return True
        # The runs of an event loop share the CPU. The loop enforces their limits itself.
        return worker.kind == "sync" and not (worker.on_cpu and worker.on_cpu.run == run.id)

    def weigh(self, event: Measured, now: float) -> None:
        worker = self._workers.get(event.worker)
        if worker is None or worker.killing is not None:
            return
        if worker.holds_up:
            self._end_mutual_wait(worker, event.cpu_s, now)
        cpu, most = worker.on_cpu, self._settings.max_rss_bytes
        if cpu and cpu.memory_bytes is not None and event.rss_bytes > cpu.memory_bytes:
            worker.over_limit = msgspec.structs.replace(cpu, limit="memory")
            self.kill(worker, "memory limit", force=True)
        elif most is not None and worker.given and event.rss_bytes > most:
            # If a worker without a run is over the limit, so is every new worker. Replacing it
            # would never end.
            self._retire(worker, f"holds {event.rss_bytes:,} bytes")

    def _retire(self, worker: Worker, why: str) -> None:
        """Retires the worker: it gets no further run, finishes the runs that it has begun, and is
        replaced.
        """
        if worker.state is WorkerState.READY:
            worker.become(WorkerState.RETIRING)
            self._orders.append(Note(f"worker {worker.id} (pid {worker.pid}) {why}: it is replaced"))
            self._scheduling.revoke(worker)

    def kill(self, worker: Worker, why: str, force: bool) -> None:
        if worker.killing is None or force:
            worker.become(WorkerState.KILLED)
            worker.killing = worker.killing or why
            worker.kill_at = None
            self._orders.append(Kill(worker.id, force))

    @property
    def may_start(self) -> bool:
        """Whether workers may be started now. False for a while after workers have failed to start."""
        return self._start_from is None

    def boot_failed(self, how: str, now: float) -> None:
        """Records that a worker failed to start. Delays the next start, longer each time. After too
        many failures, and if no other worker is there, reports that no worker can be started.
        Failures at the same time count once.
        """
        self._orders.append(Note(f"a worker {how} before it was ready", "error"))
        if self._start_from is not None:
            return
        self._boot_failures.append(now)
        while self._boot_failures and now - self._boot_failures[0] > RESTARTS_WINDOW_S:
            self._boot_failures.popleft()
        failures = len(self._boot_failures)
        if failures >= RESTARTS_MAX and not any(w.ready for w in self._workers.values()):
            reason = (
                f"workers died while starting {failures} times "
                f"within {RESTARTS_WINDOW_S:g} s; the last one {how}"
            )
            self._happened(Happened.NO_WORKERS, now, reason)
        elif failures > 1:
            self._start_from = now + min(START_AGAIN_S * 2 ** (failures - 2), START_AGAIN_MAX_S)


def exceeded(worker: Worker) -> OnCpu | None:
    """Returns the limit that a dead worker was killed for, if the worker was still executing the
    same step or run. If the step ended within the grace period, it has kept its limit.
    """
    over, cpu = worker.over_limit, worker.on_cpu
    if over is None or cpu is None or over.run != cpu.run:
        return None
    return over if over.limit == "run" or over.position == cpu.position else None


def _soft_limit(cpu: OnCpu) -> float:
    """Returns when to ask the worker for its stacks. This is shortly before its deadline, so that
    the worker can answer before it is killed.
    """
    if cpu.deadline is None:
        return math.inf
    return cpu.deadline - min(DUMP_BEFORE_S, (cpu.deadline - cpu.since) / 2)
