"""Rearrangements: how the values of one tensor stand in another order in another one, as plain data. NumPy only.

A rearrangement keeps every value and the shape. Each is a step that a conversion takes by mistake, or forgets:

| step | meaning |
|---|---|
| ``["transpose", axes]`` | axes exchanged, as `numpy.transpose` has it, where the shape stays the same |
| ``["reshape", axes]`` | the values in memory order, read as if the axes came in the order ``axes`` |
| ``["unreshape", axes]`` | the inverse of ``reshape`` |
| ``["flip", axes]`` | the order along these axes reversed |
| ``["shuffle", axis, groups]`` | an axis of (groups, size) read as (size, groups), as a channel shuffle does |
| ``["blocks", axis, order]`` | equal blocks along an axis in another order, such as the gates of an LSTM |
| ``["roll", axis, places]`` | moved round along an axis |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Step = Sequence[Any]

_MOST_BLOCKS = 4  # query, key, value; the four gates of an LSTM
_AXES = "OIHWD"  # what the axes of a kernel are called, in canonical layout


def rearranged(array: NDArray[Any], step: Step) -> NDArray[Any]:
    """The array after one step; raises `ValueError` for a step that does not keep its shape, or is none."""
    what, *arguments = step
    if what == "transpose":
        made = array.transpose(arguments[0])
    elif what == "reshape":
        axes = list(arguments[0])
        made = array.reshape([array.shape[axis] for axis in axes]).transpose(np.argsort(axes))
    elif what == "unreshape":
        made = array.transpose(arguments[0]).reshape(array.shape)
    elif what == "flip":
        made = np.flip(array, tuple(arguments[0]))
    elif what == "shuffle":
        axis, groups = arguments
        parts = array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])
        made = parts.swapaxes(axis, axis + 1).reshape(array.shape)
    elif what == "blocks":
        axis, order = arguments
        blocks = np.split(array, len(order), axis)
        made = np.concatenate([blocks[index] for index in order], axis)
    elif what == "roll":
        made = np.roll(array, arguments[1], arguments[0])
    else:
        raise ValueError(f"there is no rearrangement {what!r}")
    if made.shape != array.shape:
        raise ValueError(f"{list(step)} changes the shape {array.shape} to {made.shape}")
    return made


def inverse(step: Step, shape: Sequence[int]) -> list[Any]:
    """The step that takes ``step`` back, for arrays of this shape."""
    what, *arguments = step
    if what == "transpose":
        return ["transpose", [int(axis) for axis in np.argsort(arguments[0])]]
    if what in ("reshape", "unreshape"):
        return ["unreshape" if what == "reshape" else "reshape", list(arguments[0])]
    if what == "shuffle":
        axis, groups = arguments
        return ["shuffle", axis, shape[axis] // groups]
    if what == "blocks":
        axis, order = arguments
        return ["blocks", axis, [int(place) for place in np.argsort(order)]]
    if what == "roll":
        return ["roll", arguments[0], -arguments[1]]
    return list(step)


def rearrangements(shape: Sequence[int]) -> Iterator[list[Any]]:
    """The steps that arrays of this shape allow, the usual mistakes first."""
    ndim, every = len(shape), range(len(shape))
    for axes in permutations(every):
        if list(axes) != list(every) and [shape[axis] for axis in axes] == list(shape):
            yield ["transpose", list(axes)]
    for axes in permutations(every):
        if list(axes) != list(every):
            yield ["reshape", list(axes)]
            yield ["unreshape", list(axes)]
    large = [axis for axis in every if shape[axis] > 1]
    # Kernels are flipped over all of their spatial axes together, or over one.
    spatial = [axis for axis in large if axis >= 2]
    if len(spatial) > 1:
        yield ["flip", spatial]
    yield from (["flip", [axis]] for axis in reversed(large))
    yield from (["flip", list(pair)] for pair in combinations(large, 2) if list(pair) != spatial)
    for axis in large[:2] if ndim > 1 else large:
        size = shape[axis]
        for count in range(2, _MOST_BLOCKS + 1):
            if size % count == 0:
                orders = permutations(range(count))
                yield from (["blocks", axis, list(order)] for order in orders if list(order) != list(range(count)))
        yield from (["shuffle", axis, groups] for groups in range(2, size) if size % groups == 0)
    yield from (["roll", axis, places] for axis in large for places in (1, -1))


def described(step: Step, noun: str, ndim: int) -> str:
    """What a step does to the kernel (or whatever ``noun`` is), in words."""
    what, *arguments = step
    names = _AXES if ndim > 1 else "C"
    if what in ("reshape", "unreshape"):
        return f"{noun} was reshaped where it has to be transposed"
    if what == "transpose":
        moved = "".join(names[axis] for axis, place in enumerate(arguments[0]) if axis != place)
        if moved == "OI":
            return f"{noun} is transposed (in and out exchanged)"
        if moved == "HW":
            return f"height and width of {noun} are exchanged"
        return f"{noun} is transposed ({names[:ndim]} read as {''.join(names[axis] for axis in arguments[0])})"
    if what == "flip":
        spatial = ndim > 2 and list(arguments[0]) == list(range(2, ndim))
        return f"{noun} is flipped" + ("" if spatial else f" along {''.join(names[axis] for axis in arguments[0])}")
    if what == "shuffle":
        return f"{noun} is shuffled along {names[arguments[0]]} ({arguments[1]} groups)"
    if what == "blocks":
        return f"{noun} has its blocks along {names[arguments[0]]} in the order {', '.join(map(str, arguments[1]))}"
    return f"{noun} is moved by {arguments[1]} along {names[arguments[0]]}"
