"""Ways to carry a tensor over wrongly, each by name: canonical arrays in, canonical arrays out. NumPy only."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def rewritten(values: dict[str, Array], names: Sequence[str], how: str) -> dict[str, Array]:
    """``values`` with the tensors ``names`` wrong."""
    if how == "swap":  # the first with the second, the third with the fourth
        first, second = names[::2], names[1::2]
        return (
            values
            | dict(zip(first, (values[name] for name in second), strict=True))
            | dict(zip(second, (values[name] for name in first), strict=True))
        )
    if how == "copy":
        return values | {names[1]: values[names[0]]}
    if how == "initial":
        return values | {name: _initial(name, values[name]) for name in names}
    return values | {name: REWRITES[how](values[name]) for name in names}


def _initial(name: str, value: Array) -> Array:
    """What a fresh layer would hold: 0 and 1 in a normalization, Glorot's uniform distribution in a kernel."""
    if value.ndim < 2:
        return np.ones_like(value) if name.endswith(("running_var", "weight")) else np.zeros_like(value)
    window = int(np.prod(value.shape[2:]))
    limit = np.sqrt(6.0 / ((value.shape[0] + value.shape[1]) * window))
    drawn = np.random.default_rng(zlib.crc32(name.encode())).uniform(-limit, limit, value.shape)
    return drawn.astype(np.float32).astype(value.dtype)


def _transpose(value: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(value, 0, 1)).reshape(value.shape)


def _reshape(value: Array) -> Array:
    """(O, I, *window) in memory, taken for (*window, I, O)."""
    window = value.shape[2:]
    return np.moveaxis(value.reshape(*window, value.shape[1], value.shape[0]), (-1, -2), (0, 1))


def _group_order(value: Array) -> Array:
    half = value.reshape(2, value.shape[0] // 2, *value.shape[1:])
    return np.ascontiguousarray(np.swapaxes(half, 0, 1)).reshape(value.shape)


def as_bfloat16(value: Array) -> Array:
    """Rounded to the nearest bfloat16, ties to even."""
    return as_mantissa(value, 7)


def as_mantissa(value: Array, bits: int) -> Array:
    """Float32 numbers rounded to this many bits of mantissa, ties to even."""
    drop = 23 - bits
    integers = np.ascontiguousarray(value, np.float32).view(np.uint32)
    odd = (integers >> np.uint32(drop)) & np.uint32(1)
    rounded = integers + np.uint32((1 << (drop - 1)) - 1) + odd
    kept = rounded & np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1))
    return kept.view(np.float32).astype(value.dtype).reshape(value.shape)


REWRITES: dict[str, Callable[[Array], Array]] = {
    "zero": np.zeros_like,
    "transpose": _transpose,
    "reshape": _reshape,
    "flip": lambda value: np.flip(value, tuple(range(2, value.ndim))),
    "exchange height and width": lambda value: np.swapaxes(value, 2, 3),
    "group order": _group_order,
    "reverse inputs": lambda value: np.flip(value, 1),
    "roll 1": lambda value: np.roll(value, 1, 0),
    "roll 2": lambda value: np.roll(value, 2, 0),
    "float16": lambda value: value.astype(np.float16).astype(value.dtype),
    "bfloat16": as_bfloat16,
}
