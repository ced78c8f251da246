"""Canonical layout: how a Keras variable becomes the PyTorch tensor it stands for, and back. NumPy only.

| Keras layer | variable | Keras shape | canonical shape |
|---|---|---|---|
| Conv1D/2D/3D (also grouped) | kernel | (*K, I/groups, O) | (O, I/groups, *K) |
| Conv1D/2D/3DTranspose | kernel | (*K, O, I) | (I, O, *K) |
| DepthwiseConv1D/2D | depthwise_kernel or kernel | (*K, C, M) | (C * M, 1, *K) |
| SeparableConv1D/2D | depthwise_kernel | (*K, C, M) | (C * M, 1, *K) |
| SeparableConv1D/2D | pointwise_kernel | (*1, C * M, O) | (O, C * M, *1) |
| Dense | kernel | (I, O) | (O, I) |
| all others | | as it is | as it is |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Keras' own names for a variable -> the role in PyTorch's words.
ROLES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "pointwise_kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How one variable is laid out: ``conv``, ``conv_transpose``, ``depthwise``, ``dense`` or ``same``."""

    kind: str = "same"

    def to_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array in canonical layout (a view where that is possible)."""
        if self.kind == "conv":
            return np.moveaxis(array, (-1, -2), (0, 1))
        if self.kind == "conv_transpose":
            return np.moveaxis(array, (-1, -2), (0, 1))
        if self.kind == "depthwise":
            *spatial, channels, multiplier = array.shape
            return np.moveaxis(array, (-2, -1), (0, 1)).reshape(channels * multiplier, 1, *spatial)
        if self.kind == "dense":
            return array.T
        return array

    def from_canonical(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The inverse of `to_canonical`; ``shape`` is the Keras shape (a depthwise kernel needs its multiplier)."""
        if self.kind in ("conv", "conv_transpose"):
            return np.moveaxis(array, (0, 1), (-1, -2))
        if self.kind == "depthwise":
            return np.moveaxis(array.reshape(shape[-2], shape[-1], *shape[:-2]), (0, 1), (-2, -1))
        if self.kind == "dense":
            return array.T
        return array

    def canonical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The canonical shape of a variable of this shape."""
        return self.to_canonical(np.broadcast_to(np.int8(0), shape)).shape
