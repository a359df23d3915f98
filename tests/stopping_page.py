"""python3 dev.py run stopping: draws how a supervisor stops into docs/operating.md, from the table that it follows
(supervisors/core/stopping.py)."""

import sys
from pathlib import Path

from supervisors.core.events import Exit
from supervisors.core.stopping import DOES, TABLE, Happened, Level
from tests.marked_page import with_part

PAGE = Path(__file__).parents[1] / "docs" / "operating.md"
BEGIN, END = "<!-- made by `dev.py run stopping` -->", "<!-- to here -->"


def main() -> int:
    PAGE.write_text(redrawn(PAGE.read_text()))
    return 0


def redrawn(page: str) -> str:
    return with_part(page, BEGIN, END, f"{diagram()}\n{table()}")


def diagram() -> str:
    """An arrow for each pair of ends, with all that leads along it."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for level, ways in TABLE.items():
        for happened, then in ways.items():
            arrows.setdefault((_name(level), _end(then)), []).append(happened.value.replace("`", ""))
    ends = sorted({end for _, end in arrows if end.startswith("exit")})
    lines = [
        *(f"{end}: {_name_of_end(end)}" for end in ends),
        f"[*] --> {_name(Level.RUNNING)}",
        *(f"{start} --> {end}: {', or '.join(why)}" for (start, end), why in arrows.items()),
        *(f"{end} --> [*]" for end in ends),
    ]
    return "".join(
        f"{line}\n" for line in ["```mermaid", "stateDiagram-v2", *(f"    {x}" for x in lines), "```"]
    )


def table() -> str:
    rows = [
        ["", *(_name(level) for level in Level)],
        ["---"] * (1 + len(Level)),
        ["**meanwhile**", *(DOES[level] for level in Level)],
        *([happened.value, *(_cell(level, happened) for level in Level)] for happened in Happened),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(level: Level, happened: Happened) -> str:
    then = TABLE[level].get(happened)
    if then is None:
        return ""
    return f"exit code {then.code}" if isinstance(then, Exit) else f"→ {_name(then)}"


def _end(then: Level | Exit) -> str:
    return f"exit_{then.code}" if isinstance(then, Exit) else _name(then)


def _name_of_end(end: str) -> str:
    return f"exit code {end.removeprefix('exit_')}"


def _name(level: Level) -> str:
    return level.name.lower()


if __name__ == "__main__":
    sys.exit(main())
