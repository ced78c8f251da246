"""The table, the locks, and what makes a result stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from portproof.compare.policy import Policy
from portproof.errors import InputError
from portproof.matrix import inputs as made_from
from portproof.matrix import table
from portproof.matrix.inputs import Inputs, gather_inputs, source_digest
from portproof.mirror import InputSpec, Mirror

LOCKS = Path(__file__).parents[2] / "docker" / "locks"
MIRROR = Mirror("demo", "portproof.mirrors:a", "portproof.mirrors:b", (InputSpec("x", (2, 3)),))


def package(folder: Path) -> Path:
    for name in ("trace.py", "compare/measure.py", "report/console.py", "cells.toml", "__pycache__/trace.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("trace.py", True),
        ("compare/measure.py", True),
        ("cells.toml", True),
        ("compare/new.py", True),
        ("report/console.py", False),
        ("__pycache__/trace.pyc", False),
        ("cli/new.py", False),
    ],
)
def test_source_counts_if_a_measurement_can_depend_on_it(tmp_path, name, counts):
    before = source_digest(package(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("changed")
    assert (source_digest(tmp_path) != before) is counts


def test_areas_that_do_not_count_are_imported_by_none_that_do():
    """What only shows cannot change a measurement: nothing that captures or compares imports it, but for the format."""
    showing = made_from._SHOWING
    root = Path(made_from.__file__).parents[1]
    for path in root.rglob("*.py"):
        area = path.relative_to(root).parts[0]
        if area in (*showing, "__main__.py", "__init__.py", "doctor.py", "check.py"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not [name for name in showing if f"from portproof.{name}" in text], path


def test_a_file_that_moves_its_content_to_another_name_is_a_change(tmp_path):
    (tmp_path / "a.py").write_text("x")
    first = source_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert source_digest(tmp_path) != first


def test_every_input_is_named_when_it_changed(make):
    now = make.now
    assert now.changed(now) == []
    for change, words in (
        ({"lock": ""}, "its lock"),
        ({"policy": {}}, "the policy"),
        ({"seed": 3}, "the seed"),
        ({"variables": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, "environment variables that change bits"),
    ):
        assert now.changed(replace(now, **change)) == [words]
    assert Inputs.from_json(now.to_json()) == now


def test_the_code_of_a_users_factory_counts(tmp_path):
    port = tmp_path / "port.py"
    port.write_text("def build(): ...")
    mirror = replace(MIRROR, tensorflow=f"{port}:build")
    before = gather_inputs(mirror, lock=None)
    port.write_text("def build(): return 1")
    assert before.changed(gather_inputs(mirror, lock=None)) == ["the mirror"]


def test_variables_that_change_bits_count_and_those_that_portproof_sets_do_not():
    found = gather_inputs(
        MIRROR, lock=None, environ={"TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "tensorflow", "HOME": "/x"}
    )
    assert found.variables == {"TF_ENABLE_ONEDNN_OPTS": "0"}
    assert found.policy["float64"] == Policy().float64


def test_the_table_is_in_order_of_versions_and_every_cell_has_its_lock():
    cells = table.cells()
    assert len(cells) == 15
    assert [cell.id for cell in cells][:3] == ["3.11-tf2.15.1", "3.11-tf2.16.2", "3.11-tf2.17.1"]
    assert {f"{cell.id}.txt" for cell in cells} == {path.name for path in LOCKS.glob("3*.txt")}
    assert table.release("2.9.0") < table.release("2.19.1")
    assert table.release("2.13.0+cu130") == (2, 13, 0)


def test_cells_are_chosen_by_name():
    assert [cell.id for cell in table.chosen("3.13-tf2.21.0, 3.11-tf2.15.1")] == ["3.11-tf2.15.1", "3.13-tf2.21.0"]
    assert table.chosen("") == table.cells()
    with pytest.raises(InputError, match=r"no cell '3\.14-tf9'"):
        table.chosen("3.14-tf9")


@pytest.mark.parametrize("cell", table.cells(), ids=lambda cell: cell.id)
def test_a_lock_has_the_pins_of_its_cell(cell):
    text = (LOCKS / f"{cell.id}.txt").read_text(encoding="utf-8")
    pins = table.pins_of(text, "x86_64")
    assert pins["tensorflow-cpu"] == cell.tensorflow
    assert "tensorflow" not in pins
    assert table.pins_of(text, "aarch64")["tensorflow"] == cell.tensorflow
    assert {name: pins[name] for name in ("keras", "numpy", "protobuf")} == {
        name: cell.pins[name] for name in ("keras", "numpy", "protobuf")
    }
    assert table.not_as_locked(text, pins, "x86_64") == []
    assert table.not_as_locked(text, {**pins, "torch": "2.13.0+cu130"}, "x86_64") == []
    assert table.not_as_locked(text, {**pins, "torch": "2.12.0"}, "x86_64") == ["torch 2.12.0 instead of 2.13.0+cpu"]
    assert "numpy none instead" in table.not_as_locked(text, {**pins, "numpy": "none"}, "x86_64")[0]
