"""JUnit XML: what a CI system reads out of a report."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from portproof.compare.checks import FAIL, Check
from portproof.report.junit import to_junit, write_junit


def suite_of(report):
    root = ET.fromstring(to_junit(report))
    assert root.tag == "testsuites"
    (suite,) = root
    return suite


def totals(element):
    return {name: int(element.get(name)) for name in ("tests", "failures", "errors", "skipped")}


def case(suite, name):
    (found,) = [each for each in suite.iter("testcase") if each.get("name") == name]
    return found


@pytest.mark.parametrize("make", ["report", "differing", "undecided"])
def test_the_totals_are_those_of_the_cases(given, make):
    report = getattr(given, make)()
    suite = suite_of(report)
    cases = list(suite.iter("testcase"))
    assert [each.get("name") for each in cases] == [check.name for check in report.verdict.checks]
    assert totals(suite) == {
        "tests": len(cases),
        "failures": len(list(suite.iter("failure"))),
        "errors": len(list(suite.iter("error"))),
        "skipped": len(list(suite.iter("skipped"))),
    }
    assert totals(ET.fromstring(to_junit(report))) == totals(suite)


def test_the_suite_says_when_and_with_what(given):
    suite = suite_of(given.report())
    assert (suite.get("name"), suite.get("time"), suite.get("timestamp")) == ("demo", "7.250", "2026-01-02T03:04:05Z")
    properties = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert properties["original.version"] == "2.13.0+cpu"
    assert properties["port.keras"] == "3.15.1"
    assert properties["policy.float64"] == "1e-12"
    assert properties["verdict"] == "same"


def test_without_a_record_there_is_no_time_stamp(given):
    suite = suite_of(given.replace(given.report(), recorded={}))
    assert suite.get("timestamp") is None
    assert suite.get("time") == "0"


def test_elements_stand_in_the_order_of_the_schema(given):
    suite = suite_of(given.differing())
    order = [each.tag for each in suite]
    assert order[0] == "properties"
    assert order[-1] == "system-out"
    assert set(order[1:-1]) == {"testcase"}
    assert [each.tag for each in case(suite, "function-layers")] == ["failure", "system-out"]


def test_a_failure_carries_value_limit_and_tensor(given):
    suite = suite_of(given.differing())
    failure = case(suite, "function-layers").find("failure")
    title = "every layer's output, eval mode, float64"
    found = "measured 4.3e-05, limit 1.0e-12, 2 compared, closest to the limit: bn"
    assert failure.get("message") == f"{title}: {found}"
    assert "bn: 4.3e-05, worst at [1, 2]" in failure.text
    assert "first divergence: bn" in suite.find("system-out").text
    assert "eps is 1e-05 in the original and 1.001e-05 in the port" in suite.find("system-out").text


def test_what_could_not_be_judged_is_an_error_when_the_verdict_hangs_on_it(given):
    suite = suite_of(given.undecided())
    assert case(suite, "forward").find("error").get("type") == "undecided"


def test_no_float64_is_skipped_when_the_verdict_does_not_hang_on_it(given):
    facts = given.facts(
        [given.measurement(phase="float32.eval", relative=1e-7)],
        unavailable={"a": {}, "b": {"float64.eval": "a frozen graph"}},
    )
    skipped = case(suite_of(given.report(facts)), "float64").find("skipped")
    assert "a frozen graph" in skipped.text


def test_any_text_gives_valid_xml(given):
    nasty = "\x00\x1b[31m<&>\"']]>\ud800\ufffe\U0001f600\n\ttab"
    report = given.report()
    check = Check(nasty, nasty, FAIL, nasty, nasty, nasty, 2, (nasty,))
    verdict = given.replace(report.verdict, checks=(check,), summary=nasty)
    facts = given.facts(sides={key: {**side, "subject": nasty} for key, side in report.facts.sides.items()})
    suite = suite_of(given.replace(report, verdict=verdict, facts=facts))
    failure = suite.find("testcase/failure")
    assert failure.text == "\ufffd\ufffd[31m<&>\"']]>\ufffd\ufffd\U0001f600\n\ttab"


def test_the_file_is_utf8_and_complete(given, tmp_path):
    path = tmp_path / "new" / "junit.xml"
    report = given.report(logs={"torch": "/tmp/é.log"})
    write_junit(report, path)
    assert path.read_bytes().decode("utf-8") == to_junit(report)
    assert ET.parse(path).getroot().tag == "testsuites"
    assert list(path.parent.iterdir()) == [path]
