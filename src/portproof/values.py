"""Values: what float inputs are filled with, and what the weights that both sides share start from. Plain data.

The usual input is standard normal; what a model does at zero, at 1e4 or behind padding, it has to be asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portproof.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]

NORMAL = "normal"
_TEXT = re.compile(r"(?P<name>[a-z-]+)(?:\*(?P<factor>\d[\d.]*(?:e[+-]?\d+)?))?")


@dataclass(frozen=True, slots=True)
class Start:
    """What the shared weights start from.

    ``excite``: make them leave no path idle (capture/excite.py). ``kernels``: redraw every kernel, at its own mean and
    standard deviation, from values of this name; empty keeps the factory's. ``gain``: what kernels are multiplied by.
    """

    excite: bool = True
    kernels: str = ""
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.kernels:
            check_values(self.kernels)


def check_values(text: str) -> None:
    """Raises `InputError` unless ``text`` is ``NAME`` or ``NAME*FACTOR`` with one of the names of `DRAWS`."""
    match = _TEXT.fullmatch(text)
    if not match or match["name"] not in DRAWS:
        known = ", ".join(sorted(DRAWS))
        raise InputError(f"{text!r} are no values: write one of {known}, with a factor such as normal*1e4 if wanted.")


def draw(text: str, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of such values, batch first.

    Raises:
        InputError: there are no values of this name.
    """
    check_values(text)
    name, _, factor = text.partition("*")
    array = DRAWS[name](rng, shape)
    # In float64, so that a product below float32's normal range is a denormal number and not zero by way of its factor.
    return (array.astype("float64") * float(factor)).astype("float32") if factor else array


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype="float32")


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """In [0, 1), as pixels are."""
    return rng.random(shape, dtype="float32")


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Student's t with two degrees of freedom: of ten thousand values, one is about a hundred times the usual."""
    return rng.standard_t(2, shape).astype("float32")


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype="float32") * 0.0 + 0.0  # not -0.0


def _constant(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One value in each entry of the batch."""
    return _zeros(rng, shape) + rng.standard_normal((shape[0], *(1 for _ in shape[1:])), dtype="float32")


def _one_hot(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A single one along the last dimension."""
    scores = rng.random(shape)
    return (scores == scores.max(-1, keepdims=True)).astype("float32")


def _padded(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal, with zeros at the end of the dimension before the last, from another place in each entry."""
    array = _normal(rng, shape)
    axis = max(len(shape) - 2, 1)
    if axis < len(shape):
        for entry in array:
            length = int(rng.integers(1, shape[axis] + 1))
            entry.swapaxes(0, axis - 1)[length:] = 0.0
    return array


DRAWS: dict[str, Draw] = {
    NORMAL: _normal,
    "uniform": _uniform,
    "heavy": _heavy,
    "zeros": _zeros,
    "constant": _constant,
    "one-hot": _one_hot,
    "padded": _padded,
}
