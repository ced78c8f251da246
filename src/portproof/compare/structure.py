"""Structure: what two models consist of, side by side, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from portproof.alignment import BOOKKEEPING
from portproof.compare.facts import Structure
from portproof.compare.pairing import Pairs
from portproof.trace import Trace


def describe_structure(pairs: Pairs) -> Structure:
    """Counts, pairs, stages, and everything that stayed alone."""
    records_a = {record.name: record for record in pairs.a.manifest.parameters}
    records_b = {record.name: record for record in pairs.b.manifest.parameters}
    named = pairs.parameters
    both = [(records_a[first], records_b[second]) for first, second in named.pairs.items()]
    return Structure(
        counts={"a": counts(pairs.a), "b": counts(pairs.b)},
        only_a=tuple(f"{name} {records_a[name].shape}" for name in named.only_a),
        only_b=tuple(f"{name} {records_b[name].shape}" for name in named.only_b),
        wrong_shape=tuple(
            f"{x.name}: {x.shape} and {y.shape}"
            for x, y in both
            if [size for size in x.shape if size != 1] != [size for size in y.shape if size != 1]
        ),
        wrong_trainable=tuple(
            f"{x.name}: {'trainable' if x.trainable else 'frozen'} and {'trainable' if y.trainable else 'frozen'}"
            for x, y in both
            if x.trainable != y.trainable
        ),
        by_order=tuple(f"{name} = {named.pairs[name]}" for name in named.pairs if name in named.by_order),
        weights_differ=tuple(_differing_weights(pairs)),
        stages=tuple(_stages(pairs)),
        layers_only_a=pairs.layers.only_a,
        layers_only_b=pairs.layers.only_b,
        layers_by_order=tuple(
            f"{name} = {pairs.layers.pairs[name]}" for name in pairs.layers.pairs if name in pairs.layers.by_order
        ),
        another_form=pairs.is_another_form,
    )


def counts(trace: Trace) -> dict[str, int]:
    """Values and tensors that are trainable and that are not; bookkeeping such as num_batches_tracked apart."""
    records = [record for record in trace.manifest.parameters if record.role not in BOOKKEEPING]
    trainable = [record.size for record in records if record.trainable]
    frozen = [record.size for record in records if not record.trainable]
    return {
        "trainable": sum(trainable),
        "trainable_tensors": len(trainable),
        "non_trainable": sum(frozen),
        "non_trainable_tensors": len(frozen),
        "bookkeeping_tensors": len(trace.manifest.parameters) - len(records),
        "layers": sum(record.leaf for record in trace.manifest.layers),
    }


def layer_settings(pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Settings that paired layers have on both sides, with different values."""
    settings_b = {record.name: record.settings for record in pairs.b.manifest.layers}
    for record in pairs.a.manifest.layers:
        other = pairs.layers.pairs.get(record.name)
        if other is None:
            continue
        for key, value in record.settings.items():
            value_b = settings_b[other].get(key, value)
            alike = (key == "momentum" and _close(value, value_b)) or (
                key == "padding" and _same(record.settings, value_b)
            )
            if value != value_b and not alike:
                yield {"layer": record.name, "setting": key, "a": value, "b": value_b}


def _same(settings: dict[str, Any], padding: Any) -> bool:
    """Whether 'same' padding is what the original's number comes to: at stride 1, half of an odd kernel."""
    kernel = settings.get("kernel_size")
    if padding != "same" or not isinstance(kernel, int) or settings.get("stride") != 1:
        return False
    return bool(settings.get("dilation", 1) == 1 and settings.get("padding") == (kernel - 1) / 2)


def _close(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and abs(a - b) < 1e-9


def _differing_weights(pairs: Pairs) -> Iterator[str]:
    """Tensors that did not start from the same values on both sides."""
    for which in ("initial", "excited"):
        for first, second in pairs.parameters.pairs.items():
            keys = f"weights/{which}/{first}", f"weights/{which}/{second}"
            if keys[0] in pairs.a and keys[1] in pairs.b:
                x, y = pairs.a.tensor(keys[0]), pairs.b.tensor(keys[1])
                if x.size != y.size or not np.array_equal(x.reshape(-1), y.reshape(-1), equal_nan=True):
                    yield f"{which}: {first}"


def _stages(pairs: Pairs) -> Iterator[dict[str, Any]]:
    phase = next((phase for phase, calls in pairs.a.manifest.calls.items() if len(calls) > 1), None)
    if phase is None:
        return
    shapes_a, shapes_b = _output_shapes(pairs.a, phase), _output_shapes(pairs.b, phase)
    for record in pairs.a.manifest.layers:
        if record.stage and record.name in shapes_a:
            other = pairs.layers.pairs.get(record.name)
            yield {
                "name": record.name,
                "other": other,
                "kind": record.type,
                "a": list(shapes_a[record.name]),
                "b": list(shapes_b[other]) if other in shapes_b else None,
            }


def _output_shapes(trace: Trace, phase: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for call in trace.manifest.calls.get(phase, ()):
        if call.outputs and (info := trace.manifest.tensors.get(f"{phase}/{call.outputs[0]}")):
            shapes.setdefault(call.layer, info.shape)
    return shapes
