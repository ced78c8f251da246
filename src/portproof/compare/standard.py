"""Standard layers in NumPy: what a layer of a known kind computes from its input, weights and settings.

Arrays are in canonical layout (PyTorch's): activations (N, C, ...) for convolutions and BatchNorm, kernels (O, I, ...).
Convolutions are computed at a few output places only; that is enough to tell one hypothesis from another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_PLACES = 160  # output places of a convolution that are computed

_erf = np.frompyfunc(math.erf, 1, 1)
_LEAKY = re.compile(r"leaky relu \(([0-9.e+-]+)\)")


def _softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh GELU": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "sigmoid GELU": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: 0.5 * x * (1 + np.asarray(_erf(x / math.sqrt(2)), np.float64)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "leaky relu (0.3)": lambda x: np.where(x > 0, x, 0.3 * x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard sigmoid (x/6)": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard sigmoid (0.2 x)": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "hard swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "softmax": _softmax,
}
"""By the names that capture/edits_tensorflow.py has for them, too."""


def activation(name: str) -> Callable[[Array], Array] | None:
    """The activation of this name; a leaky relu of any slope."""
    if match := _LEAKY.fullmatch(name):
        slope = float(match[1])
        return lambda x: np.where(x > 0, x, slope * x)
    return ACTIVATIONS.get(name)


def activation_name(kind: str, settings: Mapping[str, Any]) -> str:
    """Which of the activations a layer of a kind is, by its settings; empty if it is none."""
    if kind == "gelu" and settings.get("approximate") in ("tanh", True):
        return "tanh GELU"
    if kind == "leaky relu":
        return f"leaky relu ({settings.get('negative_slope', 0.01):g})"
    return kind if kind in ACTIVATIONS or kind == "identity" else ""


@dataclass(frozen=True)
class Convolution:
    """Where a convolution takes its values from. ``pads`` are (before, after) for each spatial axis."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], sizes: Sequence[int], kernel: Sequence[int]) -> Convolution:
        """What settings come to for an input of these spatial sizes; 'same' is TensorFlow's rule."""
        axes = len(sizes)
        stride, dilation = _each(settings.get("stride", 1), axes), _each(settings.get("dilation", 1), axes)
        padding = settings.get("padding", 0)
        if padding == "same":
            return cls(stride, dilation, same_pads(sizes, kernel, stride, dilation))
        if isinstance(padding, str):
            padding = 0
        return cls(stride, dilation, tuple((pad, pad) for pad in _each(padding, axes)))

    def output_sizes(self, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes of the output; none of them is negative."""
        spans = [(size - 1) * step + 1 for size, step in zip(kernel, self.dilation, strict=True)]
        return tuple(
            max((size + sum(pads) - span) // stride + 1, 0)
            for size, pads, span, stride in zip(sizes, self.pads, spans, self.stride, strict=True)
        )

    def patches(
        self, x: Array, kernel: Sequence[int], mode: str = "constant"
    ) -> tuple[Array, tuple[Array, ...]] | None:
        """What the kernel sees at some of the output places: (P, C, *kernel), and the places as (n, i, j, ...)."""
        sizes = self.output_sizes(x.shape[2:], kernel)
        shape = (x.shape[0], *sizes)
        total = math.prod(shape)
        if not total:
            return None
        # Corners and edges first: there paddings differ.
        edges = np.flatnonzero(_at_an_edge(shape))
        spread = np.arange(total) if total <= _PLACES else np.linspace(0, total - 1, _PLACES).astype(int)
        some = edges if len(edges) <= _PLACES else edges[np.linspace(0, len(edges) - 1, _PLACES).astype(int)]
        places = np.unravel_index(np.unique(np.concatenate([some, spread])), shape)
        padded = _padded(x, ((0, 0), (0, 0), *self.pads), mode)
        taken = []
        for axis, (place, step, dilation, size) in enumerate(
            zip(places[1:], self.stride, self.dilation, kernel, strict=True)
        ):
            index = place[:, None] * step + np.arange(size)[None] * dilation
            taken.append(index.reshape(len(place), 1, *(size if each == axis else 1 for each in range(len(kernel)))))
        ones = (1,) * len(kernel)
        batch = places[0].reshape(-1, 1, *ones)
        channels = np.arange(x.shape[1]).reshape(1, -1, *ones)
        return padded[(batch, channels, *taken)], places


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """TensorFlow's rule: as much padding as the output size needs, the odd row at the end."""
    totals = [
        max((math.ceil(size / step) - 1) * step + (k - 1) * wide + 1 - size, 0)
        for size, step, k, wide in zip(sizes, stride, kernel, dilation, strict=True)
    ]
    return tuple((total // 2, total - total // 2) for total in totals)


def convolved(patches: Array, weight: Array, bias: Array | None, groups: int) -> Array:
    """Outputs (P, O) at the places of ``patches`` (P, C, *kernel)."""
    count, per_group = len(patches), weight.shape[0] // groups
    if groups == 1:
        output = patches.reshape(count, -1) @ weight.reshape(weight.shape[0], -1).T
    else:
        grouped = patches.reshape(count, groups, -1)
        output = np.einsum("pgi,goi->pgo", grouped, weight.reshape(groups, per_group, -1)).reshape(count, -1)
    return output if bias is None else output + bias


def normalised(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """BatchNorm with given statistics, over axis 1."""
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = gamma / np.sqrt(var + eps)
    return (x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape)


def layer_normalised(x: Array, axes: tuple[int, ...], gamma: Array, beta: Array, eps: float, scale: float) -> Array:
    """LayerNorm over ``axes``, scaled along the last ones; ``scale`` multiplies the variance."""
    mean, var = x.mean(axes, keepdims=True), scale * x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * gamma + beta


def _padded(x: Array, pads: Sequence[tuple[int, int]], mode: str) -> Array:
    if mode == "reflect" and all(max(pair) < size for pair, size in zip(pads, x.shape, strict=True)):
        return np.pad(x, pads, "reflect")
    return np.pad(x, pads, "edge" if mode == "edge" else "constant")


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(int(each) for each in value) if isinstance(value, (list, tuple)) else (int(value),) * axes


def _at_an_edge(shape: Sequence[int]) -> Array:
    found = np.zeros(shape, bool)
    for axis in range(1, len(shape)):
        view = np.moveaxis(found, axis, 0)
        view[0] = view[-1] = True
    return found
