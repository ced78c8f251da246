"""The command line as a user meets it: exit codes, one clear message for whatever goes wrong."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from portproof import cli
from portproof.report import Report


@dataclass(frozen=True)
class Result:
    """What a command ended with."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def portproof(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`portproof` with these arguments, in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["portproof", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)

    return run


@pytest.fixture
def pair(ports: Path) -> Callable[..., list[object]]:
    """The arguments of `check` for a pair of the ports."""

    def arguments(torch: str = "perceptron", keras: str = "perceptron", *inputs: str) -> list[object]:
        sides = [
            torch if ":" in torch else f"pairs_torch.py:{torch}",
            keras if ":" in keras else f"pairs_keras.py:{keras}",
        ]
        shapes = [part for text in inputs or ("3,6",) for part in ("--input", text)]
        return ["check", "--torch", ports / sides[0], "--tensorflow", ports / sides[1], *shapes, "--only", "function"]

    return arguments


def assert_one_message(result: Result, *parts: str, code: int = 2) -> None:
    """One error on stderr, nothing on stdout, no traceback."""
    assert result.code == code, result
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err


@pytest.mark.torch
@pytest.mark.tensorflow
@pytest.mark.usefixtures("in_process")
class TestVerdicts:
    """Exit codes and files; both sides in this process."""

    def test_same_differs_undecided(self, portproof: Command, pair: Callable[..., list[object]]) -> None:
        same = portproof(*pair())
        assert same.code == 0, same.out
        assert same.out.strip().splitlines()[-1].startswith("SAME")
        differs = portproof(*pair(keras="missing_bias"))
        assert differs.code == 1
        assert "hidden.bias" in differs.out
        assert differs.out.strip().splitlines()[-1].startswith("DIFFERS")
        assert f"portproof diagnose --torch {pair()[2]} --tensorflow" in differs.out
        assert portproof(*pair("nans", "nans")).code == 2
        assert portproof(*pair("nans")).code == 1

    def test_quiet_prints_one_line(self, portproof: Command, pair: Callable[..., list[object]]) -> None:
        result = portproof(*pair(), "--quiet")
        assert result.code == 0
        assert result.err == ""
        assert len(result.out.strip().splitlines()) == 1

    def test_json_junit_and_traces(self, portproof: Command, pair: Callable[..., list[object]], tmp_path: Path) -> None:
        files = {name: tmp_path / "new" / name for name in ("report.json", "report.xml", "traces")}
        options = ("--json", files["report.json"], "--junit", files["report.xml"], "--traces", files["traces"])
        checked = portproof(*pair(keras="gated_wrong", torch="gated"), *options)
        assert checked.code == 1
        report = Report.load(files["report.json"])
        assert report.verdict.outcome == "differs"
        assert ElementTree.parse(files["report.xml"]).getroot().tag == "testsuites"
        assert sorted(each.name for each in files["traces"].iterdir()) == ["tensorflow", "torch"]
        assert sorted(each.name for each in (tmp_path / "new").iterdir()) == sorted(files)

        traces = files["traces"]
        compared = portproof("compare", traces / "torch", traces / "tensorflow", "--json", tmp_path / "again.json")
        assert compared.code == 1
        again = Report.load(tmp_path / "again.json")
        assert again.facts == report.facts
        assert again.verdict == report.verdict

        # A trace is the same model as itself, and a trace may stand where another stood.
        assert portproof("compare", traces / "torch", traces / "torch").code == 0
        assert portproof(*pair(keras="gated", torch="gated"), "--traces", traces).code == 0
        assert portproof("compare", traces / "torch", traces / "tensorflow").code == 0

    def test_judging_again_under_another_policy(
        self, portproof: Command, pair: Callable[..., list[object]], tmp_path: Path
    ) -> None:
        report, policy = tmp_path / "report.json", tmp_path / "policy.toml"
        assert portproof(*pair(), "--json", report).code == 0
        assert portproof("judge", report).code == 0
        # Less than one rounding error of float64, 2^-53: no two implementations pass.
        policy.write_text("float64 = 1e-20\nconditioning = 1e-12\n", encoding="utf-8")
        assert portproof("judge", report, "--policy", policy).code == 1
        assert portproof(*pair(), "--policy", policy).code == 1

    def test_a_json_path_that_cannot_be_written(
        self, portproof: Command, pair: Callable[..., list[object]], tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        result = portproof(*pair(), "--quiet", "--json", tmp_path / "file" / "report.json")
        assert_one_message(result, str(tmp_path / "file"))
        (tmp_path / "folder.json").mkdir()
        assert_one_message(portproof(*pair(), "--quiet", "--json", tmp_path / "folder.json"), "folder.json")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.json"]

    def test_traces_where_something_else_is(
        self, portproof: Command, pair: Callable[..., list[object]], tmp_path: Path
    ) -> None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "precious.txt").touch()
        assert_one_message(portproof(*pair(), "--traces", tmp_path), "exists and is not a trace")
        assert [each.name for each in tmp_path.rglob("*")] == ["torch", "precious.txt"]

    def test_the_users_own_errors(self, portproof: Command, pair: Callable[..., list[object]]) -> None:
        assert_one_message(
            portproof(*pair("failing.py:raises")), "failing.py:raises raised KeyError: 'weights/stem'", ":13)"
        )
        assert_one_message(portproof(*pair("failing.py:not_a_model")), "returned a dict, not a torch.nn.Module")
        assert_one_message(portproof(*pair(keras="failing.py:not_a_model")), "returned a dict, not a keras.Model")
        assert_one_message(portproof(*pair("failing.py:nothing")), "has no 'nothing'. It has: ")
        assert_one_message(portproof(*pair("perceptron", "perceptron", "3,7")), "inputs x (3, 7)")
        assert_one_message(
            portproof(*pair(keras="failing.py:needs_arguments")), "missing 1 required positional argument"
        )

    def test_tracebacks_with_debug_alone(self, portproof: Command, pair: Callable[..., list[object]]) -> None:
        result = portproof(*pair("failing.py:raises"), "--debug")
        assert result.code == 2
        assert "Traceback" in result.err
        assert 'raise KeyError("weights/stem")' in result.err

    def test_a_checkpoint_that_does_not_fit(
        self, portproof: Command, pair: Callable[..., list[object]], tmp_path: Path
    ) -> None:
        import torch

        torch.save(torch.nn.Linear(6, 5).state_dict(), tmp_path / "model.pth")
        result = portproof(*pair(), "--weights", tmp_path / "model.pth")
        assert_one_message(result, "4 missing, 2 left over", "missing: hidden.weight", "left over: bias")
        (tmp_path / "model.pth").write_bytes(b"no checkpoint")
        assert_one_message(portproof(*pair(), "--weights", tmp_path / "model.pth"), "model.pth")


USAGE = [
    ("check", ["--torch", "nowhere.py:f", "--tensorflow", "m:f", "--input", "1,2"], "There is no file nowhere.py"),
    ("check", ["--torch", "m", "--tensorflow", "m:f", "--input", "1,2"], "'m' does not name a factory"),
    ("check", ["--torch", "m:f", "--tensorflow", "m:f"], "at least one --input SHAPE"),
    ("check", ["--torch", "m:f", "--tensorflow", "m:f", "--input", "2,x"], "--input '2,x' is not"),
    ("check", ["--torch", "m:f", "--tensorflow", "m:f", "--input", "2,0"], "at least 1"),
    ("check", ["--torch", "m:f", "--tensorflow", "m:f", "--input", "2,3:float16"], "float16"),
    ("check", ["--torch", "m:f", "--tensorflow", "m:f", "--input", "a=2", "--input", "a=3"], "two inputs of one name"),
    ("check", ["--torch", "m:f", "--tensorflow", "m:f", "--input", "2", "--batches", "1,-3"], "--batches '1,-3'"),
    (
        "check",
        ["--torch", "m:f", "--tensorflow", "m:f", "--input", "2", "--weights", "none.pth"],
        "no checkpoint none.pth",
    ),
    ("check", ["--mirror", "nobody"], "There is no mirror 'nobody'"),
    ("check", ["--mirror", "repvit-kws", "--input", "2"], "brings its own factories and inputs"),
    ("diagnose", [], "or the name of a registered mirror"),
    ("diagnose", ["nobody"], "There is no mirror 'nobody'"),
    ("diagnose", ["repvit-kws", "--input", "2"], "brings its own factories and inputs"),
    ("parity", ["nobody"], "There is no mirror 'nobody'. Known: "),
    ("compare", ["a", "b"], "a is not a trace"),
    ("judge", ["none.json"], "none.json"),
    ("smoke", ["--audio", "none.wav"], "none.wav"),
]


@pytest.mark.parametrize(("command", "arguments", "part"), USAGE, ids=[f"{row[0]}-{row[2][:24]}" for row in USAGE])
def test_wrong_arguments_are_one_message(
    portproof: Command, command: str, arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_message(portproof(command, *arguments), part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["nonsense"], ["check", "--nonsense"], ["parity", "--only", "everything"]])
def test_unknown_commands_and_options_are_exit_code_2(portproof: Command, arguments: list[str]) -> None:
    result = portproof(*arguments)
    assert result.code == 2
    assert "nonsense" in result.err or "everything" in result.err
    assert "Traceback" not in result.err


POLICIES = [
    ("float64 = ", "is not a policy in TOML"),
    ("flaot64 = 1e-12", "no such limit: flaot64"),
    ("float64 = 'small'", "float64 needs to be a positive number"),
    ("float64 = -1.0", "positive"),
    ("float64 = nan", "positive"),
    ("float64 = true", "positive"),
]


@pytest.mark.parametrize(("text", "part"), POLICIES)
def test_bad_policies_are_refused_before_anything_runs(
    portproof: Command, pair: Callable[..., list[object]], text: str, part: str, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(text, encoding="utf-8")
    assert_one_message(portproof(*pair("failing.py:killed"), "--policy", policy), str(policy), part)
    assert_one_message(portproof(*pair("failing.py:killed"), "--policy", tmp_path), str(tmp_path))


class TestStoredFiles:
    """Traces and reports that are not what was written. The trace is written by hand: no framework is needed."""

    @pytest.fixture
    def trace(self, tmp_path: Path) -> Path:
        import numpy as np

        from portproof.trace import Manifest, TraceWriter

        facts = {"seed": 0, "weights": "give", "factory": "m:f", "phases": {}}
        environment = {"accelerators": [], "framework": "torch", "version": "0"}
        with TraceWriter(tmp_path / "trace") as writer:
            writer.add("weights/initial/w", np.ones(3))
            writer.finish(Manifest("torch", "made", environment, [], (), (), {}, {}, facts=facts))
        return tmp_path / "trace"

    @pytest.mark.parametrize("file", ["trace.json", "tensors-00000.safetensors"])
    @pytest.mark.parametrize("how", ["truncated", "tampered", "missing", "empty"])
    def test_broken_traces_are_refused(self, portproof: Command, trace: Path, file: str, how: str) -> None:
        import shutil

        shutil.copytree(trace, trace.with_name("good"))
        path = trace / file
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        elif how == "tampered":  # valid in its form, and another
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        else:
            path.write_bytes(content[: len(content) // 2 if how == "truncated" else 0])
        assert_one_message(portproof("compare", trace, trace.with_name("good")), str(trace))
        assert_one_message(portproof("compare", trace.with_name("good"), trace), str(trace))

    def test_reports_that_are_none(self, portproof: Command, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        for text in ("", "{", "[]", "null", '{"schema": "other/1"}', '{"schema": "portproof-report/1"}'):
            path.write_text(text, encoding="utf-8")
            assert_one_message(portproof("judge", path), str(path))
        path.write_bytes(b"\xff\xfe\x00")
        assert_one_message(portproof("judge", path), str(path))
        assert_one_message(portproof("judge", tmp_path), str(tmp_path))
        assert_one_message(portproof("judge", path, "--json", tmp_path / "new.json"), str(path))
        assert not (tmp_path / "new.json").exists()

    def test_a_defect_of_our_own_is_called_one(
        self, portproof: Command, trace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def defect(*_: object) -> None:
            raise RuntimeError("surprise")

        importlib.import_module("portproof.compare")
        # By its module: `portproof.compare` is the function of the public API.
        monkeypatch.setattr(sys.modules["portproof.compare"], "compare", defect)
        result = portproof("compare", trace, trace)
        assert_one_message(result, "portproof itself failed: RuntimeError: surprise", "--debug")
        assert "Traceback" in portproof("compare", trace, trace, "--debug").err


def test_json_reports_are_plain_json(portproof: Command, tmp_path: Path) -> None:
    # What a program reads must not carry NaN or Infinity, which JSON has no words for.
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema": "portproof-report/1", "facts": {}, "verdict": {}}), encoding="utf-8")
    assert_one_message(portproof("judge", path), "is not a portproof report")


@pytest.mark.torch
@pytest.mark.tensorflow
@pytest.mark.parametrize("command", [["check", "--diagnose", "--only", "function"], ["diagnose"]])
def test_a_wrong_conversion_is_diagnosed(portproof: Command, ports: Path, tmp_path: Path, command: list[str]) -> None:
    sides = ["--torch", ports / "conversion_torch.py:net", "--tensorflow", ports / "conversion_keras.py:transposed"]
    options = ["--input", "4,6", "--weights", "own", "--json", tmp_path / "report.json"]
    result = portproof(*command, *sides, *options)
    assert result.code == 1
    assert "proven cause" in result.out
    assert "in 2 layers: divergence gone (" in " ".join(result.out.replace("│", " ").split())  # in any width
    assert result.out.strip().splitlines()[-1].startswith("DIFFERS")
    found = Report.load(tmp_path / "report.json").diagnosis
    assert found is not None
    assert [cause.others for cause in found.proven] == [("second", "last")]
    assert found.outcome == "same"
