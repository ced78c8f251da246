"""Cells elsewhere: the GitHub workflow and the Kubernetes manifests, as far as text can be checked without either."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
KUBERNETES = ROOT / "docker" / "kubernetes"
CELLS = tomllib.loads((ROOT / "src/portproof/cells.toml").read_text(encoding="utf-8"))["cells"]


def test_actions_are_pinned_by_commit_with_their_version_beside() -> None:
    used = re.findall(r"uses: (.+)", WORKFLOW)
    assert len(used) >= 8
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one
    assert len({(one.partition("@")[0], one) for one in used}) == len({one.partition("@")[0] for one in used})


def test_the_workflow_may_read_and_nothing_else() -> None:
    assert re.findall(r"permissions:\n((?:  .+\n)+)", WORKFLOW) == ["  contents: read\n"]
    assert WORKFLOW.count("persist-credentials: false") == WORKFLOW.count("actions/checkout@")


def test_the_cells_come_from_nox_and_all_of_them_run_to_their_end() -> None:
    assert "nox --json -l -t parity" in WORKFLOW
    assert "fail-fast: false" in WORKFLOW
    assert "fromJSON(needs.cells.outputs.cells)" in WORKFLOW
    assert not re.search(r"2\.\d\d\.\d", WORKFLOW)  # no TensorFlow is named here: cells.toml has them


def test_the_gate_needs_every_other_job() -> None:
    jobs = re.findall(r"^  (\w+):\n    ", WORKFLOW.partition("\njobs:\n")[2], re.MULTILINE)
    needs = re.search(r"  gate:\n(?:    .+\n)*?    needs: \[(.+)\]", WORKFLOW)
    assert needs
    assert {*needs[1].split(", "), "gate"} == set(jobs)


def test_continuous_integration_runs_every_python_and_every_tensorflow() -> None:
    (line,) = re.findall(r"--cells (\S+)", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    cells = {f"{cell['python']}-tf{cell['tensorflow']}": cell for cell in CELLS}
    chosen = [cells[name] for name in line.split(",")]
    for key in ("python", "tensorflow"):
        assert {cell[key] for cell in chosen} == {cell[key] for cell in CELLS}


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("portproof_kubernetes", KUBERNETES / "job.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manifest_is_what_the_table_gives(job: ModuleType) -> None:
    assert job.manifest(CELLS) == (KUBERNETES / "matrix-job.yaml").read_text(encoding="utf-8")


def test_every_index_is_one_cell_with_its_own_image(job: ModuleType) -> None:
    text = job.manifest(CELLS, "registry.example/team/")
    rows = re.findall(r"image: (\S+)\n +command: .+\n +args: \['\[ \"\$JOB_COMPLETION_INDEX\" = (\d+) \]", text)
    assert rows == [
        (f"registry.example/team/portproof:{cell['python']}-tf{cell['tensorflow']}", str(index))
        for index, cell in enumerate(CELLS)
    ]
    assert "completionMode: Indexed" in text
    assert f"completions: {len(CELLS)}\n" in text


@pytest.mark.parametrize("name", ["matrix-job.yaml", "gather-job.yaml"])
def test_pods_are_hardened_as_the_compose_file_has_it(name: str) -> None:
    text = (KUBERNETES / name).read_text(encoding="utf-8")
    for wanted in (
        "runAsNonRoot: true",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "capabilities: {drop: [ALL]}",
        "seccompProfile: {type: RuntimeDefault}",
        "automountServiceAccountToken: false",
        "limits: {",
    ):
        assert wanted in text


def test_some_cells_can_be_printed_for_a_registry_and_unknown_ones_are_refused() -> None:
    command = [sys.executable, str(KUBERNETES / "job.py"), "--registry", "r.example", "--cells"]
    good = subprocess.run([*command, "3.13-tf2.21.0"], capture_output=True, text=True, check=True)
    assert "completions: 1\n" in good.stdout
    assert good.stdout.count("image: r.example/portproof:3.13-tf2.21.0") == 2
    bad = subprocess.run([*command, "3.9-tf1"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "no such cell: 3.9-tf1" in bad.stderr
