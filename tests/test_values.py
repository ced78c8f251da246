"""Tests of the values that inputs and kernels are drawn from: shapes, ranges, seeds, and text that names none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.capture.job import make_inputs
from portproof.errors import InputError
from portproof.mirror import InputSpec, Mirror
from portproof.values import DRAWS, Start, draw

SHAPE = (3, 20, 8)


def drawn(text: str, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return draw(text, np.random.default_rng(seed), shape)


@given(st.sampled_from(sorted(DRAWS)), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 99))
def test_whatever_the_values_they_fill_the_shape_and_follow_the_seed(name: str, shape: list[int], seed: int) -> None:
    found = drawn(name, seed, tuple(shape))
    assert (found.shape, found.dtype) == (tuple(shape), np.float32)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, drawn(name, seed, tuple(shape)))


def test_normal_values_are_what_they_were() -> None:
    expected = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    np.testing.assert_array_equal(drawn("normal"), expected)


def test_zeros_are_positive_zeros() -> None:
    assert not drawn("zeros").view(np.uint32).any()


def test_a_constant_is_one_value_in_each_entry() -> None:
    values = drawn("constant").reshape(3, -1)
    assert [len(np.unique(row)) for row in values] == [1, 1, 1]
    assert len(np.unique(values)) == 3


def test_one_hot_rows_hold_a_single_one() -> None:
    values = drawn("one-hot")
    assert np.unique(values).tolist() == [0.0, 1.0]
    assert (values.sum(-1) == 1).all()


@pytest.mark.parametrize(("shape", "axis"), [((40, 20, 8), 1), ((40, 2, 20, 8), 2), ((40, 20), 1)])
def test_padding_is_at_the_end_and_of_other_lengths(shape: tuple[int, ...], axis: int) -> None:
    values = drawn("padded", shape=shape)
    others = tuple(each for each in range(1, len(shape)) if each != axis)
    filled = (values != 0).any(others) if others else values != 0
    lengths = filled.sum(1)
    assert lengths.min() >= 1
    assert len(set(lengths.tolist())) > 5
    for row, length in zip(filled, lengths, strict=True):
        assert row[:length].all()  # and so nothing behind it


def test_heavy_values_range_far() -> None:
    values = np.abs(drawn("heavy", shape=(1, 10_000)))
    assert values.max() > 30 * np.median(values)


def test_a_factor_multiplies_down_to_denormal_numbers() -> None:
    np.testing.assert_array_equal(drawn("normal*4"), 4 * drawn("normal"))
    small = np.abs(drawn("normal*1e-40"))
    assert 0 < small.max() < np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize(
    "text", ["", "gauss", "normal*", "normal*-1", "*2", "normal*1e", "Normal", "normal 2", "normal*nan"]
)
def test_text_that_names_no_values_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"are no values: write one of constant, heavy, normal, one-hot, padded"):
        drawn(text)
    with pytest.raises(InputError, match="are no values"):
        InputSpec("x", (2, 3), values=text)
    if text:
        with pytest.raises(InputError, match="are no values"):
            Start(kernels=text)


def test_inputs_say_their_values() -> None:
    assert InputSpec.parse("2,3~padded*1e4") == InputSpec("x", (2, 3), values="padded*1e4")
    assert InputSpec.parse("m=2,3:float32~zeros").values == "zeros"
    specs = (InputSpec("x", (2, 5, 3), values="one-hot"), InputSpec("ids", (2, 5), "int64", 9))
    made = make_inputs(Mirror("m", "a:f", "b:g", specs, batches=(1, 4)), 7, None)
    for case, batch in (("main", 2), ("batch of 1", 1), ("batch of 4", 4)):
        assert made[f"{case}/x"].shape == (batch, 5, 3)
        assert (made[f"{case}/x"].sum(-1) == 1).all()
        assert made[f"{case}/ids"].max() > 1
