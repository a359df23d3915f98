"""Puts a run's table and charts into docs/benchmarks.md, between two comments. The prose around
them is written by hand.
"""

from pathlib import Path

from loadtest.charts import charts
from loadtest.report import markdown
from loadtest.results import Results

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BEGIN = "<!-- made by `python3 dev.py load --write-docs`: begin -->"
END = "<!-- made by `python3 dev.py load --write-docs`: end -->"


def write(results: Results, page: Path = PAGE) -> None:
    """Raises ValueError if the page lacks the two comments."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the two comments {BEGIN} and {END}")
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    pictures = charts(results)
    for old in folder.glob("*.svg"):
        if old.stem not in pictures:
            old.unlink()
    shown = []
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture)
        shown.append(f"![{name.replace('-', ' ')}]({folder.name}/{name}.svg)")
    made = "\n\n".join([BEGIN, markdown(results), *shown, END])
    page.write_text(before + made + after)
