"""Tests of the ways to carry a tensor over wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.capture.rewrites import REWRITES, as_bfloat16, as_mantissa, rewritten

KERNEL = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("how", sorted(REWRITES))
def test_a_rewrite_changes_values_and_neither_shape_nor_dtype(how: str) -> None:
    made = REWRITES[how](KERNEL)
    assert made.shape == KERNEL.shape
    assert made.dtype == KERNEL.dtype
    assert not np.array_equal(made, KERNEL)


@pytest.mark.parametrize("how", ["transpose", "reshape", "flip", "exchange height and width", "reverse inputs"])
def test_a_permutation_keeps_the_values(how: str) -> None:
    np.testing.assert_array_equal(np.sort(REWRITES[how](KERNEL), None), np.sort(KERNEL, None))


def test_a_transposed_square_kernel_is_its_transpose() -> None:
    np.testing.assert_array_equal(REWRITES["transpose"](KERNEL), KERNEL.transpose(1, 0, 2, 3))


def test_a_kernel_reshaped_into_keras_layout_is_what_keras_then_holds() -> None:
    kernel = KERNEL[:, :2]  # (O, I, kH, kW) = (4, 2, 3, 3), reshaped into (kH, kW, I, O)
    held = kernel.reshape(3, 3, 2, 4)
    np.testing.assert_array_equal(REWRITES["reshape"](kernel), held.transpose(3, 2, 0, 1))


def test_swap_copy_and_initial_leave_other_tensors_alone() -> None:
    values: dict[str, Any] = {name: np.full((2, 2), index, np.float32) for index, name in enumerate("abcd")}
    swapped = rewritten(values, ["a", "b"], "swap")
    assert [swapped[name][0, 0] for name in "abcd"] == [1, 0, 2, 3]
    assert [rewritten(values, ["a", "b"], "copy")[name][0, 0] for name in "abcd"] == [0, 0, 2, 3]
    fresh = rewritten(values, ["a"], "initial")
    assert len(np.unique(fresh["a"])) > 1
    assert fresh["b"] is values["b"]
    assert values["a"][0, 0] == 0


def test_statistics_left_at_their_initial_values_are_zero_and_one() -> None:
    values = {"bn.running_mean": np.full(3, 5.0), "bn.running_var": np.full(3, 7.0)}
    fresh = rewritten(values, list(values), "initial")
    np.testing.assert_array_equal(fresh["bn.running_mean"], np.zeros(3))
    np.testing.assert_array_equal(fresh["bn.running_var"], np.ones(3))


FLOATS = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-4)


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_rounding_to_ten_bits_of_mantissa_is_what_float16_does_in_its_range(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    np.testing.assert_array_equal(as_mantissa(values, 10), values.astype(np.float16).astype(np.float32))


FINITE = st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False)


@given(st.lists(FINITE, max_size=20))
def test_rounding_to_bfloat16_is_idempotent_and_within_half_a_unit(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    rounded = as_bfloat16(values)
    np.testing.assert_array_equal(as_bfloat16(rounded), rounded)
    normal = np.abs(values) >= np.finfo(np.float32).tiny
    error = np.abs(rounded.astype(np.float64) - values)[normal]
    assert (error <= np.abs(values[normal].astype(np.float64)) * 2.0**-8).all()
