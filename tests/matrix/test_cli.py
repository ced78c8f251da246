"""The commands `cell`, `matrix` and `baseline` as a user meets them: exit codes, one message for whatever is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from portproof import cli
from portproof.matrix import inputs as made_from
from portproof.matrix import table
from portproof.mirror import InputSpec, Mirror

A, B = "3.12-tf2.19.1", "3.13-tf2.21.0"
MIRROR = Mirror("demo", "portproof.mirrors:a", "portproof.mirrors:b", (InputSpec("x", (2, 3)),))


@pytest.fixture
def portproof(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`portproof` with these arguments, in this process, for the mirror `demo`."""
    monkeypatch.setattr("portproof.mirror.get", lambda name: MIRROR)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["portproof", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture
def current(monkeypatch):
    """The inputs that the command would give a cell of the mirror `demo` now."""
    locks = table.locks_folder()
    assert locks is not None
    monkeypatch.setattr(made_from, "source_digest", lambda: "2" * 64)
    return lambda name: made_from.gather_inputs(MIRROR, lock=locks / f"{name}.txt")


def test_the_matrix_is_printed_and_written_and_its_verdict_is_the_exit_code(portproof, reports, current, tmp_path):
    reports.cell(A, inputs=current(A))
    json_file, junit_file = tmp_path / "m.json", tmp_path / "m.xml"
    code, out, _ = portproof("matrix", reports.folder, "--cells", A, "--json", json_file, "--junit", junit_file)
    assert code == 0, out
    assert out.splitlines()[-1] == "SAME  demo: 1 of 1 cells are up to date and the same model"
    assert json.loads(json_file.read_text())["outcome"] == "same"
    assert junit_file.read_text().startswith("<?xml")
    code, out, _ = portproof("matrix", reports.folder, "-q")
    assert (code, len(out.splitlines())) == (2, 1)
    reports.cell(A, inputs=current(A), tensorflow={"edit": lambda p, n, v: v * 1.01 if n == "bn" else v})
    assert portproof("matrix", reports.folder, "--cells", A, "-q")[0] == 1


def test_run_runs_what_is_missing_and_nothing_else(portproof, reports, current, tmp_path):
    reports.cell(A, inputs=current(A))
    noted = tmp_path / "noted"
    command = f"sh -c 'echo {{cell}} {{python}} {{tensorflow}} $PORTPROOF_SEED >> {noted}'"
    code, out, _ = portproof("matrix", reports.folder, "--cells", f"{A},{B}", "--run", command, "--cores", 2)
    assert code == 2  # the command made no cell
    assert noted.read_text() == f"{B} 3.13 2.21.0 0\n"
    assert "1 of 2 cells to run" in out
    assert f"{B} is missing" in out
    noted.unlink()
    portproof("matrix", reports.folder, "--cells", A, "--run", command, "-q")
    assert not noted.exists()
    portproof("matrix", reports.folder, "--cells", A, "--run", command, "--force", "-q")
    assert noted.exists()


def test_another_policy_is_a_reason_to_run_and_a_way_to_judge(portproof, reports, current, tmp_path):
    now = current(A)
    reports.cell(A, inputs=now)
    policy = tmp_path / "p.toml"
    policy.write_text("float64 = 1e-9\n")
    assert asdict(now)["policy"]["float64"] == 1e-12
    code, out, _ = portproof("matrix", reports.folder, "--cells", A, "--policy", policy, "-q")
    assert code == 0, out
    code, out, _ = portproof("matrix", reports.folder, "--cells", A, "--policy", policy, "--run", "true")
    assert "1 of 1 cells to run" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["matrix", "/no/such/folder"], "There is no folder /no/such/folder"),
        (["matrix", "--cells", "3.12-tf9"], "There is no cell '3.12-tf9'"),
        (["matrix", "{reports}", "--run", ""], "There is no folder"),
        (["matrix", "{reports}", "--run", "/no/such/program"], "/no/such/program cannot be started"),
        (["baseline", "check", "/no/such/folder"], "/no/such/folder is not a baseline"),
        (["baseline", "save", "{reports}/b", "--traces", "/no/such"], "is not a trace"),
        (["cell", "--lock", "/no/such/lock"], "lock"),
    ],
)
def test_what_cannot_be_done_is_one_message(portproof, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr(table, "installed_versions", lambda: {"torch": "2.13.0", "tensorflow-cpu": "2.19.1"})
    code, out, err = portproof(*(part.format(reports=tmp_path / "reports") for part in arguments))
    assert code == 2
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err + out


def test_a_cell_of_an_environment_that_is_not_as_locked_is_refused(portproof, tmp_path, monkeypatch):
    installed = {"torch": "2.13.0", "tensorflow-cpu": "2.19.1", "numpy": "1.0"}
    monkeypatch.setattr(table, "installed_versions", lambda: installed)
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "12", "1"))
    code, _, err = portproof("cell", "--reports", tmp_path)
    assert code == 2
    assert "This environment is not what" in err
    assert "--unlocked" in err
    assert not list(tmp_path.glob("3*"))


def test_a_baseline_is_saved_and_checked_from_traces(portproof, make, reports, tmp_path):
    folder = reports.cell(A)
    code, out, _ = portproof("baseline", "save", tmp_path / "base", "--traces", folder)
    assert code == 0
    assert "demo, torch, tensorflow" in out
    assert portproof("baseline", "check", tmp_path / "base", "--traces", folder)[0] == 0

    def altered(phase, layer, value):
        return value * (1 + 1e-9) if phase == "float64.eval" and layer == "act" else value

    other = reports.cell(B, tensorflow={"edit": altered})
    code, out, _ = portproof("baseline", "check", tmp_path / "base", "--traces", other)
    assert code == 1
    assert "SAME  demo, torch" in out
    assert "DRIFTED  demo, tensorflow" in out
    assert "first in act (float64.eval)" in out
