"""The results for people: one table on the screen, the same as Markdown, and the costs."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from loadtest.results import Line, Results, lines, number

COLUMNS = ("scenario", "pgqrs", "beside it", "ratio", "aim", "")
WIDTH_WITHOUT_TERMINAL = 180


def show(results: Results) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    table = Table(*COLUMNS, title=_said(results))
    for cells in _cells(results):
        table.add_row(*cells)
    console.print(table)


def markdown(results: Results) -> str:
    """Returns the table, and below it the costs of pgqrs."""
    parts = [f"{_said(results)}. Medians of the rounds, ratios round by round."]
    parts += ["\n".join(_rows(COLUMNS, (_emphatic(cells) for cells in _cells(results))))]
    costs = [
        (found.scenario if side == "pgqrs" else f"{found.scenario}: {side}", each)
        for found in results.found
        for side, each in found.costs.items()
    ]
    if kinds := sorted({kind for _, each in costs for kind in each}):
        rows = ((told, *(_cost(kind, each) for kind in kinds)) for told, each in costs)
        parts += [
            "What pgqrs cost, for each message or workflow:",
            "\n".join(_rows(("scenario", *map(_heading, kinds)), rows)),
        ]
    return "\n\n".join(parts)


def _said(results: Results) -> str:
    context = results.context
    return (
        f"{context['machine']}, {context['server']}, {context['date']}, commit {context['commit']}, "
        f"{context['load']}, `{context['command']}`"
    )


def _cells(results: Results) -> Iterator[tuple[str, ...]]:
    """Yields the cells of each line, without those that repeat the line above."""
    above: Line | None = None
    for line in lines(results):
        same = above is not None and above.scenario == line.scenario
        ours = "" if same and above and above.ours == line.ours else line.ours
        verdict = {True: "reached", False: "missed", None: ""}[line.reached]
        yield ("" if same else line.scenario, ours, line.beside, line.ratio, line.aim, verdict)
        above = line


def _emphatic(cells: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("**missed**" if cell == "missed" else cell for cell in cells)


def _rows(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(heads)
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _heading(kind: str) -> str:
    return kind.replace("CPU s", "CPU µs")


def _cost(kind: str, costs: dict[str, float]) -> str:
    if kind not in costs:
        return ""
    return number(costs[kind] * 1e6 if kind.startswith("CPU") else costs[kind])
