"""The diagnosis of an environment: what was found, and the rules for what is wrong with it and how to mend it.

`judge` is a pure function of what `portproof.doctor` has gathered.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof import cpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
AVX_FIX = "use a CPU with AVX, or let the virtual machine pass it through (QEMU: -cpu host)"

GIB = 2**30
MEMORY_NEEDED = 2 * GIB  # both workers at once, models included, stay below 1.5 GiB resident
TEMPORARY_NEEDED = GIB // 2  # traces of both sides in float32 and float64, and room to write them whole

NUMERICS_ADVICE = {
    "ATEN_CPU_CAPABILITY": "chooses torch's kernels",
    "DNNL_DEFAULT_FPMATH_MODE": "lets oneDNN round float32 operands to bfloat16 or TF32",
    "DNNL_MAX_CPU_ISA": "limits oneDNN's instruction sets, in both frameworks",
    "MKL_CBWR": "chooses MKL's code path in torch",
    "MKL_DEBUG_CPU_TYPE": "chooses MKL's code path in torch",
    "MKL_ENABLE_INSTRUCTIONS": "limits MKL's instruction sets in torch",
    "NPY_DISABLE_CPU_FEATURES": "limits NumPy's instruction sets",
    "ONEDNN_DEFAULT_FPMATH_MODE": "lets oneDNN round float32 operands to bfloat16 or TF32",
    "ONEDNN_MAX_CPU_ISA": "limits oneDNN's instruction sets, in both frameworks",
    "OPENBLAS_CORETYPE": "chooses OpenBLAS's kernels in NumPy",
    "TF_DETERMINISTIC_OPS": "makes TensorFlow refuse random operations without a seed",
    "TF_DISABLE_MKL": "takes oneDNN out of TensorFlow",
    "TF_SET_ONEDNN_FPMATH_MODE": "lets TensorFlow round float32 operands to bfloat16",
    "TF_XLA_FLAGS": "may compile TensorFlow's graphs by XLA, which fuses and reorders",
    "XLA_FLAGS": "changes what XLA makes of a graph",
}
"""Variables that make this run incomparable, to the bit, with one that does not set them."""


class Severity(StrEnum):
    """How bad a problem is: an error prevents judging, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and the one line that repairs it."""

    severity: Severity
    summary: str
    fix: str


@dataclass(frozen=True)
class Group:
    """Facts that belong together, in the order in which they are shown."""

    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Machine:
    """What was found out about this machine without asking a framework."""

    environment: Mapping[str, Any]
    """As ``cpu.describe_environment`` gives it."""
    variables: Mapping[str, str]
    """The process's environment variables."""
    memory: int | None
    """Bytes that a new process may still take, the container's limit included; None where the system does not say."""
    temporary: str | None
    """The folder for temporary files; None where none can be written to."""
    temporary_free: int
    """Bytes free there."""
    keras_config: Mapping[str, Any] = field(default_factory=dict)
    """What keras.json sets."""


@dataclass(frozen=True)
class Probe:
    """What one framework said of itself, in the chosen interpreter, isolated as a worker is."""

    framework: str
    interpreter: str
    python: str = ""
    distributions: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    build: str = ""
    keras: str = ""
    accelerators: tuple[str, ...] = ()
    threads: str = ""
    kernels: str = ""
    compiled: bool = True
    file: str = ""
    seconds: float = 0.0
    has_pip: bool = True
    error: str = ""
    """Why the import failed; empty where it did not."""

    @property
    def name(self) -> str:
        """The framework's name as people write it."""
        return "PyTorch" if self.framework == "torch" else "TensorFlow"

    def pip(self, command: str, *arguments: str) -> str:
        """The line that changes this interpreter's packages; environments that uv makes hold no pip."""
        installer = (
            f"{self.interpreter} -m pip {command}" if self.has_pip else f"uv pip {command} -p {self.interpreter}"
        )
        return " ".join((installer, *arguments))


@dataclass(frozen=True)
class Diagnosis:
    """Facts in groups, and the problems found in them, errors first."""

    groups: tuple[Group, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """0 healthy, warnings allowed; 2 where something prevents judging."""
        return 2 if any(problem.severity is Severity.ERROR for problem in self.problems) else 0

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "schema": "portproof.doctor/1",
            "healthy": self.exit_code == 0,
            "facts": {group.title: dict(group.facts) for group in self.groups},
            "problems": [asdict(problem) for problem in self.problems],
        }


def matrix() -> list[dict[str, str]]:
    """The cells that are promised to work, from cells.toml."""
    cells: list[dict[str, str]] = tomllib.loads(
        resources.files("portproof").joinpath("cells.toml").read_text(encoding="utf-8")
    )["cells"]
    return cells


def judge(machine: Machine, probes: tuple[Probe, ...]) -> tuple[Problem, ...]:
    """Everything that is wrong, errors first. Looks at nothing but its arguments and the matrix."""
    problems = list(_machine_problems(machine))
    for one in probes:
        found = [*_probe_problems(one)]
        found += _torch_problems(one) if one.framework == "torch" else _tensorflow_problems(one, machine.variables)
        if one.error and not any(problem.severity is Severity.ERROR for problem in found):
            found.append(_unexplained(one))
        problems += found
    problems += _variable_problems(machine)
    # Two probes of one interpreter find the same twice.
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: problem.severity is not Severity.ERROR))


def _machine_problems(machine: Machine) -> Iterator[Problem]:
    description = machine.environment["cpu"]
    if cpu.is_x86(machine.environment["platform"]["machine"]) and "avx" not in description["instruction_sets"]:
        yield Problem(
            Severity.ERROR,
            f"{description['model']} has no AVX: TensorFlow's wheels die of an illegal instruction",
            AVX_FIX,
        )
    if machine.memory is not None and machine.memory < MEMORY_NEEDED:
        yield Problem(
            Severity.WARNING,
            f"{_gib(machine.memory)} of memory left: both workers together may need {_gib(MEMORY_NEEDED)}",
            "close other programs or raise the container's memory limit",
        )
    if machine.temporary is None:
        yield Problem(
            Severity.ERROR, "no folder for temporary files can be written to", "export TMPDIR=<a folder with room>"
        )
    elif machine.temporary_free < TEMPORARY_NEEDED:
        yield Problem(
            Severity.WARNING,
            f"{machine.temporary} has {_gib(machine.temporary_free)} left; traces may need {_gib(TEMPORARY_NEEDED)}",
            "free some space there, or export TMPDIR=<a folder with room>",
        )


def _probe_problems(one: Probe) -> Iterator[Problem]:
    """What can be wrong with either framework."""
    if one.python and _numbers(one.python) < (3, 11):
        yield Problem(
            Severity.ERROR,
            f"{one.interpreter} is Python {one.python}: portproof needs 3.11 or later",
            f"choose another interpreter with --{one.framework}-python",
        )
    if f"No module named '{one.framework}'" in one.error:
        what = f"torch --index-url {TORCH_INDEX}" if one.framework == "torch" else "tensorflow-cpu"
        yield Problem(Severity.ERROR, f"{one.name} is not installed in {one.interpreter}", one.pip("install", what))
    elif "SIGILL" in one.error:
        yield Problem(
            Severity.ERROR,
            f"{one.name} died of an illegal instruction: its wheel needs instruction sets that this CPU lacks",
            AVX_FIX,
        )
    if one.accelerators:
        yield Problem(
            Severity.ERROR,
            f"{one.name} sees {', '.join(one.accelerators)} although accelerators are hidden",
            f"uninstall the plug-in that brings the device, or choose another --{one.framework}-python",
        )
    if not one.compiled:
        yield Problem(
            Severity.WARNING,
            f"{one.name} has no bytecode files, so that each import compiles it anew ({one.seconds:.0f} s)",
            f"{one.interpreter} -m compileall -q {Path(one.file).parent.parent}",
        )


def _unexplained(one: Probe) -> Problem:
    return Problem(
        Severity.ERROR,
        f"{one.name} cannot be imported in {one.interpreter}: {one.error}",
        f"see the whole traceback: {one.interpreter} -c 'import {one.framework}'",
    )


def _torch_problems(one: Probe) -> Iterator[Problem]:
    torch, numpy = one.distributions.get("torch", ""), one.distributions.get("numpy", "")
    if torch and _numbers(torch) < (2, 3) and _numbers(numpy) >= (2,):
        yield Problem(
            Severity.ERROR,
            f"torch {torch} was built for NumPy 1 and cannot exchange arrays with NumPy {numpy}",
            one.pip("install", "'numpy<2'") + ", or a torch from 2.3 on",
        )
    if one.build not in {"", "cpu"}:
        version = one.version.partition("+")[0]
        yield Problem(
            Severity.WARNING,
            f"torch {one.version} is a {one.build} build: it runs on the CPU, but is some 3.7 GB larger",
            one.pip("install", f"--force-reinstall --no-deps torch=={version} --index-url {TORCH_INDEX}"),
        )


def _tensorflow_problems(one: Probe, variables: Mapping[str, str]) -> Iterator[Problem]:
    installed = one.distributions
    keras, numpy = installed.get("keras", ""), installed.get("numpy", "")
    version = installed.get("tensorflow-cpu") or installed.get("tensorflow") or ""
    if not version:
        return
    release = _numbers(version)[:2]
    if {"tensorflow", "tensorflow-cpu"} <= installed.keys():
        yield Problem(
            Severity.WARNING,
            f"tensorflow {installed['tensorflow']} and tensorflow-cpu {installed['tensorflow-cpu']} share one folder: "
            "what is imported is a mixture",
            f"{one.pip('uninstall', 'tensorflow tensorflow-cpu')}; {one.pip('install', f'tensorflow-cpu=={version}')}",
        )
    if keras and (release >= (2, 16)) != (_numbers(keras) >= (3,)):
        wanted = "'keras>=3.5'" if release >= (2, 16) else "'keras<2.16'"
        yield Problem(
            Severity.ERROR, f"TensorFlow {version} does not work with Keras {keras}", one.pip("install", wanted)
        )
    if numpy and release < (2, 18) and _numbers(numpy) >= (2,):
        yield Problem(
            Severity.ERROR,
            f"TensorFlow {version} was built for NumPy 1 and does not work with NumPy {numpy}",
            one.pip("install", "'numpy<2'") + ", or a TensorFlow from 2.18 on",
        )
    legacy = variables.get("TF_USE_LEGACY_KERAS", "").lower() in {"1", "true"}
    if legacy and release >= (2, 16) and "tf-keras" not in installed:
        yield Problem(
            Severity.ERROR,
            "TF_USE_LEGACY_KERAS is set, but tf_keras is not installed",
            f"unset TF_USE_LEGACY_KERAS, or {one.pip('install', f'tf_keras=={release[0]}.{release[1]}.*')}",
        )
    python = ".".join(one.python.split(".")[:2])
    tried = sorted({_numbers(cell["tensorflow"])[:2] for cell in matrix() if cell["python"] == python})
    if release not in tried:
        known = f"tried there: {_range(tried)}" if tried else "no TensorFlow is tried there"
        yield Problem(
            Severity.WARNING,
            f"TensorFlow {version} on Python {python} is outside the matrix ({known})",
            one.pip("install", f"tensorflow-cpu=={_newest(python)}") if tried else "use Python 3.11, 3.12 or 3.13",
        )


def _variable_problems(machine: Machine) -> Iterator[Problem]:
    variables, config = machine.variables, machine.keras_config
    backend = variables.get("KERAS_BACKEND", config.get("backend", "tensorflow"))
    if backend != "tensorflow":
        where = "KERAS_BACKEND" if "KERAS_BACKEND" in variables else "keras.json"
        yield Problem(
            Severity.WARNING,
            f"{where} sets Keras on {backend}: portproof's workers use tensorflow regardless",
            "unset KERAS_BACKEND" if where == "KERAS_BACKEND" else 'set "backend": "tensorflow" in keras.json',
        )
    for setting, usual in (("floatx", "float32"), ("image_data_format", "channels_last")):
        if config.get(setting, usual) != usual:
            yield Problem(
                Severity.WARNING,
                f"keras.json sets {setting} to {config[setting]}: layers are built with it unless they say otherwise",
                f'set "{setting}": "{usual}" in keras.json',
            )
    # 1 is the default on x86; 0 also takes away gradients of grouped convolutions.
    if variables.get("TF_ENABLE_ONEDNN_OPTS", "1") != "1":
        yield Problem(
            Severity.WARNING,
            f"TF_ENABLE_ONEDNN_OPTS={variables['TF_ENABLE_ONEDNN_OPTS']} changes results in the last bits, and without "
            "oneDNN TensorFlow has no gradient for grouped convolutions on the CPU",
            "unset TF_ENABLE_ONEDNN_OPTS",
        )
    for name, effect in NUMERICS_ADVICE.items():
        if name in variables:
            yield Problem(
                Severity.WARNING,
                f"{name}={variables[name]} {effect}: results differ in the last bits from a run without it",
                f"unset {name}",
            )


def _numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as (2, 13, 0); an empty version as (0,)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])) or (0,)


def _range(releases: list[tuple[int, ...]]) -> str:
    first, last = (".".join(map(str, release)) for release in (releases[0], releases[-1]))
    return first if first == last else f"{first} to {last}"


def _newest(python: str) -> str:
    """The newest TensorFlow that the matrix has for this Python."""
    return max((cell["tensorflow"] for cell in matrix() if cell["python"] == python), key=_numbers)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def groups(machine: Machine, probes: tuple[Probe, ...]) -> tuple[Group, ...]:
    """What was found, in groups, for a person to read."""
    described = machine.environment
    description = described["cpu"]
    hidden = described["accelerators"]
    temporary = f"{machine.temporary}, {_gib(machine.temporary_free)} free" if machine.temporary else "none"
    host = {
        "system": " ".join(described["platform"].values()),
        "CPU": f"{description['model']}, {description['usable_cores']} of {description['cores']} cores usable",
        "instruction sets": " ".join(description["instruction_sets"]) or "unknown",
        "memory available": _gib(machine.memory) if machine.memory is not None else "unknown",
        "temporary files": temporary,
        "GPUs": f"{', '.join(hidden)}; present, hidden from the workers" if hidden else "none",
    }
    variables = described["threads"] | described["numerics"]
    set_here = {name: str(value) for name, value in variables.items()} or {
        "set": "none that changes threads or numbers"
    }
    return (
        Group("Machine", host),
        *(Group(one.name, _framework_facts(one)) for one in probes),
        Group("Environment variables", set_here),
    )


def _framework_facts(one: Probe) -> dict[str, str]:
    facts = {"interpreter": f"{one.interpreter} (Python {one.python or 'unknown'})"}
    if one.error:
        facts["import"] = f"failed: {one.error}"
    else:
        facts |= {
            "version": f"{one.version}, {one.build} build",
            "import": f"{one.seconds:.1f} s",
            "accelerators seen": ", ".join(one.accelerators) or "none",
            "threads in a worker": one.threads,
            "kernels": one.kernels,
        }
        if one.keras:
            facts["Keras"] = one.keras
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in one.distributions.items()) or "none"
    return facts
