"""`pgqrs demo`: real work on every core, and with --chaos a proof that it survives killed workers."""

import functools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgqrs.cli.options import EXIT_FAILED, Count, database_options
from pgqrs.model.printable import printable
from pgqrs.model.wording import count

if TYPE_CHECKING:
    from pgqrs.cli.options import Database
    from pgqrs.demo.standard_library import Summary
    from supervisors.core.events import Note
    from supervisors.loop.view import Report, State, WorkerState

KILL_EVERY_S = 0.5
# The most kills in one step. A run is given up after five deaths in one step, which more kills
# could reach if a step takes seconds.
KILLS_OF_A_STEP = 3
TOP = 12


@click.command()
@click.option(
    "--chaos",
    is_flag=True,
    help="Kill a random busy worker with SIGKILL twice a second, and prove that nothing is lost.",
)
@click.option(
    "--workers",
    "-w",
    type=Count(1, 256),
    help="Number of worker processes [default: the CPU cores that this process may use].",
)
@click.option("--limit", type=Count(1), help="Maximum number of modules, largest first.")
@functools.partial(database_options, default="a temporary SQLite file, whatever $PGQRS_DSN is")
def demo(chaos: bool, workers: int | None, limit: int | None, database: "Database") -> None:
    """Measure and compress Python's standard library, one durable run for each module.

    Without --dsn the state lives in a temporary SQLite file, which is removed at the end. The
    workflow is pgqrs/demo/standard_library.py: read it, change it, run it again.
    """
    from pgqrs.clients.blocking import Store
    from pgqrs.config import DSN_VARIABLE, Config, redact
    from pgqrs.demo import standard_library
    from pgqrs.demo.proof import examine
    from pgqrs.program import targets
    from supervisors.loop.loop import Loop
    from supervisors.loop.view import Options

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqrs-demo-")))
        evidence = folder / "evidence.log"
        config = database.config() if database.chosen else Config(f"sqlite:///{folder / 'demo.db'}")
        where = redact(config.dsn)
        if not database.chosen:
            where = "a temporary SQLite file, removed at the end"
            if os.environ.get(DSN_VARIABLE):
                where += f"; {DSN_VARIABLE} is ignored: name a database with --dsn"
        click.echo(f"database: {where}")
        store = stack.enter_context(Store(config))
        store.install()
        modules = standard_library.modules()[:limit]
        handles = store.trigger_many(
            standard_library.analyse_module,
            [((name, path, evidence if chaos else None), {}) for name, path in modules],
        )
        view = DemoView(len(handles), chaos)
        began = time.monotonic()
        target = targets.parse(str(Path(standard_library.__file__)))
        code = Loop(target, config, Options(workers=workers, burst=True), view).run()
        seconds = time.monotonic() - began
        done = [h for h in handles if h.status.terminal]
        if code or len(done) < len(handles):
            click.echo(f"stopped: {len(done)} of {len(handles)} runs are done", err=True)
            sys.exit(code or 130)
        _show([h.result(0) for h in handles if h.status == "SUCCESS"], seconds)
        failed = [h for h in handles if h.status != "SUCCESS"]
        for handle in failed:
            click.echo(
                f"run {handle.id} is {handle.status.value}; see what happened: pgqrs run {handle.id} --dsn …",
                err=True,
            )
        if chaos:
            click.echo(f"\nchaos: {view.kills} workers killed with SIGKILL")
            proof = examine(handles, evidence)
            for line in proof.lines():
                click.echo(f"  {line}")
            if not proof.holds:
                click.echo("the proof does not hold", err=True)
                sys.exit(EXIT_FAILED)
            click.echo("  proven: every run finished, and no step was taken back")
        if failed:
            sys.exit(EXIT_FAILED)


class DemoView:
    """Shows a progress bar on a terminal, or a line every two seconds elsewhere.

    With --chaos this class also kills workers. The supervisor's own loop calls it, and only this
    loop reaps workers. So a pid that this class sees always belongs to its worker.
    """

    wants_backlog = False

    def __init__(self, total: int, chaos: bool) -> None:
        self._total = total
        self._chaos = chaos
        self.kills = 0
        self._hit: Counter[tuple[int | None, str | None]] = Counter()
        self.deserted = False
        self._next_kill = 0.0
        self._next_line = time.monotonic() + 2.0
        self._progress: Any = None
        self._task: Any = None

    def started(self, report: "Report") -> None:
        click.echo(
            f"{self._total} modules, {count(report.workers, 'worker')}, {report.dsn.partition(':')[0]}, "
            f"{'chaos' if self._chaos else 'no chaos'}"
        )
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                transient=True,
            )
            self._task = self._progress.add_task("modules", total=self._total)
            self._progress.start()
        self._next_kill = time.monotonic() + KILL_EVERY_S

    def line(self, run: int | None, text: str, is_message: bool = False) -> None:
        self._echo(f"run {run} | {text}")

    def note(self, note: "Note") -> None:
        from pgqrs.cli.views import note_line

        if self._chaos or note.level != "info":
            self._echo(note_line(note))

    def state(self, state: "State") -> None:
        now = time.monotonic()
        if self._progress is not None:
            crashes = f", {count(state.crashes, 'crash')}" if state.crashes else ""
            self._progress.update(self._task, completed=state.finished, description=f"modules{crashes}")
        elif now >= self._next_line:
            self._next_line = now + 2.0
            click.echo(f"{state.finished} of {self._total} modules, {count(state.crashes, 'crash')}")
        if self._chaos and now >= self._next_kill and not state.stopping:
            self._next_kill = now + KILL_EVERY_S
            self._kill_one([w for w in state.workers if w.run is not None and w.pid])

    def _kill_one(self, busy: "list[WorkerState]") -> None:
        if able := [w for w in busy if self._hit[w.run, w.step] < KILLS_OF_A_STEP]:
            victim = random.choice(able)
            assert victim.pid
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                self._hit[victim.run, victim.step] += 1
                self.kills += 1

    def ended(self, code: int, reason: str, state: "State") -> None:
        if self._progress is not None:
            self._progress.stop()
        if code:
            click.echo(f"pgqrs: {reason}", err=True)

    def suspended(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def resumed(self) -> None:
        if self._progress is not None:
            self._progress.start()

    def _echo(self, line: str) -> None:
        line = printable(line)
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line)


def _show(summaries: "list[Summary]", seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"the {min(TOP, len(summaries))} most complex of {len(summaries)} modules", title_justify="left"
    )
    for name in (
        "module",
        "files",
        "lines",
        "functions",
        "branches per function",
        "identifiers",
        "compressed",
    ):
        table.add_column(name, justify="left" if name == "module" else "right")
    for s in sorted(summaries, key=lambda s: -s.complexity)[:TOP]:
        ratio = f"{100 * s.compressed_bytes / s.bytes:.0f} %" if s.bytes else ""
        table.add_row(
            s.module,
            f"{s.files:,}",
            f"{s.lines:,}",
            f"{s.functions:,}",
            f"{s.complexity:.2f}",
            f"{s.identifiers:,}",
            ratio,
        )
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    files, lines, size = (sum(getattr(s, f) for s in summaries) for f in ("files", "lines", "bytes"))
    click.echo(
        f"{len(summaries)} runs, {files:,} files, {lines:,} lines, "
        f"{size / 1e6:.1f} MB in {seconds:.1f} s: {len(summaries) / seconds:.1f} "
        f"runs/s, {lines / seconds:,.0f} lines/s, {size / 1e6 / seconds:.2f} MB/s"
    )
