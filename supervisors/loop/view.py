"""The options of a supervisor, the data that it shows, and the interface of a view that shows them."""

from typing import Literal, Protocol

from msgspec import Struct

from supervisors.births.launch import Described, StartMethod
from supervisors.core import core, events, state

LEASE_S = 15.0


class Options(Struct, frozen=True):
    """The options of `pgqrs supervise`. If `workers` is None, there is a worker for each core that
    this process may use.
    """

    workers: int | None = None
    lanes: int | None = None
    burst: bool = False
    # Exit with status 1 if a run failed.
    fail: bool = False
    start_method: StartMethod | None = None
    drain_timeout_s: float = 30.0
    lease_s: float = LEASE_S
    subreaper: bool = True
    # A byte is written here once messages are being claimed.
    ready_fd: int | None = None
    max_runs_per_worker: int | None = None
    max_rss_bytes: int | None = None
    # The address for /healthz and /readyz.
    http: tuple[str, int] | None = None
    # The pipe that brings the level of stopping. The supervisor stops when it is closed.
    parent_fd: int | None = None
    # The supervisor stops when this process ends.
    parent_pid: int | None = None


class Report(Struct, frozen=True):
    """What the supervisor will do, reported at the start."""

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
    """A snapshot of the supervisor, for a panel."""

    workers: tuple[WorkerState, ...]
    finished: int
    failed: int
    crashes: int
    held: int
    stopping: int
    away: str | None
    # Waiting messages, counted up to a bound; only if the view wants the number.
    backlog: int | None


class View(Protocol):
    """Shows the supervisor to people. Called from the loop, so no method may block."""

    wants_backlog: bool

    @property
    def deserted(self) -> bool:
        """Whether nobody can see the output any more. The supervisor treats that like a closed
        terminal.
        """
        ...

    def started(self, report: Report) -> None: ...

    def line(self, run: int | None, text: str, is_message: bool = False) -> None: ...

    def note(self, note: events.Note) -> None: ...

    def state(self, state: State) -> None: ...

    def ended(self, code: int, reason: str, state: State) -> None: ...

    def suspended(self) -> None:
        """Called when the supervisor is about to be stopped, as by Ctrl-Z. From then on the
        terminal belongs to the shell.
        """
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
