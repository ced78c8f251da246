"""The margin plot: one line for each check, honest runs on one side of its limit, planted defects on the other. SVG.

The axis is the share of the limit, on a logarithmic scale, so that all limits stand on one line, at 1. A value of zero
has no logarithm and stands at the left edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from portproof.honest.margins import Margin

LEFT, RIGHT, TOP, ROW = 190, 20, 26, 20
WIDTH = 900
LEAST, MOST = 1e-6, 1e12  # of the limit: what lies beyond stands at the edge
_MOST_MARKS = 150  # a line, so that the picture stays small; of more values every k-th, and both ends
_STYLE = """
.margins text{font:12px system-ui,sans-serif;fill:currentColor}.margins .axis{stroke:currentColor;opacity:.15}
.margins .limit{stroke:currentColor;stroke-width:2}.margins .honest{fill:#2a7de1;opacity:.35}
.margins .defect{fill:#d1495b;opacity:.45}
"""


def draw(rows: Sequence[Margin]) -> str:
    """The plot as one SVG element; it takes the text colour of where it is put."""
    height = TOP + ROW * len(rows) + 30
    return "".join(
        [
            f'<svg class="margins" viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img" ',
            'aria-label="Honest runs and planted defects beside the limit of each check">',
            f"<style>{_STYLE}</style>",
            *_axis(height),
            *(part for place, row in enumerate(rows) for part in _row(row, TOP + ROW * place + ROW / 2)),
            "</svg>",
        ]
    )


def page(rows: Sequence[Margin], lines: Sequence[str]) -> str:
    """A page of its own: what was run, in ``lines``, and the plot."""
    said = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>portproof: margins of the limits</title>'
        "<style>:root{color-scheme:light dark}body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        f"padding:0 1rem}}</style><h1>Margins of the limits</h1>{said}{draw(rows)}"
        "<p>Blue: equal models. Red: planted defects, at the checks that caught them. All values are shares of the "
        "limit.</p>"
    )


def _x(share: float) -> float:
    inside = min(max(share, LEAST), MOST)
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(inside / LEAST) / math.log10(MOST / LEAST)


def _axis(height: float) -> Iterator[str]:
    for exponent in range(round(math.log10(LEAST)), round(math.log10(MOST)) + 1, 3):
        x = _x(10.0**exponent)
        kind = "limit" if exponent == 0 else "axis"
        label = "limit" if exponent == 0 else f"1e{exponent:+d}"
        yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 24}"/>'
        yield f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{label}</text>'


def _row(row: Margin, y: float) -> Iterator[str]:
    yield f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(row.check)}</text>'
    for kind, shares in (("honest", row.honest), ("defect", row.defects)):
        for share in _some(shares):
            yield f'<circle class="{kind}" cx="{_x(share):.1f}" cy="{y:.1f}" r="3.5"/>'
    for found, side in ((row.nearest, "honest"), (row.defect, row.defect_name)):
        if found:
            text = f"nearest {side}: {found.measured:.2e} of {found.allowed:.2e} ({found.where})"
            yield f'<circle cx="{_x(found.share):.1f}" cy="{y:.1f}" r="4" fill="none" stroke="currentColor">'
            yield f"<title>{escape(text)}</title></circle>"


def _some(shares: Sequence[float]) -> list[float]:
    ordered = sorted(share for share in shares if not math.isnan(share))
    step = max(len(ordered) // _MOST_MARKS, 1)
    return [*ordered[::step], *ordered[-1:]]
