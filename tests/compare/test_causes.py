"""Tests of the likely causes: each defect is made here, by plain loops and formulas, and is recognised as itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from portproof.compare import compare

Array = np.ndarray
NO_PAD = ((0, 0), (0, 0))


def conv(x: Array, w: Array, bias: Array | None, stride: int, pads: Any, groups: int = 1) -> Array:
    """Convolution by its definition, one output value at a time. x is (N, I, H, W), w is (O, I / groups, h, w)."""
    (top, bottom), (left, right) = pads
    n, channels, rows, columns = x.shape
    padded = np.zeros((n, channels, rows + top + bottom, columns + left + right))
    padded[:, :, top : top + rows, left : left + columns] = x
    o, per_group, h, v = w.shape
    out = np.zeros((n, o, (padded.shape[2] - h) // stride + 1, (padded.shape[3] - v) // stride + 1))
    for channel in range(o):
        first = channel // (o // groups) * per_group
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                window = padded[:, first : first + per_group, i * stride : i * stride + h, j * stride : j * stride + v]
                out[:, channel, i, j] = (window * w[channel]).sum((1, 2, 3))
    return out if bias is None else out + bias[None, :, None, None]


def same_pads(x: Array, kernel: int, stride: int) -> tuple[tuple[int, int], ...]:
    """TensorFlow's padding='SAME', as its documentation states it (tf.nn.convolution, notes on padding)."""
    pads = []
    for size in x.shape[2:]:
        total = max(kernel - (stride if size % stride == 0 else size % stride), 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def batchnorm(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        out[:, c] = gamma[c] * (x[:, c] - mean[c]) / math.sqrt(var[c] + eps) + beta[c]
    return out


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def causes(sides: Any) -> Any:
    """Compare one layer, fed by a layer that agrees; gives the texts of the causes that are found."""

    def run(
        kind: str, x: Array, y_a: Array, y_b: Array, *, kind_b: str = "", before: Array | None = None,
        weights: Mapping[str, Array | None] | None = None, **settings: Any,
    ) -> list[str]:  # fmt: skip
        x_b = x if before is None else before
        for side, given, y, its_kind in ((sides[0], x, y_a, kind), (sides[1], x_b, y_b, kind_b or kind)):
            source = side.call("float64.eval", "before", ("source/x",), given, kind="input")
            side.layer("layer", its_kind, **settings)
            for role, value in (weights or {}).items():
                if value is not None:
                    side.parameter(f"layer.{role}", value)
            side.call("float64.eval", "layer", (source,), y)
        facts = compare(sides[0].finish(), sides[1].finish())
        assert {cause.layer for cause in facts.causes} <= {"layer", "before"}
        return [cause.text for cause in facts.causes]

    return run


# --- Convolutions and linear layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 7), (7, 8), (9, 6)])
@pytest.mark.parametrize(("kernel", "groups", "biased"), [(3, 1, True), (3, 6, False), (5, 2, True)])
def test_padding_same_at_stride_two(
    causes: Any, rng: Any, rows: int, columns: int, kernel: int, groups: int, biased: bool
) -> None:
    x = rng.standard_normal((2, 6, rows, columns))
    w = rng.standard_normal((6, 6 // groups, kernel, kernel))
    b = rng.standard_normal(6) if biased else None
    own = ((kernel // 2,) * 2,) * 2
    wrong = same_pads(x, kernel, 2)
    y_a, y_b = conv(x, w, b, 2, own, groups), conv(x, w, b, 2, wrong, groups)
    options = {"weights": {"weight": w, "bias": b}, "stride": 2, "padding": kernel // 2, "groups": groups}
    found = causes("conv2d", x, y_a, y_b, kernel_size=kernel, **options)
    assert found == [f"padding='same' pads {wrong[0]} rows and {wrong[1]} columns, the original {own[0]} and {own[1]}"]


@pytest.mark.parametrize(("rows", "columns"), [(7, 9), (5, 5)])
def test_padding_same_on_odd_sizes_is_the_same_padding(causes: Any, rng: Any, rows: int, columns: int) -> None:
    x, w = rng.standard_normal((1, 2, rows, columns)), rng.standard_normal((2, 2, 3, 3))
    y_a, y_b = conv(x, w, None, 2, ((1, 1), (1, 1))), conv(x, w, None, 2, same_pads(x, 3, 2))
    assert np.array_equal(y_a, y_b)
    assert causes("conv2d", x, y_a, y_b, weights={"weight": w}, stride=2, padding=1) == []


KERNELS = {
    "the kernel is flipped": lambda w: w[:, :, ::-1, ::-1],
    "height and width of the kernel are exchanged": lambda w: w.transpose(0, 1, 3, 2),
    "the sign is flipped": lambda w: -w,
}


@pytest.mark.parametrize("text", KERNELS)
@pytest.mark.parametrize(("padding", "stride", "groups"), [(1, 1, 1), ("same", 1, 1), (0, 2, 1), ([1, 1], [1, 1], 4)])
def test_kernels_turned_wrongly(causes: Any, rng: Any, text: str, padding: Any, stride: Any, groups: int) -> None:
    x, w = rng.standard_normal((2, 4, 6, 6)), rng.standard_normal((4, 4 // groups, 3, 3))
    pads = NO_PAD if padding == 0 else ((1, 1), (1, 1))
    one = stride if isinstance(stride, int) else stride[0]
    y_a, y_b = (conv(x, each, None, one, pads, groups) for each in (w, KERNELS[text](w)))
    # No setting for the groups: a depthwise layer of Keras has none.
    assert causes("conv2d", x, y_a, y_b, weights={"weight": w}, stride=stride, padding=padding, kernel_size=3) == [text]


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d"])
@pytest.mark.parametrize("biased", [True, False])
def test_matrices_turned_wrongly(causes: Any, rng: Any, kind: str, biased: bool) -> None:
    ones = (1,) * {"linear": 0, "conv1d": 1, "conv2d": 2}[kind]
    x, w = rng.standard_normal((3, 4, *(5 * each for each in ones))), rng.standard_normal((4, 4))
    b = rng.standard_normal(4) if biased else None
    shift = 0 if b is None else b.reshape(1, 4, *ones)
    y_a, y_b = (np.einsum("oi,ni...->no...", each, x) + shift for each in (w, w.T))
    weights = {"weight": w.reshape(4, 4, *ones), "bias": b}
    found = causes(kind, x, y_a, y_b, weights=weights, stride=1, padding=0, kernel_size=1)
    assert found == ["the kernel is transposed (in and out exchanged)"]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_kernel_reshaped_where_it_has_to_be_transposed(causes: Any, rng: Any, kind: str) -> None:
    ones = (1,) * (kind == "conv1d")
    x, w = rng.standard_normal((3, 4, *(5 * each for each in ones))), rng.standard_normal((6, 4))
    # The port fills Keras' (I, O) kernel with the (O, I) values in order.
    keras = w.reshape(-1).reshape(4, 6)
    y_a, y_b = np.einsum("oi,ni...->no...", w, x), np.einsum("io,ni...->no...", keras, x)
    found = causes(kind, x, y_a, y_b, weights={"weight": w.reshape(6, 4, *ones)}, kernel_size=1)
    assert found == ["the kernel was reshaped where it has to be transposed"]


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_missing_bias(causes: Any, rng: Any, kind: str) -> None:
    ones = (1,) * (2 * (kind == "conv2d"))
    x, w = rng.standard_normal((3, 4, *(5 * each for each in ones))), rng.standard_normal((6, 4))
    b = rng.standard_normal(6)
    y_b = np.einsum("oi,ni...->no...", w, x)
    weights = {"weight": w.reshape(6, 4, *ones), "bias": b}
    assert causes(kind, x, y_b + b.reshape(1, 6, *ones), y_b, weights=weights, kernel_size=1) == ["the bias is missing"]


# --- BatchNorm --------------------------------------------------------------------------------------------------------

BATCHNORM = {
    "running mean and running variance are swapped": lambda x, m, v, g, b: batchnorm(x, v, m, g, b),
    "BatchNorm uses the batch's statistics in eval mode": lambda x, m, v, g, b: batchnorm(
        x, *(np.array([f(x[:, c]) for c in range(x.shape[1])]) for f in (np.mean, np.var)), g, b
    ),
    "weight and bias of the BatchNorm are swapped": lambda x, m, v, g, b: batchnorm(x, m, v, b, g),
    "BatchNorm has stale statistics: mean 0, variance 1": lambda x, m, v, g, b: batchnorm(x, 0 * m, 0 * v + 1, g, b),
    "BatchNorm eps is 0.001 in the port, 1e-05 in the original": lambda x, m, v, g, b: batchnorm(x, m, v, g, b, 1e-3),
    "BatchNorm eps is 1.001e-05 in the port, 1e-05 in the original": lambda x, m, v, g, b: batchnorm(
        x, m, v, g, b, 1.001e-5
    ),
}


@pytest.mark.parametrize("text", BATCHNORM)
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4), (2, 5, 4, 3)])
def test_batchnorm_defects(causes: Any, rng: Any, text: str, shape: tuple[int, ...]) -> None:
    x = rng.standard_normal(shape) + 0.7
    mean, var, gamma, beta = (rng.uniform(0.2, 2, 5) for _ in range(4))
    y_a, y_b = batchnorm(x, mean, var, gamma, beta), BATCHNORM[text](x, mean, var, gamma, beta)
    weights = {"running_mean": mean, "running_var": var, "weight": gamma, "bias": beta}
    assert causes("batchnorm", x, y_a, y_b, weights=weights, eps=1e-5) == [text]


def test_swapped_statistics_are_recognised_behind_the_nan_that_they_leave(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((4, 5, 3))
    mean, var = np.array([0.5, -1.0, 0.3, -0.2, 1.0]), rng.uniform(0.5, 2, 5)
    ones, zeros = np.ones(5), np.zeros(5)
    y_b = np.full_like(x, np.nan)
    positive = mean > 0  # the root of a negative "variance" is no number
    y_b[:, positive] = batchnorm(x[:, positive], var[positive], mean[positive], ones, zeros)
    weights = {"running_mean": mean, "running_var": var}
    found = causes("batchnorm", x, batchnorm(x, mean, var, ones, zeros), y_b, weights=weights, eps=1e-5)
    assert found == ["running mean and running variance are swapped"]


def test_nothing_but_nan_has_no_likely_cause(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((4, 5))
    assert causes("linear", x, x + 1, np.full_like(x, np.nan), weights={"weight": np.eye(5)}) == []


# --- Activations, and layers as a whole -------------------------------------------------------------------------------


def each_of(x: Array, function: Any) -> Array:
    return np.array([function(float(value)) for value in x.reshape(-1)]).reshape(x.shape)


ACTIVATIONS = {
    "gelu": lambda v: v * (0.5 * math.erfc(-v / math.sqrt(2))),
    # Hendrycks & Gimpel, Gaussian Error Linear Units, section 2: both approximations.
    "tanh GELU": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "sigmoid GELU": lambda v: v / (1 + math.exp(-1.702 * v)),
    "relu": lambda v: v if v > 0 else 0.0,
    "relu6": lambda v: min(max(v, 0.0), 6.0),
    "leaky relu (0.01)": lambda v: v if v > 0 else 0.01 * v,
    "leaky relu (0.2)": lambda v: v if v > 0 else 0.2 * v,
    "leaky relu (0.3)": lambda v: v if v > 0 else 0.3 * v,
    "silu": lambda v: v / (1 + math.exp(-v)),
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "hard sigmoid (x/6)": lambda v: min(max(v / 6 + 0.5, 0.0), 1.0),  # torch
    "hard sigmoid (0.2 x)": lambda v: min(max(0.2 * v + 0.5, 0.0), 1.0),  # Keras 2
    "tanh": math.tanh,
}


@pytest.mark.parametrize("port", ACTIVATIONS)
def test_another_activation(causes: Any, rng: Any, port: str) -> None:
    x = 4 * rng.standard_normal((4, 5))  # both hard sigmoids and relu6 reach their ends
    original = "relu" if port == "gelu" else "gelu"
    y_a, y_b = each_of(x, ACTIVATIONS[original]), each_of(x, ACTIVATIONS[port])
    assert causes(original, x, y_a, y_b) == [f"the port computes {port} where the original computes {original}"]


@pytest.mark.parametrize("kind", ["gelu", "batchnorm", "conv2d", "dropout"])
def test_a_layer_that_does_nothing(causes: Any, rng: Any, kind: str) -> None:
    x = rng.standard_normal((2, 3, 4, 4))
    assert causes(kind, x, x**3, x) == ["the layer does nothing in the port: its output is its input"]


def test_layers_of_different_kinds(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 3))
    found = causes("gelu", x, x**3, 0.7 * x**2, kind_b="relu")
    assert found == ["the layers are of different kinds: gelu and relu"]


def test_what_a_layer_computes_says_more_than_its_kind(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 3))
    found = causes("gelu", x, each_of(x, ACTIVATIONS["gelu"]), each_of(x, ACTIVATIONS["relu"]), kind_b="relu")
    assert found == ["the port computes relu where the original computes gelu"]


def test_the_kind_of_the_first_layer_is_seen_though_its_input_is_not_stored(sides: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 3))
    for side, kind in ((sides[0], "gelu"), (sides[1], "relu")):
        side.call("float64.eval", "first", ("source/x",), x if kind == "gelu" else x**2, kind=kind)
    (cause,) = compare(sides[0].finish(), sides[1].finish()).causes
    assert (cause.layer, cause.text) == ("first", "the layers are of different kinds: gelu and relu")


def test_another_output_shape(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 3, 4, 4))
    found = causes("maxpool", x, x[:, :, ::2, ::2], x[:, :, :3, :3])
    assert found == ["the output shapes differ: (2, 3, 2, 2) and (2, 3, 3, 3)"]


# --- What has none ----------------------------------------------------------------------------------------------------


def test_honest_data_has_no_cause(causes: Any, rng: Any) -> None:
    x, w = rng.standard_normal((2, 4, 6, 6)), rng.standard_normal((4, 4, 3, 3))
    y = conv(x, w, None, 1, ((1, 1), (1, 1)))
    rounding = y * (1 + 2.0**-52 * rng.integers(-1, 2, y.shape))
    assert causes("conv2d", x, y, rounding, weights={"weight": w}, stride=1, padding=1) == []


@pytest.mark.parametrize("kind", ["conv2d", "batchnorm", "gelu", "linear"])
def test_an_unknown_defect_gets_no_made_up_cause(causes: Any, rng: Any, kind: str) -> None:
    x, y = rng.standard_normal((2, 4, 6, 6)), rng.standard_normal((2, 4, 6, 6))
    mean, var = rng.standard_normal(4), rng.uniform(1, 2, 4)
    w = {"weight": mean, "running_mean": mean, "running_var": var} if kind == "batchnorm" else {"weight": np.eye(4)}
    assert causes(kind, x, y, y + rng.standard_normal(y.shape), weights=w) == []


def test_a_consequence_of_wrong_input_is_not_explained(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 4))
    y = each_of(x, ACTIVATIONS["gelu"])
    # The layer would look like one that flips the sign, but it was handed something else.
    assert causes("gelu", x, y, -y, before=x + rng.standard_normal(x.shape)) == []


# --- Convolutions, more -----------------------------------------------------------------------------------------------


def reflected(x: Array) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")


W3 = np.array([0.3, -1.0, 2.0])

GEOMETRY = {
    "the port pads (2, 0) rows and (1, 1) columns, the original (1, 1) and (1, 1)": lambda x, w: conv(
        x, w, None, 1, ((2, 0), (1, 1))
    ),
    "the port pads with reflected values, not zeros": lambda x, w: conv(reflected(x), w, None, 1, NO_PAD),
    "dilation is 1 in the original and 2 in the port": lambda x, w: conv(x, dilated(w), None, 1, ((2, 2), (2, 2))),
    "the output is multiplied by 0.5": lambda x, w: 0.5 * conv(x, w, None, 1, ((1, 1), (1, 1))),
    "the output's order of channels is flipped along C": lambda x, w: conv(x, w, W3, 1, ((1, 1), (1, 1)))[:, ::-1],
}


def dilated(w: Array) -> Array:
    wide = np.zeros((*w.shape[:2], 2 * w.shape[2] - 1, 2 * w.shape[3] - 1))
    wide[:, :, ::2, ::2] = w
    return wide


@pytest.mark.parametrize("text", GEOMETRY)
def test_a_convolution_that_looks_elsewhere(causes: Any, rng: Any, text: str) -> None:
    x, w = rng.standard_normal((2, 4, 7, 6)), rng.standard_normal((3, 4, 3, 3))
    bias = W3 if "order of channels" in text else None
    y_a = conv(x, w, bias, 1, ((1, 1), (1, 1)))
    found = causes("conv2d", x, y_a, GEOMETRY[text](x, w), weights={"weight": w, "bias": bias}, stride=1, padding=1)
    assert found == [text]


def test_a_stride_of_the_port_is_seen_in_its_shape(causes: Any, rng: Any) -> None:
    x, w = rng.standard_normal((2, 4, 8, 6)), rng.standard_normal((3, 4, 3, 3))
    y_a, y_b = (conv(x, w, None, stride, ((1, 1), (1, 1))) for stride in (2, 1))
    found = causes("conv2d", x, y_a, y_b, weights={"weight": w}, stride=2, padding=1)
    assert found == [
        f"the output shapes differ: {y_a.shape} and {y_b.shape}", "stride is 2 in the original and 1 in the port"
    ]  # fmt: skip


# --- Weights that went wrong on their way -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w[:, ::-1], "the kernel is flipped along I"),
        (lambda w: w.reshape(2, 3, 4).swapaxes(0, 1).reshape(6, 4), "the kernel is shuffled along O (2 groups)"),
        (lambda w: w[[4, 5, 2, 3, 0, 1]], "the kernel has its blocks along O in the order 2, 1, 0"),
        (lambda w: w.astype(np.float16).astype(float), "the kernel went through float16"),
        (lambda w: 0 * w, "the kernel was left at zero"),
    ],
)
def test_altered_kernels(causes: Any, rng: Any, change: Any, text: str) -> None:
    x, w = rng.standard_normal((9, 4)), rng.standard_normal((6, 4))
    assert causes("linear", x, x @ w.T, x @ change(w).T, weights={"weight": w}) == [text]


def test_the_kernel_of_another_layer(sides: Any, rng: Any) -> None:
    x, own, wrong = rng.standard_normal((9, 4)), rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    for side, kernel in ((sides[0], own), (sides[1], wrong)):
        source = side.call("float64.eval", "before", ("source/x",), x, kind="input")
        side.layer("other")
        side.parameter("one.weight", own)
        side.parameter("other.weight", wrong)
        side.call("float64.eval", "one", (source,), x @ kernel.T)
    (cause,) = compare(sides[0].finish(), sides[1].finish()).causes
    assert cause.text == "the kernel is that of other"
    swaps = [edit for way in cause.ways for edit in way if edit.what == "swap variables"]
    assert {tuple(edit.options["names"]) for edit in swaps} == {("one.weight", "other.weight")}


def test_eps_outside_of_the_root(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((6, 5))
    mean, var, gamma, beta = (rng.uniform(0.2, 2, 5) for _ in range(4))
    wrong = (x - mean) / (np.sqrt(var) + 1e-5) * gamma + beta
    weights = {"running_mean": mean, "running_var": var, "weight": gamma, "bias": beta}
    found = causes("batchnorm", x, batchnorm(x, mean, var, gamma, beta), wrong, weights=weights, eps=1e-5)
    assert found == ["eps is added outside of the root"]


def test_an_activation_applied_twice(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((4, 5))
    once = each_of(x, ACTIVATIONS["gelu"])
    assert causes("gelu", x, once, each_of(once, ACTIVATIONS["gelu"])) == ["the port computes gelu twice"]


def test_flatten_with_the_channels_last(causes: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 3, 4, 5))
    y_a, y_b = (
        x.reshape(2, -1),
        np.array([[x[n, c, h, w] for h in range(4) for w in range(5) for c in range(3)] for n in range(2)]),
    )
    assert causes("flatten", x, y_a, y_b) == [
        "the port flattens with the channels last, the original with the channels first"
    ]


# --- Between layers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def between(sides: Any) -> Any:
    """Compare a layer that is handed, outside of any layer, something made of two earlier outputs."""

    def run(first: Array, second: Array, x_a: Array, x_b: Array) -> Any:
        for side, x in ((sides[0], x_a), (sides[1], x_b)):
            side.call("float64.eval", "first", ("source/x",), first, kind="input")
            side.call("float64.eval", "second", ("source/x",), second, kind="input")
            side.tensor("float64.eval", "input/layer:0", x)
            side.call("float64.eval", "layer", ("input/layer:0",), 2 * x)
        return [cause for cause in compare(sides[0].finish(), sides[1].finish()).causes if cause.layer == "layer"]

    return run


def test_a_residual_that_is_missing_between_layers(between: Any, rng: Any) -> None:
    first, second = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    (cause,) = between(first, second, first + second, second)
    assert cause.text == "the output of first counts 0 times in the port, 1 times in the original"
    ((edit,),) = cause.ways
    assert (edit.what, edit.layers, edit.options["terms"]) == ("add terms", ("layer",), [["first", "output", 1.0]])


def test_values_in_another_order_between_layers(between: Any, rng: Any) -> None:
    first = rng.standard_normal((2, 3, 4))
    flat = first.reshape(2, 12)
    (cause,) = between(first, first + 1, flat, first.swapaxes(1, 2).reshape(2, 12))
    assert cause.text.startswith("what reaches it is shuffled")
    ((edit,),) = cause.ways
    assert edit.what == "reorder"


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_nan_between_layers_is_no_sum(between: Any, rng: Any, where: int) -> None:
    tensors = [rng.standard_normal((2, 3, 4)) for _ in range(4)]
    tensors[where][0, 0, 0] = np.nan
    assert between(*tensors) == []


def test_noise_between_layers_has_no_cause(between: Any, rng: Any) -> None:
    first, second, noise = (rng.standard_normal((2, 3, 4)) for _ in range(3))
    assert between(first, second, first + second, first + second + noise) == []
