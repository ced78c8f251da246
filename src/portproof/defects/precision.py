"""Defects of precision: the same function in float64, and a coarser one in float32."""

from __future__ import annotations

from portproof.defects.defect import PRECISION as IN_FLOAT32
from portproof.defects.defect import Defect, at, group
from portproof.defects.port import Port

_PRODUCTS = ("conv1d", "conv2d", "conv3d", "linear", "einsumdense")


def _products(port: Port) -> list[str]:
    return port.of_kind(*_PRODUCTS)


def _others(port: Port) -> list[str]:
    return port.of_kind("batchnorm", "layernorm", "gelu", "relu", "silu", "sigmoid", "softmax", "avgpool")


PRECISION = group(
    "precision",
    Defect(
        "tf32-inside",
        "Products of numbers with 10 bits of mantissa, as TF32 on a GPU, which is TensorFlow's default there.",
        at(_products, "round inputs", to="tf32"),
        IN_FLOAT32,
    ),
    Defect(
        "bfloat16-products",
        "Products in bfloat16: mixed_bfloat16 as the policy, or oneDNN's fast math mode.",
        at(_products, "round inputs", to="bfloat16"),
        IN_FLOAT32,
    ),
    Defect(
        "bfloat16-outputs",
        "A layer that returns bfloat16, cast back by the next one.",
        at(_others, "round output", to="bfloat16"),
        IN_FLOAT32,
    ),
    Defect(
        "float16-outputs",
        "A layer that returns float16, cast back by the next one.",
        at(_others, "round output", to="float16"),
        IN_FLOAT32,
    ),
    Defect(
        "float16-weights-in-float32",
        "A float16 copy of one kernel, cast up at every call, as after a float16 conversion.",
        at(_products, "round kernel", to="float16"),
        IN_FLOAT32,
    ),
)
