"""What a supervisor is told to do, and what it shows of itself. Data, and who takes it."""

from typing import Literal, Protocol

from msgspec import Struct

from supervisors.births.launch import Described, StartMethod
from supervisors.core import core, events, state

LEASE_S = 15.0


class Options(Struct, frozen=True):
    """What `pgqrs supervise` can be told. `workers` None: the cores that this process may use."""

    workers: int | None = None
    lanes: int | None = None
    burst: bool = False
    fail: bool = False  # end with 1 where a run failed
    start_method: StartMethod | None = None
    drain_timeout_s: float = 30.0
    lease_s: float = LEASE_S
    subreaper: bool = True
    ready_fd: int | None = None  # a byte is written here once messages are being claimed
    max_runs_per_worker: int | None = None
    max_rss_bytes: int | None = None
    http: tuple[str, int] | None = None  # where to answer /healthz and /readyz
    parent_fd: int | None = None  # says how to stop; when it ends, so does the supervisor
    parent_pid: int | None = None  # when that process ends, so does the supervisor


class Report(Struct, frozen=True):
    """What it will do, said at the start."""

    target: str
    start_method: StartMethod
    workers: int
    async_workers: int
    functions: tuple[Described, ...]
    threads: int
    thread_makers: tuple[str, ...]
    import_s: float
    lease_s: float
    payload_bytes_max: int
    dsn: str
    recovered: int


class WorkerState(Struct, frozen=True):
    id: int
    pid: int | None
    state: Literal["starting", "idle", "busy", "stopping"]
    runs: int
    run: int | None = None
    function: str | None = None
    step: str | None = None
    seconds: float = 0.0


class State(Struct, frozen=True):
    """A look at everything, for a panel."""

    workers: tuple[WorkerState, ...]
    finished: int
    failed: int
    crashes: int
    held: int
    stopping: int
    away: str | None
    backlog: int | None  # waiting messages, counted up to a bound; only where the view wants it


class View(Protocol):
    """Who shows it. Called from the loop: must not block."""

    wants_backlog: bool

    @property
    def deserted(self) -> bool:
        """Nobody sees any more what it shows, which is as good as a terminal that is closed."""
        ...

    def started(self, report: Report) -> None: ...

    def line(self, run: int | None, text: str, is_message: bool = False) -> None: ...

    def note(self, note: events.Note) -> None: ...

    def state(self, state: State) -> None: ...

    def ended(self, code: int, reason: str, state: State) -> None: ...

    def suspended(self) -> None:
        """The supervisor is about to be stopped, as by Ctrl-Z: the terminal is the shell's then."""
        ...

    def resumed(self) -> None: ...


def worker_states(core: core.Core, now: float) -> tuple[WorkerState, ...]:
    return tuple(_worker_state(w, core.runs, now) for w in core.workers.values())


def _worker_state(w: state.Worker, runs: dict[int, state.Run], now: float) -> WorkerState:
    state: Literal["starting", "idle", "busy", "stopping"] = "busy" if w.runs else "idle"
    if w.killing is not None:
        state = "stopping"
    elif not w.ready:
        state = "starting"
    cpu = w.on_cpu
    if cpu is None or (run := runs.get(cpu.run)) is None:
        return WorkerState(w.id, w.pid, state, len(w.runs))
    return WorkerState(w.id, w.pid, state, len(w.runs), cpu.run, run.function.name, cpu.step, now - cpu.since)
