"""Report: stored and read without a loss, judged again, and refused when it is not one."""

from __future__ import annotations

import json
import math
import resource
from contextlib import contextmanager

import pytest

from portproof.compare.policy import Policy
from portproof.errors import InputError
from portproof.report import Report


def as_text(report):
    """JSON text, in which also NaN equals NaN."""
    return json.dumps([report.facts.to_json(), report.verdict.to_json(), report.recorded])


@pytest.fixture
def stored(given, tmp_path):
    path = tmp_path / "report.json"
    given.report().save(path)
    return path


def test_a_round_trip_loses_nothing(given, tmp_path):
    odd = given.measurement(
        "bn", relative=math.inf, max_abs=math.nan, worst_a=-math.inf, worst_b=5e-324, cosine=0.1 + 0.2
    )
    report = given.report(given.facts([given.measurement("conv"), odd]), logs={"torch": "/somewhere/é.log"})
    report.save(tmp_path / "report.json")
    loaded = Report.load(tmp_path / "report.json")
    assert as_text(loaded) == as_text(report)
    assert loaded.facts.measurements[1].distance.worst == (1, 2)  # tuples again, so that facts stay hashable rows
    assert math.isnan(loaded.facts.measurements[1].distance.max_abs)


def test_facts_without_nan_are_equal_after_a_round_trip(given, stored):
    assert Report.load(stored) == given.report()


def test_the_file_is_strict_json_and_the_same_every_time(given, tmp_path):
    report = given.undecided()
    for name in ("one.json", "two.json"):
        report.save(tmp_path / name)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "one.json").read_text(), parse_constant=refuse)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_another_policy_turns_the_verdict_and_leaves_the_measurements(given, stored):
    loaded = Report.load(stored)
    strict = loaded.rejudged(Policy(float64=1e-16))
    assert (loaded.verdict.outcome, strict.verdict.outcome) == ("same", "differs")
    assert strict.facts is loaded.facts
    assert strict.rejudged(Policy()).verdict == loaded.verdict


def test_a_stored_policy_is_used_again(given, tmp_path):
    given.report(policy=Policy(float64=1e-16)).save(tmp_path / "strict.json")
    assert Report.load(tmp_path / "strict.json").verdict.outcome == "differs"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_report_is_refused(stored, share):
    text = stored.read_text()
    stored.write_text(text[: int(len(text) * share)])
    with pytest.raises(InputError, match=r"report\.json is not a portproof report .* truncated"):
        Report.load(stored)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("facts"),
        lambda body: body.pop("verdict"),
        lambda body: body["facts"].pop("measurements"),
        lambda body: body["facts"].update(surprise=1),
        lambda body: body["facts"]["measurements"][0]["distance"].update(relative={"float": "many"}),
    ],
    ids=["no facts", "no verdict", "no measurements", "unknown field", "no such number"],
)
def test_a_report_with_other_content_is_refused(stored, change):
    body = json.loads(stored.read_text())
    change(body)
    stored.write_text(json.dumps(body))
    with pytest.raises(InputError, match="not a portproof report"):
        Report.load(stored)


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff\xfe\x00", b"<xml/>"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(InputError, match="not a portproof report"):
        Report.load(tmp_path / "other.json")


def test_another_schema_is_named(stored):
    body = json.loads(stored.read_text()) | {"schema": "portproof-report/99"}
    stored.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"portproof-report/99.*portproof-report/1"):
        Report.load(stored)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            Report.load(path)


@contextmanager
def files_end_at(size):
    """The kernel refuses to write beyond ``size`` bytes, in the middle of a file, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_the_old_report_and_nothing_else(given, stored):
    before = stored.read_bytes()
    with files_end_at(1000), pytest.raises(OSError, match="File too large"):
        given.differing().save(stored)
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]
