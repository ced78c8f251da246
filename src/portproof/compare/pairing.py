"""Pairing of two traces: parameters, layers, calls and single tensors of side a with those of side b."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.alignment import BOOKKEEPING, Pairing, pair_layers, pair_parameters
from portproof.trace import MODEL, CallRecord, LayerRecord, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """How the parts of two traces correspond."""

    a: Trace
    b: Trace

    @cached_property
    def parameters(self) -> Pairing:
        """Parameters and buffers."""
        records = self.a.manifest.parameters, self.b.manifest.parameters
        return _same_tensors(self.a, self.b) if self.is_another_form else pair_parameters(*records)

    @cached_property
    def is_another_form(self) -> bool:
        """Whether one side computed its weights from the other's (portproof.transfer): the same function, another form.

        Then only what both hold bit for bit is a pair, and only eval mode is the same function.
        """
        return any(trace.manifest.facts.get("computed_weights", False) for trace in (self.a, self.b))

    @cached_property
    def layers(self) -> Pairing:
        """Layers, in order of execution where that was recorded."""
        owner_a = {record.name: record.layer for record in self.a.manifest.parameters}
        owner_b = {record.name: record.layer for record in self.b.manifest.parameters}
        known: dict[str, str] = {MODEL: MODEL}
        for name_a, name_b in self.parameters.pairs.items():
            if name_a in owner_a and owner_b[name_b] not in known.values():
                known.setdefault(owner_a[name_a], owner_b[name_b])
        sides = [_Layers(self.a), _Layers(self.b)]
        return pair_layers(sides[0].order, sides[1].order, known, sides[0].signature, sides[1].signature)

    def calls(self, phase: str) -> Iterator[tuple[CallRecord, CallRecord]]:
        """Paired calls of a phase, in side a's order of completion."""
        calls_b = {(call.layer, call.occurrence): call for call in self.b.manifest.calls.get(phase, ())}
        for call in self.a.manifest.calls.get(phase, ()):
            other = calls_b.get((self.layers.pairs.get(call.layer, ""), call.occurrence))
            if other is not None:
                yield call, other


def _same_tensors(a: Trace, b: Trace) -> Pairing:
    """The parameters that two forms of a network share: of one name and with the same values."""
    names = [
        [record.name for record in trace.manifest.parameters if record.role not in BOOKKEEPING] for trace in (a, b)
    ]
    shared = {
        name: name
        for name in names[0]
        if all((key := f"weights/excited/{name}") in trace for trace in (a, b))
        and np.array_equal(a.tensor(key), b.tensor(key))
    }
    alone = (tuple(name for name in each if name not in shared) for each in names)
    return Pairing(shared, frozenset(), *alone)


class _Layers:
    """One side's layers in order of execution, with what identifies one that has no known name."""

    def __init__(self, trace: Trace) -> None:
        records = {record.name: record for record in trace.manifest.layers}
        self._records: dict[str, LayerRecord] = records
        self._shapes: dict[str, tuple[int, ...]] = {}
        order: dict[str, None] = {}
        for phase, calls in trace.manifest.calls.items():
            for call in calls:
                order.setdefault(call.layer)
                info = trace.manifest.tensors.get(f"{phase}/{call.outputs[0]}") if call.outputs else None
                if info is not None:
                    self._shapes.setdefault(call.layer, info.shape)
        self.order = [*order, *(name for name in records if name not in order)]

    def signature(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Kind and output shape of a leaf that was executed; ``None`` for layers that only a name may pair."""
        record = self._records.get(name)
        if record is None or not record.leaf or name not in self._shapes:
            return None
        return record.kind, self._shapes[name]


def same_layout(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """``b`` in the layout of ``a`` where only that differs, and a note on what was done.

    A capture brings activations into canonical layout where it can tell. Where a model's own code hides that, shapes
    tell: channels last against channels first. Dimensions of size one are no difference. If both readings fit, the
    closer one is taken, and the note says so.
    """
    candidates: list[tuple[NDArray[Any], str]] = []
    if a.shape == b.shape:
        candidates.append((b, ""))
    if a.ndim == b.ndim >= 4 and np.moveaxis(b, -1, 1).shape == a.shape:
        candidates.append((np.moveaxis(b, -1, 1), "channels moved first, by shape"))
    if not candidates:
        return same_shape(a, b)
    if len(candidates) == 1 or np.array_equal(a, b):
        return candidates[0]
    x = a.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return min(candidates, key=lambda candidate: float(np.nan_to_num(np.abs(x - candidate[0]), nan=np.inf).sum()))


def same_shape(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """``b`` in the shape of ``a`` where they differ by dimensions of size one alone, and a note if so.

    A 1x1 convolution and a linear layer are one function; their kernels are (O, I, 1, 1) and (O, I).
    """
    if a.shape != b.shape and [size for size in a.shape if size != 1] == [size for size in b.shape if size != 1]:
        return b.reshape(a.shape), "dimensions of size one dropped"
    return b, ""
