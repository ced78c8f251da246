"""Known causes of drift. A cause is named only where its pattern holds, never for a version number alone.

Each was measured operation by operation (README: The matrix). A release explains a difference that begins at the kind
of layer that it computes otherwise, and only if it lies between all cells of the one class and all cells of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portproof.matrix.facts import Beginning
from portproof.matrix.table import release


@dataclass(frozen=True)
class _Change:
    """From ``since`` on, a package gives other float32 bits for one kind of layer; ``onednn``: where that is on."""

    package: str
    since: tuple[int, ...]
    kind: str
    text: str
    onednn: bool = False


_CHANGES = (
    _Change("keras", (3,), "batchnorm", "Keras 2 computes BatchNorm in one fused operation, Keras 3 in several"),
    _Change(
        "tensorflow", (2, 17), "conv2d", "TensorFlow 2.17 brought another oneDNN, with other convolutions", onednn=True
    ),
    _Change("tensorflow", (2, 19), "gelu", "TensorFlow 2.19 computes tf.nn.gelu otherwise"),
    _Change("tensorflow", (2, 20), "gelu", "TensorFlow 2.20 computes erf otherwise, and exact GELU with it"),
    _Change("tensorflow", (2, 21), "gelu", "TensorFlow 2.21 computes tf.nn.gelu otherwise"),
)
_MATRIX_LAYERS = ("conv", "linear", "dense", "attention")  # kinds begin or end so: what oneDNN and BLAS compute
_TORCH_GRADIENTS = (2, 9)  # up to 2.6 one group of bits, from this release on another
_ISA_VARIABLES = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
_ONEDNN_VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "TF_DISABLE_MKL")

Environments = Sequence[Mapping[str, Any]]  # of all cells of one class, as their traces have them


def known_causes(side: str, begins: Mapping[str, Beginning], a: Environments, b: Environments) -> Iterator[str]:
    """The causes that explain where a difference between two classes of cells begins."""
    first = begins.get("float32") or begins.get("float64")
    if side == "tensorflow" and first and first.inputs_equal:
        for change in _CHANGES:
            has_effect = not change.onednn or not any(map(_without_onednn, (*a, *b)))
            if change.kind == first.kind and has_effect and _between(change.package, change.since, a, b):
                yield change.text
    if side == "torch" and "gradients" in begins and _between("torch", _TORCH_GRADIENTS, a, b):
        yield "torch's gradients are other bits from 2.9 on than up to 2.6; its forward pass is not"
    if {each.get("version") for each in a} == {each.get("version") for each in b}:
        yield from _same_framework(first or begins.get("gradients"), a[0], b[0])


def _between(package: str, since: tuple[int, ...], a: Environments, b: Environments) -> bool:
    """Whether all cells of one class have a package from before ``since``, and all cells of the other from after."""
    versions = [{_version(package, each) for each in environments} for environments in (a, b)]
    if not all(all(found) for found in versions):
        return False
    older = [{version < since for version in found} for found in versions]
    return older in ([{True}, {False}], [{False}, {True}])


def _version(package: str, environment: Mapping[str, Any]) -> tuple[int, ...]:
    found = environment.get("version" if package == environment.get("framework") else package, "")
    return release(str(found))


def _without_onednn(environment: Mapping[str, Any]) -> bool:
    numerics = environment.get("machine", {}).get("numerics", {})
    return numerics.get("TF_ENABLE_ONEDNN_OPTS") == "0" or "TF_DISABLE_MKL" in numerics


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
