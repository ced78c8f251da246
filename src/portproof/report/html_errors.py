"""What the page of a matrix shows of errors: port against original, layer by layer and cell by cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portproof.compare.policy import Policy, error_limit, function_limit
from portproof.report.html_drift import largest_first
from portproof.report.html_figures import ROUNDING, Cell
from portproof.report.html_plot import Line, Plot, Series, draw, number

if TYPE_CHECKING:
    from portproof.matrix.facts import LayerErrors, Matrix

_HEIGHT = 180


@dataclass(frozen=True, slots=True)
class Errors:
    """Cells in which every layer has the same errors, and the plots of these."""

    cells: tuple[str, ...]
    plots: tuple[Plot, ...]


def equal_errors(matrix: Matrix) -> list[tuple[str, ...]]:
    """Cells by their errors: those whose every layer has the same errors stand together."""
    groups: dict[LayerErrors, list[str]] = {}
    for cell in matrix.cells:
        if cell.errors.layers:
            groups.setdefault(cell.errors, []).append(cell.id)
    return [tuple(cells) for cells in groups.values()]


def errors(matrix: Matrix, groups: Sequence[tuple[str, ...]], most: int) -> Iterator[Errors]:
    """The plots of every group of cells; a plot has at most ``most`` places."""
    policy = Policy(**matrix.policy)
    for cells in groups:
        found = matrix.cell(cells[0]).errors
        kept = largest_first(len(found.layers), [found.float64, found.original, found.port], most)
        names = [found.layers[i] for i in kept]
        original, port = [found.original[i] for i in kept], [found.port[i] for i in kept]
        double = Series("port", "ring", [found.float64[i] for i in kept], [False] * len(kept))
        limits: list[float | None] = [function_limit(each or 0.0, policy) for each in original]
        known = [None if each is None else error_limit(each, policy) for each in original]
        own = (
            Series("original", "ring", original, [False] * len(kept)),
            Series("port", "dot", port, _above(port, known)),
        )
        double = Series("port", "ring", double.values, _above(double.values, limits))
        stages = [".".join(each.split(".")[:2]) for each in names]
        yield Errors(
            cells,
            (
                _plot("float64: original against port", names, (double,), _lines(limits, "float64"), stages),
                _plot("float32: each side against its own float64", names, own, _lines(known, "float32"), stages),
            ),
        )


def error_rows(matrix: Matrix, groups: Sequence[tuple[str, ...]], most: int) -> Iterator[tuple[str, tuple[Cell, ...]]]:
    """By layer: the float64 difference, and the port's float32 error, of every group of cells."""
    found = [matrix.cell(cells[0]).errors for cells in groups]
    tables: list[dict[str, float | None]] = [dict(zip(each.layers, each.float64, strict=True)) for each in found]
    tables += [dict(zip(each.layers, each.port, strict=True)) for each in found]
    layers = list(dict.fromkeys(layer for each in found for layer in each.layers))
    for i in largest_first(len(layers), [[table.get(layer) for layer in layers] for table in tables], most):
        yield layers[i], tuple(Cell(number(table.get(layers[i]))) for table in tables)


def _above(values: Sequence[float | None], limits: Sequence[float | None]) -> list[bool]:
    return [v is not None and most is not None and not v <= most for v, most in zip(values, limits, strict=True)]


def _lines(limits: Sequence[float | None], precision: str) -> list[Line]:
    rounding = ROUNDING[precision]
    known = {number(each) for each in limits if each is not None}
    label = f"limit {next(iter(known))}" if len(known) == 1 else "limit of each"
    return [
        Line("limit", label, limits),
        Line("floor", f"one rounding {number(rounding)}", [rounding] * len(limits)),
    ]


def _plot(
    title: str, names: Sequence[str], series: Sequence[Series], lines: Sequence[Line], stages: Sequence[str]
) -> Plot:
    said = " ".join(_largest(each, names) for each in series)
    return draw(title, said, names, series, lines, groups=stages, height=_HEIGHT)


def _largest(series: Series, names: Sequence[str]) -> str:
    known = [(value, place) for place, value in enumerate(series.values) if value is not None]
    if not known:
        return f"{series.name}: not measured."
    value, place = max(known)
    above = f", {sum(series.wrong):,} above the limit" if any(series.wrong) else ""
    return f"{series.name}: {len(known):,} layers, the largest {number(value)} in {names[place]}{above}."
