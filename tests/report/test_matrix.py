"""The matrix on the terminal and as JUnit XML: readable at 100 columns, and nothing that is missing goes unsaid."""

from __future__ import annotations

import io
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from portproof.matrix.facts import (
    COMPLETE,
    MISSING,
    STALE,
    Beginning,
    CellCheck,
    CellResult,
    Drift,
    DriftGroup,
    DriftPair,
    Environment,
    Matrix,
)
from portproof.matrix.table import cells
from portproof.report.matrix import matrix_to_junit, render_matrix


def result(cell, **changes):
    names = ("function-layers", "training-gradients", "batchnorm", "adamw", "precision-layers")
    checks = tuple(
        CellCheck("parity", name, f"title of {name}", "pass", "3.0e-15", "1.0e-12", "classifier", 162) for name in names
    )
    plain = CellResult(
        id=cell.id,
        python=cell.python,
        tensorflow=cell.tensorflow,
        state=COMPLETE,
        outcome="same",
        pins=cell.pins,
        environment=Environment(numpy="1.26.4", keras="3.15.1", torch="2.13.0+cu130", torch_build="CUDA build"),
        checks=checks,
        seconds={"smoke": 41.0, "parity": 82.4},
    )
    return replace(plain, **changes)


def matrix_of(*changes, **more):
    found = [result(cell, **(changes[index] if index < len(changes) else {})) for index, cell in enumerate(cells())]
    groups = tuple(
        DriftGroup(name, name, phase, 10, 2, relative, "x")
        for name, phase, relative in (
            ("batches", "float64.forward", 0.0),
            ("batches", "float32.forward", 6.7e-6),
            ("outputs", "float32.eval", 4.3e-6),
        )
    )
    begins = {"float32": Beginning("float32.eval", "features.0.1", "gelu", 1e-7, 1e-7, 1.0)}
    pair = DriftPair(0, 1, (0.0,), (1e-7,), begins, groups, ("TensorFlow 2.20 computes erf otherwise",))
    classes = (tuple(cell.id for cell in cells()[:9]), tuple(cell.id for cell in cells()[9:]))
    drift = (
        Drift("torch", ("a",), ("conv2d",), (tuple(cell.id for cell in cells()),)),
        Drift("tensorflow", ("a",), ("conv2d",), classes, (pair,)),
    )
    return Matrix("demo", tuple(found), drift, **more)


def shown(matrix, width=100, **options):
    out = io.StringIO()
    render_matrix(matrix, console=Console(file=out, width=width, highlight=False), **options)
    return out.getvalue()


def test_fifteen_cells_fit_into_a_hundred_columns():
    text = shown(matrix_of())
    rows = [line for line in text.splitlines() if line.startswith("3.1")]
    assert len(rows) == 15
    assert all(len(line) <= 100 for line in text.splitlines())
    for cell, row in zip(cells(), rows, strict=True):
        assert row.split()[:3] == [cell.id, "✓", "same"]
        assert row.split()[-2:] == ["5/5", "123"]
        assert "…" not in row
    assert text.splitlines()[-1] == "SAME  demo: 15 of 15 cells are up to date and the same model"


def test_the_drift_names_its_beginning_and_its_cause():
    text = shown(matrix_of())
    assert "drift of torch  15 cells, all equal to the bit" in text
    assert "drift of tensorflow  15 cells, 2 classes of equal bits" in text
    assert "features.0.1 (gelu)" in text
    assert "A-B: TensorFlow 2.20 computes erf otherwise" in text
    assert "6.7e-06" in text


def test_a_drift_without_known_cause_says_so():
    matrix = matrix_of()
    torch, tensorflow = matrix.drift
    drift = (torch, replace(tensorflow, pairs=(replace(tensorflow.pairs[0], causes=()),)))
    assert "A-B: no known cause" in shown(replace(matrix, drift=drift))


def test_missing_stale_and_differing_cells_are_said():
    failed = CellCheck("parity", "function-layers", "every layer's output", "fail", "1.8e-04", "1.0e-12", "bn", 162)
    matrix = matrix_of(
        {"state": MISSING, "outcome": "", "why": "there is no result", "checks": (), "seconds": {}},
        {"state": STALE, "why": "its lock changed since"},
        {"outcome": "differs", "checks": (failed,), "summary": "not the same model", "divergence": "bn: output"},
        not_asked=("3.14-tf9",),
        notes=("something to know",),
    )
    text = shown(matrix)
    names = [cell.id for cell in cells()]
    assert f"{names[0]} is missing: there is no result" in text
    assert f"{names[1]} is stale: its lock changed since" in text
    assert f"{names[2]}: not the same model; bn: output" in text
    assert "every layer's output: 1.8e-04, limit 1.0e-12 (bn)" in text
    assert "not asked for: 3.14-tf9" in text
    assert "note: something to know" in text
    assert text.splitlines()[-1].startswith("DIFFERS  demo: 12 of 15")


def test_quiet_is_one_line():
    assert len(shown(matrix_of(), quiet=True).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "tag"),
    [
        ({"state": MISSING, "why": "there is \x1b no result", "checks": ()}, "error"),
        ({"state": STALE, "why": "stale"}, "error"),
        ({"state": MISSING, "why": "not asked", "checks": (), "expected": False}, "skipped"),
    ],
)
def test_junit_has_a_suite_per_cell_and_no_result_is_an_error(change, tag):
    root = ET.fromstring(matrix_to_junit(matrix_of(change)))
    assert [suite.get("name") for suite in root] == [cell.id for cell in cells()]
    (case,) = [case for case in root[0].iter("testcase") if case.get("name") == "result"]
    assert case.find(tag) is not None
    assert root.get("failures") == "0"
    assert root.get("errors") == ("1" if tag == "error" else "0")
    assert int(root.get("tests")) == sum(int(suite.get("tests")) for suite in root)


def test_junit_of_a_cell_that_differs_is_a_failure():
    check = CellCheck("parity", "function-layers", "t", "fail", "1", "2", "w", 1, ("detail",))
    root = ET.fromstring(matrix_to_junit(matrix_of({"outcome": "differs", "checks": (check,)})))
    assert root.get("failures") == "1"
    assert "detail" in root[0].find("testcase").find("failure").text
