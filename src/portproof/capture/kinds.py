"""What kind a layer is and what it was set to, in words that both frameworks share."""

from __future__ import annotations

from typing import Any

# Class names of torch and Keras -> one word. A subclass is of the kind of the first of its bases that stands here.
KINDS = {
    "Conv1d": "conv1d", "Conv1D": "conv1d", "DepthwiseConv1D": "conv1d",
    "Conv2d": "conv2d", "Conv2D": "conv2d", "DepthwiseConv2D": "conv2d",
    "Conv3d": "conv3d", "Conv3D": "conv3d",
    "ConvTranspose1d": "conv1d transpose", "Conv1DTranspose": "conv1d transpose",
    "ConvTranspose2d": "conv2d transpose", "Conv2DTranspose": "conv2d transpose",
    "BatchNorm1d": "batchnorm", "BatchNorm2d": "batchnorm", "BatchNorm3d": "batchnorm",
    "BatchNormalization": "batchnorm",
    "LayerNorm": "layernorm", "LayerNormalization": "layernorm",
    "GroupNorm": "groupnorm", "GroupNormalization": "groupnorm",
    "Linear": "linear", "Dense": "linear",
    "Embedding": "embedding",
    "MultiheadAttention": "attention", "MultiHeadAttention": "attention",
    "GELU": "gelu", "ReLU": "relu", "ReLU6": "relu6", "LeakyReLU": "leaky relu", "ELU": "elu", "SELU": "selu",
    "SiLU": "silu", "Hardswish": "hard swish", "Sigmoid": "sigmoid", "Tanh": "tanh",
    "Softmax": "softmax", "LogSoftmax": "log softmax", "PReLU": "prelu",
    "Dropout": "dropout", "Dropout1d": "dropout", "Dropout2d": "dropout", "SpatialDropout1D": "dropout",
    "SpatialDropout2D": "dropout",
    "AvgPool1d": "avgpool", "AvgPool2d": "avgpool", "AveragePooling1D": "avgpool", "AveragePooling2D": "avgpool",
    "AdaptiveAvgPool1d": "avgpool", "AdaptiveAvgPool2d": "avgpool", "GlobalAveragePooling1D": "avgpool",
    "GlobalAveragePooling2D": "avgpool", "GlobalAveragePool": "avgpool",
    "MaxPool1d": "maxpool", "MaxPool2d": "maxpool", "MaxPooling1D": "maxpool", "MaxPooling2D": "maxpool",
    "AdaptiveMaxPool2d": "maxpool", "GlobalMaxPooling2D": "maxpool",
    "Flatten": "flatten", "Identity": "identity", "Upsample": "upsample", "UpSampling2D": "upsample",
    "ZeroPad2d": "padding", "ZeroPadding2D": "padding",
}  # fmt: skip
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu6": "relu6", "leaky_relu": "leaky relu", "linear": "identity"}

_SAME_NAME = (
    "eps", "momentum", "stride", "padding", "dilation", "groups", "approximate", "p", "negative_slope", "kernel_size",
    "ceil_mode", "align_corners", "num_heads", "affine", "track_running_stats",
)  # fmt: skip
_RENAMED = {
    "epsilon": "eps", "strides": "stride", "dilation_rate": "dilation", "rate": "p", "alpha": "negative_slope",
    "pool_size": "kernel_size",
}  # fmt: skip


def kind(layer: Any) -> str:
    """The kind of a torch module or Keras layer; its class name in lower case if it is none of the known ones."""
    for cls in type(layer).__mro__:
        if cls.__name__ == "Activation":
            return activation_kind(layer.activation)
        if cls.__name__ in KINDS:
            return KINDS[cls.__name__]
    return type(layer).__name__.lower()


def activation_kind(function: Any) -> str:
    """The kind of an activation that is a function."""
    name = getattr(function, "__name__", "activation")
    return _ACTIVATIONS.get(name, name)


def settings(layer: Any) -> dict[str, Any]:
    """What the layer was set to, in torch's terms: Keras' ``momentum`` is turned round, 'valid' padding is 0.

    These are evidence for the likely cause of a divergence, never part of a verdict.
    """
    found: dict[str, Any] = {}
    for key in (*_SAME_NAME, *_RENAMED):
        value = getattr(layer, key, None)
        if value is not None and not callable(value):
            found[_RENAMED.get(key, key)] = _plain(value)
    if "epsilon" in vars(layer) and isinstance(found.get("momentum"), (int, float)):
        found["momentum"] = round(1.0 - found["momentum"], 12)
    if found.get("padding") == "valid":
        pad = getattr(layer, "pad", 0)
        found["padding"] = pad if isinstance(pad, int) else 0
    return {key: value for key, value in sorted(found.items()) if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        plain = [_plain(each) for each in value]
        # (3, 3) and 3 say the same; one number compares across frameworks' habits.
        return plain[0] if plain and all(each == plain[0] for each in plain) else plain
    return value if isinstance(value, (bool, int, float, str)) else None
