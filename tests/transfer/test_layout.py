"""Tests of the canonical layout: a layer computes the same from Keras' kernel and from what it becomes in PyTorch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.transfer.layout import ROLES, Layout

Array = np.ndarray

# Kind -> a Keras shape of it. The sizes differ, so that no two axes can be exchanged unnoticed.
SHAPES = {
    "conv": [(3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5, 6)],
    "conv_transpose": [(3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5, 6)],
    "depthwise": [(3, 4, 1), (3, 4, 2), (2, 3, 4, 1), (2, 3, 4, 5)],
    "dense": [(4, 5)],
    "same": [(), (3,), (2, 3), (2, 3, 4)],
}
CANONICAL = {
    "conv": lambda *k: (k[-1], k[-2], *k[:-2]),
    "conv_transpose": lambda *k: (k[-1], k[-2], *k[:-2]),
    "depthwise": lambda *k: (k[-2] * k[-1], 1, *k[:-2]),
    "dense": lambda i, o: (o, i),
    "same": lambda *k: k,
}
CASES = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


def numbered(shape: tuple[int, ...]) -> Array:
    return np.arange(math.prod(shape), dtype=np.float64).reshape(shape)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_there_and_back(kind: str, shape: tuple[int, ...]) -> None:
    layout, keras = Layout(kind), numbered(shape)
    canonical = layout.to_canonical(keras)
    assert canonical.shape == layout.canonical_shape(shape) == CANONICAL[kind](*shape)
    assert np.array_equal(layout.from_canonical(canonical, shape), keras)
    assert layout.from_canonical(canonical, shape).shape == shape
    # And the other way round: every canonical tensor of that shape can be reached.
    torch = numbered(canonical.shape)
    assert np.array_equal(layout.to_canonical(layout.from_canonical(torch, shape)), torch)


@given(st.sampled_from(["conv", "conv_transpose", "depthwise"]), st.lists(st.integers(1, 4), min_size=3, max_size=5))
def test_there_and_back_whatever_the_sizes(kind: str, sizes: list[int]) -> None:
    layout, keras = Layout(kind), numbered(tuple(sizes))
    assert np.array_equal(layout.from_canonical(layout.to_canonical(keras), keras.shape), keras)


# --- What the two frameworks compute from a kernel, written down as sums ----------------------------------------------


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


def windows(x: Array, kernel: tuple[int, int]) -> Array:
    """(N, C, H, W) -> (N, C, H', W', h, w): what a valid convolution of stride one looks at."""
    return np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))


def torch_conv2d(x: Array, weight: Array, groups: int = 1) -> Array:
    """torch.nn.functional.conv2d: weight (O, I / groups, h, w), the outputs of a group one after another."""
    parts = zip(np.split(windows(x, weight.shape[2:]), groups, 1), np.split(weight, groups, 0), strict=True)
    return np.concatenate([np.einsum("nixyhw,oihw->noxy", part, each) for part, each in parts], 1)


def test_conv(rng: np.random.Generator) -> None:
    x, keras = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((3, 2, 4, 7))
    # tf.nn.conv2d: output[b, i, j, k] = sum over di, dj, q of input[b, i + di, j + dj, q] * filter[di, dj, q, k]
    expected = np.einsum("nixyhw,hwio->noxy", windows(x, (3, 2)), keras)
    np.testing.assert_allclose(torch_conv2d(x, Layout("conv").to_canonical(keras)), expected)


def test_grouped_conv(rng: np.random.Generator) -> None:
    x, keras = rng.standard_normal((2, 6, 5, 5)), rng.standard_normal((3, 3, 2, 9))
    # Keras' Conv2D(groups=3): inputs and filters are split along their last axes.
    parts = zip(np.split(windows(x, (3, 3)), 3, 1), np.split(keras, 3, -1), strict=True)
    expected = np.concatenate([np.einsum("nixyhw,hwio->noxy", part, each) for part, each in parts], 1)
    canonical = Layout("conv").to_canonical(keras)
    assert canonical.shape == (9, 2, 3, 3)
    np.testing.assert_allclose(torch_conv2d(x, canonical, groups=3), expected)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_depthwise_conv(rng: np.random.Generator, multiplier: int) -> None:
    x, keras = rng.standard_normal((2, 4, 5, 5)), rng.standard_normal((3, 2, 4, multiplier))
    # tf.nn.depthwise_conv2d: output[b, i, j, k * channel_multiplier + q] = sum of filter[di, dj, k, q] * input[..., k]
    expected = np.zeros((2, 4 * multiplier, 3, 4))
    for k in range(4):
        for q in range(multiplier):
            expected[:, k * multiplier + q] = np.einsum("nxyhw,hw->nxy", windows(x, (3, 2))[:, k], keras[:, :, k, q])
    canonical = Layout("depthwise").to_canonical(keras)
    np.testing.assert_allclose(torch_conv2d(x, canonical, groups=4), expected)


def test_transposed_conv(rng: np.random.Generator) -> None:
    x, keras = rng.standard_normal((2, 4, 3, 3)), rng.standard_normal((3, 2, 5, 4))
    # tf.nn.conv2d_transpose is the gradient of the conv2d whose filter is [h, w, output, input]; each input value is
    # spread over its window. torch.nn.functional.conv_transpose2d: weight (input, output, h, w), the same spreading.
    from_keras, from_torch = np.zeros((2, 2, 5, 5, 4))
    canonical = Layout("conv_transpose").to_canonical(keras)
    for i in range(3):
        for j in range(3):
            from_keras[:, :, i : i + 3, j : j + 2] += np.einsum("ni,hwoi->nohw", x[:, :, i, j], keras)
            from_torch[:, :, i : i + 3, j : j + 2] += np.einsum("ni,iohw->nohw", x[:, :, i, j], canonical)
    np.testing.assert_allclose(from_torch, from_keras)


def test_dense(rng: np.random.Generator) -> None:
    x, keras = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    np.testing.assert_allclose(x @ Layout("dense").to_canonical(keras).T, x @ keras)


def test_names_of_keras_become_those_of_torch() -> None:
    # torch.nn.BatchNorm2d: weight, bias, running_mean, running_var. Keras: gamma, beta, moving_mean, moving_variance.
    found = [ROLES[name] for name in ("gamma", "beta", "moving_mean", "moving_variance")]
    assert found == ["weight", "bias", "running_mean", "running_var"]
    assert {ROLES[name] for name in ("kernel", "depthwise_kernel", "embeddings")} == {"weight"}
