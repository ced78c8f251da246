"""The figures of a report: which measurements belong together, as plots with their limits and as tables behind them.

Nothing is judged here: limits are those of the policy, and what stands above its limit is what `judge` found there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from portproof.compare.facts import Facts, Measurement, provable
from portproof.compare.policy import limit32, limit64, overall_error, precision_limit
from portproof.compare.verdict import Verdict
from portproof.report.html_plot import Line, Plot, Series, draw, number
from portproof.report.terminal import shape

MOST = 500  # places of a figure; of more, those that came closest to their limits are shown, and the page stays small
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24}  # the relative error of one rounding
_SHAPES = ("ring", "dot")  # the second mark stays visible inside the first

_Limit = Callable[[Measurement], float]


@dataclass(frozen=True, slots=True)
class _Curve:
    """One kind of value: ``of`` is `difference`, or `a` or `b` for a side's own float32 error."""

    name: str
    phase: str
    group: str
    of: str = "difference"

    def value(self, each: Measurement) -> float | None:
        return {"difference": each.distance.relative, "a": each.error_a, "b": each.error_b}[self.of]


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    curves: tuple[_Curve, ...]
    precision: str = "float64"


@dataclass(frozen=True, slots=True)
class _Spec:
    title: str
    says: str
    panels: tuple[_Panel, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a table; ``wrong`` if it is above its limit."""

    text: str
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor: its name, the port's name where that is another, and what was measured."""

    name: str
    other: str
    about: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """Plots that share their places, and the table behind them. ``total`` is how many tensors there are."""

    title: str
    says: str
    plots: tuple[Plot, ...]
    about: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    total: int


_DIFFERENCE = "The L2 norm of the difference over the norm of the tensor."


def _both(title: str, phase: str, group: str, names: tuple[str, str]) -> _Panel:
    return _Panel(title, (_Curve(names[0], phase, group, "a"), _Curve(names[1], phase, group, "b")), "float32")


def _specs(names: tuple[str, str]) -> tuple[_Spec, ...]:
    difference = f"float64: {names[0]} against {names[1]}"
    own = "float32: each side against its own float64"
    return (
        _Spec(
            "Error of every layer",
            f"{_DIFFERENCE} Layers in order of execution, from left to right.",
            (
                _Panel(
                    difference,
                    (_Curve("eval mode", "float64.eval", "outputs"), _Curve("training", "float64.train", "outputs")),
                ),
                _both(own, "float64.eval", "outputs", names),
            ),
        ),
        _Spec(
            "Gradients",
            "The gradient of every parameter. One that vanishes analytically is related to the scale of its layer.",
            (
                _Panel(
                    difference,
                    (
                        _Curve("eval mode", "float64.eval", "gradients"),
                        _Curve("training", "float64.train", "gradients"),
                    ),
                ),
                _both(f"{own}, eval mode", "float64.eval", "gradients", names),
                _both(f"{own}, training", "float64.train", "gradients", names),
            ),
        ),
        _Spec(
            "BatchNorm statistics",
            "Running mean and variance; where the frameworks' rules for the variance differ, the rule is taken out.",
            (
                _Panel("float64: after one training step", (_Curve("one step", "float64.train", "buffers"),)),
                _Panel(
                    "float64: after 5 steps of an optimizer",
                    (_Curve("SGD", "float64.sgd", "buffers"), _Curve("AdamW", "float64.adamw", "buffers")),
                ),
            ),
        ),
        _Spec(
            "Parameters after 5 steps",
            "Of every parameter, what the steps changed.",
            (
                _Panel(
                    "float64: after 5 steps of an optimizer",
                    (_Curve("SGD", "float64.sgd", "parameters"), _Curve("AdamW", "float64.adamw", "parameters")),
                ),
            ),
        ),
    )


def _fallback_specs(names: tuple[str, str]) -> tuple[_Spec, ...]:
    difference = f"float32: {names[0]} against {names[1]}"
    return (
        _Spec(
            "Error of every layer",
            f"{_DIFFERENCE} A float64 proof was not possible; the limit follows from the original's own rounding where "
            "that is known.",
            (_Panel(difference, (_Curve("eval mode", "float32.eval", "outputs"),), "float32"),),
        ),
        _Spec(
            "Gradients",
            "The gradient of every parameter, without a float64 proof.",
            (
                _Panel(
                    difference,
                    (
                        _Curve("eval mode", "float32.eval", "gradients"),
                        _Curve("training", "float32.train", "gradients"),
                    ),
                    "float32",
                ),
            ),
        ),
        _Spec(
            "BatchNorm statistics",
            "Running means after one training step, without a float64 proof.",
            (_Panel(difference, (_Curve("one step", "float32.train", "buffers"),), "float32"),),
        ),
    )


def figures(facts: Facts, verdict: Verdict, names: tuple[str, str]) -> Iterator[Figure]:
    """Every figure that there are measurements for."""
    proof = provable(facts.coarse, facts.unavailable)
    for spec in (_specs if proof else _fallback_specs)(names):
        figure = _Drawing(facts, verdict, proof).figure(spec)
        if figure is not None:
            yield figure


@dataclass(frozen=True, slots=True)
class Other:
    """A tensor that is in no figure, and what was measured."""

    what: str
    name: str
    mode: str
    value: Cell
    limit: str
    errors: tuple[str, str]


_REST = {"inputs": "what reaches", "batches": "output", "loss": "loss", "input-gradient": "gradient of the input"}
_MODES = {"eval": "eval mode", "train": "training", "forward": "eval mode"}


def others(facts: Facts, verdict: Verdict) -> list[Other]:
    """What was judged besides: inputs of layers, outputs of other batches, loss, gradient of the input."""
    proof = provable(facts.coarse, facts.unavailable)
    drawing = _Drawing(facts, verdict, proof)
    found = []
    for each in facts.measurements:
        precision, _, mode = each.phase.partition(".")
        if each.group not in _REST or mode not in _MODES or precision != ("float64" if proof else "float32"):
            continue
        limit, value = drawing.limit(each), each.distance.relative
        found.append(
            Other(
                _REST[each.group],
                each.name,
                _MODES[mode],
                Cell(number(value), not value <= limit and not drawing.by_design(each)),
                number(limit),
                (number(each.error_a), number(each.error_b)),
            )
        )
    return found


class _Drawing:
    """Figures of one report."""

    def __init__(self, facts: Facts, verdict: Verdict, proof: bool) -> None:
        self._facts, self._verdict, policy = facts, verdict, verdict.policy
        self.limit: _Limit = (
            partial(limit64, policy=policy, overall=overall_error(facts)) if proof else partial(limit32, policy=policy)
        )
        self._precision: _Limit = partial(precision_limit, policy=policy)
        self._kinds = {
            call.layer: dict.fromkeys([call.kind_a, call.kind_b]) for rows in facts.calls.values() for call in rows
        }
        self._stages = [str(row["name"]) for row in facts.structure.stages]
        self._failed = {check.name for check in verdict.checks if check.status == "fail"}

    def by_design(self, each: Measurement) -> bool:
        """Whether a difference in what reaches a layer was judged to be the port's design."""
        name = "function-between" if each.phase == "float64.eval" else "training-between"
        return each.group == "inputs" and name not in self._failed

    def figure(self, spec: _Spec) -> Figure | None:
        """One figure, or nothing where nothing was measured."""
        tables = {
            curve: {(each.name, each.other): each for each in self._of(curve)}
            for panel in spec.panels
            for curve in panel.curves
        }
        places = list(dict.fromkeys(key for table in tables.values() for key in table))
        total, places = len(places), self._closest(places, tables)
        panels = [panel for panel in spec.panels if any(tables[curve] for curve in panel.curves)]
        if not panels:
            return None
        any_of = {key: next(table[key] for table in tables.values() if key in table) for key in places}
        plots: list[Plot] = []
        columns: list[str] = []
        cells: list[list[list[Cell]]] = []
        for panel in panels:
            plot, headings, values = self._panel(panel, places, any_of, tables)
            plots.append(plot)
            columns += headings
            cells.append(values)
        layered = all(each.name.split("#")[0] in self._kinds for each in list(any_of.values())[:1])
        rows = [
            Row(name, other, self._about(any_of[name, other], layered), tuple(cell for row in each for cell in row))
            for (name, other), *each in zip(places, *cells, strict=True)
        ]
        about = ("kind", "shape") if layered else ("shape",)
        return Figure(spec.title, spec.says, tuple(plots), about, tuple(columns), tuple(rows), total)

    def _of(self, curve: _Curve) -> list[Measurement]:
        return [
            each
            for each in self._facts.measurements
            if (each.phase, each.group) == (curve.phase, curve.group) and curve.value(each) is not None
        ]

    def _limits(self, curve: _Curve) -> _Limit | None:
        return {"difference": self.limit, "b": self._precision}.get(curve.of)

    def _closest(
        self, places: list[tuple[str, str]], tables: Mapping[_Curve, Mapping[tuple[str, str], Measurement]]
    ) -> list[tuple[str, str]]:
        if len(places) <= MOST:
            return places
        share = dict.fromkeys(places, 0.0)
        for curve, table in tables.items():
            if limit := self._limits(curve):
                for key, each in table.items():
                    of_limit = (curve.value(each) or 0.0) / limit(each)
                    share[key] = max(share[key], math.inf if math.isnan(of_limit) else of_limit)
        kept = set(sorted(places, key=lambda key: -share[key])[:MOST])
        return [key for key in places if key in kept]

    def _panel(
        self,
        panel: _Panel,
        places: Sequence[tuple[str, str]],
        any_of: Mapping[tuple[str, str], Measurement],
        tables: Mapping[_Curve, Mapping[tuple[str, str], Measurement]],
    ) -> tuple[Plot, list[str], list[list[Cell]]]:
        """The plot of one panel, the headings of its columns, and the cells of every place."""
        series: list[Series] = []
        lines: list[Line] = []
        headings: list[str] = []
        columns: list[list[Cell]] = []
        said: list[str] = []
        mode = panel.title.rpartition(", ")[2] if ", " in panel.title else ""
        for curve, mark in zip([c for c in panel.curves if tables[c]], _SHAPES, strict=False):
            found = [tables[curve].get(key) for key in places]
            values = [None if each is None else curve.value(each) for each in found]
            limit = self._limits(curve)
            limits = [None if each is None or limit is None else limit(each) for each in found]
            wrong = [
                v is not None and most is not None and not v <= most for v, most in zip(values, limits, strict=True)
            ]
            series.append(Series(curve.name, mark, values, wrong))
            headings.append(" ".join(part for part in (panel.precision, curve.name, mode) if part))
            columns.append([Cell(number(value), bad) for value, bad in zip(values, wrong, strict=True)])
            said.append(_said(curve.name if len(panel.curves) > 1 else "", places, series[-1]))
            if limit is not None and (not lines or limits != lines[-1].values):
                lines.append(Line("limit", _range(limits), limits))
                headings.append("limit")
                columns.append([Cell(number(value)) for value in limits])
        rounding = ROUNDING[panel.precision]
        lines.append(Line("floor", f"one rounding {number(rounding)}", [rounding] * len(places)))
        diverged = self._verdict.divergence
        first = next(
            (
                i
                for i, (name, _) in enumerate(places)
                if diverged and name == diverged.name and any(each.wrong[i] for each in series)
            ),
            None,
        )
        plot = draw(
            panel.title,
            " ".join(said),
            [name for name, _ in places],
            series,
            lines,
            groups=[self._stage(any_of[key].layer) for key in places],
            first=first,
        )
        return plot, headings, [list(row) for row in zip(*columns, strict=True)]

    def _stage(self, layer: str) -> str:
        """The stage that a layer belongs to, or the first part of its name where no stages are known."""
        if not self._stages:
            return layer.partition(".")[0]
        return next((stage for stage in self._stages if f"{layer}.".startswith(f"{stage}.")), "")

    def _about(self, each: Measurement, layered: bool) -> tuple[str, ...]:
        shapes = dict.fromkeys([shape(each.distance.shape_a), shape(each.distance.shape_b)])
        kinds = self._kinds.get(each.layer, {})
        return (*((" / ".join(kinds),) if layered else ()), " / ".join(shapes))


def _range(limits: Sequence[float | None]) -> str:
    known = [value for value in limits if value is not None]
    low, high = min(known), max(known)
    return f"limit {number(high)}" if number(low) == number(high) else "limit of each"


def _said(name: str, places: Sequence[tuple[str, str]], series: Series) -> str:
    """What is to be seen of one series, in a sentence."""
    known = [(value, i) for i, value in enumerate(series.values) if value is not None]
    largest, place = max(known, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    above = sum(series.wrong)
    equal = sum(value == 0 for value, _ in known)
    parts = [
        f"{name}: {len(known):,} values" if name else f"{len(known):,} values",
        f"the largest {number(largest)} in {places[place][0]}" if largest else "",
        f"{above:,} above the limit" if above else "",
        f"{equal:,} equal to the bit" if equal else "",
    ]
    return ", ".join(part for part in parts if part) + "."
