"""The display of a supervisor: a live panel on a terminal, plain lines everywhere else.

Nearly every line contains text from user code: output, names, errors. Such text passes through
`printable` before it is shown.
"""

import os
import time
from collections import deque
from typing import IO, TYPE_CHECKING, Any, cast

from pgqrs.arguments.durations import text as duration
from pgqrs.cli.outlet import Outlet
from pgqrs.config import redact
from pgqrs.model.printable import printable
from pgqrs.model.wording import count

if TYPE_CHECKING:
    from supervisors.core.events import Note
    from supervisors.loop.view import Report, State, View

SUMMARY_EVERY_S = 5.0
RATE_WINDOW_S = 10.0
# Lines between two updates of the panel, which are a quarter of a second apart. More lines are
# dropped and counted.
PANEL_LINES_MAX = 2000
# No new panel is drawn while the terminal has more unwritten output than this.
PANEL_WAITING_BYTES_MAX = 64 * 1024
STOPPING = (
    "Ctrl-C to drain",
    "finishing what runs; Ctrl-C again to stop at the next step",
    "stopping at the next step; Ctrl-C again to stop now",
    "stopping now",
)


def make_view(quiet: bool = False) -> "View":
    """Returns the panel for a terminal, or plain lines for a file or a pipe."""
    out = Outlet()
    return (
        PanelView(out)
        if out.isatty() and not quiet
        else PlainView(out, quiet, timed=not _is_journal(out.fileno()))
    )


class Rate:
    """The number of runs per second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, finished: int) -> float:
        now = time.monotonic()
        self._seen.append((now, finished))
        while now - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return (finished - before) / (now - then) if now > then else 0.0


def _is_journal(fd: int) -> bool:
    """Whether the descriptor leads to systemd's journal, which adds the time itself."""
    found = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Stamp:
    """The local time with its zone, in milliseconds: "2026-11-30T06:41:20.123+00:00"."""

    def __init__(self) -> None:
        self._second = 0
        self._before = self._after = ""

    def now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            local = time.localtime(second)
            zone = time.strftime("%z", local)
            self._before = time.strftime("%Y-%m-%dT%H:%M:%S", local)
            self._after = f"{zone[:3]}:{zone[3:5]}"
        return f"{self._before}.{int((now - second) * 1000):03d}{self._after}"


class PlainView:
    """Prints one line per event, and a summary every few seconds while runs execute. `quiet` prints
    only output of user code and problems. `timed` starts each line with the time.
    """

    wants_backlog = False

    def __init__(self, out: Outlet | None = None, quiet: bool = False, timed: bool = False) -> None:
        self._out = out or Outlet()
        self._quiet = quiet
        self._stamp = Stamp() if timed else None
        self._rate = Rate()
        self._summary_at = time.monotonic() + SUMMARY_EVERY_S
        self._told = (0, 0, 0)
        self._began = time.monotonic()

    @property
    def deserted(self) -> bool:
        return self._out.deserted

    def started(self, report: "Report") -> None:
        if not self._quiet:
            for line in report_lines(report):
                self._print(line)

    def line(self, run: int | None, text: str, is_message: bool = False) -> None:
        self._print(f"{_of(run, is_message)}| {text}")

    def note(self, note: "Note") -> None:
        if not self._quiet or note.level != "info":
            self._print(note_line(note))

    def state(self, state: "State") -> None:
        rate = self._rate.add(state.finished + state.failed)
        now = time.monotonic()
        counts = (state.finished, state.failed, state.crashes)
        if self._quiet or now < self._summary_at or counts == self._told:
            return
        self._summary_at, self._told = now + SUMMARY_EVERY_S, counts
        busy = sum(w.state == "busy" for w in state.workers)
        self._print(
            f"{state.finished:,} finished, {state.failed:,} failed, {count(state.crashes, 'crash')}, "
            f"{state.held:,} at hand, {busy} of {count(len(state.workers), 'worker')} busy, {rate:,.0f}/s"
        )

    def ended(self, code: int, reason: str, state: "State") -> None:
        if not self._quiet or code:
            self._print(ending(code, reason, state, time.monotonic() - self._began))
        self._out.settle()

    def suspended(self) -> None:
        self._out.settle()

    def resumed(self) -> None:
        pass

    def _print(self, line: str) -> None:
        time = f"{self._stamp.now()} " if self._stamp else ""
        self._out.write(f"{time}{printable(line)}\n")


class PanelView:
    """Shows the workers with their runs, the rate, the backlog and crashes. Output of user code
    scrolls above.
    """

    wants_backlog = True

    def __init__(self, out: Outlet) -> None:
        from rich.console import Console
        from rich.live import Live

        self._out = out
        self._console = Console(file=cast(IO[str], out), highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._lines: list[tuple[str, str, str]] = []  # time, run, text
        self._dropped = 0  # lines
        self._rate = Rate()
        self._began = time.monotonic()

    @property
    def deserted(self) -> bool:
        return self._out.deserted

    def started(self, report: "Report") -> None:
        for line in report_lines(report):
            self._print(line, "dim")
        self._live.start()

    def line(self, run: int | None, text: str, is_message: bool = False) -> None:
        """Adds a line to the next update of the panel. Redrawing the panel for each line would cost
        more than the code that prints it.
        """
        if len(self._lines) < PANEL_LINES_MAX:
            self._lines.append((_clock(), f"{_of(run, is_message)}│ ", printable(text)))
        else:
            self._dropped += 1

    def note(self, note: "Note") -> None:
        self._show_lines()
        self._print(note_line(note), {"info": "dim", "warning": "yellow", "error": "red"}[note.level])

    def state(self, state: "State") -> None:
        self._show_lines()
        if self._out.waiting_bytes < PANEL_WAITING_BYTES_MAX:
            self._live.update(self._panel(state), refresh=True)

    def ended(self, code: int, reason: str, state: "State") -> None:
        self._show_lines()
        self._live.stop()
        self._print(ending(code, reason, state, time.monotonic() - self._began), "")
        self._out.settle()

    def suspended(self) -> None:
        self._live.stop()
        self._out.settle()

    def resumed(self) -> None:
        self._live.start()

    def _show_lines(self) -> None:
        if not self._lines or self._out.waiting_bytes >= PANEL_WAITING_BYTES_MAX:
            return
        from rich.text import Text

        lines, self._lines = self._lines, []
        shown = [Text.assemble((clock, "dim"), (run, "cyan"), text) for clock, run, text in lines]
        self._console.print(Text("\n").join(shown))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._print(
                f"{count(dropped, 'line')} more came than a terminal shows and were dropped", "yellow"
            )

    def _print(self, line: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text.assemble((_clock(), "dim"), (printable(line), style)))

    def _panel(self, state: "State") -> Any:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        rate = self._rate.add(state.finished + state.failed)
        table = Table(box=None, pad_edge=False, expand=True)
        for name, justify in (("worker", "right"), ("pid", "right"), ("state", "left"), ("run", "right"),
                              ("doing", "left"), ("for", "right"), ("at hand", "right")):  # fmt: skip
            table.add_column(name, justify=justify, header_style="dim")  # type: ignore[arg-type]
        colours = {"busy": "green", "idle": "dim", "starting": "yellow", "stopping": "red"}
        for w in state.workers:
            doing = f"{w.function} · {w.step}" if w.step else (w.function or "")
            table.add_row(
                str(w.id), str(w.pid or "…"), Text(w.state, colours[w.state]), str(w.run or ""),
                Text(printable(doing)), duration(round(w.seconds, 1)) if w.run else "", str(w.runs or ""),
            )  # fmt: skip
        backlog = "" if state.backlog is None else f" · backlog {state.backlog:,}"
        title = (
            f"pgqrs · {rate:,.0f}/s · {state.finished:,} finished · {state.failed:,} failed · "
            f"{count(state.crashes, 'crash')}{backlog}"
        )
        says = "the database is away" if state.away else STOPPING[min(state.stopping, len(STOPPING) - 1)]
        return Panel(table, title=title, subtitle=says, border_style="red" if state.away else "blue")


def _clock() -> str:
    return time.strftime("%H:%M:%S ")


def report_lines(report: "Report") -> list[str]:
    """Describes what the supervisor is about to do."""
    lines = [
        f"{report.target} on {redact(report.dsn)}",
        f"{count(report.workers, 'worker')}{' + 1 for async' if report.async_workers else ''}, start "
        f"method {report.start_method}, imported in {duration(report.import_s)}",
    ]
    lines += [
        f"  {f.kind} {f.name}{' (async)' if f.is_async else ''} from queue {f.queue}"
        for f in report.functions
    ]
    lines.append(
        f"lease {duration(report.lease_s)}, payloads and results up to {report.payload_bytes_max:,} bytes"
    )
    if report.threads:
        lines.append(
            f"{count(report.threads, 'thread')} started while importing, "
            f"by {', '.join(report.thread_makers) or 'unknown'}: not there "
            "in forked workers; if a worker hangs, use --start-method spawn"
        )
    if report.recovered:
        lines.append(f"took back {count(report.recovered, 'message')} of a supervisor that died")
    return lines


def note_line(note: "Note") -> str:
    """Formats a note. The caller makes it printable."""
    of = _of(note.run, note.is_message)
    where = f"{of.rstrip()}: " if of else ""
    return f"{'' if note.level == 'info' else note.level + ': '}{where}{note.text}"


def _of(run: int | None, is_message: bool) -> str:
    """Returns how a line names the run or the plain message that it concerns."""
    return "" if run is None else f"{'message' if is_message else 'run'} {run} "


def ending(code: int, reason: str, state: "State", seconds: float) -> str:
    counts = (
        f"{state.finished:,} finished, {state.failed:,} failed, "
        f"{count(state.crashes, 'crash')} in {duration(round(seconds, 1))}"
    )
    return f"{reason}: {counts}" if code == 0 else f"error: {reason} ({counts})"
