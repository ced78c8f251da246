"""Kinds and settings of layers: equal words for what both frameworks call differently."""

from __future__ import annotations

from typing import Any

import pytest

from portproof.capture import kinds

torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow")

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]

nn, layers = torch.nn, tf.keras.layers

PAIRS = [
    (nn.Conv1d(2, 2, 3), layers.Conv1D(2, 3), "conv1d"),
    (nn.Conv2d(2, 2, 3, groups=2), layers.DepthwiseConv2D(3), "conv2d"),
    (nn.ConvTranspose2d(2, 2, 3), layers.Conv2DTranspose(2, 3), "conv2d transpose"),
    (nn.BatchNorm1d(2), layers.BatchNormalization(), "batchnorm"),
    (nn.LayerNorm(2), layers.LayerNormalization(), "layernorm"),
    (nn.Linear(2, 2), layers.Dense(2), "linear"),
    (nn.Embedding(2, 2), layers.Embedding(2, 2), "embedding"),
    (nn.ReLU(), layers.Activation("relu"), "relu"),
    (nn.SiLU(), layers.Activation("swish"), "silu"),
    (nn.GELU(), layers.Activation("gelu"), "gelu"),
    (nn.Tanh(), layers.Activation(tf.tanh), "tanh"),
    (nn.Identity(), layers.Activation("linear"), "identity"),
    (nn.Dropout(0.3), layers.Dropout(0.3), "dropout"),
    (nn.Flatten(), layers.Flatten(), "flatten"),
    (nn.MaxPool2d(2), layers.MaxPooling2D(2), "maxpool"),
    (nn.AdaptiveAvgPool2d(1), layers.GlobalAveragePooling2D(), "avgpool"),
]


@pytest.mark.parametrize(("ours", "theirs", "kind"), PAIRS, ids=[type(row[1]).__name__ + "-" + row[2] for row in PAIRS])
def test_both_frameworks_have_one_word(ours: Any, theirs: Any, kind: str) -> None:
    assert kinds.kind(ours) == kind
    assert kinds.kind(theirs) == kind


def test_a_subclass_is_of_its_bases_kind_and_a_stranger_of_its_own() -> None:
    class MyConv(nn.Conv2d):
        pass

    class MyDense(layers.Dense):
        pass

    class Twist(nn.Module):
        pass

    assert kinds.kind(MyConv(1, 1, 1)) == "conv2d"
    assert kinds.kind(MyDense(1)) == "linear"
    assert kinds.kind(Twist()) == "twist"


def test_settings_are_in_torchs_terms() -> None:
    ours = kinds.settings(nn.BatchNorm2d(3, eps=1e-3, momentum=0.01))
    theirs = kinds.settings(layers.BatchNormalization(epsilon=1e-3, momentum=0.99))
    assert ours["eps"] == theirs["eps"] == 1e-3
    assert ours["momentum"] == theirs["momentum"] == 0.01

    ours = kinds.settings(nn.Conv2d(4, 4, (3, 5), stride=2, dilation=1, groups=2))
    theirs = kinds.settings(layers.Conv2D(4, (3, 5), strides=2, dilation_rate=1, groups=2))
    shared = {key: ours[key] for key in ours.keys() & theirs.keys()}
    assert shared == {"dilation": 1, "groups": 2, "kernel_size": [3, 5], "padding": 0, "stride": 2}
    assert shared == {key: theirs[key] for key in shared}

    assert kinds.settings(nn.Dropout(0.25))["p"] == kinds.settings(layers.Dropout(0.25))["p"] == 0.25


def test_same_padding_stays_what_it_is() -> None:
    assert kinds.settings(layers.Conv2D(4, 3, padding="same"))["padding"] == "same"


def test_settings_are_plain_data() -> None:
    for ours, theirs, _ in PAIRS:
        for layer in (ours, theirs):
            assert all(isinstance(value, (bool, int, float, str, list)) for value in kinds.settings(layer).values())
