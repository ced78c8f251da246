"""Defects of activations: another function, in another place, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from portproof.defects.defect import Defect, Place, at, group
from portproof.defects.port import Port
from portproof.edits import Edit

_KINDS = ("gelu", "relu", "relu6", "silu", "sigmoid", "tanh", "leaky relu", "elu", "selu", "hard swish", "prelu")


def _activations(*kinds: str) -> Callable[[Port], list[str]]:
    """The executed activations of these kinds, those inside of other layers among them."""
    return lambda port: [
        layer
        for layer in dict.fromkeys(call.layer for call in port.calls)
        if port.layers[layer].kind in (kinds or _KINDS)
    ]


def _whole(port: Port) -> list[str]:
    """The activations that are layers of their own."""
    return port.of_kind(*_KINDS)


def _before_normalization(port: Port) -> Iterator[Place]:
    """BatchNorm followed by an activation and nothing else: exchanged."""
    for norm in port.of_kind("batchnorm", "layernorm"):
        activation = port.only_follower(norm)
        if activation and port.layers[activation].kind in _KINDS and not port.is_fused(activation):
            yield Place((norm, activation), (Edit("exchange", (norm, activation)),))


ACTIVATION = group(
    "activation",
    Defect(
        "tanh-gelu",
        "The tanh approximation of GELU, the default of jax.nn.gelu and of older Keras code.",
        at(_activations("gelu"), "activation", function="tanh GELU"),
    ),
    Defect(
        "sigmoid-gelu",
        "x * sigmoid(1.702 x), the quick GELU of CLIP.",
        at(_activations("gelu"), "activation", function="sigmoid GELU"),
    ),
    Defect(
        "relu-for-gelu",
        "ReLU in place of GELU: the default of the block that the port was written from.",
        at(_activations("gelu"), "activation", function="relu"),
    ),
    Defect(
        "silu-for-gelu",
        "SiLU in place of GELU: nearly the same curve, and the default of EfficientNet's blocks.",
        at(_activations("gelu"), "activation", function="silu"),
    ),
    Defect(
        "gelu-for-relu",
        "GELU in place of ReLU: the network's activation, also where a squeeze-and-excite block has a ReLU.",
        at(_activations("relu", "relu6"), "activation", function="gelu"),
    ),
    Defect(
        "relu6-for-relu",
        "ReLU6 in place of ReLU, as MobileNet's blocks have it.",
        at(_activations("relu"), "activation", function="relu6"),
    ),
    Defect(
        "leaky-relu-for-relu",
        "LeakyReLU with PyTorch's slope of 0.01 where the original has a ReLU.",
        at(_activations("relu"), "activation", function="leaky relu (0.01)"),
    ),
    Defect(
        "hard-sigmoid",
        "The hard sigmoid of MobileNetV3's gates in place of the sigmoid.",
        at(_activations("sigmoid"), "activation", function="hard sigmoid (x/6)"),
    ),
    Defect(
        "tanh-for-sigmoid",
        "tanh as the gate: the default recurrent and output activations of LSTM exchanged.",
        at(_activations("sigmoid"), "activation", function="tanh"),
    ),
    Defect(
        "activation-missing",
        "No activation: activation=None in the layer, and the separate one forgotten.",
        at(_activations(), "activation", function="identity"),
    ),
    Defect(
        "activation-doubled",
        "The activation twice: as an argument of the layer, and as a layer behind it.",
        at(_whole, "twice"),
    ),
    Defect(
        "activation-before-norm",
        "Activation, then BatchNorm: Conv2D(activation=...) followed by the normalization.",
        _before_normalization,
    ),
)
