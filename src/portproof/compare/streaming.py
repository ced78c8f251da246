"""Sums over two large tensors in one pass, read block by block from disk or memory. NumPy only.

A block stays in the processor's cache while everything is computed from it, so that a large tensor costs about what
reading it costs, and no more memory than a few blocks. Spans of blocks are shared out to threads, for NumPy leaves the
interpreter to others; their sums are added in order, so that the result does not depend on the threads.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE = 2**20  # values, from which a tensor is streamed
_SPAN = 2**20  # values that one thread reads at a time
_WIDEST = 8  # bytes of a value
_BLOCK = 2**16  # values that are computed with at a time: 512 KiB in float64


class Flat(Protocol):
    """Values of any tensor by position in it flattened; `portproof.trace.StoredTensor` is one."""

    def block(self, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """The values from ``start`` to ``stop``, in ``buffer`` where that is of use."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Squares of both tensors and of their difference, their product, the largest difference and its place, samples."""

    equal: bool = True
    aa: float = 0.0
    bb: float = 0.0
    dd: float = 0.0
    ab: float = 0.0
    largest: float = 0.0
    worst: int = 0
    samples: tuple[tuple[NDArray[Any], NDArray[Any]], ...] = ()

    def __add__(self, other: Sums) -> Sums:
        later = other.largest > self.largest
        return Sums(
            self.equal and other.equal,
            self.aa + other.aa,
            self.bb + other.bb,
            self.dd + other.dd,
            self.ab + other.ab,
            other.largest if later else self.largest,
            other.worst if later else self.worst,
            self.samples + other.samples,
        )


def sums(a: Flat, b: Flat, size: int, *, every: int = 0) -> Sums:
    """All sums of two tensors of ``size`` values, and ``every`` so many a sample of both.

    A NaN or Inf among them makes ``aa`` or ``bb`` not finite.
    """

    def of_span(start: int) -> Sums:
        x, y = _read(a, start, size, 0), _read(b, start, size, 1)
        samples = ((x[-start % every :: every].copy(), y[-start % every :: every].copy()),) if every else ()
        return Sums(samples=samples) + _of_span(x, y, start)

    return _total(of_span, size)


def square(a: Flat, size: int) -> float:
    """The sum of squares of a tensor's values."""

    def of_span(start: int) -> Sums:
        values = _read(a, start, size, 0)
        blocks = (values[i : i + _BLOCK].astype(np.float64) for i in range(0, len(values), _BLOCK))
        with np.errstate(over="ignore", invalid="ignore"):
            return Sums(aa=sum(float(block @ block) for block in blocks))

    return _total(of_span, size).aa


class _Buffers(threading.local):
    """Two per thread that stay: fresh memory for every span would cost more than reading into it."""

    def __init__(self) -> None:
        self.both = [np.empty(_WIDEST * _SPAN, np.uint8) for _ in range(2)]


def _read(tensor: Flat, start: int, size: int, which: int) -> NDArray[Any]:
    return tensor.block(start, min(start + _SPAN, size), _thread_buffers().both[which])


def _total(of_span: Any, size: int) -> Sums:
    total = Sums()
    for part in _pool().map(of_span, range(0, size, _SPAN)):
        total += part
    return total


@cache
def _thread_buffers() -> _Buffers:
    return _Buffers()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def _of_span(a: NDArray[Any], b: NDArray[Any], first: int) -> Sums:
    total = Sums()
    x, y, difference = (np.empty(min(_BLOCK, len(a))) for _ in range(3))
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(0, len(a), _BLOCK):
            p, q = a[i : i + _BLOCK], b[i : i + _BLOCK]
            n = len(p)
            np.copyto(x[:n], p, casting="unsafe")
            aa = float(x[:n] @ x[:n])
            if p.dtype == q.dtype and np.array_equal(_bits(p), _bits(q)):
                total += Sums(True, aa, aa, 0.0, aa)
                continue
            np.copyto(y[:n], q, casting="unsafe")
            d = np.subtract(x[:n], y[:n], out=difference[:n])
            highest, lowest = float(d.max()), float(d.min())
            largest = max(highest, -lowest)
            at = first + i + int(d.argmax() if highest >= -lowest else d.argmin()) if largest > total.largest else 0
            total += Sums(False, aa, float(y[:n] @ y[:n]), float(d @ d), float(x[:n] @ y[:n]), largest, at)
    return total


def _bits(x: NDArray[Any]) -> NDArray[Any]:
    return x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "f" else x
