"""Altered weights: what may have happened to a layer's tensors on their way into the port. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.edits import Edit
from portproof.rearrange import described, inverse, rearranged, rearrangements

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_STATISTICS = ("running_mean", "running_var")
_WORDS = {"weight": "the kernel", "bias": "the bias", "running_mean": "the running mean",
          "running_var": "the running variance"}  # fmt: skip


@dataclass(frozen=True)
class Altered:
    """One alteration. ``weights`` are the values that the port then works with (``None``: without that tensor);
    ``steps`` say how a role was rearranged, ``swapped`` which (layer, role) were exchanged with one of this layer's."""

    text: str
    change: str
    key: str
    weights: Mapping[str, Array | None]
    steps: Mapping[str, list[Any]] = field(default_factory=dict)
    swapped: tuple[tuple[str, str, str], ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def repair(self, names: Mapping[str, str], names_of: Callable[[str, str], str], where: str) -> Iterator[Edit]:
        """Edits that take it back: in how the variable is laid out (``layout``), or in its values (``values``)."""
        if not {*self.steps, *(role for role, _, _ in self.swapped)} <= names.keys():
            return  # the port has no such variable
        for role, step in self.steps.items():
            options = {"name": names[role], "step": inverse(step, self.shapes[role]), "where": where}
            yield Edit("rearrange", (), options)
        for role, layer, other_role in self.swapped:
            other = names[other_role] if not layer else names_of(layer, other_role)
            yield Edit("swap variables", (), {"names": [names[role], other], "where": where})

    def restore(self, names: Mapping[str, str]) -> Iterator[tuple[Edit, ...]]:
        """Edits that give the tensors the original's values, where nothing more is known of how they were lost."""
        roles = [role for role in self.weights if role in names and role not in self.steps]
        if roles and not (self.swapped and not self.swapped[0][1]):
            yield (Edit("restore", (), {"names": [names[role] for role in roles]}),)


def altered_weights(
    weights: Mapping[str, Array],
    initial: Mapping[str, Array],
    others: Mapping[str, Mapping[str, Array]],
    kind: str,
) -> Iterator[Altered]:
    """Every alteration that is worth a try, the likelier first.

    Args:
        weights: the layer's tensors by role, in canonical layout.
        initial: the values that the factory gave them, before they were excited.
        others: the tensors of the layers of the same kind, by layer and role.
        kind: the layer's kind.
    """
    noun = {**_WORDS, "weight": "gamma", "bias": "beta"} if kind.endswith("norm") else _WORDS
    yield from _exchanged(weights, kind)
    if "bias" in weights:
        yield Altered("the bias is missing" if not kind.endswith("norm") else "beta is missing",
                      "add the bias", "no bias", {"bias": None})  # fmt: skip
    yield from _stale(weights, initial, noun)
    for role, value in weights.items():
        seen: list[Array] = [value]
        for step in rearrangements(value.shape):
            made = rearranged(value, step)
            if any(np.array_equal(made, each) for each in seen[:1]):
                continue
            change = f"convert {role} with {inverse(step, value.shape)} (in PyTorch's layout)"
            yield Altered(described(step, noun.get(role, role), value.ndim), change,
                          f"{role} {step}", {role: made}, {role: step}, (), {role: value.shape})  # fmt: skip
    yield from _of_another_layer(weights, others, noun)


def _exchanged(weights: Mapping[str, Array], kind: str) -> Iterator[Altered]:
    for first, second in combinations(weights, 2):
        x, y = weights[first], weights[second]
        if x.shape == y.shape and not np.array_equal(x, y):
            text = f"{first} and {second} are swapped"
            if (first, second) == _STATISTICS:
                text = "running mean and running variance are swapped"
            elif kind == "batchnorm" and {first, second} == {"weight", "bias"}:
                text = "weight and bias of the BatchNorm are swapped"
            yield Altered(text, f"exchange {first} and {second}", f"{first} for {second}", {first: y, second: x}, {},
                          ((first, "", second),))  # fmt: skip


def _stale(weights: Mapping[str, Array], initial: Mapping[str, Array], noun: Mapping[str, str]) -> Iterator[Altered]:
    """Values that never arrived, or not whole."""
    if set(_STATISTICS) <= set(weights):
        stale = {
            "running_mean": np.zeros_like(weights["running_mean"]),
            "running_var": np.ones_like(weights["running_var"]),
        }
        yield Altered("BatchNorm has stale statistics: mean 0, variance 1", "carry the running statistics over",
                      "stale statistics", stale)  # fmt: skip
    for role, value in weights.items():
        word = noun.get(role, role)
        usual = [("zero", np.zeros_like(value)), ("one", np.ones_like(value))]
        if role in initial and initial[role].shape == value.shape:
            usual.append(("its initial value", initial[role]))
        for name, stale_value in usual:
            if not np.array_equal(stale_value, value):
                yield Altered(
                    f"{word} was left at {name}", f"carry {role} over", f"{role} at {name}", {role: stale_value}
                )
        for name, function in (("float16", _float16), ("bfloat16", _bfloat16)):
            rounded = function(value)
            if not np.array_equal(rounded, value):
                yield Altered(
                    f"{word} went through {name}", f"carry {role} over in float32", f"{role} {name}", {role: rounded}
                )
    for name, function in (("float16", _float16), ("bfloat16", _bfloat16)):
        rounded_all = {role: function(value) for role, value in weights.items()}
        if len(weights) > 1 and any(not np.array_equal(rounded_all[role], weights[role]) for role in weights):
            yield Altered(
                f"the layer's weights went through {name}", "carry them over in float32", f"all {name}", rounded_all
            )


def _of_another_layer(
    weights: Mapping[str, Array], others: Mapping[str, Mapping[str, Array]], noun: Mapping[str, str]
) -> Iterator[Altered]:
    sets = [
        tuple(weights),
        *(() if not set(_STATISTICS) < set(weights) else (_STATISTICS,)),
        *((role,) for role in weights),
    ]
    for roles in dict.fromkeys(sets):
        for layer, values in others.items():
            if not all(role in values and values[role].shape == weights[role].shape for role in roles):
                continue
            if all(np.array_equal(values[role], weights[role]) for role in roles):
                continue
            what = noun.get(roles[0], roles[0]) if len(roles) == 1 else "the weights"
            if roles == _STATISTICS:
                what = "the running statistics"
            verb = "is that" if len(roles) == 1 else "are those"
            yield Altered(f"{what} {verb} of {layer}", f"give each layer its own {', '.join(roles)}",
                          f"{'+'.join(roles)} of {layer}", {role: values[role] for role in roles}, {},
                          tuple((role, layer, role) for role in roles))  # fmt: skip


def _float16(value: Array) -> Array:
    with np.errstate(over="ignore"):
        return value.astype(np.float16).astype(np.float64)


def _bfloat16(value: Array) -> Array:
    """To the nearest bfloat16, ties to even: the upper half of a float32."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
