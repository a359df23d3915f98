"""Bar charts as SVG without a library. GitHub shows them, light or dark, and a diff of them can be
read.
"""

import statistics
from collections.abc import Iterator, Sequence
from html import escape

from loadtest.results import Found, Results, number

# No font is measured: a little wider than most letters.
CHARACTER, BOLD_CHARACTER = 7.2, 8.2
BARS = 420
VALUE = 90
BAR = 16
GAP = 8
HEAD = 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.head { font-weight: 600; }
.ours { fill: #0969da; }
.other { fill: #afb8c1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .ours { fill: #4493f8; }
  .other { fill: #656c76; }
}
"""


def charts(results: Results) -> dict[str, str]:
    """Returns SVG by the name of the chart."""
    names = dict.fromkeys(found.chart for found in results.found if found.chart and found.values)
    return {name: svg([f for f in results.found if f.chart == name and f.values]) for name in names}


def svg(group: Sequence[Found]) -> str:
    """Draws the scenarios of a chart below each other, each with a scale of its own, because their
    units differ.
    """
    body: list[str] = []
    y = 8
    left = max(len(side) for found in group for side in found.values) * CHARACTER + 10
    width = round(max(left + BARS + VALUE, *(len(_head(found)) * BOLD_CHARACTER for found in group)))
    for found in group:
        body += _scenario(found, y, left)
        y += HEAD + len(found.values) * (BAR + GAP)
    title = escape("; ".join(found.scenario for found in group))
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 '
            f'0 {width} {y + 4}" width="{width}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            *body,
            "</svg>",
            "",
        ]
    )


def _scenario(found: Found, top: int, left: float) -> Iterator[str]:
    medians = {side: statistics.median(values) for side, values in found.values.items()}
    most = max(medians.values()) or 1.0
    yield f'<text class="head" x="0" y="{top + 16}">{escape(_head(found))}</text>'
    for n, (side, value) in enumerate(medians.items()):
        y = top + HEAD - 8 + n * (BAR + GAP)
        length = max(1.0, value / most * BARS)
        kind = "ours" if side == found.ours or side.startswith("pgqrs,") else "other"
        yield f'<text x="{left - 10:.0f}" y="{y + 13}" text-anchor="end">{escape(side)}</text>'
        yield f'<rect class="{kind}" x="{left:.0f}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        yield f'<text x="{left + length + 8:.1f}" y="{y + 13}">{number(value)}</text>'


def _head(found: Found) -> str:
    return f"{found.scenario} ({found.unit}, {found.better} is better)"
