"""JUnit XML of a report, for CI systems: one test case per check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from portproof.compare.checks import FAIL, UNKNOWN, Check
from portproof.compare.verdict import UNDECIDED
from portproof.files import write_text

if TYPE_CHECKING:
    from portproof.report import Report

# What XML 1.0 can hold at all (its section 2.2, "Char"); anything else is unwritable even as an entity.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(report: Report, path: Path | str) -> None:
    """Write the report as JUnit XML, complete or not at all; raises `OSError` if it cannot be written."""
    write_text(Path(path), to_junit(report))


def to_junit(report: Report) -> str:
    """The report as JUnit XML, in UTF-8.

    A check that failed is a ``failure``. One that could not be answered is an ``error`` if the verdict hangs on it,
    so that a build does not pass unjudged, and ``skipped`` if not.
    """
    verdict = report.verdict
    subject = " and ".join(dict.fromkeys(str(side["subject"]) for side in report.facts.sides.values()))
    cases = [_case(check, subject, undecided=verdict.outcome == UNDECIDED) for check in verdict.checks]
    seconds = report.recorded.get("seconds")
    totals = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": f"{seconds:.3f}" if isinstance(seconds, (int, float)) else "0",
    }
    root = ET.Element("testsuites", {"name": "portproof", **totals})
    when = {"timestamp": _clean(str(report.recorded["at"]))} if "at" in report.recorded else {}
    suite = ET.SubElement(root, "testsuite", {"name": _clean(subject), **totals, **when})
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report):
        ET.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = _clean(_summary(report))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(check: Check, subject: str, *, undecided: bool) -> ET.Element:
    # Judging takes no time worth a number; the time of the run stands at the suite.
    case = ET.Element("testcase", {"classname": _clean(subject), "name": _clean(check.name), "time": "0"})
    found = f"measured {check.value}" + (f", limit {check.limit}" if check.limit else "")
    if check.count:
        found += f", {check.count} compared"
    if check.where:
        found += f", closest to the limit: {check.where}"
    message, details = _clean(f"{check.title}: {found}"), _clean("\n".join(check.details))
    if check.status == FAIL:
        ET.SubElement(case, "failure", {"type": "differs", "message": message}).text = details
    elif check.status == UNKNOWN and undecided:
        ET.SubElement(case, "error", {"type": "undecided", "message": message}).text = details
    elif check.status == UNKNOWN:
        ET.SubElement(case, "skipped", {"message": message}).text = details
    ET.SubElement(case, "system-out").text = "\n".join(part for part in (message, details) if part)
    return case


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    for word, side in zip(("original", "port"), report.facts.sides.values(), strict=True):
        environment = side["environment"]
        machine = environment.get("machine", {})
        yield f"{word}.factory", str(side["factory"])
        yield f"{word}.weights", str(side["weights"])
        yield f"{word}.seed", str(side["seed"])
        for name in ("framework", "version", "keras", "build", "threads"):
            if name in environment:
                yield f"{word}.{name}", str(environment[name])
        for part, name in (("python", "version"), ("cpu", "model")):
            if name in machine.get(part, {}):
                yield f"{word}.{part}", str(machine[part][name])
    yield "verdict", report.verdict.outcome
    for name, value in asdict(report.verdict.policy).items():
        yield f"policy.{name}", str(value)


def _summary(report: Report) -> str:
    verdict = report.verdict
    lines = [f"{verdict.outcome.upper()}  {verdict.summary}"]
    if found := verdict.divergence:
        lines.append(
            f"first divergence: {found.layer}, {found.what}, {found.phase}, relative difference {found.relative:.3g}"
        )
        lines.append(
            f"worst value at {list(found.index)}: {found.value_a!r} in the original, {found.value_b!r} in the port"
        )
        if found.what == "output":
            lines.append("its inputs agree" if found.inputs_agree else "what reaches it differs already")
        lines += [*found.settings, *(f"likely cause: {cause}" for cause in found.causes)]
    if diagnosis := report.diagnosis:
        lines += [f"proven cause: {cause.line} ({cause.text})" for cause in diagnosis.proven]
        lines += [f"not proven: {line}" for line in diagnosis.remaining]
    lines += [f"log of {side}: {path}" for side, path in report.recorded.get("logs", {}).items()]
    return "\n".join(lines)


def _clean(content: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", content)
