"""The report on the terminal: what it says, what it never leaves out, and that it fits."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
import threading

import pytest
from rich.console import Console

from portproof.compare.checks import FAIL
from portproof.errors import WorkerError
from portproof.mirror import InputSpec, Mirror
from portproof.report.console import Progress, console_for, render_error, render_list, render_report

WIDTHS = (80, 100, 120, 200)
NUMBER = re.compile(r"\d\.\de-\d\d\b")


def shown(report, width=120, **options):
    out = io.StringIO()
    render_report(report, console=Console(file=out, width=width, highlight=False), **options)
    return out.getvalue()


def last_line(text):
    return text.rstrip("\n").rpartition("\n")[2]


def squeezed(text):
    return re.sub(r"[\s│]+", " ", text)


def test_the_last_line_is_the_verdict(given):
    count = len(given.report().verdict.checks)
    assert (
        last_line(shown(given.report()))
        == f"SAME  demo: the same outputs in eval mode, layer by layer ({count} checks, 7.2 s)"
    )
    assert last_line(shown(given.differing())).startswith(
        "DIFFERS  demo: not the same model: 2 checks failed, first in bn ("
    )
    assert last_line(shown(given.undecided())).startswith("UNDECIDED  demo: could not be judged: ")


@pytest.mark.parametrize("make", ["report", "differing", "undecided"])
def test_quiet_prints_the_last_line_alone(given, make):
    report = getattr(given, make)()
    assert shown(report, quiet=True) == last_line(shown(report)) + "\n"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", ["report", "differing", "undecided"])
def test_it_fits_and_breaks_no_number(given, make, width):
    text = shown(getattr(given, make)(), width)
    assert max(len(line) for line in text.splitlines()[:-1]) <= width
    for check in getattr(given, make)().verdict.checks:
        for number in NUMBER.findall(check.value + " " + check.limit):
            assert number in text


def test_both_sides_and_what_they_ran_on_are_named(given):
    text = shown(given.report())
    for part in ("torch 2.13.0+cpu", "tensorflow 2.19.1, keras 3.15.1", "pkg.torch:build", "pkg.tensorflow:build"):
        assert part in text
    assert "Some CPU, no accelerator visible, hidden: NVIDIA A100" in text
    assert "the original's, carried over; seed 7" in text
    assert text.count("Some CPU") == 1  # both sides ran on the same machine


def test_stages_stand_side_by_side(given):
    stages = given.structure().stages
    wrong = ({**stages[0], "b": [2, 24, 26, 10]}, {**stages[1], "other": None, "b": None})
    text = shown(given.report(given.facts(structure=given.structure(stages=wrong))))
    assert re.search(r"stem +Sequential +\(2, 24, 25, 10\) +\(2, 24, 26, 10\) +✗ FAIL", text)
    assert re.search(r"head +Linear +\(2, 2\) +no counterpart +· note", text)
    assert "Sequential" not in shown(given.report(), stages=False)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_divergence_is_told_in_full(given, width):
    text = squeezed(shown(given.differing(), width))
    for part in (
        "first divergence",
        "output, eval mode, float64: relative difference 4.3e-05",
        "its inputs agree: the difference begins here",
        "original 0.1234567890123",  # at nine digits the two would read the same
        "port 0.1234567890456",
        "at [1, 2]",
        "eps is 1e-05 in the original and 1.001e-05 in the port",
        "BatchNorm eps is 1.001e-05 in the port, 1e-05 in the original",
    ):
        assert part in text


def test_a_divergence_between_layers_says_where_to_look(given):
    report = given.differing()
    verdict = given.replace(report.verdict, divergence=given.replace(report.verdict.divergence, inputs_agree=False))
    assert "look at the code between the layers in front of it" in squeezed(
        shown(given.replace(report, verdict=verdict))
    )


def test_a_divergence_in_shape_shows_shapes_instead_of_values(given):
    wrong = given.measurement(
        "bn", relative=float("inf"), shape_a=(2, 4), shape_b=(2, 5), worst=(), worst_a=0.0, worst_b=0.0
    )
    text = squeezed(shown(given.report(given.facts([given.measurement("conv"), wrong]))))
    assert "original shape (2, 4)" in text
    assert "port shape (2, 5)" in text


def test_words_say_what_colours_say(given):
    text = shown(given.differing())
    failed = [check for check in given.differing().verdict.checks if check.status == FAIL]
    assert len(failed) == 2
    assert text.count("✗ FAIL") == 2 * len(failed)  # in the table, and in the details
    assert "? open" in shown(given.undecided())


def test_nothing_that_stayed_alone_is_dropped(given):
    many = tuple(f"drop.{index}" for index in range(20))
    facts = given.facts(structure=given.structure(layers_only_a=many, only_b=("head.bias (2,)",)))
    text = shown(given.report(facts))
    assert "only in the port: head.bias (2,)" in text
    assert "only in the original: drop.0" in text
    assert "more with --verbose" in text
    verbose = shown(given.report(facts), verbose=True)
    assert all(f"only in the original: {name}\n" in re.sub(r" +\n", "\n", verbose) for name in many)


def test_what_was_done_to_models_and_tensors_is_said(given):
    sides = given.facts().sides
    sides["a"]["notes"] = ["dropout is off in 2 layers"]
    sides["b"]["notes"] = ["evaluated exactly in float64: gelu"]
    moved = given.measurement("conv", note="channels moved first, by shape")
    text = shown(given.report(given.facts([moved], sides=sides), logs={"torch": "/logs/torch.log"}))
    for part in (
        "dropout is off in 2 layers",
        "evaluated exactly in float64: gelu",
        "channels moved first, by shape (1 tensors)",
        "/logs/torch.log",
    ):
        assert part in text


def test_the_batchnorm_rule_is_always_shown(given):
    rule = {"layer": "bn", "rule_a": "unbiased", "rule_b": "biased"}
    found = [given.measurement("bn.running_var", "buffers", "float64.train", layer="bn")]
    text = squeezed(shown(given.report(given.facts(found, batchnorm=(rule,)))))
    assert "running variance: unbiased in the original, biased in the port" in text


def test_without_float64_the_reason_is_given(given):
    facts = given.facts(
        [given.measurement(phase="float32.eval", relative=1e-8)],
        unavailable={"a": {}, "b": {"float64.eval": "a frozen graph"}},
    )
    text = shown(given.report(facts))
    assert "a frozen graph" in text
    assert "float32 against float32, no float64 proof" in text


def test_two_traces_of_one_framework_are_told_apart_by_version(given):
    sides = {
        "a": given.side("torch", "give", given.environment("torch", "2.12.0")),
        "b": given.side("torch", "give", given.environment("torch", "2.13.0")),
    }
    text = shown(given.report(given.facts(sides=sides)))
    assert "a: torch 2.12.0" in text
    assert "b: torch 2.13.0" in text
    assert "each side itself" in text


def test_no_control_code_gets_out_of_a_name_or_into_a_pipe(given):
    report = given.report(given.facts([given.measurement("\x1b[2Jbn[bold]x[/bold]", relative=1.0)]))
    text = shown(report, verbose=True)
    assert "\x1b" not in text
    assert "[2Jbn[bold]x[/bold]" in text  # and nothing in it is read as markup


def test_colours_need_a_terminal_and_no_color_wins(given, monkeypatch):
    def on_terminal():
        out = io.StringIO()
        render_report(
            given.report(), console=Console(file=out, width=100, force_terminal=True, color_system="standard")
        )
        return out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in on_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3\dm", on_terminal())


def test_a_terminal_without_unicode_gets_ascii(given):
    raw = io.BytesIO()
    console = console_for(io.TextIOWrapper(raw, encoding="ascii"))
    report = given.differing()
    sides = {key: {**side, "factory": "é:build"} for key, side in report.facts.sides.items()}
    render_report(given.replace(report, facts=given.replace(report.facts, sides=sides)), console=console)
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert "x FAIL" in text
    assert "?:build" in text


def test_a_pipe_is_120_columns_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console_for(io.StringIO()).width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert console_for(io.StringIO()).width == 90


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_one_message_and_details_only_with_debug(debug):
    out = io.StringIO()
    error = WorkerError("The factory a[b]c raised.", details="Traceback: line 1\n")
    render_error(error, console=Console(file=out, width=80), debug=debug)
    assert out.getvalue() == "error: The factory a[b]c raised.\n" + ("Traceback: line 1\n" if debug else "")


def test_mirrors_are_listed_with_inputs_and_factories():
    out = io.StringIO()
    mirror = Mirror("demo", "pkg.a:build", "pkg.b:build", (InputSpec("ids", (2, 16), "int64"),), description="A demo")
    render_list([mirror], console=Console(file=out, width=80))
    for part in ("demo  A demo", "ids (2, 16) int64", "pkg.a:build", "pkg.b:build"):
        assert part in out.getvalue()
    out = io.StringIO()
    render_list([], console=Console(file=out, width=120))
    assert "No mirror is registered" in out.getvalue()


EVENTS = (
    ("torch", {"event": "step", "name": "importing torch", "done": 0, "total": 3}),
    ("tensorflow", {"event": "step", "name": "importing tensorflow", "done": 0, "total": 3}),
    ("torch", {"event": "step", "name": "float64.eval", "done": 1, "total": 3}),
    ("torch", {"event": "done", "seconds": {}}),
    ("tensorflow", {"event": "error", "message": "no", "kind": "WorkerError", "details": ""}),
)


@pytest.mark.parametrize("options", [{"FORCE_COLOR": ""}, {"FORCE_COLOR": "1"}], ids=["plain", "FORCE_COLOR"])
def test_progress_prints_nothing_where_nobody_watches(monkeypatch, capsys, options):
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    with Progress() as progress:
        for side, event in EVENTS:
            progress(side, event)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch):
    """A stream on a pseudo-terminal, and a function that reads what was written to it."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    written = bytearray()

    def drain():
        # Read all the time: a pseudo-terminal holds 4 kB, and a writer that finds it full waits.
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed
            while chunk := os.read(ours, 4096):
                written.extend(chunk)

    reader = threading.Thread(target=drain)
    reader.start()

    def read():
        stream.close()
        reader.join()
        return written.decode()

    yield stream, read
    read()
    os.close(ours)


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt, WorkerError("it failed")], ids=["end", "Ctrl-C", "error"])
def test_progress_shows_steps_and_gives_the_cursor_back(terminal, monkeypatch, capsys, stop):
    stream, read = terminal
    monkeypatch.setattr(sys, "stderr", stream)

    def run():
        with Progress() as progress:
            for side, event in EVENTS:
                progress(side, event)
            if stop is not None:
                raise stop

    if stop is None:
        run()
    else:
        with pytest.raises(stop if isinstance(stop, type) else type(stop)):
            run()
    written = read()
    assert "PyTorch" in written
    assert "TensorFlow" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # cursor shown again
    assert written.rstrip("\r").endswith("\x1b[2K")  # and the last line cleared
    assert capsys.readouterr().out == ""


def test_quiet_progress_is_silent_on_a_terminal(terminal, monkeypatch):
    stream, read = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(quiet=True) as progress:
        for side, event in EVENTS:
            progress(side, event)
    assert read() == ""
