"""The matrix on the terminal and as JUnit XML: cells x checks with values, drift, and one line of verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table
from rich.text import Text

from portproof.compare.checks import FAIL, NOTE, PASS, UNKNOWN
from portproof.files import write_text
from portproof.report.junit import NOT_XML
from portproof.report.terminal import console_for, grid, mark, table, text

if TYPE_CHECKING:
    from portproof.matrix.facts import CellCheck, CellResult, Drift, DriftPair, Matrix

_OUTCOME = {"same": "bold green", "differs": "bold red", "undecided": "bold yellow"}
# What stands in the table of cells: heading, suite and check. The rest is summed up in one column.
_COLUMNS = (
    ("layers", "parity", "function-layers"),
    ("grads", "parity", "training-gradients"),
    ("stats", "parity", "batchnorm"),
    ("AdamW", "parity", "adamw"),
    ("float32", "parity", "precision-layers"),
)


def render_matrix(
    matrix: Matrix, *, console: Console | None = None, quiet: bool = False, verbose: bool = False
) -> None:
    """Print the matrix; ``quiet``: the last line alone; ``verbose``: every check of every cell."""
    console = console or console_for(sys.stdout)
    if not quiet:
        console.print(_cells(matrix, console))
        console.print(text("worst relative difference of each kind of tensor; float32: the port's own error", "dim"))
        for lines in (_whys(matrix), _failures(matrix, verbose), _notes(matrix)):
            for number, line in enumerate(lines):
                console.print(*([] if number else ["\n"]), line, sep="")
        for drift in matrix.drift:
            _render_drift(drift, console)
        console.print()
    green = sum(cell.green for cell in matrix.cells if cell.expected)
    wanted = sum(cell.expected for cell in matrix.cells)
    console.print(
        text(matrix.outcome.upper(), _OUTCOME[matrix.outcome])
        + text(f"  {matrix.subject}: {green} of {wanted} cells are up to date and the same model")
    )


def _cells(matrix: Matrix, console: Console) -> Table:
    made = table("cell", "verdict", "numpy", "keras", "torch", *(heading for heading, _, _ in _COLUMNS), "checks", "s")
    for column in made.columns[5:]:
        column.justify = "right"
    for column in made.columns:
        column.no_wrap = True
    made.padding = (0, 1, 0, 0)
    python = ""
    for cell in matrix.cells:
        if python and cell.python != python:
            made.add_row()
        python = cell.python
        made.add_row(text(cell.id), _mark(cell, console), *map(text, _details(cell)))
    return made


def _mark(cell: CellResult, console: Console) -> Text:
    if cell.state != "complete":
        return mark(console, FAIL if cell.state == "failed" else UNKNOWN, cell.state)
    status = {"same": PASS, "differs": FAIL}.get(cell.outcome, UNKNOWN)
    return mark(console, status, cell.outcome if cell.expected else f"({cell.outcome})")


def _details(cell: CellResult) -> Iterator[str]:
    seen = cell.environment
    yield seen.numpy or cell.pins.get("numpy", "")
    yield seen.keras or cell.pins.get("keras", "")
    yield seen.torch.partition("+")[2] or seen.torch  # the build: the release is one in all cells
    for _, suite, name in _COLUMNS:
        check = cell.check(suite, name)
        yield check.value.split(" ")[0] if check else ""
    counted = [check for check in cell.checks if check.status != NOTE]
    passed = sum(check.status == PASS for check in counted)
    yield f"{passed}/{len(counted)}" if counted else ""
    yield f"{sum(cell.seconds.values()):.0f}" if cell.seconds else ""


def _whys(matrix: Matrix) -> Iterator[Text]:
    for cell in matrix.cells:
        if cell.why:
            yield text(f"{cell.id} is {cell.state}: ", "bold yellow") + text(cell.why)


def _failures(matrix: Matrix, verbose: bool) -> Iterator[Text]:
    for cell in matrix.cells:
        if cell.divergence:
            yield text(f"{cell.id}: ", "bold red") + text(f"{cell.summary}; {cell.divergence}")
        for check in cell.checks:
            if verbose or check.status in (FAIL, UNKNOWN):
                yield text(f"  {cell.id}  {check.suite}  {check.status}  {_said(check)}", "" if verbose else "red")


def _said(check: CellCheck) -> str:
    found = f"{check.title}: {check.value}" + (f", limit {check.limit}" if check.limit else "")
    return found + (f" ({check.where})" if check.where else "")


def _notes(matrix: Matrix) -> Iterator[Text]:
    if matrix.not_asked:
        yield text(f"not asked for: {', '.join(matrix.not_asked)}", "dim")
    for note in matrix.notes:
        yield text(f"note: {note}", "dim")


def _render_drift(drift: Drift, console: Console) -> None:
    if not drift.classes:
        return
    cells = sum(map(len, drift.classes))
    console.print()
    console.print(text(f"drift of {drift.side}", "bold") + text(f"  {cells} cells, {_bits(len(drift.classes))}"))
    names = grid()
    for index, members in enumerate(drift.classes):
        names.add_row(text(f"  {_letter(index)}"), text(", ".join(members)))
    console.print(names)
    if not drift.pairs:
        return
    made = table("", "logits f64", "f32", "layers f64", "f32", "gradients f64", "f32", "begins at (float32)")
    for column in made.columns[1:-1]:
        column.justify = "right"
    for column in made.columns[:-1]:
        column.no_wrap = True
    for pair in drift.pairs:
        made.add_row(text(f"  {_letter(pair.a)}-{_letter(pair.b)}"), *map(text, _drift_row(pair)))
    console.print(made)
    causes: dict[str, list[str]] = {}
    for pair in drift.pairs:
        for cause in pair.causes or ("no known cause",):
            causes.setdefault(cause, []).append(f"{_letter(pair.a)}-{_letter(pair.b)}")
    for cause, where in causes.items():
        console.print(text(f"  {', '.join(where)}: {cause}"))


def _bits(classes: int) -> str:
    return "all equal to the bit" if classes == 1 else f"{classes} classes of equal bits"


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"#{index}"


def _drift_row(pair: DriftPair) -> Iterator[str]:
    if pair.not_comparable:
        yield from ("", "", "", "", "", "", f"not comparable: {pair.not_comparable}")
        return
    for names, phases in (
        (("batches",), ("float64.forward", "float32.forward")),
        (("outputs",), ("float64.eval", "float32.eval")),
        (("gradients",), ("float64.", "float32.")),
    ):
        for phase in phases:
            found = [group.relative for group in pair.groups if group.name in names and group.phase.startswith(phase)]
            yield ("0" if max(found) == 0 else f"{max(found):.1e}") if found else ""
    first = pair.begins.get("float32") or pair.begins.get("float64") or pair.begins.get("gradients")
    if first is None:
        yield "nowhere in the forward passes"
    else:
        where = f"{first.layer} ({first.kind})" if first.kind else first.layer
        yield where if "gradients" not in pair.begins else f"gradient of {where}"


def write_matrix_junit(matrix: Matrix, path: Path) -> None:
    """Write the matrix as JUnit XML, one suite per cell, complete or not at all."""
    write_text(path, matrix_to_junit(matrix))


def matrix_to_junit(matrix: Matrix) -> str:
    """The matrix as JUnit XML: a suite per cell, a case per check; a cell without a result that counts is an error."""
    root = ET.Element("testsuites", {"name": f"portproof matrix: {_clean(matrix.subject)}"})
    for cell in matrix.cells:
        cases = list(_cases(cell))
        suite = ET.SubElement(
            root,
            "testsuite",
            {"name": cell.id, **_totals(cases), "time": f"{sum(cell.seconds.values()):.3f}"},
        )
        properties = ET.SubElement(suite, "properties")
        environment = cell.environment
        for name in ("python", "tensorflow", "keras", "torch", "torch_build", "numpy", "protobuf", "cpu", "system"):
            ET.SubElement(properties, "property", {"name": name, "value": _clean(str(getattr(environment, name)))})
        suite.extend(cases)
    root.attrib |= _totals(list(root.iter("testcase")))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cases(cell: CellResult) -> Iterator[ET.Element]:
    if cell.state != "complete":
        case = ET.Element("testcase", {"classname": cell.id, "name": "result", "time": "0"})
        kind = "error" if cell.expected else "skipped"
        ET.SubElement(case, kind, {"message": _clean(f"{cell.state}: {cell.why}")})
        yield case
    for check in cell.checks:
        case = ET.Element("testcase", {"classname": f"{cell.id}.{check.suite}", "name": check.name, "time": "0"})
        said = _clean(_said(check))
        if check.status == FAIL:
            ET.SubElement(case, "failure", {"type": "differs", "message": said}).text = _clean("\n".join(check.details))
        elif check.status == UNKNOWN:
            kind = "error" if cell.outcome == "undecided" else "skipped"
            ET.SubElement(case, kind, {"message": said})
        ET.SubElement(case, "system-out").text = said
        yield case


def _totals(cases: Sequence[ET.Element]) -> dict[str, str]:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    found = {name: str(sum(case.find(tag) is not None for case in cases)) for name, tag in kinds.items()}
    return {"tests": str(len(cases)), **found}


def _clean(content: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", content)
