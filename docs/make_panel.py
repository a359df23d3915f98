"""Draws docs/images/panel.svg with the panel's own code: python docs/make_panel.py"""

import io
from pathlib import Path

from rich.console import Console

from pgqrs.cli.outlet import Outlet
from pgqrs.cli.views import PanelView
from supervisors.core.events import Note
from supervisors.loop.view import State, WorkerState

view = PanelView(Outlet())
view._console = Console(record=True, width=108, force_terminal=True, file=io.StringIO(), highlight=False)
view.line(41, "INFO pipeline: compressing logs/2026-11-21.json")
view.note(Note("worker 2 (pid 41871) was killed by SIGKILL in compress#3", "warning", 38))
workers = (
    WorkerState(1, 41870, "busy", 8, 41, "archive", "compress#7", 0.4),
    WorkerState(3, 41902, "busy", 1, 38, "archive", "compress#3", 1.2),
    WorkerState(4, 41903, "busy", 7, 44, "archive", "list_files", 0.0),
    WorkerState(5, None, "starting", 0),
)
view._rate.add(0)
view._console.print(view._panel(State(workers, 1_284, 2, 1, 16, 0, None, 5_310)))
Path(__file__).with_name("images").joinpath("panel.svg").write_text(
    view._console.export_svg(title="pgqrs supervise pipeline.py")
)
