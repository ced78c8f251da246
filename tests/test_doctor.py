"""Tests of the doctor: each thing that can be wrong is found, with its fix, from facts alone; and probes end well."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from portproof import cpu, diagnosis, doctor
from portproof.diagnosis import Machine, Probe, Problem, Severity
from portproof.errors import SetupError
from portproof.report.doctor import render

HEALTHY = Machine(
    environment={
        "platform": {"system": "Linux", "release": "6.1", "machine": "x86_64", "libc": "glibc 2.36"},
        "cpu": {"model": "AMD EPYC", "instruction_sets": ["avx", "avx2"], "cores": 2, "usable_cores": 2},
        "accelerators": [],
        "threads": {},
        "numerics": {},
    },
    variables={},
    memory=16 * diagnosis.GIB,
    temporary="/tmp",
    temporary_free=100 * diagnosis.GIB,
)
PACKAGES = {"torch": "2.13.0+cpu", "tensorflow-cpu": "2.19.1", "keras": "3.15.1", "numpy": "2.1.3"}
TORCH = Probe("torch", "python", "3.11.7", PACKAGES, version="2.13.0+cpu", build="cpu", file="/sp/torch/__init__.py")
TENSORFLOW = Probe(
    "tensorflow", "python", "3.11.7", PACKAGES, version="2.19.1", build="cpu", file="/sp/tensorflow/__init__.py"
)


def problems(machine: Machine = HEALTHY, torch: Probe = TORCH, tensorflow: Probe = TENSORFLOW) -> tuple[Problem, ...]:
    return diagnosis.judge(machine, (torch, tensorflow))


def with_packages(one: Probe, **versions: str) -> Probe:
    return replace(one, distributions={**one.distributions, **{k.replace("_", "-"): v for k, v in versions.items()}})


def test_nothing_is_wrong_with_a_healthy_environment() -> None:
    assert problems() == ()


MACHINE_CASES = [
    (
        {"environment": HEALTHY.environment | {"cpu": HEALTHY.environment["cpu"] | {"instruction_sets": []}}},
        "error",
        "no AVX",
    ),
    ({"memory": diagnosis.GIB}, "warning", "1.0 GiB of memory left"),
    ({"temporary": None}, "error", "no folder for temporary files"),
    ({"temporary_free": 2**20}, "warning", "/tmp has 0.0 GiB left"),
    ({"variables": {"KERAS_BACKEND": "jax"}}, "warning", "KERAS_BACKEND sets Keras on jax"),
    ({"keras_config": {"backend": "torch"}}, "warning", "keras.json sets Keras on torch"),
    ({"keras_config": {"floatx": "bfloat16"}}, "warning", "floatx to bfloat16"),
    ({"keras_config": {"image_data_format": "channels_first"}}, "warning", "channels_first"),
    ({"variables": {"TF_ENABLE_ONEDNN_OPTS": "0"}}, "warning", "no gradient for grouped convolutions"),
    ({"variables": {"TF_USE_LEGACY_KERAS": "1"}}, "error", "tf_keras is not installed"),
    *[({"variables": {name: "X"}}, "warning", f"{name}=X") for name in diagnosis.NUMERICS_ADVICE],
]


@pytest.mark.parametrize(("change", "severity", "summary"), MACHINE_CASES)
def test_what_is_wrong_with_the_machine_is_found(change: dict[str, Any], severity: str, summary: str) -> None:
    (found,) = problems(replace(HEALTHY, **change))
    assert found.severity == severity
    assert summary in found.summary
    assert found.fix
    assert "\n" not in found.fix


PROBE_CASES = [
    (replace(TORCH, error="ModuleNotFoundError: No module named 'torch'"), "error", "PyTorch is not installed"),
    (replace(TORCH, build="cuda 13.0", version="2.13.0+cu130"), "warning", "is a cuda 13.0 build"),
    (with_packages(TORCH, torch="2.2.2"), "error", "torch 2.2.2 was built for NumPy 1"),
    (replace(TORCH, accelerators=("cuda:0",)), "error", "PyTorch sees cuda:0"),
    (replace(TORCH, compiled=False, seconds=12.0), "warning", "compiles it anew (12 s)"),
    (replace(TORCH, python="3.10.13"), "error", "portproof needs 3.11"),
    (replace(TORCH, error="OSError: libgomp.so.1: cannot open"), "error", "cannot be imported in python: OSError"),
    (replace(TENSORFLOW, error="ModuleNotFoundError: No module named 'tensorflow'"), "error", "is not installed"),
    (replace(TENSORFLOW, error="the process was killed by SIGILL"), "error", "illegal instruction"),
    (with_packages(TENSORFLOW, tensorflow="2.19.1"), "warning", "share one folder"),
    (with_packages(TENSORFLOW, keras="2.15.0"), "error", "does not work with Keras 2.15.0"),
    (with_packages(TENSORFLOW, tensorflow_cpu="2.15.1", numpy="1.26.4"), "error", "does not work with Keras 3.15.1"),
    (with_packages(TENSORFLOW, tensorflow_cpu="2.17.1"), "error", "does not work with NumPy 2.1.3"),
    (
        with_packages(TENSORFLOW, tensorflow_cpu="2.14.0", keras="2.14.0", numpy="1.26.4"),
        "warning",
        "outside the matrix (tried there: 2.15 to 2.21)",
    ),
    (replace(TENSORFLOW, python="3.13.0"), "warning", "outside the matrix (tried there: 2.20 to 2.21)"),
    (replace(TENSORFLOW, python="3.14.0"), "warning", "no TensorFlow is tried there"),
]


@pytest.mark.parametrize(("one", "severity", "summary"), PROBE_CASES)
def test_what_is_wrong_with_a_framework_is_found(one: Probe, severity: str, summary: str) -> None:
    (found,) = problems(torch=one) if one.framework == "torch" else problems(tensorflow=one)
    assert found.severity == severity
    assert summary in found.summary
    assert found.fix
    assert "\n" not in found.fix


def test_a_cause_that_is_known_replaces_the_import_error_it_leads_to() -> None:
    failed = replace(TENSORFLOW, error="ImportError: Keras cannot be imported. Check that it is installed.")
    (found,) = problems(replace(HEALTHY, variables={"TF_USE_LEGACY_KERAS": "1"}), tensorflow=failed)
    assert "tf_keras" in found.summary


def test_the_fix_uses_uv_where_there_is_no_pip() -> None:
    (found,) = problems(tensorflow=replace(with_packages(TENSORFLOW, keras="2.15.0"), has_pip=False))
    assert found.fix == "uv pip install -p python 'keras>=3.5'"


def test_arm_needs_no_avx() -> None:
    arm = HEALTHY.environment | {"platform": HEALTHY.environment["platform"] | {"machine": "aarch64"}}
    arm["cpu"] = HEALTHY.environment["cpu"] | {"instruction_sets": ["asimd"]}
    assert problems(replace(HEALTHY, environment=arm)) == ()


def test_errors_come_first_and_decide_the_exit_code() -> None:
    found = problems(replace(HEALTHY, memory=0), torch=replace(TORCH, error="OSError: broken"))
    assert [problem.severity for problem in found] == [Severity.ERROR, Severity.WARNING]
    assert diagnosis.Diagnosis((), found).exit_code == 2
    assert diagnosis.Diagnosis((), found[1:]).exit_code == 0


def test_a_container_limit_counts_against_memory(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n")
    assert doctor._available_memory(root=tmp_path) == 4 * diagnosis.GIB
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.max").write_text(f"{diagnosis.GIB}\n")
    (cgroup / "memory.current").write_text(f"{diagnosis.GIB // 4}\n")
    assert doctor._available_memory(root=tmp_path) == diagnosis.GIB * 3 // 4
    (cgroup / "memory.max").write_text("max\n")
    assert doctor._available_memory(root=tmp_path) == 4 * diagnosis.GIB


def test_every_fix_reaches_the_terminal_whole() -> None:
    found = problems(torch=replace(TORCH, build="cuda 13.0", version="2.13.0+cu130"))
    output = io.StringIO()
    render(diagnosis.Diagnosis((), found), Console(file=output, width=60), quiet=True)
    assert found[0].fix in output.getvalue()
    assert output.getvalue().splitlines()[-1] == "Ready to judge: 1 warning"


# Probes, in real processes. A folder with a stand-in takes the place of an installed framework.


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_framework_that_is_missing(stand_in: Path) -> None:
    (stand_in / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    one = doctor.probe("torch", sys.executable)
    assert one.error == "ModuleNotFoundError: No module named 'torch'"
    assert one.python == ".".join(map(str, sys.version_info[:3]))


def test_a_framework_whose_import_kills_the_process(stand_in: Path) -> None:
    (stand_in / "tensorflow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    one = doctor.probe("tensorflow", sys.executable)
    assert one.error == "the process was killed by SIGILL"


def test_a_framework_that_exits_or_hangs(stand_in: Path) -> None:
    (stand_in / "torch.py").write_text("import os\nos._exit(3)\n")
    assert doctor.probe("torch", sys.executable).error.startswith("the process ended with code 3")
    (stand_in / "torch.py").write_text("import time\ntime.sleep(60)\n")
    assert doctor.probe("torch", sys.executable, timeout=0.5).error == "no answer within 0.5 s"


def test_a_framework_is_imported_with_accelerators_hidden(stand_in: Path) -> None:
    (stand_in / "torch.py").write_text("import os\nraise RuntimeError(os.environ['CUDA_VISIBLE_DEVICES'])\n")
    assert doctor.probe("torch", sys.executable).error == "RuntimeError: -1"


def test_a_file_in_the_working_directory_does_not_pass_for_a_framework(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('the wrong torch')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # -S leaves site-packages out, so that the answer does not depend on what is installed.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    assert doctor.probe("torch", str(bare)).error == "ModuleNotFoundError: No module named 'torch'"


@pytest.mark.parametrize("interpreter", ["/no/such/python", "."])
def test_an_interpreter_that_is_none(interpreter: str) -> None:
    with pytest.raises(SetupError, match="Python executable"):
        doctor.probe("torch", interpreter)


@pytest.mark.torch
@pytest.mark.tensorflow
def test_the_real_frameworks_answer(capsys: pytest.CaptureFixture[str]) -> None:
    installed = cpu.installed_distributions()
    if "torch" not in installed or not {"tensorflow", "tensorflow-cpu"} & installed.keys():
        pytest.skip("needs torch and TensorFlow")
    code = doctor.run(as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "portproof.doctor/1"
    assert code == 0, answer["problems"]
    assert answer["healthy"] is True
    for framework in ("PyTorch", "TensorFlow"):
        assert answer["facts"][framework]["accelerators seen"] == "none"
        assert answer["facts"][framework]["threads in a worker"].startswith("1 intra-op")
