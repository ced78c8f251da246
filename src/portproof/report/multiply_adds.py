"""Multiply-adds of captured layers, for one example: of convolutions and linear layers, as papers count them.

From shapes alone: what a convolution computes for one place is its whole kernel, and a linear layer for one row its
whole matrix. Biases, normalisation, activations, pooling and sums are not counted (nor are they by fvcore, the official
RepViT code and timm).
"""

from __future__ import annotations

import math
from collections import Counter

from portproof.trace import CallRecord, Trace

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def multiply_adds(trace: Trace) -> dict[str, int]:
    """Multiply-adds of every layer that has some, by name, summed over its calls in one forward pass of one example."""
    phase = next((phase for phase, calls in trace.manifest.calls.items() if len(calls) > 1), None)
    if phase is None:
        return {}
    kinds = {record.name: record.kind for record in trace.manifest.layers}
    kernels = {record.layer: record.shape for record in trace.manifest.parameters if record.role == "weight"}
    found = Counter[str]()
    for call in trace.manifest.calls[phase]:
        if call.layer in kernels:
            found[call.layer] += _of_call(trace, phase, call, kinds.get(call.layer, ""), kernels[call.layer])
    return {name: count for name, count in found.items() if count}


def _of_call(trace: Trace, phase: str, call: CallRecord, kind: str, kernel: tuple[int, ...]) -> int:
    shapes = [
        info.shape if (info := trace.manifest.tensors.get(f"{phase}/{keys[0]}")) and keys else ()
        for keys in (call.inputs or ("",), call.outputs or ("",))
    ]
    given, produced = shapes
    if kind in _CONVOLUTIONS and len(produced) > 2:
        return math.prod(produced[2:]) * math.prod(kernel)
    if kind.removesuffix(" transpose") in _CONVOLUTIONS and len(given) > 2:
        return math.prod(given[2:]) * math.prod(kernel)  # every place of the input is spread by the whole kernel
    if kind == "linear" and len(produced) > 1:
        return math.prod(produced[1:-1]) * math.prod(kernel)
    return 0
