"""Measurements: how far two tensors are apart, without any opinion on how far they may be. NumPy only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.facts import Distance
from portproof.compare.streaming import square, sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from portproof.trace import StoredTensor

# ULP quantiles of larger tensors are taken from every k-th value: they describe a distribution, and judge nothing.
_ULP_SAMPLE = 2**12
_LEAST, _MOST = 1e-280, 1e280  # squares that can be added: neither subnormal nor near infinity
_SMALL_UNIT = 2.0**-64  # the norm of fewer than 2^128 values of any size is finite in it
_LEAST_NORM, _LARGE_UNIT = 2.0**-960, 2.0**600  # below it, a norm is about to lose digits, and has them in that unit


def distance(a: NDArray[Any], b: NDArray[Any], *, least_scale: float = 0.0, ulp: bool = False) -> Distance:
    """Measure ``b`` against ``a``; any shapes and dtypes, also empty ones.

    Args:
        a: the reference.
        b: the tensor in question.
        least_scale: what ``relative`` is at least related to, for tensors whose own norm is rounding noise.
        ulp: also give the 50 %, 99 % and 100 % quantiles of the difference in units in the last place of the coarser
            dtype.
    """
    if a.shape != b.shape:
        return Distance(a.shape, b.shape, a.dtype.name, b.dtype.name, False, math.inf, math.inf, 0.0, 0.0)
    if a.dtype == b.dtype and np.array_equal(_bits(a), _bits(b)):
        bad = _count_bad(a)
        scale = max(norm(a) if bad == 0 else 0.0, least_scale)
        return Distance(a.shape, b.shape, a.dtype.name, b.dtype.name, True, 0.0, 0.0, scale, 1.0, bad_a=bad, bad_b=bad)
    x, y = a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)
    bad_a, bad_b = _count_bad(x), _count_bad(y)
    only_one: NDArray[Any] | None = None
    if bad_a or bad_b:
        finite = np.isfinite(x) & np.isfinite(y)
        only_one = ~finite & (x != y) & ~(np.isnan(x) & np.isnan(y))
        x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
    same_places = only_one is None or not only_one.any()
    with np.errstate(over="ignore"):
        difference = np.abs(x - y)
    largest = float(difference.max()) if difference.size else 0.0
    worst = int((difference if same_places or only_one is None else only_one).argmax()) if difference.size else 0
    where = tuple(int(i) for i in np.unravel_index(worst, a.shape)) if difference.size and a.shape else ()
    norm_a, norm_b, norm_d = norm(x), norm(y), norm(difference)
    scale = max(norm_a, norm_b, least_scale)
    # Masks of -1.8e308, or denormal numbers: a ratio does not depend on the unit.
    unit = _unit(max(norm_a, norm_b, norm_d, least_scale))
    if unit != 1.0:
        x, y, least_scale = x * unit, y * unit, least_scale * unit
        norm_a, norm_b, norm_d = norm(x), norm(y), norm(x - y)
    related = max(norm_a, norm_b, least_scale)
    relative = norm_d / related if related > 0 else (0.0 if norm_d == 0 else math.inf)
    return Distance(
        shape_a=a.shape,
        shape_b=b.shape,
        dtype_a=a.dtype.name,
        dtype_b=b.dtype.name,
        equal=False,
        relative=relative if same_places else math.inf,
        max_abs=largest,
        scale=scale,
        cosine=_cosine(x, y, norm_a, norm_b),
        worst=where,
        worst_a=float(a.reshape(-1)[worst]) if difference.size else 0.0,
        worst_b=float(b.reshape(-1)[worst]) if difference.size else 0.0,
        bad_a=bad_a,
        bad_b=bad_b,
        ulp=_ulp_quantiles(a, b) if ulp and difference.size else (0.0, 0.0, 0.0),
    )


def stored_distance(a: StoredTensor, b: StoredTensor, *, least_scale: float = 0.0, ulp: bool = False) -> Distance:
    """`distance` of two large tensors of one shape that stay on disk.

    Where values are not finite or leave the range in which squares can be added, both are read as a whole.
    """
    found = sums(a, b, a.size, every=max(a.size // _ULP_SAMPLE, 1) if ulp else 0)
    usual = all(_LEAST < value < _MOST for value in (found.aa, found.bb)) and (found.dd > _LEAST or found.largest == 0)
    if not usual or found.dd >= _MOST:
        return distance(_whole(a), _whole(b), least_scale=least_scale, ulp=ulp)
    norms = math.sqrt(found.aa), math.sqrt(found.bb)
    scale = max(*norms, least_scale)
    position, gaps = found.worst, ulp and not found.equal and a.dtype.kind == b.dtype.kind == "f"
    worst = (each.block(position, position + 1) for each in (a, b))
    worst_a, worst_b = (0.0, 0.0) if found.equal else (float(each[0]) for each in worst)
    return Distance(
        shape_a=a.shape,
        shape_b=b.shape,
        dtype_a=a.dtype.name,
        dtype_b=b.dtype.name,
        equal=found.equal,
        relative=math.sqrt(found.dd) / scale,
        max_abs=found.largest,
        scale=scale,
        cosine=1.0 if found.equal else max(-1.0, min(1.0, found.ab / norms[0] / norms[1])),
        worst=() if found.equal else tuple(int(i) for i in np.unravel_index(position, a.shape)),
        worst_a=worst_a,
        worst_b=worst_b,
        ulp=_quantiles(*map(np.concatenate, zip(*found.samples, strict=True))) if gaps else (0.0, 0.0, 0.0),
    )


def equal_distance(a: StoredTensor, least_scale: float = 0.0) -> Distance:
    """`distance` of a large tensor on disk to another one that is known to have the same bits."""
    found = square(a, a.size)
    if not _LEAST < found < _MOST:
        whole = _whole(a)
        return distance(whole, whole, least_scale=least_scale)
    scale = max(math.sqrt(found), least_scale)
    return Distance(a.shape, a.shape, a.dtype.name, a.dtype.name, True, 0.0, 0.0, scale, 1.0)


def stored_error(value: StoredTensor, exact: StoredTensor, least_scale: float = 0.0) -> float:
    """`relative_error` of large tensors of one shape that stay on disk."""
    found = sums(value, exact, value.size)
    if not (_LEAST < found.bb < _MOST and found.aa < _MOST and (_LEAST < found.dd < _MOST or found.largest == 0)):
        return relative_error(_whole(value), _whole(exact), least_scale)
    return math.sqrt(found.dd) / max(math.sqrt(found.bb), least_scale)


def _whole(tensor: StoredTensor) -> NDArray[Any]:
    return tensor.block(0, tensor.size).reshape(tensor.shape)


def relative_error(value: NDArray[Any], exact: NDArray[Any], least_scale: float = 0.0) -> float:
    """The L2 norm of ``value - exact`` over that of ``exact``; infinite where it cannot be said."""
    if value.shape != exact.shape:
        return math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        difference = value.astype(np.float64) - exact
    error, scale = norm(difference), max(norm(exact), least_scale)
    if not math.isfinite(error) or not math.isfinite(scale):
        return math.inf
    if 0.0 < max(error, scale) < _LEAST_NORM:
        error, scale = norm(difference * _LARGE_UNIT), max(norm(exact * _LARGE_UNIT), least_scale * _LARGE_UNIT)
    return error / scale if scale > 0 else (0.0 if error == 0 else math.inf)


def _unit(size: float) -> float:
    if not math.isfinite(size):
        return _SMALL_UNIT
    return _LARGE_UNIT if 0.0 < size < _LEAST_NORM else 1.0


def norm(x: NDArray[Any]) -> float:
    """The L2 norm of all values, also where their squares leave the range of float64."""
    flat = x.reshape(-1).astype(np.float64, copy=False)
    with np.errstate(over="ignore", under="ignore"):
        squares = dot(flat, flat)
    if _LEAST < squares < _MOST:
        return math.sqrt(squares)
    # Squares of very large or very small values leave the range of float64: scale them first.
    largest = float(np.abs(flat).max()) if flat.size else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = flat / largest
    return largest * math.sqrt(dot(scaled, scaled))


def dot(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The inner product of two vectors.

    Not by BLAS: its threads spin while they wait for each other, and took 50 times as long as the product itself where
    the workers kept the other core busy; and what it gives depends on how many they are.
    """
    return float(np.einsum("i,i->", x, y))


def _cosine(x: NDArray[Any], y: NDArray[Any], norm_a: float, norm_b: float) -> float:
    if norm_a == 0 or norm_b == 0:
        return 1.0 if norm_a == norm_b else 0.0
    return min(max(dot(x.reshape(-1) / norm_a, y.reshape(-1) / norm_b), -1.0), 1.0)


def _count_bad(x: NDArray[Any]) -> int:
    if x.dtype.kind not in "fc":
        return 0
    # A sum is finite only if every value is, short of an overflow; it costs a tenth of looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.sum(x, dtype=np.float64))
    if math.isfinite(total):
        return 0
    return int(x.size - np.count_nonzero(np.isfinite(x)))


def _bits(x: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") if x.dtype.kind == "f" else x


def _ulp_quantiles(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float, float]:
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return (0.0, 0.0, 0.0)
    step = max(a.size // _ULP_SAMPLE, 1)
    return _quantiles(*(each.reshape(-1)[::step] for each in (a, b)))


def _quantiles(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float, float]:
    dtype = min(a.dtype, b.dtype, key=lambda each: each.itemsize)
    with np.errstate(over="ignore"):
        pair = [np.ascontiguousarray(each, dtype=dtype) for each in (a, b)]
    ordered = [_monotone(each) for each in pair]
    # uint64 differences wrap, so the larger minus the smaller.
    gaps = np.sort(np.maximum(*ordered) - np.minimum(*ordered))
    last = gaps.size - 1
    return (float(gaps[last // 2]), float(gaps[round(last * 0.99)]), float(gaps[last]))


def _monotone(x: NDArray[Any]) -> NDArray[Any]:
    """The bits of floats as unsigned integers in the floats' order, so that neighbours differ by one."""
    bits = x.view(f"u{x.dtype.itemsize}")
    sign = np.array(1, bits.dtype) << np.array(8 * x.dtype.itemsize - 1, bits.dtype)
    return np.where(bits & sign, sign - (bits & ~sign), sign + bits).astype(np.uint64)
