"""A port as its trace describes it: what layers there are, what they take and give, and what is added up between them.

Nothing here knows a framework or a model. Structures that a port's own code makes between its layers (residual sums,
gates, means) are found by their values: a tensor that equals the sum of two others is their sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.trace import MODEL, CallRecord, LayerRecord, ParameterRecord, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_TERMS = 3
_MOST_CANDIDATES = 10  # tensors of one shape that are tried as terms: the latest ones
_ROUNDING = 1e-9  # of a float64 sum whose order of summation is not known, with room to spare


@dataclass(frozen=True)
class Sum:
    """``layer`` takes (``side`` input) or gives (``side`` output) the sum of ``terms``.

    A term is the path of the layer that gave it, or the path of the layer *into* which it went, marked by a ``>`` in
    front: ``>features.3`` is the first input of ``features.3``.
    """

    layer: str
    side: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Mean:
    """``layer`` is given the mean of ``source`` over everything but batch and channels; a term as in `Sum`."""

    layer: str
    source: str


class Port:
    """The layers of a port, from a trace that holds every layer's output (`float64.eval` of plan.py, or the like)."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        manifest = trace.manifest
        self.layers: dict[str, LayerRecord] = {record.name: record for record in manifest.layers}
        self.owner: dict[str, str] = {record.name: record.layer or MODEL for record in manifest.parameters}
        self._phase = next((phase for phase, calls in manifest.calls.items() if len(calls) > 1), "")
        self.calls: tuple[CallRecord, ...] = manifest.calls.get(self._phase, ())
        self._parameters: dict[str, dict[str, ParameterRecord]] = {}
        for record in manifest.parameters:
            self._parameters.setdefault(record.layer or MODEL, {})[record.role] = record
        self._first: dict[str, CallRecord] = {}
        for call in self.calls:
            self._first.setdefault(call.layer, call)

    def of_kind(self, *kinds: str) -> list[str]:
        """The executed layers of these kinds, in order of execution; fused activations are not among them."""
        return [name for name in self._first if self.layers[name].kind in kinds and not self.is_fused(name)]

    def is_fused(self, layer: str) -> bool:
        """Whether this is the activation inside of another layer."""
        return self.layers[layer].type == "activation"

    def composites(self) -> list[str]:
        """The executed layers that are made of layers, in order of completion, but for the model."""
        return [name for name in self._first if not self.layers[name].leaf and name != MODEL]

    def setting(self, layer: str, name: str, default: Any = None) -> Any:
        """A setting of a layer, in torch's terms."""
        return self.layers[layer].settings.get(name, default)

    def parameter(self, layer: str, role: str) -> ParameterRecord | None:
        """A layer's parameter or buffer."""
        return self._parameters.get(layer, {}).get(role)

    def parameters(self, *kinds: str, role: str = "weight") -> list[ParameterRecord]:
        """The parameters of one role, of layers of these kinds, in order of execution."""
        found = (self.parameter(layer, role) for layer in self.of_kind(*kinds))
        return [record for record in found if record is not None]

    def input_shape(self, layer: str, index: int = 0) -> tuple[int, ...]:
        """The canonical shape of an input of the layer's first call; empty if there is none."""
        keys = self._first[layer].inputs if layer in self._first else ()
        return self._shape(keys[index]) if len(keys) > index else ()

    def output_shape(self, layer: str) -> tuple[int, ...]:
        """The canonical shape of the output of the layer's first call; empty if there is none."""
        keys = self._first[layer].outputs if layer in self._first else ()
        return self._shape(keys[0]) if keys else ()

    def inputs(self, layer: str) -> tuple[str, ...]:
        """The keys of the inputs of the layer's first call."""
        return self._first[layer].inputs if layer in self._first else ()

    def producers(self, layer: str) -> list[str]:
        """The layers whose outputs this one takes."""
        taken = {key for call in self.calls if call.layer == layer for key in call.inputs}
        return list(dict.fromkeys(call.layer for call in self.calls if taken.intersection(call.outputs)))

    def takers(self, layer: str) -> list[str]:
        """The layers, leaves and composites, that are given the output of this one's first call."""
        given = set(self._first[layer].outputs) if layer in self._first else set()
        return list(dict.fromkeys(call.layer for call in self.calls if given.intersection(call.inputs)))

    def only_follower(self, layer: str) -> str:
        """The one leaf that takes this layer's output; empty if there is none, or more than one."""
        found = [
            name
            for name in self.takers(layer)
            if self.layers[name].leaf and not set(self._first[name].outputs) <= set(self._first[name].inputs)
        ]
        return found[0] if len(found) == 1 else ""

    def sequence_of(self, layer: str) -> str:
        """The last layer that gave a sequence (B, T, d) of which this one, given (B, d), was handed a frame each."""
        frame = self._tensor(self._first[layer].inputs[0])
        found = ""
        for call in self.calls:
            if call.layer == layer:
                break
            shape = self._shape(call.outputs[0]) if call.outputs else ()
            fits = len(shape) == 3 and (shape[0], shape[2]) == frame.shape and shape[1] > 1
            if fits and bool((self._tensor(call.outputs[0]) == frame[:, None]).all(-1).any(-1).all()):
                found = call.layer
        return found

    def upstream(self, layer: str) -> set[str]:
        """The nearest layers with parameters whose outputs reach this one through layers."""
        found: set[str] = set()
        front, past = [layer], {layer}
        while front:
            ahead = [name for each in front for name in self.producers(each) if name not in past]
            past.update(ahead)
            found.update(name for name in ahead if name in self._parameters)
            front = [name for name in ahead if name not in self._parameters]
        return found

    def consumers(self, layer: str) -> set[str]:
        """The layers that take what this one gives: directly, through a sum or product of the model's own code, or as
        the composite that it is a part of."""
        indexed = list(enumerate(self.calls))
        found: set[str] = set()
        for position, call in indexed:
            if call.layer != layer:
                continue
            given = set(call.outputs)
            parent = self.layers[layer].parent
            found |= {later.layer for _, later in indexed if given.intersection(later.inputs)}
            found |= {later.layer for _, later in indexed if given.intersection(later.outputs)}
            for index, later in indexed:
                # What reaches a later part of the same composite from between the layers may hold this output.
                between = any(key.startswith("input/") for key in later.inputs)
                if index > position and between and self.layers[later.layer].parent == parent:
                    found.add(later.layer)
                    break
            found |= {parent} if parent else set()
        return found - {layer}

    def children(self, layer: str) -> list[str]:
        """The executed layers right below this one."""
        return [name for name in self._first if self.layers[name].parent == layer and not self.is_fused(name)]

    def below(self, layer: str) -> set[str]:
        """All layers below this one."""
        return set(self.layers) if layer == MODEL else {name for name in self.layers if name.startswith(f"{layer}.")}

    @cached_property
    def sums(self) -> tuple[Sum, ...]:
        """Where tensors of equal shapes are added up."""
        return tuple(self._sums())

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """Composites that multiply their input by a smaller tensor which one of their parts computes."""
        return tuple(self._gates())

    @cached_property
    def means(self) -> tuple[Mean, ...]:
        """Where a mean over positions reaches a layer, or a layer computes it."""
        return tuple(self._means())

    def _sums(self) -> Iterator[Sum]:
        for name, call in self._first.items():
            parent = self.layers[name].parent
            if not self.layers[name].leaf and call.outputs:
                if found := self._terms(call.outputs[0], name):
                    yield Sum(name, "output", found)
            elif len(call.inputs) > 1 and call.outputs and (found := self._terms(call.outputs[0], name)):
                yield Sum(name, "output", found)
            between = parent is not None and call.inputs and call.inputs[0].startswith("input/")
            if parent is not None and between and (found := self._terms(call.inputs[0], parent)):
                yield Sum(name, "input", found)

    def _terms(self, target: str, parent: str) -> tuple[str, ...]:
        """The terms that ``target`` is the sum of, among what went into ``parent`` and what its parts gave."""
        shape = self._shape(target)
        known = dict(self._candidates(parent, target))
        alike = [key for key in known if key != target and self._shape(key) == shape][-_MOST_CANDIDATES:]
        if not shape or len(alike) < 2:
            return ()
        value, values = self._tensor(target), {key: self._tensor(key) for key in alike}
        limit = _ROUNDING * _norm(value)
        for count in range(2, _MOST_TERMS + 1):
            for chosen in combinations(alike, count):
                if _norm(value - sum(values[key] for key in chosen)) <= limit:
                    return tuple(known[key] for key in chosen)
        return ()

    def _candidates(self, parent: str, target: str) -> Iterator[tuple[str, str]]:
        """Tensors that stand before ``target`` inside of ``parent``: key and name as a term."""
        if parent in self._first:
            for key in self._first[parent].inputs:
                if key.startswith("output/"):
                    yield key, f">{parent}"
                    break
            else:
                if self._first[parent].inputs:
                    yield self._first[parent].inputs[0], f">{parent}"
        for call in self.calls:
            if target in call.inputs:
                return
            if self.layers[call.layer].parent == parent and call.outputs and not self.is_fused(call.layer):
                yield call.outputs[0], call.layer

    def _gates(self) -> Iterator[str]:
        for name in self.composites():
            call = self._first[name]
            if len(call.inputs) != 1 or not call.outputs or self.input_shape(name) != self.output_shape(name):
                continue
            x, y = self._tensor(call.inputs[0]), self._tensor(call.outputs[0])
            for child in self.children(name):
                gate = self._first[child].outputs[:1]
                shape = self._shape(gate[0]) if gate else ()
                if len(shape) != x.ndim or np.prod(shape) >= x.size or shape[:2] != x.shape[:2]:
                    continue
                if _norm(y - x * self._tensor(gate[0])) <= _ROUNDING * _norm(y):
                    yield name
                    break

    def _means(self) -> Iterator[Mean]:
        for name, call in self._first.items():
            parent = self.layers[name].parent
            if not call.inputs or not call.outputs or not self.layers[name].leaf:
                continue
            if self.layers[name].kind == "avgpool":
                if self._is_mean(call.outputs[0], call.inputs[0]):
                    yield Mean(name, f">{name}")
            elif call.inputs[0].startswith("input/") and parent is not None:
                for key, term in self._candidates(parent, call.inputs[0]):
                    if self._is_mean(call.inputs[0], key):
                        yield Mean(name, term)
                        break

    def _is_mean(self, target: str, key: str) -> bool:
        """Whether ``target`` is the mean of ``key`` over all positions: (B, C, H, W) or (B, T, C)."""
        shape, small = self._shape(key), self._shape(target)
        if len(shape) < 3 or np.prod(small) != shape[0] * shape[2 if len(shape) == 3 else 1]:
            return False
        value = self._tensor(key)
        mean = value.mean(1) if value.ndim == 3 else value.mean(tuple(range(2, value.ndim)))
        found = self._tensor(target).reshape(mean.shape)
        return _norm(found - mean) <= _ROUNDING * _norm(mean)

    def _shape(self, key: str) -> tuple[int, ...]:
        info = self._trace.manifest.tensors.get(f"{self._phase}/{key}")
        return info.shape if info else ()

    def _tensor(self, key: str) -> NDArray[Any]:
        return self._trace.tensor(f"{self._phase}/{key}")


def _norm(x: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(x).sum()))
