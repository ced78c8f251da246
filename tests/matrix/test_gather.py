"""Gathering: nothing is silently left out, nothing stale is green, and what was altered shows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from portproof.compare.policy import Policy
from portproof.errors import InputError
from portproof.matrix import gather
from portproof.matrix.facts import COMPLETE, FAILED, MISSING, STALE, Matrix
from portproof.report import Report

A, B = "3.12-tf2.19.1", "3.13-tf2.21.0"


def test_a_complete_cell_is_green_with_its_checks_and_where_it_ran(reports):
    reports.cell(A)
    matrix = reports.gather(A)
    (cell,) = matrix.cells
    assert (cell.state, cell.outcome, cell.why, cell.green) == (COMPLETE, "same", "", True)
    assert matrix.outcome == "same"
    assert {check.suite for check in cell.checks} == {"smoke", "parity"}
    layers = cell.check("parity", "function-layers")
    assert (layers.status, layers.value, layers.limit) == ("pass", "0", "1.0e-12")
    assert (cell.environment.python, cell.environment.tensorflow, cell.environment.numpy) == (
        "3.12.1",
        "2.19.1",
        "2.1.3",
    )
    assert cell.errors.layers == ("conv", "bn", "act", "head")
    assert len(cell.errors.original) == len(cell.errors.port) == 4
    assert cell.seconds == {"smoke": 1.0, "parity": 2.5}


def test_a_missing_cell_is_said_to_be_missing_and_the_matrix_is_not_green(reports):
    reports.cell(A)
    matrix = reports.gather(A, B)
    assert [(cell.id, cell.state) for cell in matrix.cells] == [(A, COMPLETE), (B, MISSING)]
    assert matrix.outcome == "undecided"


@pytest.mark.parametrize("name", ["lock", "source", "mirror", "seed", "threads"])
def test_a_cell_made_from_anything_else_is_stale(reports, make, name, tmp_path):
    other = {"seed": 1, "threads": 2}.get(name, "0" * 64)
    reports.cell(A, inputs=replace(make.now, **{name: other}))
    (tmp_path / f"{A}.txt").write_text("numpy==2.1.3\n")
    matrix = reports.gather(A, locks=tmp_path)
    (cell,) = matrix.cells
    assert cell.state == STALE
    assert "changed since" in cell.why
    assert matrix.outcome == "undecided"
    assert matrix.drift_of("torch").classes == ()
    assert cell.checks  # it is shown nonetheless


def test_without_a_lock_at_hand_what_was_installed_decides(reports, make, tmp_path):
    (tmp_path / f"{A}.txt").write_text(
        "numpy==2.1.3\ntensorflow==2.19.1 ; platform_machine == 'aarch64'\ntorch==2.13.0+cpu \\\n    --hash=sha256:1\n"
    )
    right = {"numpy": "2.1.3", "torch": "2.13.0+cu130"}  # another build of the same torch
    reports.cell(A, inputs=replace(make.now, lock=""), installed=right)
    assert reports.gather(A, locks=tmp_path).cells[0].green
    reports.cell(A, inputs=replace(make.now, lock=""), installed={**right, "numpy": "2.1.2"})
    (cell,) = reports.gather(A, locks=tmp_path).cells
    assert (cell.state, cell.why) == (STALE, "not run from its lock: numpy 2.1.2 instead of 2.1.3")


def test_another_policy_judges_again_instead_of_calling_the_cell_stale(reports):
    def off(phase, layer, value):
        return value * (1 + 1e-13) if phase == "float64.eval" and layer == "act" else value

    reports.cell(A, tensorflow={"edit": off})
    assert reports.gather(A).cells[0].outcome == "same"
    (cell,) = reports.gather(A, policy=Policy(float64=1e-15)).cells
    assert (cell.state, cell.outcome) == (COMPLETE, "differs")
    assert cell.divergence.startswith("act: ")


def test_a_cell_that_differs_makes_the_matrix_differ(reports):
    def off(phase, layer, value):
        return value * 1.001 if layer == "bn" else value

    reports.cell(A, tensorflow={"edit": off})
    matrix = reports.gather(A, B)
    assert matrix.outcome == "differs"
    assert matrix.cell(A).divergence.startswith("bn: output")


def test_a_run_that_failed_says_why(reports):
    reports.cell(A, error="The tensorflow worker was killed by SIGILL.")
    (cell,) = reports.gather(A).cells
    assert (cell.state, cell.why) == (FAILED, "The tensorflow worker was killed by SIGILL.")


@pytest.mark.parametrize("name", ["cell.json", "parity.json", "torch/trace.json"])
def test_a_truncated_file_is_a_message_and_no_result(reports, name):
    folder = reports.cell(A)
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text[: len(text) // 2])
    matrix = reports.gather(A)
    assert matrix.cells[0].state == FAILED
    assert matrix.cells[0].why.endswith(".")
    assert matrix.outcome == "undecided"


def test_a_tensor_that_was_altered_after_the_run_is_found(reports):
    shard = reports.cell(A) / "tensorflow" / "tensors-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    (cell,) = reports.gather(A).cells
    assert cell.state == FAILED
    assert "is not the file that was written" in cell.why


def test_a_half_written_folder_is_not_taken(reports):
    folder = reports.cell(A)
    folder.rename(folder.with_name(f".{A}.abc"))
    assert reports.gather(A).cells[0].state == MISSING


def test_folders_of_artifacts_are_found_and_doubles_are_named(reports):
    reports.cell(A, at=f"from-ci/{A}")
    assert reports.gather(A).cells[0].green
    reports.cell(A, at="another")
    matrix = reports.gather(A)
    assert len(matrix.cells) == 1
    assert [note for note in matrix.notes if "twice" in note]


def test_cells_besides_those_asked_for_are_shown_and_do_not_decide(reports):
    reports.cell(A)
    reports.cell("3.10-tf2.14.0", error="it could not be run")
    matrix = reports.gather(A)
    assert [(cell.id, cell.expected) for cell in matrix.cells] == [("3.10-tf2.14.0", False), (A, True)]
    assert matrix.outcome == "same"
    assert B in matrix.not_asked


def test_another_mirrors_cell_is_no_result_of_this_one(reports):
    reports.cell(A, subject="another")
    (cell,) = reports.gather(A).cells
    assert cell.state == MISSING
    assert "another" in cell.why


def test_drift_between_cells_begins_where_a_trace_was_altered(reports):
    def altered(phase, layer, value):
        return value * np.float32(1.000001) if phase == "float32.eval" and layer == "act" else value

    import numpy as np

    reports.cell(A)
    reports.cell(B, tensorflow={"edit": altered})
    matrix = reports.gather(A, B)
    assert matrix.drift_of("torch").classes == ((A, B),)
    pair = matrix.drift_of("tensorflow").between(A, B)
    assert pair is not None
    assert pair.begins["float32"].layer == "act"
    assert "2.20" in pair.causes[0]
    assert "tensorflow 2.19.1 and 2.21.0" in pair.changed


def test_json_gives_back_the_same_matrix(reports, tmp_path):
    reports.cell(A)
    reports.cell(B, tensorflow={"skip": ("head",)})  # other shapes: infinities
    matrix = reports.gather(A, B, "3.11-tf2.15.1")
    gather.save(matrix, tmp_path / "matrix.json")
    assert gather.load(tmp_path / "matrix.json") == matrix
    assert Matrix.from_json(matrix.to_json()) == matrix


def test_gathering_twice_gives_the_same_bytes(reports, tmp_path):
    reports.cell(A)
    for name in ("1.json", "2.json"):
        gather.save(reports.gather(A, B), tmp_path / name)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"schema": "portproof-matrix/1", "matrix": {"cells": 1}})])
def test_a_file_that_is_no_matrix_is_a_message(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=r"m\.json"):
        gather.load(tmp_path / "m.json")


def test_a_run_under_a_loose_policy_is_judged_under_the_default_one(reports):
    def off(phase, layer, value):
        return value * (1 + 1e-10) if phase == "float64.eval" and layer == "act" else value

    folder = reports.cell(A, tensorflow={"edit": off})
    for suite in ("smoke", "parity"):
        path = folder / f"{suite}.json"
        Report.load(path).rejudged(Policy(float64=1e-6)).save(path)
    assert Report.load(folder / "parity.json").verdict.policy.float64 == 1e-6
    assert reports.gather(A, policy=None).cells[0].outcome == "differs"
