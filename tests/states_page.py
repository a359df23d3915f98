"""python3 dev.py run states: draws what a run, a worker and a supervisor may become into docs/architecture.md, from the tables
that the code follows (supervisors/core/states.py)."""

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from pgqrs.model.states import RUN_TRANSITIONS
from supervisors.core.states import RUNS, STANDINGS, WORKERS
from tests.marked_page import with_part

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- made by `dev.py run states` -->", "<!-- to here -->"


def main() -> int:
    PAGE.write_text(redrawn(PAGE.read_text()))
    return 0


def redrawn(page: str) -> str:
    parts = [
        "A run or a plain message, from its claim until its supervisor forgets it:",
        table(RUNS),
        "A worker process:",
        table(WORKERS),
        "A supervisor, as its database knows it:",
        table(STANDINGS),
        "A run's row in the database (`pgqrs/model/states.py`), which outlives them all:",
        table_of_rows(),
    ]
    return with_part(page, BEGIN, END, "\n".join(parts))


def table(states: Mapping[Enum, frozenset[Enum]]) -> str:
    """In the order in which the states are defined."""
    rows = [["state", "meaning", "may become"], ["---"] * 3]
    for state, then in states.items():
        rows.append([_name(state), str(state.value), _names(states, then)])
    return _lines(rows)


def table_of_rows() -> str:
    rows = [["status", "may become"], ["---"] * 2]
    rows += [[status.value, _names(RUN_TRANSITIONS, then)] for status, then in RUN_TRANSITIONS.items()]
    return _lines(rows)


def _lines(rows: list[list[str]]) -> str:
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _names(states: Mapping[Enum, frozenset[Enum]], then: frozenset[Enum]) -> str:
    return ", ".join(_name(s) for s in states if s in then) or "nothing else"


def _name(state: Enum) -> str:
    return state.name.lower() if not isinstance(state, str) else str(state.value)


if __name__ == "__main__":
    sys.exit(main())
