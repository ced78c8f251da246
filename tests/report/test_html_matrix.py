"""The HTML page of a matrix: every cell, every check in each, drift as heat maps, and below 2 MB."""

from __future__ import annotations

import html
import math
import re
from collections import Counter

import pytest

from portproof.compare.policy import Policy
from portproof.matrix.facts import FAILED, MISSING, STALE, Beginning, Drift, DriftPair, Matrix
from portproof.report.html import matrix_to_html, write_matrix_page
from portproof.report.html_drift import LEVELS, level_of

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>\x00\ud800"


@pytest.fixture
def page(given):
    """The page of a matrix, parsed."""
    return lambda matrix: given.parsed(matrix_to_html(matrix))


def rows_of(text, caption):
    """The rows of the table with this in its caption, each as a list of texts."""
    (table,) = [
        t
        for t in re.findall("<table.*?</table>", text, re.S)
        if caption in re.search("<caption.*?</caption>", t, re.S)[0]
    ]
    return [
        [
            " ".join(html.unescape(re.sub("<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)
        ]
        for row in re.findall("<tr.*?</tr>", table, re.S)
    ]


def test_every_cell_has_its_place_and_its_details(given, page):
    matrix = given.matrix()
    text, shown = matrix_to_html(matrix), page(matrix)
    table = rows_of(text, "Python down")
    assert table[0] == [
        "Python",
        *(f"TF {each}" for each in ("2.15.1", "2.16.2", "2.17.1", "2.18.1", "2.19.1", "2.20.0", "2.21.0")),
    ]
    assert [row[0] for row in table[1:]] == ["3.11", "3.12", "3.13"]
    assert sum("same" in cell for row in table[1:] for cell in row) == len(given.cells)
    assert sum("no cell" in cell for row in table[1:] for cell in row) == 3 * 7 - len(given.cells)
    details = {attrs["id"] for attrs in shown.all("details") if "id" in attrs}
    assert details == {f"cell-{cell.id}" for cell in matrix.cells}


def test_every_check_stands_in_every_cell_with_its_value(given):
    matrix = given.matrix()
    table = rows_of(matrix_to_html(matrix), "parity: what each cell measured")
    by_title = {row[0]: row[1:] for row in table}
    for check in matrix.cells[0].checks:
        if check.name.startswith("function-"):
            values = [cell.check("parity", check.name).value for cell in matrix.cells]
            assert by_title[check.title.removesuffix(", eval mode, float64")] == [check.limit, *values]
    assert by_title["every layer's output"][1:] == [f"{1 + min(i, 2)}.0e-07 3.0e-07" for i in range(15)]


def test_what_is_the_same_in_all_cells_stands_once(given, page):
    assert "trainable values pair up 1,234 in 3 in all cells" in page(given.matrix()).text


def test_a_heat_map_has_every_pair_of_cells_with_value_and_colour(given):
    matrix = given.matrix(classes=3)
    text = matrix_to_html(matrix)
    drift = matrix.drift_of("tensorflow")
    table = rows_of(text, "TensorFlow, float32: largest")
    cells = list(drift.cells())
    assert len(table) == 1 + len(cells) == 16
    for a, row in zip(cells, table[1:], strict=True):
        for b, shown in zip(cells, row[1:], strict=True):
            pair = drift.between(a, b)
            assert shown == ("– itself" if a == b else "0" if pair is None else f"{pair.largest('float32'):.1e}")
    assert len(rows_of(text, "PyTorch, float64: largest")) == 16
    coloured = Counter(re.findall(r'<td class="h(\d)">', text))
    assert coloured["0"] > 0
    assert set(coloured) == {"0", *(str(level_of(pair.largest("float32"), "float32")) for pair in drift.pairs)}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_colours_grow_with_the_difference(precision):
    values = [0.0, 1e-30, *(10.0 ** (half / 2) for half in range(-36, 4)), math.inf]
    levels = [level_of(value, precision) for value in values]
    assert levels == sorted(levels)
    assert (levels[0], levels[1], levels[-1]) == (0, 1, LEVELS)
    assert level_of(math.nan, precision) == LEVELS


def test_where_drift_begins_and_why(given, page):
    shown = page(given.matrix()).text
    assert "features.1.block.conv gelu, float32" in shown
    assert "erf is another one" in shown
    assert "what reaches it is equal" in shown
    assert "Different in the two: tensorflow 0 and 1" in shown
    assert "3 of 195" in shown


def test_pairs_that_cannot_be_compared_say_so(given, page):
    matrix = given.matrix(classes=2)
    pair = DriftPair(0, 1, not_comparable="other inputs")
    drift = given.replace(matrix.drift[1], pairs=(pair,))
    shown = page(given.replace(matrix, drift=(drift,)))
    assert "not comparable: other inputs" in shown.text


def test_cells_that_are_not_green(given, page):
    matrix = given.matrix()
    states = [
        {"outcome": "differs", "summary": "16 checks failed", "divergence": "first in stem"},
        {"state": STALE, "why": "the lock changed"},
        {"state": FAILED, "why": "no wheel", "checks": (), "errors": type(matrix.cells[0].errors)()},
        {"state": MISSING, "why": "it was never run", "checks": (), "expected": False, "seconds": {}},
    ]
    cells = [given.replace(cell, **change) for cell, change in zip(matrix.cells, states, strict=False)]
    broken = given.replace(matrix, cells=(*cells, *matrix.cells[4:]), not_asked=("3.14-tf3.0.0",), notes=("a note",))
    shown = page(broken).text
    assert "✗ DIFFERS" in shown
    assert "Not the same model in 1 of 14 cells: 3.11-tf2.15.1" in shown
    for said in ("16 checks failed; first in stem", "? stale", "the lock changed", "✗ failed", "no wheel", "? missing",
                 "it was never run", "not asked for", "3.14-tf3.0.0", "a note"):  # fmt: skip
        assert said in shown


@pytest.mark.parametrize("status", ["fail", "unknown", "note"])
def test_a_check_that_did_not_pass_has_a_sign_and_a_word(given, status):
    matrix = given.matrix()
    checks = tuple(given.replace(check, status=status) for check in matrix.cells[3].checks)
    cells = (*matrix.cells[:3], given.replace(matrix.cells[3], checks=checks), *matrix.cells[4:])
    table = rows_of(matrix_to_html(given.replace(matrix, cells=cells)), "parity: what each cell measured")
    sign = {"fail": "✗ fail", "unknown": "? open", "note": "· note"}[status]
    assert [sign in each for each in table[3][2:]] == [i == 3 for i in range(15)]


def test_an_empty_matrix_is_a_page(page):
    shown = page(Matrix("demo", ()))
    assert "UNDECIDED" in shown.text
    assert "No cell has a result." in shown.text


def test_errors_above_the_limit_are_marked_as_judged(given, page):
    matrix = given.matrix()
    wrong = given.replace(matrix.cells[0].errors, float64=(1e-3,) * 12, port=(1e-2,) * 12)
    cells = (given.replace(matrix.cells[0], errors=wrong), *matrix.cells[1:])
    marks = Counter(attrs["class"] for attrs in page(given.replace(matrix, cells=cells)).all("use") if "x" in attrs)
    assert (marks["ring-wrong"], marks["dot-wrong"]) == (12, 12)
    lax = {**vars_of(Policy()), "float64": 1.0, "precision": 1e9}
    marks = Counter(attrs["class"] for attrs in page(given.replace(matrix, cells=cells, policy=lax)).all("use"))
    assert not marks["ring-wrong"]


def vars_of(policy):
    return {name: getattr(policy, name) for name in policy.__dataclass_fields__}


@pytest.mark.parametrize("classes", [1, 4, 15])
def test_the_full_matrix_is_below_two_megabytes(given, classes):
    """Also where every cell has bits of its own, which gives 105 pairs to a side."""
    matrix = given.matrix(layers=162, classes=classes, checks=40)
    both = given.replace(matrix, drift=(given.replace(matrix.drift[1], side="torch"), matrix.drift[1]))
    assert len(matrix_to_html(both).encode()) < 2e6


def test_hostile_names_are_text_everywhere(given, page):
    clean, matrix = page(given.matrix()), given.matrix(layers=3, classes=2)
    errors = given.replace(matrix.cells[0].errors, layers=(HOSTILE, "b", "c"))
    checks = tuple(
        given.replace(
            each, title=HOSTILE, value=HOSTILE, limit=HOSTILE, where=HOSTILE, details=(HOSTILE,), status="fail"
        )
        for each in matrix.cells[0].checks
    )
    first = given.replace(
        matrix.cells[0], errors=errors, checks=checks, summary=HOSTILE, why=HOSTILE, divergence=HOSTILE,
        environment=given.replace(matrix.cells[0].environment, cpu=HOSTILE), seconds={HOSTILE: 1.0},
    )  # fmt: skip
    pair = DriftPair(
        0, 1, (0.0,) * 3, (math.nan, math.inf, None), {"float32": Beginning("", HOSTILE, HOSTILE, 1.0, 1.0, 1.0)},
        causes=(HOSTILE,), changed=(HOSTILE,),
    )  # fmt: skip
    members = (("3.11-tf2.15.1",), tuple(cell.id for cell in matrix.cells[1:]))
    drift = Drift("tensorflow", (HOSTILE, "b", "c"), (HOSTILE,) * 3, members, (pair,))
    nasty = Matrix(HOSTILE, (first, *matrix.cells[1:]), (drift,), (HOSTILE,), {}, (HOSTILE,))
    shown = page(nasty)
    assert {tag for tag, _, _ in shown.elements} <= {tag for tag, _, _ in clean.elements}
    assert len(shown.all("script")) == 1
    assert "<script>alert('1')" in shown.text


def test_structure_for_those_who_do_not_see_it(given, page):
    shown = page(given.matrix())
    ids = Counter(attrs["id"] for _, attrs, _ in shown.elements if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attrs, _ in shown.elements:
        for name in (*attrs.get("aria-labelledby", "").split(), attrs.get("href", "#main").removeprefix("#")):
            assert name in ids
    assert len(shown.all("table")) == len(shown.all("caption"))
    assert all("scope" in attrs for attrs in shown.all("th"))
    assert all(attrs.get("aria-hidden") == "true" or attrs["role"] == "img" for attrs in shown.all("svg"))


def test_the_same_matrix_gives_the_same_file(given, tmp_path):
    for name in ("one.html", "two.html"):
        write_matrix_page(given.matrix(), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
