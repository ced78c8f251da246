"""Tests of the rearrangements: every step has an inverse, keeps values and shape, and says what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from portproof.rearrange import described, inverse, rearranged, rearrangements

SHAPES = [(7,), (8,), (4, 4), (3, 5), (6, 3, 1, 1), (4, 4, 3, 3), (8, 1, 3, 2), (12, 2, 3, 3), (1, 1), (0, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_is_taken_back_by_its_inverse(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    steps = list(rearrangements(shape))
    assert steps or math.prod(shape) <= 1
    for step in steps:
        made = rearranged(x, step)
        assert made.shape == x.shape, step
        np.testing.assert_array_equal(np.sort(made, axis=None), np.sort(x, axis=None), err_msg=str(step))
        np.testing.assert_array_equal(rearranged(made, inverse(step, shape)), x, err_msg=str(step))
        np.testing.assert_array_equal(rearranged(rearranged(x, inverse(step, shape)), step), x, err_msg=str(step))


def test_oihw_read_as_hwio_in_memory_is_a_reshape() -> None:
    oihw = np.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4)
    misread = oihw.reshape(5, 4, 3, 2)  # the same memory under HWIO
    np.testing.assert_array_equal(rearranged(oihw, ["reshape", [2, 3, 1, 0]]), misread.transpose(3, 2, 0, 1))


def test_lstm_gates_in_keras_order_are_a_step() -> None:
    # torch stacks i, f, g, o (torch.nn.LSTM); peephole code and CuDNN's old layout have i, f, o, g.
    torch = np.repeat(np.array(["i", "f", "g", "o"]), 3)
    other = np.repeat(np.array(["i", "f", "o", "g"]), 3)
    assert any(np.array_equal(rearranged(torch, step), other) for step in rearrangements((12,)))


@pytest.mark.parametrize(
    ("step", "shape", "text"),
    [
        (["transpose", [1, 0]], (4, 4), "the kernel is transposed (in and out exchanged)"),
        (["transpose", [0, 1, 3, 2]], (4, 4, 3, 3), "height and width of the kernel are exchanged"),
        (["flip", [2, 3]], (4, 4, 3, 3), "the kernel is flipped"),
        (["flip", [1]], (4, 4, 3, 3), "the kernel is flipped along I"),
        (["shuffle", 0, 2], (4, 1, 3, 3), "the kernel is shuffled along O (2 groups)"),
    ],
)
def test_a_step_is_said_in_words(step: list[object], shape: tuple[int, ...], text: str) -> None:
    assert described(step, "the kernel", len(shape)) == text


def test_a_step_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="changes the shape"):
        rearranged(np.zeros((2, 3)), ["transpose", [1, 0]])


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no rearrangement 'rotate'"):
        rearranged(np.zeros((2, 3)), ["rotate", 1])
