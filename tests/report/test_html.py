"""The HTML page of a run: valid, complete, safe with any name, and the same for those who do not see it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from portproof.compare.facts import MODEL
from portproof.compare.policy import Policy
from portproof.report.html import to_html, write_page

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>&amp;\x00\x1b[31m\ud800"


@pytest.fixture
def page(given):
    """The page of a report, parsed."""
    return lambda report: given.parsed(to_html(report))


@pytest.fixture(params=["report", "differing", "undecided", "whole", "wrong", "without float64"])
def any_report(request, given):
    """Reports of every outcome, small and whole."""
    if request.param == "wrong":
        return given.whole(wrong_from=5)
    if request.param == "without float64":
        found = [given.measurement(phase="float32.eval", relative=1e-7, error_a=1e-7, error_b=1e-7)]
        return given.report(given.facts(found, unavailable={"a": {}, "b": {"float64.eval": "a frozen graph"}}))
    return getattr(given, request.param)()


def test_every_check_stands_there_with_its_value_and_limit(any_report, page):
    shown = page(any_report)
    rows = {attrs["id"] for attrs in shown.all("tr") if "id" in attrs}
    for check in any_report.verdict.checks:
        assert f"check-{check.name}" in rows
        assert check.value.partition(" (")[0] in shown.text
        for detail in check.details:
            assert " ".join(detail.split()) in shown.text
    assert any_report.verdict.outcome.upper() in shown.text


def test_the_verdict_comes_first_and_sections_in_order(given):
    text = to_html(given.whole(wrong_from=5))
    order = ['id="verdict"', 'id="checks"', 'id="figure-1"', 'id="divergence"', 'id="figure-2"', 'id="environment"']
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_the_first_divergence_has_values_causes_and_settings(given, page):
    shown = page(given.differing()).text
    assert "0.123456789" in shown
    assert "likely cause BatchNorm eps is 1.001e-05 in the port, 1e-05 in the original" in shown
    assert "settings that differ eps is 1e-05 in the original and 1.001e-05 in the port" in shown
    assert "Its inputs agree: the difference begins here." in shown


def test_a_divergence_in_precision_shows_errors_not_values(given, page):
    imprecise = given.measurement("bn", error_a=3e-7, error_b=1.6e-3)
    shown = page(given.report(given.facts([given.measurement("conv", error_a=3e-7, error_b=3e-7), imprecise]))).text
    assert "float32 error against its own float64 1.6e-03" in shown
    assert "side error original 3.0e-07 port 1.6e-03" in shown
    assert "worst value" not in shown


def test_the_label_of_the_first_divergence_stands_above_all_marks(given):
    found = [given.measurement("conv"), given.measurement("bn", relative=math.inf)]
    text = to_html(given.report(given.facts(found)))
    label = float(re.search(r'<text class="first" x="[^"]*" y="([^"]*)"', text)[1])
    heights = [float(y) for y in re.findall(r'<use href="#[\w-]+" class="[\w-]+" x="[^"]*" y="([^"]*)"', text)]
    assert label < min(heights) - 4


def test_every_measured_layer_is_in_a_table_and_in_a_plot(given, page):
    report = given.whole(wrong_from=5)
    shown = page(report)
    titles = Counter(attrs["class"] for attrs in shown.all("use") if "x" in attrs)
    # 12 layers from the 6th on wrong: in eval mode and training, of outputs and of gradients
    assert titles["ring-wrong"] == titles["dot-wrong"] == 2 * 7
    for layer in {m.layer for m in report.facts.measurements if m.layer}:
        assert shown.text.count(layer) > 2
    assert "2.0e-04" in shown.text


def test_nothing_comes_from_anywhere_else(any_report, page):
    text = to_html(any_report)
    assert not re.search(r"""https?:|="//|@import|url\(|<link|<img|<iframe|\ssrc=""", text)
    for attrs in page(any_report).all("use") + page(any_report).all("a"):
        assert attrs["href"].startswith("#")
    assert "default-src &#39;none&#39;" in text


def test_ids_are_unique_and_what_is_referred_to_is_there(any_report, page):
    shown = page(any_report)
    ids = Counter(attrs["id"] for _, attrs, _ in shown.elements if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attrs, _ in shown.elements:
        for name in (*attrs.get("aria-labelledby", "").split(), attrs.get("href", "#main").removeprefix("#")):
            assert name in ids


def test_structure_for_those_who_do_not_see_it(any_report, page):
    shown = page(any_report)
    assert shown.all("html") == [{"lang": "en"}]
    assert len(shown.all("h1")) == len(shown.all("main")) == len(shown.all("footer")) == 1
    assert len(shown.all("table")) == len(shown.all("caption"))
    assert all("scope" in attrs for attrs in shown.all("th"))
    levels = [int(tag[1]) for tag, _, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for tag, attrs, _ in shown.elements:
        if tag == "svg":  # a picture has a text, or is no picture to a screen reader
            assert attrs.get("aria-hidden") == "true" or {"role": "img"}.items() <= attrs.items()
        if "scroll" in attrs.get("class", "").split():
            assert attrs["tabindex"] == "0"
            assert attrs["role"] == "group"


def test_a_failure_is_told_by_more_than_its_colour(given):
    text = to_html(given.whole(wrong_from=5))
    for cell in re.findall(r'<td class="n wrong">.*?</td>', text):
        assert "✗" in cell
        assert "above its limit" in cell
    assert 'id="ring-wrong"' in text


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_light_and_dark(given):
    """4.5 for text and 3 for marks: WCAG 2.2, 1.4.3 and 1.4.11."""
    blocks = re.findall(r":root \{([^}]*--ground[^}]*)\}", to_html(given.report()))
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for ink in ("ink", "quiet", "link", "pass", "fail", "open", "note"):
            assert contrast(colours[ink], colours["ground"]) >= 4.5, ink
        for word in ("pass", "fail", "open", "note"):
            for ink in (word, "ink", "link", "quiet"):
                assert contrast(colours[ink], colours[f"{word}-ground"]) >= 4.5, (word, ink)
        for level in range(8):
            assert contrast(colours["heat-ink"], colours[f"h{level}"]) >= 4.5, level
        for mark in ("first", "second", "fail"):
            assert contrast(colours[mark], colours["band"]) >= 3, mark


def test_hostile_names_are_text_everywhere(given, page):
    nasty = given.measurement(HOSTILE, relative=4e-5, other=HOSTILE, note=HOSTILE)
    plain = given.facts([nasty, given.measurement(HOSTILE, "gradients", error_a=1e-7, error_b=1e-7)])
    sides = {
        key: {**side, "subject": HOSTILE, "factory": HOSTILE, "notes": [HOSTILE], "environment": {
            **side["environment"], "version": HOSTILE, HOSTILE: HOSTILE, "machine": {HOSTILE: {HOSTILE: [HOSTILE]}}}}
        for key, side in plain.sides.items()
    }  # fmt: skip
    stage = {"name": HOSTILE, "other": HOSTILE, "kind": HOSTILE, "a": [2], "b": [2]}
    facts = given.replace(
        plain,
        sides=sides,
        structure=given.structure(stages=(stage,), layers_only_a=(HOSTILE,)),
        settings=({"layer": HOSTILE, "setting": HOSTILE, "a": HOSTILE, "b": 1},),
        samples={"a": [[1.0]], "b": [[1.0]]},
    )
    report = given.report(facts, logs={HOSTILE: HOSTILE}, samples=[HOSTILE], at=HOSTILE, steps={"a": {HOSTILE: 1.0}})
    clean = page(given.whole())
    shown = page(report)
    assert {tag for tag, _, _ in shown.elements} <= {tag for tag, _, _ in clean.elements}
    assert len(shown.all("script")) == 1
    assert not [attrs for _, attrs, _ in shown.elements if any(name.startswith("on") for name in attrs)]
    assert "<script>alert('1')" in shown.text
    assert not re.search("[\x00\x1b\ud800]", to_html(report))


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, 5e-324, 1.7e308])
def test_any_value_can_be_drawn(given, value, page):
    found = [given.measurement("conv", relative=value, error_a=value, error_b=value), given.measurement("bn")]
    shown = page(given.report(given.facts(found)))
    places = [attrs for attrs in shown.all("use") if "x" in attrs]
    assert len(places) == 2 + 2  # two layers in float64; of one, the float32 errors of both sides
    assert all(0 <= float(attrs["y"]) <= 220 for attrs in places)
    if not math.isfinite(value):
        assert f"conv: {value}" in shown.text


def test_shapes_that_differ_are_said_to(given, page):
    other = given.measurement("bn", relative=math.inf, shape_b=(2, 5))
    shown = page(given.report(given.facts([given.measurement("conv"), other]))).text
    assert "shape (2, 5)" in shown
    assert "(2, 4) / (2, 5)" in shown


def test_a_run_without_layers_has_no_plots(given, page):
    shown = page(given.report(given.facts([], calls={}, structure=given.structure(stages=()))))
    assert not [attrs for attrs in shown.all("svg") if attrs.get("role") == "img"]


def test_two_traces_of_one_framework_are_called_so(given, page):
    plain = given.facts()
    b = {**plain.sides["a"], "environment": given.environment("torch", "2.9.0")}
    shown = page(given.report(given.replace(plain, sides={"a": plain.sides["a"], "b": b}))).text
    assert "a: torch 2.13.0+cpu" in shown
    assert "b: torch 2.9.0" in shown


def test_a_model_that_is_judged_as_a_whole(given, page):
    only = given.measurement(MODEL, relative=1.0)
    assert MODEL in page(given.report(given.facts([only]))).text


def test_another_policy_draws_another_limit(given, page):
    assert "limit 1.0e-12" in page(given.report()).text
    assert "limit 1.0e-08" in page(given.report(policy=Policy(float64=1e-8))).text


def test_long_names_do_not_touch_the_markup(given, page):
    name = "a_very_long_name" * 40
    assert name in page(given.report(given.facts([given.measurement(name)]))).text


def test_many_tensors_stay_small_and_say_what_is_left_out(given):
    text = to_html(given.whole(1500, wrong_from=500))
    assert "the 500 of 1,500 that came closest to their limits" in text
    assert len(text.encode()) < 2.2e6


def test_the_page_of_a_usual_run_is_small(given):
    assert len(to_html(given.whole(162, wrong_from=5)).encode()) < 700_000


def test_the_file_is_complete_or_absent(given, tmp_path, page):
    path = tmp_path / "new" / "page.html"
    write_page(given.report(), path)
    assert path.read_text(encoding="utf-8") == to_html(given.report())
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match="new"):
        write_page(given.report(), path.parent)
    assert list(path.parent.iterdir()) == [path]


def test_the_same_report_gives_the_same_page(given):
    assert to_html(given.whole()) == to_html(given.whole())


def test_templates_are_loaded_for_a_page_alone():
    code = "import portproof.report.report, portproof.report.console, sys; print('jinja2' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def run(*arguments):
    command = [sys.executable, "-m", "portproof", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_writes_it(given, tmp_path):
    report = given.differing()
    report.save(tmp_path / "report.json")
    done = run("judge", tmp_path / "report.json", "--html", tmp_path / "page.html", "--quiet")
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == to_html(report)


def test_a_page_that_cannot_be_written_is_one_error(given, tmp_path):
    given.report().save(tmp_path / "report.json")
    done = run("judge", tmp_path / "report.json", "--html", tmp_path, "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.split() == f"error: {tmp_path}: Is a directory.".split()
