"""Meta-tests of the measurements: what has to hold for any two tensors whatever, of any dtype, shape and range."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from portproof.compare.measure import distance, relative_error

DTYPES = st.sampled_from(["float16", "float32", "float64", "int32", "int64", "uint8", "bool"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def pair(draw: Any, dtypes: Any = DTYPES, elements: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape: unrelated, of two dtypes, or the second near the first."""
    shape = draw(SHAPES)
    a = draw(arrays.arrays(draw(dtypes), shape, elements=elements))
    kind = draw(st.sampled_from(["other", "near", "same", "negative"]))
    if kind == "same":
        return a, a.copy()
    if kind == "near" and a.dtype.kind == "f":
        return a, np.nextafter(a, np.asarray(np.inf, a.dtype))
    if kind == "negative" and a.dtype.kind == "f":
        return a, -a
    return a, draw(arrays.arrays(draw(dtypes), shape, elements=elements))


def moderate(width: int = 64) -> Any:
    """Floats whose products and sums stay in the normal range."""
    low, high = {64: (2.0**-300, 2.0**300)}[width]
    return st.one_of(st.just(0.0), st.floats(low, high), st.floats(-high, -low))


@given(pair())
def test_any_two_tensors_have_a_distance(tensors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = tensors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = distance(a, b, ulp=True)
        error = relative_error(b, a.astype(np.float64))
    assert 0 <= found.relative <= 2 * (1 + 1e-12) or found.relative == math.inf
    assert found.max_abs >= 0
    assert found.scale >= 0
    assert -1 <= found.cosine <= 1
    assert error >= 0
    assert all(value >= 0 for value in found.ulp)
    assert found.ulp == tuple(sorted(found.ulp))


@given(pair())
def test_only_nan_and_inf_in_other_places_make_it_infinite(tensors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (each.astype(np.float64) for each in tensors)
    apart = (~np.isfinite(a) | ~np.isfinite(b)) & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    assert (distance(*tensors).relative == math.inf) == bool(apart.any())


@given(arrays.arrays(DTYPES, SHAPES))
def test_a_tensor_is_where_it_is(a: np.ndarray) -> None:
    found = distance(a, a.copy(), ulp=True)
    assert (found.equal, found.relative, found.max_abs, found.ulp) == (True, 0.0, 0.0, (0.0, 0.0, 0.0))
    assert found.bad_a == found.bad_b == int(a.size - np.isfinite(a).sum())


@given(pair())
def test_the_two_may_change_places(tensors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = tensors
    forth, back = distance(a, b, ulp=True), distance(b, a, ulp=True)
    for name in ("equal", "relative", "max_abs", "scale", "ulp", "worst"):
        assert getattr(forth, name) == getattr(back, name)
    assert (forth.bad_a, forth.bad_b) == (back.bad_b, back.bad_a)


@given(pair(), st.randoms(use_true_random=False))
def test_the_places_of_values_do_not_matter(tensors: tuple[np.ndarray, np.ndarray], random: Any) -> None:
    a, b = (each.reshape(-1) for each in tensors)
    order = list(range(a.size))
    random.shuffle(order)
    found, mixed = distance(a, b), distance(a[order], b[order])
    assert mixed.relative == pytest.approx(found.relative, rel=1e-9, abs=1e-300)
    assert (mixed.equal, mixed.max_abs, mixed.bad_a, mixed.bad_b) == (
        found.equal, found.max_abs, found.bad_a, found.bad_b,
    )  # fmt: skip


@given(pair(dtypes=st.just("float64"), elements=moderate()), st.integers(-600, 600))
def test_the_unit_does_not_matter(tensors: tuple[np.ndarray, np.ndarray], exponent: int) -> None:
    unit = 2.0**exponent
    a, b = (np.where(np.abs(each) < 2.0**-300, 0.0, each) for each in tensors)  # a neighbour of zero has no half
    found, scaled = distance(a, b), distance(a * unit, b * unit)
    assert scaled.relative == pytest.approx(found.relative, rel=1e-12)
    assert scaled.cosine == pytest.approx(found.cosine, abs=1e-9)
    assert relative_error(b * unit, a * unit) == pytest.approx(relative_error(b, a), rel=1e-12)


@given(
    arrays.arrays("float64", SHAPES, elements=st.sampled_from([-0.0, 0.0, 1.0, -2.5, math.inf, math.nan])),
    st.randoms(use_true_random=False),
)
def test_the_sign_of_a_zero_is_no_difference(a: np.ndarray, random: Any) -> None:
    b = a.copy()
    for index in np.argwhere(a == 0):
        b[tuple(index)] = random.choice([0.0, -0.0])
    assert distance(a, b).relative == 0.0
    assert distance(a, b).max_abs == 0.0


@given(
    pair(dtypes=st.just("float64"), elements=moderate()), st.sampled_from([math.nan, math.inf, -math.inf]), st.data()
)
def test_a_bad_value_on_one_side_cannot_be_made_up_for(
    tensors: tuple[np.ndarray, np.ndarray], bad: float, data: Any
) -> None:
    a, b = (each.reshape(-1).copy() for each in tensors)
    if not a.size:
        return
    index = data.draw(st.integers(0, a.size - 1))
    before = distance(np.delete(a, index), np.delete(b, index)).relative
    a[index] = bad
    assert distance(a, b).relative == distance(b, a).relative == math.inf
    assert distance(a, b, least_scale=1e300).relative == math.inf
    assert distance(a, b).worst == (index,)
    assert relative_error(a, b) == relative_error(b, a) == math.inf
    b[index] = bad  # the same on both sides: what is left is measured
    assert distance(a, b).relative == pytest.approx(before, rel=1e-12)
    b[index] = -bad
    assert (distance(a, b).relative == math.inf) != math.isnan(bad)  # Inf has a sign, NaN has none that counts


@given(pair(dtypes=st.just("float64"), elements=moderate()), st.floats(1, 1e9))
def test_what_is_further_away_is_not_called_nearer(tensors: tuple[np.ndarray, np.ndarray], times: float) -> None:
    """Up to half of a tensor's norm, where limits lie; beyond, everything is wrong anyway."""
    a, b = tensors
    further = a + times * (b - a)
    near, far = distance(a, b).relative, distance(a, further).relative
    assert far >= min(near * (1 - 1e-9), 0.5 * (1 - 1e-9))


@given(arrays.arrays("float64", st.integers(1, 6), elements=moderate()), st.integers(0, 5), st.floats(1e-16, 1.0))
def test_one_value_alone_shows_in_its_share_of_the_norm(a: np.ndarray, place: int, size: float) -> None:
    """However far the values of a tensor range: what shows is the difference in units of the norm."""
    place %= a.size
    scale = math.hypot(*a.tolist())
    b = a.copy()
    b[place] += size * scale
    if scale > 0:
        expected = abs(b[place] - a[place]) / max(scale, math.hypot(*b.tolist()))
        assert distance(a, b).relative == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smallest", [5e-324, 1e-310, 2.3e-308])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_denormal_numbers_are_numbers(smallest: float, shape: tuple[int, ...]) -> None:
    a = np.full(shape, smallest)
    assert distance(a, 2 * a).relative == pytest.approx(0.5)
    assert distance(a, 0 * a).relative == 1.0
    assert distance(a, -a).relative == 2.0
    assert relative_error(2 * a, a) == pytest.approx(1.0)
    assert distance(a, a + 1e-300).relative > 0.99


def test_a_range_of_six_hundred_orders_leaves_numbers() -> None:
    a = np.array([1e-300, 1.0, 1e300])
    for b in (a * (1 + 1e-9), a + 1e287, -a, a[::-1], 0 * a):
        found = distance(a, b, ulp=True)
        assert 0 < found.relative <= 2
        assert math.isfinite(found.scale)
    assert distance(a, a * (1 + 1e-9)).relative == pytest.approx(1e-9, rel=1e-6)
    assert distance(a, np.array([2e-300, 1.0, 1e300])).relative == 0.0  # beside 1e300 it is nothing


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "uint64"])
def test_whole_numbers_neither_wrap_nor_round(dtype: str) -> None:
    info = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    a, b = np.array([info[0], info[1]], dtype), np.array([info[1], info[0]], dtype)
    assert distance(a, b).max_abs == pytest.approx(float(info[1]) - float(info[0]))
    assert not distance(a, b).equal
    assert distance(a, a).equal


@given(SHAPES.filter(lambda shape: 0 in shape), DTYPES, DTYPES)
def test_tensors_without_values_agree(shape: tuple[int, ...], first: str, second: str) -> None:
    found = distance(np.zeros(shape, first), np.zeros(shape, second), ulp=True)
    assert (found.relative, found.max_abs, found.scale, found.worst) == (0.0, 0.0, 0.0, ())
    assert relative_error(np.zeros(shape, first), np.zeros(shape)) == 0.0
