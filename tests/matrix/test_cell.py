"""One cell's folder: complete or absent, up to date or repeated, its files shared with other cells."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from portproof.errors import InputError, WorkerError
from portproof.matrix import cell as cells
from portproof.matrix.cell import CellRecord, new_record, run_cell
from portproof.mirror import InputSpec, Mirror
from portproof.trace import Trace

A, B = "3.12-tf2.19.1", "3.12-tf2.20.0"
MIRROR = Mirror("demo", "pkg:a", "pkg:b", (InputSpec("x", (2, 3)),))


@pytest.fixture
def runs(monkeypatch, make):
    """`check` that writes small traces; the phases of each run so far."""
    done = []

    def check(mirror, *, phases, settings, policy=None, progress=None):
        done.append([phase.name for phase in phases])
        folder = settings.traces or Path(os.environ["PYTEST_SCRATCH"]) / f"run{len(done)}"
        for side in ("torch", "tensorflow"):
            make.trace(folder / side, side)
        return make.report(folder)

    monkeypatch.setattr(cells, "check", check)
    return done


@pytest.fixture(autouse=True)
def scratch(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTEST_SCRATCH", str(tmp_path))


def record(make, name=A, **changes):
    python, _, tensorflow = name.partition("-tf")
    return new_record(name, python, tensorflow, "demo", replace(make.now, **changes))


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_both_suites_are_run_and_kept_with_the_traces(runs, make, tmp_path):
    done, ran = run_cell(MIRROR, record(make), tmp_path)
    assert ran
    assert len(runs) == 2
    assert len(runs[0]) < len(runs[1])  # smoke, then parity
    assert listing(tmp_path / A) == [
        "cell.json",
        "parity.json",
        "smoke.json",
        "tensorflow/tensors-00000.safetensors",
        "tensorflow/trace.json",
        "torch/tensors-00000.safetensors",
        "torch/trace.json",
    ]
    assert CellRecord.load(tmp_path / A) == done
    assert done.outcomes == {"smoke": "same", "parity": "same"}


def test_what_is_up_to_date_is_not_repeated_unless_forced(runs, make, tmp_path):
    run_cell(MIRROR, record(make), tmp_path)
    assert run_cell(MIRROR, record(make), tmp_path)[1] is False
    assert len(runs) == 2
    assert run_cell(MIRROR, record(make), tmp_path, force=True)[1] is True
    assert len(runs) == 4


@pytest.mark.parametrize("name", ["lock", "source", "policy", "mirror", "seed"])
def test_other_inputs_repeat_a_cell(runs, make, tmp_path, name):
    other = {"policy": {"float64": 1e-9}, "seed": 1}.get(name, "0" * 64)
    run_cell(MIRROR, record(make), tmp_path)
    assert run_cell(MIRROR, record(make, **{name: other}), tmp_path)[1] is True
    assert CellRecord.load(tmp_path / A).inputs == replace(make.now, **{name: other})


@pytest.mark.parametrize("suite", [1, 2])
def test_a_run_that_is_broken_off_leaves_what_was_there(runs, make, tmp_path, monkeypatch, suite):
    run_cell(MIRROR, record(make), tmp_path)
    before = (tmp_path / A / "cell.json").read_bytes()
    real, calls = cells.check, []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == suite:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(cells, "check", broken)
    for name in (A, B):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            run_cell(MIRROR, record(make, name, seed=1), tmp_path)
    assert (tmp_path / A / "cell.json").read_bytes() == before
    assert not (tmp_path / B).exists()
    assert not [path for path in tmp_path.glob(".3.12*") if path.is_dir()]


@pytest.mark.parametrize("kill_at", ["writing", "stepping aside", "moved aside"])
def test_what_a_killed_run_left_is_put_right(runs, make, tmp_path, kill_at):
    """The states between two renames, as SIGKILL leaves them."""
    run_cell(MIRROR, record(make), tmp_path)
    target, left = tmp_path / A, tmp_path / f".{A}.x1"
    if kill_at == "writing":
        left.mkdir()
        (left / "smoke.json").write_text("{")
    elif kill_at == "stepping aside":  # the older one is away, the new one complete and not yet in its place
        left.mkdir()
        target.rename(left / "older")
        run_cell(MIRROR, record(make, seed=1), tmp_path)
        assert not left.exists()
        target.rename(tmp_path / f".{A}.x2")
    else:
        left.mkdir()
        target.rename(left / "older")
    ran = run_cell(MIRROR, record(make, seed=1 if kill_at == "stepping aside" else 0), tmp_path)[1]
    assert ran is False  # a finished result is found again, wherever it was on its way
    assert (target / "cell.json").is_file()
    assert not [path for path in tmp_path.glob(f".{A}.*") if path.is_dir()]


def test_an_error_is_kept_with_its_message_and_tried_again(runs, make, tmp_path, monkeypatch):
    real = cells.check

    def failing(*_, **__):
        raise WorkerError("The tensorflow worker was killed by SIGKILL.")

    monkeypatch.setattr(cells, "check", failing)
    with pytest.raises(WorkerError):
        run_cell(MIRROR, record(make), tmp_path)
    assert "SIGKILL" in CellRecord.load(tmp_path / A).why_not(make.now)
    monkeypatch.setattr(cells, "check", real)
    assert run_cell(MIRROR, record(make), tmp_path)[1] is True
    assert CellRecord.load(tmp_path / A).why_not(make.now) == ""


def test_an_error_does_not_replace_an_older_result(runs, make, tmp_path, monkeypatch):
    run_cell(MIRROR, record(make), tmp_path)

    def failing(*_, **__):
        raise WorkerError("no memory")

    monkeypatch.setattr(cells, "check", failing)
    with pytest.raises(WorkerError):
        run_cell(MIRROR, record(make, seed=1), tmp_path)
    assert CellRecord.load(tmp_path / A).error == ""


def test_files_that_another_cell_has_are_links_to_it(runs, make, tmp_path):
    run_cell(MIRROR, record(make), tmp_path)
    run_cell(MIRROR, record(make, B), tmp_path)
    first, second = (
        {path.stat().st_ino for path in (tmp_path / name).rglob("*.safetensors")} for name in (A, B)
    )  # both sides of these have the same content, so one file may stand for both
    assert second <= first
    # A cell that is repeated does not change what the other has.
    before = (tmp_path / B / "torch" / "tensors-00000.safetensors").read_bytes()
    run_cell(MIRROR, record(make), tmp_path, force=True)
    assert (tmp_path / B / "torch" / "tensors-00000.safetensors").read_bytes() == before


def test_two_runs_of_one_cell_wait_for_each_other(runs, make, tmp_path):
    ran = []
    threads = [
        threading.Thread(target=lambda: ran.append(run_cell(MIRROR, record(make), tmp_path)[1])) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ran) == [False, False, True]


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"schema": "portproof-cell/1", "id": 1})])
def test_a_record_that_is_none_is_a_message(tmp_path, text):
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(InputError, match=r"cell\.json"):
        CellRecord.load(tmp_path)


def flip(shard):
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


def test_a_damaged_file_of_a_cell_is_never_linked_to(runs, make, tmp_path):
    run_cell(MIRROR, record(make), tmp_path)
    for side in ("torch", "tensorflow"):
        flip(tmp_path / A / side / "tensors-00000.safetensors")
    run_cell(MIRROR, record(make, B), tmp_path)
    run_cell(MIRROR, record(make), tmp_path, force=True)
    for name in (A, B):
        for side in ("torch", "tensorflow"):
            Trace.open(tmp_path / name / side)  # raises what is damaged
