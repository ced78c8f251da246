"""Plots of relative differences, one place per tensor, on a logarithmic axis: where every mark and line stands.

The template draws them as inline SVG, so that they take the page's colours, light or dark. Zero, which has no
logarithm, stands in a lane of its own below the axis, and what is not finite in one above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 62, 124, 8, 24  # for the labels of the axis and of the lines
WIDTH, HEIGHT = 1000, 220  # of the whole plot, in units of its view box; about pixels on a wide screen
LANE = 22
DECADES = 8  # labels of the axis, at most
FURTHEST = (-20, 4)  # decades; what lies beyond stands at the edge, and its title has the value
_CHARACTER = 6.2  # width of one, in the font of the labels
_APART = 12  # labels of lines below each other


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of mark. ``values`` and ``wrong`` are by place, ``None`` where there is none; ``shape`` names it."""

    name: str
    shape: str
    values: Sequence[float | None]
    wrong: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Line:
    """What marks are held against, by place. ``kind`` is `limit` or `floor`."""

    kind: str
    label: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Mark:
    """One value; ``text`` shows while the pointer is on it."""

    x: str
    y: str
    shape: str
    text: str


@dataclass(frozen=True, slots=True)
class Stroke:
    """One line, as the `d` of a path, and its label beside the end."""

    kind: str
    path: str
    label: str
    y: float


@dataclass(frozen=True, slots=True)
class Band:
    """Places that belong together, such as the layers of a stage."""

    x: float
    width: float
    label: str
    shaded: bool


@dataclass(frozen=True)
class Plot:
    """All that is drawn.

    ``keys`` are names and shapes of the series, with the shape of what is above the limit where there is any; ``first``
    is where the first divergence is.
    """

    title: str
    summary: str
    width: int
    height: int
    left: int
    right: float
    top: float
    bottom: float
    ticks: tuple[tuple[float, str], ...]
    lanes: tuple[tuple[float, str], ...]
    bands: tuple[Band, ...]
    strokes: tuple[Stroke, ...]
    marks: tuple[Mark, ...]
    keys: tuple[tuple[str, str, str], ...]
    first: float | None = None
    first_label: str = ""
    head: int = TOP + 10  # the base line of that label, above everything else


def draw(
    title: str,
    summary: str,
    names: Sequence[str],
    series: Sequence[Series],
    lines: Sequence[Line] = (),
    *,
    groups: Sequence[str] = (),
    first: int | None = None,
    first_label: str = "first divergence",
    height: int = HEIGHT,
) -> Plot:
    """Place everything.

    Args:
        title: of the plot.
        summary: what is to be seen, for those who do not see it.
        names: of the places, from left to right.
        series: the values, at most two kinds that a reader can tell apart.
        lines: limits and floors.
        groups: the group of each place; neighbours of one group share a band.
        first: the place where a difference begins.
        first_label: what stands there.
        height: of the plot.
    """
    values = [*_all(each.values for each in series), *_all(each.values for each in lines)]
    axis = _Axis.over(values, top=TOP + (0 if first is None else LANE), height=height)
    step = (WIDTH - LEFT - RIGHT) / max(len(names), 1)

    def x(place: float) -> float:
        return round(LEFT + (place + 0.5) * step, 1)

    marks = tuple(
        Mark(_short(x(place)), _short(axis.y(value)), f"{each.shape}-wrong" if wrong else each.shape,
             f"{name}: {number(value)}{f' ({each.name})' if len(series) > 1 else ''}{', above its limit' * wrong}")
        for each in series
        for place, (name, value, wrong) in enumerate(zip(names, each.values, each.wrong, strict=True))
        if value is not None
    )  # fmt: skip
    return Plot(
        title=title,
        summary=summary,
        width=WIDTH,
        height=height,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=axis.top,
        bottom=axis.bottom,
        ticks=tuple(axis.ticks()),
        lanes=tuple(axis.lanes()),
        bands=tuple(_bands(groups, step)),
        strokes=tuple(_strokes(lines, axis, step)),
        marks=marks,
        keys=tuple((each.name, each.shape, f"{each.shape}-wrong" * any(each.wrong)) for each in series),
        first=None if first is None else x(first),
        first_label=first_label,
    )


def number(value: float | None) -> str:
    """A measured value as everywhere in a report: two digits, and 0 for what is equal."""
    if value is None:
        return ""
    return f"{value:.1e}" if value else "0"


@dataclass(frozen=True)
class _Axis:
    low: int
    high: int
    top: float
    bottom: float
    zeros: bool
    infinite: bool

    @classmethod
    def over(cls, values: Sequence[float], *, top: int, height: int) -> _Axis:
        logs = [math.log10(value) for value in values if 0 < value < math.inf]
        low, high = math.floor(min(logs, default=-16)), math.ceil(max(logs, default=-12) + 0.2)
        low, high = max(low, FURTHEST[0]), min(high, FURTHEST[1])
        low, high = min(low, FURTHEST[1] - 2), max(high, low + 2, FURTHEST[0] + 2)
        zeros, infinite = 0.0 in values, not all(math.isfinite(value) for value in values)
        return cls(low, high, top + LANE * infinite, height - BOTTOM - LANE * zeros, zeros, infinite)

    def y(self, value: float) -> float:
        if not math.isfinite(value):
            return round(self.top - LANE / 2, 1)
        if value <= 0:
            return round(self.bottom + LANE / 2, 1)
        share = (self.high - math.log10(value)) / (self.high - self.low)
        return round(self.top + min(max(share, 0.0), 1.0) * (self.bottom - self.top), 1)

    def ticks(self) -> Iterator[tuple[float, str]]:
        step = math.ceil((self.high - self.low) / DECADES)
        for decade in range(self.low, self.high + 1, step):
            yield self.y(10.0**decade), f"1e{decade:+03d}" if decade else "1"

    def lanes(self) -> Iterator[tuple[float, str]]:
        if self.zeros:
            yield self.y(0.0), "0, equal"
        if self.infinite:
            yield self.y(math.inf), "inf, nan"


def _all(rows: Iterable[Sequence[float | None]]) -> Iterator[float]:
    for row in rows:
        yield from (value for value in row if value is not None)


def _strokes(lines: Sequence[Line], axis: _Axis, step: float) -> Iterator[Stroke]:
    labelled: list[float] = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        if not known:
            continue
        y = axis.y(known[-1])
        while any(abs(y - other) < _APART for other in labelled):
            y += _APART
        labelled.append(y)
        yield Stroke(line.kind, _steps([None if v is None else axis.y(v) for v in line.values], step), line.label, y)


def _steps(heights: Sequence[float | None], step: float) -> str:
    """A line that keeps its height across each place, and is broken where there is none."""
    path, before = [], None
    for place, y in enumerate(heights):
        x = _short(LEFT + place * step)
        if y != before:
            path.append(f"H{x}" if before is not None else "")
            if y is not None:
                path.append(f"M{x} {_short(y)}" if before is None else f"V{_short(y)}")
        before = y
    if before is not None:
        path.append(f"H{_short(LEFT + len(heights) * step)}")
    return "".join(path)


def _bands(groups: Sequence[str], step: float) -> Iterator[Band]:
    ends = [i for i in range(1, len(groups) + 1) if i == len(groups) or groups[i] != groups[i - 1]]
    spans = list(zip([0, *ends], ends, strict=False))

    def fits(name: str, begin: int, end: int) -> bool:
        return len(name) * _CHARACTER < (end - begin) * step - 4

    whole = sum(fits(groups[begin], begin, end) for begin, end in spans) * 3 > len(spans) * 2
    for number, (begin, end) in enumerate(spans):
        # Whole names for most bands, or the last parts for all: a mixture would read as two kinds of stages.
        name = groups[begin] if whole or "." not in groups[begin] else f".{groups[begin].rpartition('.')[2]}"
        label = name if fits(name, begin, end) else ""
        yield Band(round(LEFT + begin * step, 1), round((end - begin) * step, 1), label, number % 2 == 1)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
