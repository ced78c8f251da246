"""Tests of the measurements: against `math.hypot`, and by properties that any distance of two tensors has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.compare.measure import distance, relative_error

FLOATS = (np.float16, np.float32, np.float64)


def numbers(largest: float) -> st.SearchStrategy[float]:
    return st.floats(-largest, largest, allow_nan=False)


def pairs(largest: float = 1e300, sizes: tuple[int, int] = (1, 8)) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    rows = st.lists(st.tuples(numbers(largest), numbers(largest)), min_size=sizes[0], max_size=sizes[1])
    return rows.map(lambda rows: tuple(np.array(column, np.float64) for column in zip(*rows, strict=True)))


def norm(values: np.ndarray) -> float:
    # hypot neither overflows nor underflows on the way, so it is a reference that shares nothing with the code.
    return math.hypot(*values.reshape(-1).tolist())


# --- relative, max_abs, cosine ----------------------------------------------------------------------------------------


@given(pairs())
def test_relative_is_the_norm_of_the_difference_over_the_larger_norm(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    found = distance(a, b)
    scale = max(norm(a), norm(b))
    assert found.scale == pytest.approx(scale, rel=1e-12, abs=1e-322)
    if scale > 1e-300:  # below, a norm itself has few digits
        assert found.relative == pytest.approx(norm(a - b) / scale, rel=1e-12)
    assert found.max_abs == max(abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert 0 <= found.relative <= 2 * (1 + 1e-12)  # the triangle inequality
    assert found.equal == (a.tobytes() == b.tobytes())


@given(pairs(1.7e308))
def test_relative_is_a_number_even_where_norms_overflow(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    found = distance(a, b)
    assert 0 <= found.relative <= 2 * (1 + 1e-12)
    assert -1 <= found.cosine <= 1


@pytest.mark.parametrize(("factor", "relative", "cosine"), [(0.5, 0.5, 1.0), (-1.0, 2.0, -1.0), (0.0, 1.0, 0.0)])
def test_masks_of_the_largest_float_do_not_hide_a_difference(factor: float, relative: float, cosine: float) -> None:
    mask = np.full(4, np.finfo(np.float64).min)  # a common attention mask; its norm is infinite
    found = distance(mask, mask * factor)
    assert found.relative == relative
    assert found.cosine == cosine
    assert found.scale == math.inf
    # What the caller knows is brought into the same unit.
    ends = np.array([np.finfo(np.float64).min, np.finfo(np.float64).max])
    assert distance(ends, -ends, least_scale=1e308).relative == pytest.approx(2.0)


@given(pairs(1e100))
def test_exchanging_the_two_changes_only_their_names(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    forth, back = distance(a, b, ulp=True), distance(b, a, ulp=True)
    same = ("equal", "relative", "max_abs", "scale", "worst", "ulp")
    assert [getattr(forth, each) for each in same] == [getattr(back, each) for each in same]
    assert forth.cosine == pytest.approx(back.cosine, abs=1e-12)
    assert (forth.worst_a, forth.worst_b) == (back.worst_b, back.worst_a)


@given(pairs(1e50), st.integers(-300, 300))
def test_the_unit_does_not_matter(pair: tuple[np.ndarray, np.ndarray], exponent: int) -> None:
    # Values above 1e-50, so that no product leaves the normal range and a power of two changes no digit.
    a, b = (np.where(np.abs(each) < 1e-50, 0.0, each) for each in pair)
    unit = 2.0**exponent
    found, scaled = distance(a, b), distance(a * unit, b * unit)
    assert scaled.relative == pytest.approx(found.relative, rel=1e-13)
    assert scaled.cosine == pytest.approx(found.cosine, abs=1e-12)
    assert scaled.max_abs == found.max_abs * unit


@given(pairs(1e50), st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(pair: tuple[np.ndarray, np.ndarray], random: object) -> None:
    a, b = pair
    order = list(range(a.size))
    random.shuffle(order)  # type: ignore[attr-defined]
    found, mixed = distance(a, b, ulp=True), distance(a[order], b[order], ulp=True)
    assert mixed.relative == pytest.approx(found.relative, rel=1e-12)
    assert (mixed.max_abs, mixed.equal, mixed.ulp) == (found.max_abs, found.equal, found.ulp)


def test_worst_is_where_the_difference_is_largest() -> None:
    a = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    b = a.copy()
    b[0, 1, 1] += 0.5
    b[1, 2, 0] -= 4
    found = distance(a, b)
    assert (found.worst, found.worst_a, found.worst_b, found.max_abs) == ((1, 2, 0), 10.0, 6.0, 4.0)


def test_cosine_tells_a_wrong_scale_from_a_wrong_direction() -> None:
    x, y = np.array([3.0, 4.0]), np.array([-4.0, 3.0])
    assert distance(x, 7 * x).cosine == pytest.approx(1.0)
    assert distance(x, y).cosine == pytest.approx(0.0, abs=1e-15)
    assert distance(x * 1e200, y * 1e200).cosine == pytest.approx(0.0, abs=1e-15)
    assert distance(x * 1e200, x * 2e200).cosine == pytest.approx(1.0)
    assert distance(x, 0 * x).cosine == 0.0


def test_least_scale_stands_in_for_a_smaller_norm_only() -> None:
    a, b = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    assert distance(a, b, least_scale=10.0).relative == 0.5 / 10
    assert distance(a, b, least_scale=1.0).relative == distance(a, b).relative == 0.5 / math.hypot(3, 4.5)
    assert distance(a, a, least_scale=10.0).scale == 10.0
    zeros = np.zeros(2)
    assert distance(zeros, zeros + 1e-20, least_scale=1.0).relative == pytest.approx(math.sqrt(2) * 1e-20)


# --- Shapes and dtypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
@pytest.mark.parametrize("other", FLOATS)
def test_empty_tensors_agree(shape: tuple[int, ...], other: type) -> None:
    found = distance(np.zeros(shape), np.zeros(shape, other), ulp=True)
    assert (found.relative, found.max_abs, found.scale, found.worst) == (0.0, 0.0, 0.0, ())
    assert found.equal == (other is np.float64)


def test_tensors_without_dimensions() -> None:
    found = distance(np.array(2.0), np.array(3.0), ulp=True)
    assert (found.relative, found.worst, found.worst_a, found.worst_b) == (1 / 3, (), 2.0, 3.0)
    assert distance(np.array(2.0), np.array(2.0)).equal


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((), (1,)), ((0,), (1,)), ((2, 3), (6,))])
def test_other_shapes_are_infinitely_far_apart(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    found = distance(np.ones(shapes[0]), np.ones(shapes[1]))
    assert (found.relative, found.max_abs, found.equal) == (math.inf, math.inf, False)
    assert (found.shape_a, found.shape_b) == shapes


@given(st.lists(numbers(1e30), min_size=1, max_size=8), st.sampled_from([(4, 8), (2, 4), (2, 8)]))
def test_the_same_values_in_two_dtypes_have_no_distance(values: list[float], sizes: tuple[int, int]) -> None:
    coarse = np.clip(np.array(values), -6e4, 6e4).astype(f"f{sizes[0]}")
    found = distance(coarse, coarse.astype(f"f{sizes[1]}"), ulp=True)
    assert (found.relative, found.max_abs, found.ulp) == (0.0, 0.0, (0.0, 0.0, 0.0))
    assert not found.equal  # equality is that of the bits
    assert (found.dtype_a, found.dtype_b) == (f"float{8 * sizes[0]}", f"float{8 * sizes[1]}")


def test_integers_and_booleans_are_numbers() -> None:
    assert distance(np.array([3, 4]), np.array([3, 5])).relative == 1 / math.hypot(3, 5)
    assert distance(np.array([3, 4], np.int32), np.array([3, 4], np.int64)).relative == 0.0
    assert distance(np.array([True, True]), np.array([True, False]), ulp=True).relative == 1 / math.sqrt(2)
    assert distance(np.array([0, 200], np.uint8), np.array([1, 0], np.uint8)).max_abs == 200.0  # no wrapping round
    assert distance(np.array([1, 2]), np.array([1.0, 2.0]), ulp=True).ulp == (0.0, 0.0, 0.0)


def test_memory_layout_does_not_matter() -> None:
    a = np.arange(6.0).reshape(2, 3)
    assert distance(a, np.asfortranarray(a)).equal
    assert distance(a.T, np.ascontiguousarray(a.T) + 1).worst == distance(a.T.copy(), a.T + 1).worst


# --- Bits and units in the last place ---------------------------------------------------------------------------------


def test_equality_is_that_of_the_bits() -> None:
    positive, negative = np.array([0.0, 1.0]), np.array([-0.0, 1.0])
    found = distance(positive, negative, ulp=True)
    assert (found.equal, found.relative, found.ulp) == (False, 0.0, (0.0, 0.0, 0.0))
    payloads = [np.array([0x7FF8000000000000 + i, 0], np.uint64).view(np.float64) for i in (0, 1)]
    assert distance(payloads[0], payloads[0].copy()).equal
    found = distance(*payloads)
    assert (found.equal, found.relative, found.bad_a, found.bad_b) == (False, 0.0, 1, 1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("start", [1.0, -1.0, 0.0, -0.0, 3e-5, "largest", "smallest", "below zero"])
def test_ulps_count_the_floats_in_between(dtype: type, steps: int, start: float | str) -> None:
    info = np.finfo(dtype)
    named = {"largest": info.max, "smallest": info.smallest_subnormal, "below zero": -info.smallest_subnormal}
    value = dtype(named.get(start, start))
    towards = dtype(-np.inf) if start == "largest" else dtype(np.inf)
    other = value
    for _ in range(steps):
        other = np.nextafter(other, towards)
    assert distance(np.array([value]), np.array([other]), ulp=True).ulp == (steps,) * 3


def test_ulps_span_the_whole_range() -> None:
    largest = np.finfo(np.float64).max
    bits = int(np.array(largest).view(np.uint64))
    assert distance(np.array([-largest]), np.array([largest]), ulp=True).ulp[2] == float(2 * bits)


def test_ulp_quantiles_are_the_median_the_99th_percent_and_the_largest() -> None:
    a = np.ones(101, np.float32)
    b = (a.view(np.uint32) + np.random.default_rng(0).permutation(101).astype(np.uint32)).view(np.float32)
    assert distance(a, b, ulp=True).ulp == (50.0, 99.0, 100.0)
    assert distance(a, b).ulp == (0.0, 0.0, 0.0)


def test_ulps_are_those_of_the_coarser_dtype() -> None:
    exact = np.array([1.0 + 2.0**-30, 2.0])
    assert distance(exact, np.array([1.0, 2.0], np.float32), ulp=True).ulp[2] == 0.0
    assert distance(np.array([1.0 + 2.0**-23, 2.0]), np.array([1.0, 2.0], np.float32), ulp=True).ulp[2] == 1.0


def test_ulps_of_a_large_tensor_come_from_a_sample_of_all_of_it() -> None:
    a = np.ones(2**16, np.float32)
    b = a.copy()
    b[2**15 :] = np.nextafter(np.float32(1), np.float32(2))
    assert distance(a, b, ulp=True).ulp == (0.0, 1.0, 1.0)


# --- NaN and Inf ------------------------------------------------------------------------------------------------------

KINDS = st.sampled_from([1.0, 2.0, -3.0, math.nan, math.inf, -math.inf])


@given(st.lists(st.tuples(KINDS, KINDS), min_size=1, max_size=6))
def test_nan_and_inf_agree_in_the_same_places_only(rows: list[tuple[float, float]]) -> None:
    a, b = (np.array(column) for column in zip(*rows, strict=True))
    found = distance(a, b, ulp=True)

    def apart(x: float, y: float) -> bool:
        if math.isfinite(x) and math.isfinite(y):
            return False
        return not (x == y or (math.isnan(x) and math.isnan(y)))

    places = [index for index, row in enumerate(rows) if apart(*row)]
    assert (found.relative == math.inf) == bool(places)
    assert found.bad_a == sum(not math.isfinite(x) for x, _ in rows)
    assert found.bad_b == sum(not math.isfinite(y) for _, y in rows)
    both = [(x, y) for x, y in rows if math.isfinite(x) and math.isfinite(y)]
    assert found.max_abs == max((abs(x - y) for x, y in both), default=0.0)
    if places:
        assert found.worst == (places[0],)
    elif both and not found.equal:
        scale = max(math.hypot(*(x for x, _ in both)), math.hypot(*(y for _, y in both)))
        assert found.relative == pytest.approx(math.hypot(*(x - y for x, y in both)) / scale)


def test_large_finite_values_are_not_counted_as_bad() -> None:
    huge = np.full(10, 1e308)  # their sum is infinite
    assert distance(huge, huge).bad_a == 0
    assert distance(huge, huge / 2).bad_b == 0


# --- relative_error ---------------------------------------------------------------------------------------------------


@given(pairs(1e100))
def test_relative_error_relates_to_the_exact_value_alone(pair: tuple[np.ndarray, np.ndarray]) -> None:
    value, exact = pair
    if norm(exact) > 1e-200:
        assert relative_error(value, exact) == pytest.approx(norm(value - exact) / norm(exact), rel=1e-12)
    assert relative_error(exact, exact) == 0.0


def test_relative_error_is_no_symmetric_distance() -> None:
    x = np.array([3.0, 4.0])
    assert relative_error(2 * x, x) == 1.0
    assert relative_error(x, 2 * x) == 0.5
    assert relative_error(2 * x, x, least_scale=50.0) == 0.1
    assert relative_error(x, 0 * x) == math.inf
    assert relative_error(0 * x, 0 * x) == 0.0


def test_relative_error_of_float32_is_taken_in_float64() -> None:
    exact = np.array([0.1, 0.7])
    single = exact.astype(np.float32)
    rounding = norm(single.astype(np.float64) - exact) / norm(exact)
    assert 1e-9 < rounding < 1e-7
    assert relative_error(single, exact) == pytest.approx(rounding, rel=1e-12)


@pytest.mark.parametrize("value", [[math.nan, 1.0], [math.inf, 1.0], [1.0], [[1.0, 1.0]]])
def test_relative_error_is_infinite_where_it_cannot_be_said(value: list[float]) -> None:
    assert relative_error(np.array(value), np.array([1.0, 1.0])) == math.inf
    assert relative_error(np.array([1.0, 1.0]), np.array(value)) == math.inf
