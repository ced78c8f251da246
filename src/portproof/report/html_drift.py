"""What the page of a matrix shows of drift: classes of equal bits, heat maps of cells x cells, where drift begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portproof.report.html_plot import Line, Plot, Series, draw, number

if TYPE_CHECKING:
    from portproof.matrix.facts import Drift, DriftPair

SIDES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
_BASE = {"float32": -8, "float64": -16}  # decade at which colours begin, a little below one rounding
LEVELS = 7
_ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24}
MOST_PAIRS = 12  # of one side that are shown with a plot; the table has all


@dataclass(frozen=True, slots=True)
class Heat:
    """One field of a heat map. ``level`` is its colour: 0 for equal bits, up to `LEVELS`."""

    text: str
    level: int
    same: bool = False


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Cells x cells in one precision, with the class of each cell; ``key`` says what each level means."""

    precision: str
    cells: tuple[str, ...]
    classes: tuple[str, ...]
    rows: tuple[tuple[Heat, ...], ...]
    key: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a drift begins, in one precision."""

    precision: str
    layer: str
    kind: str
    relative: str
    max_abs: str
    reached: str


@dataclass(frozen=True, slots=True)
class PairView:
    """Two classes: how far apart, from where on, and why. ``plot`` is there for as many pairs as a page can take."""

    name: str
    cells: tuple[str, str]
    float64: str
    float32: str
    begins: tuple[Begin, ...]
    causes: tuple[str, ...]
    changed: tuple[str, ...]
    groups: tuple[tuple[str, str, str, str, str], ...]
    not_comparable: str
    plot: Plot | None


@dataclass(frozen=True, slots=True)
class DriftView:
    """One side across the cells."""

    side: str
    summary: str
    classes: tuple[tuple[str, tuple[str, ...]], ...]
    maps: tuple[HeatMap, ...]
    pairs: tuple[PairView, ...]
    layers: int


def drift_of(drift: Drift, most: int) -> DriftView:
    """Everything that is shown of one side; a plot has ``most`` places."""
    cells = tuple(drift.cells())
    shown = _shown(drift)
    return DriftView(
        side=SIDES.get(drift.side, drift.side),
        summary=drift_summary(drift),
        classes=tuple((letter(index), members) for index, members in enumerate(drift.classes)),
        maps=tuple(_map(drift, cells, precision) for precision in _BASE),
        pairs=tuple(_pair(drift, pair, most if pair in shown else 0) for pair in drift.pairs),
        layers=len(drift.layers),
    )


def letter(index: int) -> str:
    """What a class is called: A, B, ..."""
    return chr(ord("A") + index) if index < 26 else f"#{index + 1}"


def drift_summary(drift: Drift) -> str:
    """How many classes there are and how far apart, in a sentence."""
    cells = sum(map(len, drift.classes))
    if len(drift.classes) == 1:
        return f"all {cells} cells are equal to the bit" if cells > 1 else "one cell alone, nothing to compare it with"
    measured = [pair for pair in drift.pairs if not pair.not_comparable]
    most = [(precision, max(pair.largest(precision) for pair in measured)) for precision in _BASE if measured]
    apart = ", ".join(f"by at most {number(v)} in {name}" if v else f"not at all in {name}" for name, v in most)
    tail = f"; the outputs of layers differ {apart}" if apart else ""
    return f"{cells} cells in {len(drift.classes)} classes of equal bits{tail}"


def _shown(drift: Drift) -> list[DriftPair]:
    """All pairs, or those of neighbouring classes where there are too many."""
    if len(drift.pairs) <= MOST_PAIRS:
        return list(drift.pairs)
    return [pair for pair in drift.pairs if abs(pair.a - pair.b) == 1][:MOST_PAIRS]


def _map(drift: Drift, cells: Sequence[str], precision: str) -> HeatMap:
    rows = tuple(tuple(_field(drift, a, b, precision) for b in cells) for a in cells)
    used = sorted({each.level for row in rows for each in row if each.text not in ("", "?")})
    key = [(level, _key(level, _BASE[precision])) for level in used]
    classes = tuple(letter(index) for index, members in enumerate(drift.classes) for _ in members)
    return HeatMap(precision, tuple(cells), classes, rows, tuple(key))


def _field(drift: Drift, a: str, b: str, precision: str) -> Heat:
    if a == b:
        return Heat("", 0, same=True)
    pair = drift.between(a, b)
    if pair is None:
        return Heat("0", 0)
    if pair.not_comparable:
        return Heat("?", 0)
    value = pair.largest(precision)
    return Heat(number(value), level_of(value, precision))


def level_of(value: float, precision: str) -> int:
    """The colour of a relative difference: two levels a decade."""
    if value == 0:
        return 0
    if not math.isfinite(value):
        return LEVELS
    return min(max(math.floor((math.log10(value) - _BASE[precision]) * 2) + 1, 1), LEVELS)


def _key(level: int, base: int) -> str:
    if level == 0:
        return "equal to the bit"
    edges = [f"{1 if half % 2 == 0 else 3}e{base + half // 2:+03d}" for half in (level - 1, level)]
    return f"below {edges[1]}" if level == 1 else f"{edges[0]} and more" if level == LEVELS else " to ".join(edges)


def _pair(drift: Drift, pair: DriftPair, most: int) -> PairView:
    name = f"{letter(pair.a)}-{letter(pair.b)}"
    measured = not pair.not_comparable
    return PairView(
        name=name,
        cells=(drift.classes[pair.a][0], drift.classes[pair.b][0]),
        float64=number(pair.largest("float64")) if measured else "",
        float32=number(pair.largest("float32")) if measured else "",
        begins=tuple(
            Begin(
                "gradients" if precision == "gradients" else precision,
                found.layer,
                found.kind,
                number(found.relative),
                number(found.max_abs),
                "what reaches it is equal" if found.inputs_equal else "what reaches it differs already",
            )
            for precision, found in pair.begins.items()
        ),
        causes=pair.causes,
        changed=pair.changed,
        groups=tuple(_groups(pair)) if most else (),
        not_comparable=pair.not_comparable,
        plot=_plot(drift, pair, name, most) if most and measured else None,
    )


def _groups(pair: DriftPair) -> Iterator[tuple[str, str, str, str, str]]:
    for group in pair.groups:
        yield group.title, group.phase, f"{group.equal:,} of {group.tensors:,}", number(group.relative), group.where


def _plot(drift: Drift, pair: DriftPair, name: str, most: int) -> Plot:
    places = largest_first(len(drift.layers), [pair.float64, pair.float32], most)
    names = [drift.layers[i] for i in places]
    series = [
        Series(precision, shape, [values[i] for i in places], [False] * len(places))
        for precision, shape, values in (("float64", "ring", pair.float64), ("float32", "dot", pair.float32))
    ]
    lines = [
        Line("floor", f"rounding {precision}", [rounding] * len(places)) for precision, rounding in _ROUNDING.items()
    ]
    first = min((drift.layers.index(b.layer) for b in pair.begins.values() if b.layer in drift.layers), default=None)
    said = " ".join(_said(each.name, each.values) for each in series)
    return draw(
        f"{name}: {drift.classes[pair.a][0]} against {drift.classes[pair.b][0]}",
        said,
        names,
        series,
        lines,
        groups=[each.partition(".")[0] if "." not in each else ".".join(each.split(".")[:2]) for each in names],
        first=places.index(first) if first in places else None,
        first_label="drift begins",
    )


def _said(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    differing = [value for value in known if value != 0]
    if not known:
        return f"{name}: not measured."
    if not differing:
        return f"{name}: all {len(known):,} layers equal to the bit."
    return f"{name}: {len(differing):,} of {len(known):,} layers differ, at most {number(max(differing))}."


def largest_first(count: int, values: Sequence[Sequence[float | None]], most: int) -> list[int]:
    """At most ``most`` places, those with the largest values, in their order."""
    if count <= most:
        return list(range(count))

    def largest(place: int) -> float:
        known = [row[place] or 0.0 for row in values if place < len(row)]
        return max((math.inf if math.isnan(value) else value for value in known), default=0.0)

    return sorted(sorted(range(count), key=lambda place: -largest(place))[:most])
