"""Tests of stored runs, margins and the plot: what was measured comes out as it went in, and the nearest is found."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from portproof.cli import cli
from portproof.errors import InputError
from portproof.honest.margins import by_limit, margins, read_selftest
from portproof.honest.plot import draw, page
from portproof.honest.result import HonestResult, Nearest, Run

ENVIRONMENT = {
    "a": {"version": "2.13.0"},
    "b": {"version": "2.19.1", "machine": {"python": {"version": "3.11.7"}}},
}


def run(outcome: str = "same", failed: tuple[str, ...] = (), kind: str = "outputs", **measured: float) -> Run:
    limits = {"function_layers": 1e-12, "precision_layers": 1e-6, "sgd": 64e-12}
    checks = {name.replace("_", "-"): Nearest(value, limits[name], "l") for name, value in measured.items()}
    return Run({"index": 0, "kind": kind}, outcome, "", failed, checks, 1.5)


RESULT = HonestResult(
    "demo",
    3,
    ([[9, 6]],),
    ENVIRONMENT,
    (
        run(function_layers=1e-15, precision_layers=1e-7),
        run(function_layers=4e-14, precision_layers=0.0, kind="gradients"),
        run("undecided", ("function-layers",), function_layers=1e-9),
    ),
    12.0,
)
SELFTEST = {
    "defects": [
        {
            "name": "eps",
            "outcomes": [
                {
                    "status": "caught",
                    "place": "bn",
                    "measured": {"function-layers": [2e-6, 1e-12], "sgd": [1e-5, 64e-12]},
                },
                {"status": "caught", "place": "bn2", "measured": {"function-layers": [2e-9, 1e-12]}},
                {"status": "no effect", "place": "bn3", "measured": {}},
            ],
        }
    ]
}


@pytest.fixture
def selftest(tmp_path: Path) -> Path:
    path = tmp_path / "selftest.json"
    path.write_text(json.dumps(SELFTEST))
    return path


def test_a_stored_result_is_read_as_it_was(tmp_path: Path) -> None:
    infinite = replace(RESULT, runs=(*RESULT.runs, run("differs", ("sgd",), sgd=math.inf)))
    infinite.save(tmp_path / "r.json")
    assert HonestResult.load(tmp_path / "r.json") == infinite
    assert len(infinite.alarms) == 1
    assert infinite.kinds == {"outputs": 3, "gradients": 1}
    assert infinite.cell == "Python 3.11.7, torch 2.13.0, TensorFlow 2.19.1"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": "portproof-honest/1"}', '{"schema": "portproof-report/1"}']
)
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError):
        HonestResult.load(path)
    with pytest.raises(InputError):
        read_selftest(path)
    with pytest.raises(InputError, match="cannot be read"):
        HonestResult.load(tmp_path / "none")


def test_the_nearest_of_both_sides_is_found(selftest: Path) -> None:
    rows = {row.check: row for row in margins([RESULT, RESULT], read_selftest(selftest))}
    layers = rows["function-layers"]
    assert layers.nearest == Nearest(4e-14, 1e-12, "l")  # and not that which could not be judged
    assert len(layers.honest) == 4
    assert (layers.defect, layers.defect_name) == (Nearest(2e-9, 1e-12, "bn2"), "eps")
    assert layers.defects == pytest.approx((2e6, 2e3))
    assert rows["precision-layers"].defect is None
    assert rows["sgd"].nearest is None
    assert [row.limit for row in margins([RESULT])] == ["float64", "precision"]


def test_each_limit_has_the_nearest_of_its_checks(selftest: Path) -> None:
    rows = {row.limit: row for row in by_limit(margins([RESULT], read_selftest(selftest)))}
    assert list(rows) == ["float64", "steps", "precision"]
    assert rows["float64"].defect_name == "eps (function-layers)"
    assert rows["precision"].nearest == Nearest(1e-7, 1e-6, "l")
    assert rows["precision"].honest == pytest.approx((0.1, 0.0))


def test_the_plot_puts_honest_runs_and_defects_on_their_sides(selftest: Path) -> None:
    svg = ElementTree.fromstring(draw(margins([RESULT], read_selftest(selftest))))
    spot = "{http://www.w3.org/2000/svg}"
    limit = next(float(each.get("x1", "0")) for each in svg.iter(f"{spot}line") if each.get("class") == "limit")
    places = {kind: [float(each.get("cx", "0")) for each in svg.iter(f"{spot}circle") if each.get("class") == kind]
              for kind in ("honest", "defect")}  # fmt: skip
    assert places["honest"]
    assert max(places["honest"]) < limit < min(places["defect"])
    titles = [each.text for each in svg.iter(f"{spot}title")]
    assert "nearest eps: 2.00e-09 of 1.00e-12 (bn2)" in titles


def test_the_plot_of_many_runs_stays_small() -> None:
    many = replace(RESULT, runs=tuple(run(function_layers=1e-15 * (1 + i)) for i in range(2000)))
    assert len(page(margins([many]), ["<many>"])) < 60_000
    assert "&lt;many&gt;" in page(margins([many]), ["<many>"])


def test_the_command_prints_and_writes(tmp_path: Path, selftest: Path) -> None:
    RESULT.save(tmp_path / "a.json")
    made = [tmp_path / "m.json", tmp_path / "m.html"]
    options = ["--selftest", str(selftest), "--json", str(made[0]), "--html", str(made[1])]
    found = CliRunner().invoke(cli, ["margins", str(tmp_path / "a.json"), *options], standalone_mode=False)
    assert found.exception is None
    assert (
        "3 honest runs of demo (Python 3.11.7, torch 2.13.0, TensorFlow 2.19.1) in 12 s: 2 same, 1 could"
        in found.output
    )
    assert "0 false alarms (captured: 1 gradients, 2 outputs)" in found.output
    assert "4.0e-14 of 1.0e-12 = 4.0e-02" in found.output
    assert "2.0e-09 of 1.0e-12 = 2.0e+03  eps" in found.output
    assert json.loads(made[0].read_text())["checks"][0]["honest"] == 2
    assert "<svg" in made[1].read_text()
