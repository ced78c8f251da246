"""The proven causes in reports: on the terminal, and in JSON without a loss."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console

from portproof.compare.policy import Policy
from portproof.errors import InputError
from portproof.report import Report
from portproof.report.console import render_report
from portproof.report.junit import to_junit


def shown(report, width=120, **options):
    out = io.StringIO()
    render_report(report, console=Console(file=out, width=width, highlight=False), **options)
    return re.sub(r"[\s│]+", " ", out.getvalue())


@pytest.mark.parametrize("width", [80, 120])
def test_a_proven_cause_says_what_to_change_where_and_what_it_did(given, width):
    text = shown(given.diagnosed(), width)
    assert "proven cause" in text
    assert "BatchNormalization(epsilon=1.001e-05) -> 1e-05 in 2 layers: divergence gone (3e-15)" in text
    assert "bn, bn_2" in text
    assert "4.3e-05 before, 3.0e-15 with the repair" in text
    assert "with this repair: the same model: same function, same precision (2 phases)" in text
    assert "4 captures of the port, 9.5 s" in text


def test_what_remains_is_said(given):
    text = shown(given.diagnosed(outcome="differs", remaining=("head: output, float64.eval, relative difference 1",)))
    assert "remains with these repairs head: output" in text
    assert "with this repair:" not in text


def test_nothing_proven_is_said(given):
    text = shown(given.diagnosed(proven=(), outcome="differs", remaining=("bn: output, float64.eval",)))
    assert "no proven cause" in text
    assert "not proven: no repair that was tried made it vanish bn: output" in text


def test_without_a_diagnosis_the_command_for_one_is_offered(given):
    found = given.differing()
    assert "proven" not in shown(found)
    found.recorded["diagnose"] = "portproof diagnose demo"
    assert "to look for the proven cause portproof diagnose demo" in shown(found)


def test_junit_says_it_too(given):
    text = to_junit(given.diagnosed(remaining=("head: loss",)))
    assert "proven cause: BatchNormalization(epsilon=1.001e-05) -&gt; 1e-05 in 2 layers: divergence gone" in text
    assert "not proven: head: loss" in text


def test_quiet_says_nothing_of_it(given):
    assert "proven" not in shown(given.diagnosed(), quiet=True)


def test_a_layer_by_name_where_there_is_one(given):
    one = given.diagnosed().diagnosis.proven[0]
    assert given.replace(one, layers=("bn",), others=("bn_1",)).line.endswith("in bn_1: divergence gone (3e-15)")


def test_a_diagnosis_is_structured_data_in_the_report(given, tmp_path):
    report = given.diagnosed()
    infinite = given.replace(report.diagnosis.proven[0], relative=math.inf)
    report = given.replace(report, diagnosis=given.replace(report.diagnosis, proven=(infinite,)))
    report.save(tmp_path / "report.json")
    (row,) = json.loads((tmp_path / "report.json").read_text())["diagnosis"]["proven"]
    assert row["edits"] == [{"what": "set", "layers": ["bn", "bn_2"], "options": {"epsilon": 1e-5}}]
    assert row["others"] == ["bn", "bn_2"]
    loaded = Report.load(tmp_path / "report.json")
    assert loaded.diagnosis == report.diagnosis
    assert loaded.rejudged(Policy()).diagnosis == report.diagnosis


def test_a_report_from_before_there_were_diagnoses_is_read(given, tmp_path):
    given.differing().save(tmp_path / "report.json")
    body = json.loads((tmp_path / "report.json").read_text())
    del body["diagnosis"]
    body["facts"]["causes"] = [{"layer": "bn", "text": "some cause"}]
    (tmp_path / "report.json").write_text(json.dumps(body))
    loaded = Report.load(tmp_path / "report.json")
    assert loaded.diagnosis is None
    assert [cause.text for cause in loaded.facts.causes] == ["some cause"]


def test_a_diagnosis_that_is_none_is_refused(given, tmp_path):
    given.diagnosed().save(tmp_path / "report.json")
    body = json.loads((tmp_path / "report.json").read_text())
    body["diagnosis"]["proven"] = [{"text": "half"}]
    (tmp_path / "report.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match="not a portproof report"):
        Report.load(tmp_path / "report.json")
