"""What the HTML page of a matrix shows: cells, checks x cells with values, errors of the layers, drift. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portproof.compare.checks import FAIL, PASS, UNKNOWN
from portproof.report import words
from portproof.report.html_drift import MOST_PAIRS, SIDES, DriftView, drift_of, drift_summary, letter
from portproof.report.html_errors import Errors, equal_errors, error_rows, errors
from portproof.report.html_figures import Cell
from portproof.report.html_page import OUTCOMES, POLICY, WORDS

if TYPE_CHECKING:
    from portproof.matrix.facts import CellCheck, CellResult, Matrix

MARKS = 10_000  # on the whole page, of about 110 bytes each: the page stays below 2 MB
_VERSIONS = ("python", "tensorflow", "keras", "torch", "torch_build", "numpy", "protobuf", "threads", "cpu", "system")


@dataclass(frozen=True, slots=True)
class Value:
    """What one check measured in one cell. ``own`` is the original's own error where that stands beside it."""

    text: str
    status: str
    own: str = ""


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One check in every cell; ``common`` where all cells have the same."""

    title: str
    limit: str
    values: tuple[Value | None, ...]
    common: Value | None


@dataclass(frozen=True, slots=True)
class Suite:
    """All checks of a suite, in sections."""

    name: str
    sections: tuple[tuple[str, tuple[CheckLine, ...]], ...]


@dataclass(frozen=True, slots=True)
class CellView:
    """One cell: its mark in the matrix, and what is told about it alone."""

    id: str
    python: str
    tensorflow: str
    status: str
    word: str
    summary: str
    why: str
    expected: bool
    seconds: str
    classes: tuple[tuple[str, str], ...]
    versions: tuple[str, ...]
    checks: tuple[CellCheck, ...]
    counted: str


@dataclass(frozen=True)
class MatrixPage:
    """Everything on the page of a matrix."""

    subject: str
    status: str
    outcome: str
    sentence: str
    meaning: str
    numbers: tuple[tuple[str, str], ...]
    pythons: tuple[str, ...]
    tensorflows: tuple[str, ...]
    cells: tuple[CellView, ...]
    suites: tuple[Suite, ...]
    errors: tuple[Errors, ...]
    error_columns: tuple[str, ...]
    error_rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    drift: tuple[DriftView, ...]
    headings: tuple[str, ...]
    same: tuple[tuple[str, str], ...]
    policy: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]

    def at(self, python: str, tensorflow: str) -> CellView | None:
        """The cell of these two."""
        return next((c for c in self.cells if (c.python, c.tensorflow) == (python, tensorflow)), None)


def page_of_matrix(matrix: Matrix) -> MatrixPage:
    """Everything that the page of this matrix shows."""
    status, outcome = OUTCOMES[matrix.outcome]
    groups = equal_errors(matrix)
    curves = 3 * len(groups) + 2 * sum(min(len(drift.pairs), MOST_PAIRS) for drift in matrix.drift)
    most = max(MARKS // max(curves, 1), 25)
    varying, same = _versions(matrix)
    return MatrixPage(
        subject=matrix.subject,
        status=status,
        outcome=outcome,
        sentence=_sentence(matrix),
        meaning=_meaning(matrix),
        numbers=tuple(_numbers(matrix)),
        pythons=tuple(dict.fromkeys(cell.python for cell in matrix.cells)),
        tensorflows=tuple(dict.fromkeys(sorted((cell.tensorflow for cell in matrix.cells), key=_release))),
        cells=tuple(_cell(matrix, cell, varying) for cell in matrix.cells),
        suites=tuple(_suites(matrix)),
        errors=tuple(errors(matrix, groups, most)),
        error_columns=tuple(f"{precision}, {cells[0]}" for precision in ("float64", "float32") for cells in groups),
        error_rows=tuple(error_rows(matrix, groups, most)),
        drift=tuple(drift_of(drift, most) for drift in matrix.drift if drift.classes),
        headings=varying,
        same=same,
        policy=tuple((name, f"{value:.3g}", POLICY.get(name, "")) for name, value in matrix.policy.items()),
        notes=(*([f"not asked for: {', '.join(matrix.not_asked)}"] if matrix.not_asked else []), *matrix.notes),
    )


def _sentence(matrix: Matrix) -> str:
    wanted = [cell for cell in matrix.cells if cell.expected]
    green = sum(cell.green for cell in wanted)
    if green == len(wanted):
        return f"The same model in all {green} cells"
    differ = [cell.id for cell in wanted if cell.state == "complete" and cell.outcome == "differs"]
    if differ:
        return f"Not the same model in {len(differ)} of {len(wanted)} cells: {', '.join(differ)}"
    return f"{green} of {len(wanted)} cells are up to date and the same model"


def _meaning(matrix: Matrix) -> str:
    drift = "; ".join(
        f"{SIDES.get(each.side, each.side)}: {drift_summary(each)}" for each in matrix.drift if each.classes
    )
    opening = {
        "same": "In each cell, original and port compute the same function with the same precision.",
        "differs": "In at least one cell, the port is not the same model as the original.",
        "undecided": "Nothing is shown for cells without an up-to-date result.",
    }[matrix.outcome]
    return f"{opening} From cell to cell, the same side drifts: {drift}." if drift else opening


def _numbers(matrix: Matrix) -> Iterator[tuple[str, str]]:
    wanted = [cell for cell in matrix.cells if cell.expected]
    yield "cells", f"{sum(cell.green for cell in wanted)} of {len(wanted)} green"
    counted = Counter(check.status for cell in matrix.cells for check in cell.checks)
    yield "checks", ", ".join(f"{counted[each]:,} {WORDS[each]}" for each in WORDS if counted[each]) or "none"
    for drift in matrix.drift:
        if drift.classes:
            yield f"{SIDES.get(drift.side, drift.side)} classes", f"{len(drift.classes)} of equal bits"
    seconds = sum(sum(cell.seconds.values()) for cell in matrix.cells)
    yield "run time of all cells", f"{seconds:,.0f} s"


def _release(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _mark(cell: CellResult) -> tuple[str, str]:
    """Status and word of a cell."""
    if cell.state == "complete":
        return {"same": (PASS, "same"), "differs": (FAIL, "differs")}.get(cell.outcome, (UNKNOWN, "undecided"))
    return (FAIL if cell.state == "failed" else UNKNOWN), cell.state


def _cell(matrix: Matrix, cell: CellResult, varying: Sequence[str]) -> CellView:
    status, word = _mark(cell)
    counted = Counter(check.status for check in cell.checks)
    classes = [(drift.side, drift.class_of(cell.id)) for drift in matrix.drift]
    return CellView(
        id=cell.id,
        python=cell.python,
        tensorflow=cell.tensorflow,
        status=status,
        word=word,
        summary=f"{cell.summary}; {cell.divergence}" if cell.divergence else cell.summary,
        why=cell.why,
        expected=cell.expected,
        seconds=", ".join(f"{suite} {seconds:.1f} s" for suite, seconds in cell.seconds.items()),
        classes=tuple((side, letter(index)) for side, index in classes if index is not None),
        versions=tuple(_version(cell, name) for name in varying),
        checks=cell.checks,
        counted=", ".join(f"{counted[each]} {WORDS[each]}" for each in WORDS if counted[each]),
    )


def _version(cell: CellResult, name: str) -> str:
    seen = str(getattr(cell.environment, name))
    return seen if cell.state == "complete" or name not in cell.pins else seen or cell.pins[name]


def _versions(matrix: Matrix) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What differs from cell to cell, by name; and what is the same in all, with its value."""
    ran = [cell for cell in matrix.cells if cell.state == "complete"] or list(matrix.cells)
    values = {name: {_version(cell, name) for cell in ran} for name in _VERSIONS}
    values["instruction sets"] = {", ".join(cell.environment.instruction_sets) for cell in ran}
    varying = tuple(name for name in _VERSIONS if len(values[name]) > 1)
    same = tuple((name, next(iter(found))) for name, found in values.items() if len(found) == 1 and found != {""})
    return varying, same


def _suites(matrix: Matrix) -> Iterator[Suite]:
    names = dict.fromkeys(check.suite for cell in matrix.cells for check in cell.checks)
    for suite in sorted(names, key=lambda name: name != "parity"):
        first: dict[str, CellCheck] = {}
        for cell in matrix.cells:
            for check in cell.checks:
                if check.suite == suite:
                    first.setdefault(check.name, check)
        yield Suite(
            suite,
            tuple(
                (section.heading, tuple(_line(matrix, suite, section, check) for check in found))
                for section, found in words.in_sections(list(first.values()))
            ),
        )


def _line(matrix: Matrix, suite: str, section: words.Section, first: CellCheck) -> CheckLine:
    found = [cell.check(suite, first.name) for cell in matrix.cells]
    values = tuple(None if each is None else _value(section, each) for each in found)
    limits = dict.fromkeys(each.limit for each in found if each is not None)
    numeric = section is not words.STRUCTURE
    return CheckLine(
        title=section.title(first),
        limit="" if not numeric else next(iter(limits)) if len(limits) == 1 else "of each",
        values=values,
        common=values[0] if len(set(values)) == 1 else None,
    )


def _value(section: words.Section, check: CellCheck) -> Value:
    value, _, own = check.value.partition(" (original ")
    return Value(value, check.status, own.rstrip(")")) if section.own_error else Value(check.value, check.status)
