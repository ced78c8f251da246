"""Known causes of drift. A cause is named only where its pattern holds, never for a version number alone.

What the patterns rest on was measured (README: The matrix): convolution and BatchNorm are the same bits in every
TensorFlow from 2.15 to 2.21, erf is not; torch's forward pass is the same bits from 2.2 to 2.15, its gradients are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from portproof.matrix.facts import Beginning
from portproof.matrix.table import release

# Releases in which TensorFlow's erf gives other float32 bits than in the one before.
_ERF = ((2, 19), (2, 20), (2, 21))
_ERF_LAYERS = ("gelu", "activation", "erf")
_MATRIX_LAYERS = ("conv", "linear", "dense", "attention")  # kinds begin or end so: what oneDNN and BLAS compute
_TORCH_GRADIENTS = (2, 9)  # up to 2.6 one group of bits, from this release on another
_ISA_VARIABLES = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
_ONEDNN_VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "TF_DISABLE_MKL")


def known_causes(
    side: str, begins: Mapping[str, Beginning], a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[str]:
    """The causes that explain where a difference begins, from the environments of two traces."""
    versions = release(str(a.get("version", ""))), release(str(b.get("version", "")))
    first = begins.get("float32") or begins.get("float64")
    if side == "tensorflow" and first and first.inputs_equal and first.kind in _ERF_LAYERS:
        crossed = [each for each in _ERF if (versions[0] < each) != (versions[1] < each)]
        if crossed:
            names = " and ".join(".".join(map(str, each)) for each in crossed)
            yield f"TensorFlow {names} changed erf, which GELU is computed from"
    if (
        side == "torch"
        and "gradients" in begins
        and (versions[0] < _TORCH_GRADIENTS) != (versions[1] < _TORCH_GRADIENTS)
    ):
        yield "torch's gradients are other bits from 2.9 on than up to 2.6; its forward pass is not"
    if versions[0] == versions[1]:
        yield from _same_framework(first or begins.get("gradients"), a, b)


def _same_framework(first: Beginning | None, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Causes outside of the framework's code, where that is the same release on both sides."""
    if first is None:
        return
    numerics = [each.get("machine", {}).get("numerics", {}) for each in (a, b)]
    onednn = [name for name in _ONEDNN_VARIABLES if numerics[0].get(name) != numerics[1].get(name)]
    if onednn and any(first.kind.startswith(kind) or first.kind.endswith(kind) for kind in _MATRIX_LAYERS):
        yield f"oneDNN is on in one of them and off in the other ({onednn[0]})"
    limited = [name for name in _ISA_VARIABLES if numerics[0].get(name) != numerics[1].get(name)]
    sets = [set(each.get("machine", {}).get("cpu", {}).get("instruction_sets", ())) for each in (a, b)]
    if limited:
        yield f"other instruction sets are used ({', '.join(limited)})"
    elif sets[0] != sets[1]:
        yield f"the CPUs have other instruction sets ({', '.join(sorted(sets[0] ^ sets[1]))} in one of them alone)"
    threads = a.get("threads"), b.get("threads")
    if threads[0] != threads[1]:
        yield f"sums are split over other numbers of threads ({threads[0]} and {threads[1]})"


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two environments that can change bits: ``numpy 2.0.2 and 2.1.3``."""
    for name, x, y in _rows(a, b):
        if x != y:
            yield f"{name} {x or 'none'} and {y or 'none'}"


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    machines = a.get("machine", {}), b.get("machine", {})
    yield str(a.get("framework", "framework")), a.get("version"), b.get("version")
    for name in ("build", "threads", "mkldnn", "cpu_capability"):
        if name in a or name in b:
            yield name, a.get(name), b.get(name)
    yield "Python", *(each.get("python", {}).get("version") for each in machines)
    packages = [each.get("distributions", {}) for each in machines]
    for name in ("keras", "numpy", "protobuf", "ml-dtypes"):
        yield name, packages[0].get(name), packages[1].get(name)
    yield "CPU", *(each.get("cpu", {}).get("model") for each in machines)
    yield "libc", *(each.get("platform", {}).get("libc") for each in machines)
    numerics = [each.get("numerics", {}) for each in machines]
    for name in sorted({*numerics[0], *numerics[1]}):
        yield name, numerics[0].get(name), numerics[1].get(name)
