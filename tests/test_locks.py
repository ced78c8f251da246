"""Tests of docker/locks: every requirement hashed, nothing of CUDA, and the versions that cells.toml promises."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "docker" / "locks"


def load(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


CELLS: list[dict[str, str]] = load("src/portproof/cells.toml")["cells"]
TORCH = load("docker/torch-cpu.toml")
PYPROJECT = load("pyproject.toml")
NAMES = [f"{cell['python']}-tf{cell['tensorflow']}.txt" for cell in CELLS]


@pytest.fixture(scope="module")
def lock_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("portproof_lock", ROOT / "docker/lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def entries(name: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> version and hashes of each requirement of a lock."""
    found = {}
    text = re.sub(r"^#.*\n", "", (LOCKS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        match = re.match(r"([a-z0-9-]+)==(\S+)", entry)
        assert match, f"not a pinned requirement: {entry!r}"
        assert match[1] not in found
        found[match[1]] = (match[2], re.findall(r"--hash=(\S+)", entry))
    return found


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9-]", one, maxsplit=1)[0].lower() for one in requirements}


def test_each_cell_has_its_lock_and_nothing_else_has() -> None:
    assert sorted(path.name for path in LOCKS.iterdir()) == sorted([*NAMES, "build.txt"])


@pytest.mark.parametrize("name", [*NAMES, "build.txt"])
def test_every_requirement_is_hashed(name: str) -> None:
    for package, (_, hashes) in entries(name).items():
        assert hashes, f"{package} has no hash"
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes)


@pytest.mark.parametrize("name", [*NAMES, "build.txt"])
def test_no_index_and_no_folder_is_named(name: str) -> None:
    text = (LOCKS / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index|--extra-index|--find-links|/|file:)", text, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_cuda(name: str) -> None:
    assert not [package for package in entries(name) if re.search("nvidia|cuda|cudnn|triton|rocm", package)]


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_versions_are_those_of_the_cell(cell: dict[str, str]) -> None:
    locked = entries(f"{cell['python']}-tf{cell['tensorflow']}.txt")
    for package in ("keras", "numpy", "protobuf"):
        assert locked[package][0] == cell[package]
    assert locked["torch"][0] == f"{cell['torch']}+cpu"
    # On aarch64 the plain name is the CPU build, and the only one with wheels.
    assert locked["tensorflow-cpu"][0] == locked["tensorflow"][0] == cell["tensorflow"]


@pytest.mark.parametrize("name", NAMES)
def test_tensorflow_goes_to_one_machine_each(name: str) -> None:
    text = (LOCKS / name).read_text(encoding="utf-8")
    for package, machine in (("tensorflow", "aarch64"), ("tensorflow-cpu", "x86_64")):
        line = re.search(rf"^{package}==.*$", text, re.MULTILINE)
        assert line
        assert re.findall("platform_machine == '([^']+)'", line[0]) == [machine]


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_torch_is_the_official_cpu_wheel_of_both_machines(cell: dict[str, str]) -> None:
    tag = "cp" + cell["python"].replace(".", "")
    official = {f"sha256:{TORCH['sha256'][f'{tag}-{tag}-{machine}']}" for machine in ("x86_64", "aarch64")}
    assert set(entries(f"{cell['python']}-tf{cell['tensorflow']}.txt")["torch"][1]) == official


@pytest.mark.parametrize("name", NAMES)
def test_what_portproof_torch_and_pytest_need_is_there(name: str) -> None:
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["test"], *TORCH["requires"]]
    assert requirement_names(wanted) <= entries(name).keys()


def test_what_builds_the_image_is_locked() -> None:
    wanted = [*PYPROJECT["build-system"]["requires"], *PYPROJECT["dependency-groups"]["image"]]
    assert requirement_names(wanted) <= entries("build.txt").keys()


def test_entries_are_sorted_so_that_a_second_run_writes_the_same(lock_py: ModuleType) -> None:
    for name in NAMES:
        text = (LOCKS / name).read_text(encoding="utf-8")
        found = lock_py.split(text)
        assert text == text.partition("\n")[0] + "\n" + "".join(sorted(found))


def test_a_cell_that_torchs_wheels_do_not_fit_is_refused(lock_py: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"has the wheels of torch 2\.13\.0\+cpu, cells\.toml asks for 2\.14\.0"):
        lock_py.cell_lock({**CELLS[0], "torch": "2.14.0"}, PYPROJECT, TORCH)
