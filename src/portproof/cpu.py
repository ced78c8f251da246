"""Keeps a process on the CPU: accelerators hidden and threads pinned before a framework is imported; what CPU it is.

Imports neither a framework nor NumPy, so that it can run first. Whether the framework really sees no accelerator is
asserted after its import, in the module that imports it.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

FRAMEWORKS = ("torch", "tensorflow", "jax")

HIDDEN_ACCELERATORS = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    "GPU_DEVICE_ORDINAL": "-1",  # OpenCL and HIP through ROCclr
    "ONEAPI_DEVICE_SELECTOR": "*:cpu",  # SYCL, on which torch.xpu stands
    "JAX_PLATFORMS": "cpu",
    # No variable hides Metal. A factory that asks for "mps" shall fail rather than run half of its operations there.
    "PYTORCH_ENABLE_MPS_FALLBACK": "0",
}
"""Variables that take every accelerator out of sight. They always win over what the user has set."""

_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)

_FIXED_THREADS = {
    "TF_NUM_INTEROP_THREADS": "1",  # the order in which independent operations run
    "OMP_DYNAMIC": "FALSE",  # else the runtime may use fewer threads under load, and reductions split elsewhere
    "MKL_DYNAMIC": "FALSE",
}

_KERAS_ON_TENSORFLOW = {"KERAS_BACKEND": "tensorflow"}  # Keras 3 reads it once, at its import

# TF_DETERMINISTIC_OPS is left alone: it makes every unseeded random operation raise, dropout in a user's port included,
# and on the CPU a fixed number of threads is what makes a run repeat itself.

_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "AUTOGRAPH_VERBOSITY": "0",
    "GRPC_VERBOSITY": "ERROR",
    "KMP_WARNINGS": "FALSE",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Defaults only: who debugs a framework sets these louder."""

NUMERICS_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "KERAS_BACKEND",
    "LD_PRELOAD",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "PYTHONHASHSEED",
    "PYTHONOPTIMIZE",
    "TF_DETERMINISTIC_OPS",
    "TF_DISABLE_MKL",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_USE_LEGACY_KERAS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)
"""Variables that can change bits. They are recorded, never changed: the run is the user's, on the user's terms."""

_THREAD_VARIABLE = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR|TF)_\w*(THREAD|DYNAMIC|AFFINITY|BIND|PLACES)\w*"
)

_DISTRIBUTIONS = (
    "torch",
    "tensorflow-cpu",
    "tensorflow",
    "tensorflow-intel",
    "tensorflow-macos",
    "keras",
    "tf-keras",
    "numpy",
    "protobuf",
    "safetensors",
    "ml-dtypes",
    "h5py",
)

# The flags that kernels are chosen by. Two patterns, for "sme" is a matrix unit on ARM and encrypted memory on x86.
_X86_FLAG = re.compile(r"sse4_[12]|avx\w*|f16c|fma|amx\w*")
_ARM_FLAG = re.compile(r"asimd\w*|neon|fphp|bf16|i8mm|sve\w*|sme\w*")  # asimd is NEON

_GPU_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # PCI vendor ids


def isolation(threads: int = 1) -> dict[str, str]:
    """The variables that hide accelerators, pin ``threads`` per operation and fix Keras on TensorFlow."""
    if threads < 1:
        raise SetupError(f"A worker needs at least one thread, not {threads}.")
    return HIDDEN_ACCELERATORS | _KERAS_ON_TENSORFLOW | _FIXED_THREADS | dict.fromkeys(_THREAD_COUNTS, str(threads))


def isolate(threads: int = 1, *, environ: MutableMapping[str, str] = os.environ) -> None:
    """Hide accelerators and pin threads in this process, before a framework is imported.

    Frameworks, OpenMP and BLAS read these variables once, while they load. So this raises ``SetupError`` when it comes
    too late.
    """
    loaded = [name for name in FRAMEWORKS if name in sys.modules]
    if loaded:
        raise SetupError(
            f"{' and '.join(loaded)} was imported before portproof.cpu.isolate() and may already hold an accelerator: "
            "call isolate() first, in a fresh process."
        )
    _apply(threads, environ)


def worker_environment(threads: int = 1, *, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a worker process: ``base``, isolated, with a fixed hash seed."""
    environment = dict(base)
    _apply(threads, environment)
    environment["PYTHONHASHSEED"] = "0"  # read at interpreter start only, hence not in isolate()
    return environment


def _apply(threads: int, environ: MutableMapping[str, str]) -> None:
    environ.update(isolation(threads))
    for name, value in _QUIET.items():
        environ.setdefault(name, value)


def describe_environment(*, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What this process runs on, as JSON: two equal answers mean that the same bits can be expected.

    Holds nothing that changes from run to run (no time, load, process id or host name), and no variable that is unset.
    """
    return {
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
        },
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "libc": _libc(),  # its libm computes exp and tanh where no framework kernel does
        },
        "cpu": describe_cpu(),
        "threads": {name: environ[name] for name in sorted(environ) if _THREAD_VARIABLE.fullmatch(name)},
        "numerics": {name: environ[name] for name in NUMERICS_VARIABLES if name in environ},
        "hidden": {name: environ[name] for name in HIDDEN_ACCELERATORS if name in environ},
        "accelerators": accelerators(),
        "distributions": installed_distributions(),
        "torch_build": torch_build(),
    }


def describe_cpu(*, root: Path = Path("/"), machine: str = platform.machine()) -> dict[str, Any]:
    """Model, the instruction sets that kernels are chosen by, and core counts."""
    wanted = _X86_FLAG if is_x86(machine) else _ARM_FLAG
    model, flags = _linux_cpu(root / "proc/cpuinfo") or _macos_cpu() or (platform.processor(), [])
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": model,
        "instruction_sets": sorted(flag for flag in flags if wanted.fullmatch(flag)),
        "cores": os.cpu_count(),
        "usable_cores": usable,
    }


def is_x86(machine: str = platform.machine()) -> bool:
    """Whether ``platform.machine()`` names an x86 CPU."""
    return machine.lower() in {"x86_64", "amd64", "i386", "i686"}


def _linux_cpu(cpuinfo: Path) -> tuple[str, list[str]] | None:
    """The first processor of /proc/cpuinfo; the others repeat it."""
    fields: dict[str, str] = {}
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    break
                name, _, value = line.partition(":")
                fields[name.strip()] = value.strip()
    except OSError:
        return None
    # ARM kernels print no model name, but who designed the core and which one it is.
    model = fields.get("model name") or " ".join(
        f"{name.removeprefix('CPU ')} {fields[name]}"
        for name in ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
        if name in fields
    )
    stepping = [f"{name} {fields[name]}" for name in ("cpu family", "model", "stepping") if name in fields]
    if stepping:
        model = f"{model} ({', '.join(stepping)})"
    return model or platform.processor(), fields.get("flags", fields.get("Features", "")).split()


def _macos_cpu() -> tuple[str, list[str]] | None:
    """Brand and features from sysctl: ``hw.optional.arm.FEAT_BF16: 1`` becomes ``bf16``."""
    if platform.system() != "Darwin":
        return None
    import subprocess  # a dozen milliseconds that no other system needs

    answer = subprocess.run(
        ["/usr/sbin/sysctl", "machdep.cpu.brand_string", "hw.optional"],
        capture_output=True,
        text=True,
        check=False,
        timeout=5,
    ).stdout
    values = dict(line.split(": ", 1) for line in answer.splitlines() if ": " in line)
    brand = values.pop("machdep.cpu.brand_string", platform.processor())
    features = [name.rsplit(".", 1)[-1].lower().removeprefix("feat_") for name, value in values.items() if value == "1"]
    return brand, ["asimd" if name == "advsimd" else name for name in features]


def _libc() -> str:
    """The C library's name and version, such as ``glibc 2.36``; empty where it does not say."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # musl, macOS, Windows
        return ""


def accelerators(*, root: Path = Path("/")) -> list[str]:
    """Accelerators that the machine has, hidden or not, read from /proc, /dev and /sys without a vendor's tool."""
    found: list[str] = []
    for card in sorted(_glob(root, "proc/driver/nvidia/gpus/*/information")):
        name = re.search(r"^Model:\s*(.+)$", _text(card), re.MULTILINE)
        found.append(f"NVIDIA {name[1].strip().removeprefix('NVIDIA ') if name else 'GPU'}")
    if not found:
        found += [f"NVIDIA GPU (/dev/{node.name})" for node in sorted(_glob(root, "dev/nvidia[0-9]*"))]
    has_nvidia = bool(found)
    for vendor in sorted(_glob(root, "sys/class/drm/card[0-9]*/device/vendor")):
        maker = _GPU_VENDORS.get(_text(vendor).strip())
        # "card0-HDMI-A-1" is a connector of card0, not a card.
        if maker and "-" not in vendor.parts[-3] and not (maker == "NVIDIA" and has_nvidia):
            found.append(f"{maker} GPU (/dev/dri/{vendor.parts[-3]})")
    if (root / "dev/kfd").exists() and not any(name.startswith("AMD") for name in found):
        found.append("AMD GPU (/dev/kfd)")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append("Apple GPU (Metal)")
    return found


def _glob(root: Path, pattern: str) -> Iterable[Path]:
    try:
        return list(root.glob(pattern))
    except OSError:  # a container may forbid reading parts of /proc or /sys
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def installed_distributions() -> dict[str, str]:
    """Versions of the distributions that decide results, from their metadata: nothing is imported."""
    from importlib import metadata  # 20 ms, which `import portproof.cpu` alone shall not cost

    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def torch_build() -> str | None:
    """The installed torch's build, such as ``cpu``, ``cuda 13.0`` or ``rocm 6.4``, without importing it.

    The version in the metadata does not tell: the default index's CUDA wheel carries no local label. torch/version.py
    does, in lines such as ``cuda: Optional[str] = '13.0'``.
    """
    from importlib import metadata

    try:
        distribution = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None
    source = _text(Path(str(distribution.locate_file("torch/version.py"))))
    for name, label in (("cuda", "cuda"), ("hip", "rocm"), ("xpu", "xpu")):
        value = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", source, re.MULTILINE)
        if value:
            return f"{label} {value[1]}"
    if source:
        return "cpu"
    _, _, local = distribution.version.partition("+")
    return local or "unknown"
