"""What the commands print: a table for people, one JSON document for programs."""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

from pgqrs.arguments import durations
from pgqrs.model.printable import printable, printable_json

PREVIEW_LENGTH_MAX = 60
LINE_LENGTH_MAX = 100_000  # of a table that no terminal shows


def json_document(value: Any) -> None:
    """One document, in UTF-8 whatever the terminal's encoding is."""
    click.echo(json_text(msgspec.json.format(msgspec.json.encode(value), indent=2)))


def json_text(document: bytes) -> bytes:
    """The same document, safe on a terminal."""
    return printable_json(document.decode()).encode()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """`columns` that begin with ">" hold numbers: right-aligned. Ids, names and times are never cut: on a terminal the
    text in columns that end in "…" is wrapped, elsewhere a line is as long as it needs to be. `empty` is said to people,
    apart from the output."""
    listed = list(rows)
    if not listed:
        click.echo(empty, err=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        shown.add_column(
            Text(name.strip(">…")),
            justify="right" if name.startswith(">") else "left",
            no_wrap=not name.endswith("…"),
        )
    for row in listed:
        shown.add_row(*(Text(clean(cell)) for cell in row))
    if sys.stdout is not None and sys.stdout.isatty():
        Console().print(shown)
        return
    console = Console(force_terminal=False, color_system=None, width=LINE_LENGTH_MAX)
    console.width = console.measure(shown).maximum
    with console.capture() as captured:
        console.print(shown)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def preview(value: Any, length_max: int = PREVIEW_LENGTH_MAX) -> str:
    """A JSON value on one line, its end cut off where it is long."""
    text = "" if value is None else msgspec.json.encode(value).decode()
    return cut(text, length_max)


def cut(text: str, length_max: int = PREVIEW_LENGTH_MAX) -> str:
    text = clean(text)
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def clean(text: str) -> str:
    """For a cell of a table: on one line and without what a terminal would obey. Data may come from anywhere."""
    return text if text.isprintable() else printable(_SPACE.sub(" ", text))


_SPACE = re.compile(r"\s")


def ago(then: str | None, now: datetime) -> str:
    """A recorded time, seen from the database's clock: "3m ago", "in 1d 23h"."""
    if then is None:
        return ""
    passed = (now - datetime.fromisoformat(then)).total_seconds()
    shown = durations.text(float(int(abs(passed))))
    if shown == "0s":
        return "now"
    return f"{shown.split(' ')[0]} ago" if passed > 0 else f"in {shown}"


def took(begun: str | None, ended: str | None) -> str:
    if begun is None or ended is None:
        return ""
    return seconds((datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds())


def seconds(value: float) -> str:
    return durations.text(value) if value >= 0.001 else "<1ms"


def local(then: str | None) -> str:
    """A recorded time on the clock of whoever reads it."""
    return "" if then is None else datetime.fromisoformat(then).astimezone().strftime("%Y-%m-%d %H:%M:%S")
