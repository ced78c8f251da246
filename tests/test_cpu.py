"""Tests of CPU isolation: what is hidden and pinned, when it is refused, and that a description repeats itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from portproof import cpu
from portproof.errors import SetupError

AMD_CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
stepping\t: 1
flags\t\t: fpu sse2 sse4_1 sse4_2 fma avx avx2 f16c avx512f avx512_bf16 amx_tile smep sme

processor\t: 1
model name\t: another core that is never read
flags\t\t: avx10
"""

GRAVITON_CPUINFO = """\
processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process: other tests of this run may have imported a framework."""
    monkeypatch.setattr(cpu, "FRAMEWORKS", ())


@pytest.mark.usefixtures("nothing_loaded")
def test_isolate_hides_every_accelerator_and_pins_every_pool() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "64", "KERAS_BACKEND": "torch"}
    cpu.isolate(2, environ=environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == environ["HIP_VISIBLE_DEVICES"] == environ["ROCR_VISIBLE_DEVICES"] == "-1"
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == environ["TF_NUM_INTRAOP_THREADS"] == "2"
    assert environ["TF_NUM_INTEROP_THREADS"] == "1"
    assert environ["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.usefixtures("nothing_loaded")
def test_isolate_leaves_alone_what_changes_numbers_and_what_a_user_made_louder() -> None:
    user = {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "0"}
    environ = dict(user)
    cpu.isolate(environ=environ)
    assert {name: environ[name] for name in user} == user


@pytest.mark.parametrize("framework", cpu.FRAMEWORKS)
def test_isolate_refuses_when_a_framework_came_first(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in cpu.FRAMEWORKS:
        monkeypatch.delitem(sys.modules, other, raising=False)
    monkeypatch.setitem(sys.modules, framework, types.ModuleType(framework))
    environ: dict[str, str] = {}
    with pytest.raises(SetupError, match=f"{framework} was imported before"):
        cpu.isolate(environ=environ)
    assert environ == {}


@pytest.mark.parametrize("threads", [0, -1])
def test_no_thread_at_all_is_refused(threads: int) -> None:
    with pytest.raises(SetupError, match="at least one thread"):
        cpu.isolation(threads)


def test_worker_environment_keeps_the_rest_and_copies() -> None:
    base = {"PATH": "/bin", "PYTHONHASHSEED": "random"}
    environment = cpu.worker_environment(base=base)
    assert environment["PATH"] == "/bin"
    assert environment["PYTHONHASHSEED"] == "0"
    assert base == {"PATH": "/bin", "PYTHONHASHSEED": "random"}


def test_importing_it_loads_neither_numpy_nor_a_framework() -> None:
    code = "import sys, portproof.cpu; print(sorted({'numpy', 'torch', 'tensorflow', 'keras'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_description_is_json_and_repeats_itself_in_another_process() -> None:
    code = "import json; from portproof import cpu; print(json.dumps(cpu.describe_environment(), sort_keys=True))"
    environment = dict(os.environ)
    answers = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    described = json.loads(answers[0])
    assert described["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert described["cpu"]["cores"] == os.cpu_count()


def test_description_takes_less_than_30_ms() -> None:
    cpu.describe_environment()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        cpu.describe_environment()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.030


def test_description_holds_the_variables_that_matter_and_no_secret() -> None:
    environ = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
        "KMP_AFFINITY": "compact",
        "TF_TOKEN_example_com": "secret",
        "MKL_THREADING_LAYER": "GNU",
    }
    described = cpu.describe_environment(environ=environ)
    assert described["numerics"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert described["threads"] == {"KMP_AFFINITY": "compact", "MKL_THREADING_LAYER": "GNU", "OMP_NUM_THREADS": "1"}
    assert "secret" not in json.dumps(described)


def test_x86_flags_and_model(tmp_path: Path) -> None:
    described = cpu.describe_cpu(root=_machine(tmp_path, {"proc/cpuinfo": AMD_CPUINFO}), machine="x86_64")
    assert described["model"] == "AMD EPYC 9R14 (cpu family 25, model 17, stepping 1)"
    assert described["instruction_sets"] == [
        "amx_tile", "avx", "avx2", "avx512_bf16", "avx512f", "f16c", "fma", "sse4_1", "sse4_2",
    ]  # fmt: skip


def test_arm_flags_and_model(tmp_path: Path) -> None:
    described = cpu.describe_cpu(root=_machine(tmp_path, {"proc/cpuinfo": GRAVITON_CPUINFO}), machine="aarch64")
    assert described["model"] == "implementer 0x41 part 0xd40"
    assert described["instruction_sets"] == ["asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        (
            {
                "proc/driver/nvidia/gpus/0000:00:1e.0/information": "Model: \t\t Tesla T4\nIRQ: 33\n",
                "dev/nvidia0": "",
                "sys/class/drm/card0/device/vendor": "0x10de\n",
            },
            ["NVIDIA Tesla T4"],  # once, though three places show it
        ),
        (
            {"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": ""},
            ["NVIDIA GPU (/dev/nvidia0)", "NVIDIA GPU (/dev/nvidia1)"],
        ),
        ({"sys/class/drm/card1/device/vendor": "0x1002\n", "dev/kfd": ""}, ["AMD GPU (/dev/dri/card1)"]),
        ({"dev/kfd": ""}, ["AMD GPU (/dev/kfd)"]),
        ({"sys/class/drm/card0/device/vendor": "0x1af4\n"}, []),  # virtio: a virtual display, nothing computes on it
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has a GPU whatever the files say")
def test_accelerators_are_found_without_a_vendor_tool(
    files: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    assert cpu.accelerators(root=_machine(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("version", "version_py", "build"),
    [
        ("2.13.0+cpu", "cuda: Optional[str] = None\nhip: Optional[str] = None\n", "cpu"),
        ("2.13.0", "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "cuda 13.0"),
        ("2.13.0", "cuda: Optional[str] = None\nhip: Optional[str] = '6.4.1'\n", "rocm 6.4.1"),
        ("2.2.2", "cuda = '12.1'\nhip = None\n", "cuda 12.1"),
        ("2.13.0+cu126", None, "cu126"),
        ("2.13.0", None, "unknown"),
    ],
)
def test_torch_build_is_read_without_importing_torch(
    version: str, version_py: str | None, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"torch-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"}
    if version_py is not None:
        files["torch/version.py"] = version_py
    monkeypatch.syspath_prepend(str(_machine(tmp_path, files)))
    assert cpu.torch_build() == build
    assert cpu.installed_distributions()["torch"] == version


def _machine(root: Path, files: dict[str, str]) -> Path:
    """A directory that holds ``files``, standing for a machine's root or a site-packages."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
