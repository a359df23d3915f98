"""The output of commands: a table for people, or one JSON document for programs."""

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
# The longest line of a table outside a terminal.
LINE_LENGTH_MAX = 100_000


def json_document(value: Any) -> None:
    """Prints one JSON document, in UTF-8 whatever the terminal's encoding is."""
    click.echo(json_text(msgspec.json.format(msgspec.json.encode(value), indent=2)))


def json_text(document: bytes) -> bytes:
    """Returns the JSON document with characters that control a terminal replaced by escapes."""
    return printable_json(document.decode()).encode()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Prints a table, or `empty` on stderr if there are no rows.

    Columns whose name begins with ">" hold numbers and are right-aligned. Ids, names and times are
    never cut. On a terminal, text in columns whose name ends in "…" is wrapped. Elsewhere a line is
    as long as needed.
    """
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
    """Returns a JSON value on one line, cut if it is long."""
    text = "" if value is None else msgspec.json.encode(value).decode()
    return cut(text, length_max)


def cut(text: str, length_max: int = PREVIEW_LENGTH_MAX) -> str:
    text = clean(text)
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def clean(text: str) -> str:
    """Returns text for a table cell: on one line, with characters that control a terminal as
    escapes.
    """
    return text if text.isprintable() else printable(_SPACE.sub(" ", text))


_SPACE = re.compile(r"\s")


def ago(then: str | None, now: datetime) -> str:
    """Returns a time relative to the database's clock: "3m ago", "in 1d 23h"."""
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
    """Returns a recorded time in the local time zone."""
    return "" if then is None else datetime.fromisoformat(then).astimezone().strftime("%Y-%m-%d %H:%M:%S")
