"""Layers that Keras 2 and Keras 3 lack for RepViT: PyTorch's padding, unequal strides, exact GELU.

Layers are built where they are made, from channel counts alone: the weights exist at once, without a forward pass, and
start from PyTorch's defaults.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from portproof.models.repvit.config import BN_EPSILON, BN_MOMENTUM, HEAD_STD

layers: Any = tf.keras.layers
registered = tf.keras.utils.register_keras_serializable(package="portproof.repvit")

DEPTHWISE_LAYERS = ("depthwise", "grouped")  # DepthwiseConv2D, or Conv2D(groups=channels)


@tf.function(jit_compile=True)
def _compiled_conv2d(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> Any:
    """tf.nn.conv2d through XLA: TF's own CPU kernels have no gradient of a grouped convolution unless oneDNN is on.

    Keras compiles these as well, but Keras 3 anew at every call.
    """
    return tf.nn.conv2d(inputs, kernel, strides, padding)


@registered
class PaddedConv2D(layers.Conv2D):
    """Conv2D with PyTorch's padding: ``pad`` zeros on all four sides, where 'same' pads one side more at stride 2."""

    def __init__(self, filters: int, kernel_size: Any, *, pad: int = 0, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.pad = pad

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Pad and convolve (B, H, W, in) with (kH, kW, in / groups, filters)."""
        convolve = _compiled_conv2d if self.groups > 1 else tf.nn.conv2d
        # A Keras 3 variable takes TF's slow path into an op, a tensor does not.
        return convolve(_pad(inputs, self.pad), tf.convert_to_tensor(kernel), self.strides, "VALID")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Map (B, H, W, in) to (B, H', W', filters)."""
        return super().compute_output_shape(_padded_shape(input_shape, self.pad))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "pad": self.pad}


@registered
class PaddedDepthwiseConv2D(layers.DepthwiseConv2D):
    """DepthwiseConv2D with PyTorch's padding (``pad`` zeros on all four sides) and with unequal strides."""

    def __init__(self, kernel_size: Any, *, pad: int = 0, **kwargs: Any) -> None:
        super().__init__(kernel_size, **kwargs)
        self.pad = pad

    def call(self, inputs: Any) -> Any:
        """Map (B, H, W, C) to (B, H', W', C)."""
        kernel = self.depthwise_kernel if hasattr(self, "depthwise_kernel") else self.kernel  # Keras 2, Keras 3
        rows, columns = self.strides
        # TF's CPU kernel refuses unequal strides. The output at stride (2, 1) is every second row of the output at
        # stride 1, beginning with the first, value for value.
        step = rows if rows == columns else 1
        # The op itself: tf.nn.depthwise_conv2d wraps it in Python that takes longer than the convolution does.
        outputs = tf.raw_ops.DepthwiseConv2dNative(
            input=_pad(inputs, self.pad),
            filter=tf.convert_to_tensor(kernel),
            strides=(1, step, step, 1),
            padding="VALID",
        )
        if rows != columns:
            outputs = outputs[:, ::rows, ::columns]
        return tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias)) if self.use_bias else outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Map (B, H, W, C) to (B, H', W', C)."""
        return super().compute_output_shape(_padded_shape(input_shape, self.pad))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "pad": self.pad}


@registered
class GELU(layers.Layer):
    """Exact GELU, ``x (1 + erf(x / sqrt 2)) / 2``.

    ``tf.nn.gelu`` rounds sqrt(2) to float32 first and is off by 5e-9 in float64; a Python float becomes a constant of
    the tensor's own dtype.
    """

    def call(self, inputs: Any) -> Any:
        """Map any shape to itself."""
        return 0.5 * inputs * (1.0 + tf.math.erf(math.sqrt(0.5) * inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return ``input_shape``."""
        return input_shape


def conv(in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> Any:
    """A convolution for inputs (B, H, W, in_channels)."""
    fan_in = in_channels * kernel_size**2
    layer = PaddedConv2D(
        out_channels,
        kernel_size,
        kernel_initializer=_uniform(fan_in),
        bias_initializer=_uniform(fan_in),
        **options,
    )
    return _built(layer, (None, None, None, in_channels))


def depthwise_conv(depthwise: str, channels: int, kernel_size: int, **options: Any) -> Any:
    """A convolution of every channel by itself, as one of DEPTHWISE_LAYERS, for inputs (B, H, W, channels)."""
    initial, options["bias_initializer"] = _uniform(kernel_size**2), _uniform(kernel_size**2)
    if depthwise == "grouped":
        layer = PaddedConv2D(channels, kernel_size, groups=channels, kernel_initializer=initial, **options)
    else:
        layer = PaddedDepthwiseConv2D(kernel_size, depthwise_initializer=initial, **options)
    return _built(layer, (None, None, None, channels))


def batch_norm(channels: int, gamma: float = 1.0, *, rank: int = 4, **options: Any) -> Any:
    """BatchNorm over the last axis with PyTorch's settings; Keras' momentum is the weight of the old average."""
    initial = tf.keras.initializers.Constant(gamma)
    layer = layers.BatchNormalization(
        epsilon=BN_EPSILON, momentum=1 - BN_MOMENTUM, gamma_initializer=initial, **options
    )
    return _built(layer, (*(None,) * (rank - 1), channels))


def linear(features: int, units: int, **options: Any) -> Any:
    """A linear layer as PyTorch initialises it, for inputs (B, features)."""
    initial = {"kernel_initializer": _uniform(features), "bias_initializer": _uniform(features)}
    return _built(layers.Dense(units, **initial, **options), (None, features))


def head_linear(features: int, units: int, **options: Any) -> Any:
    """A linear layer as the official ImageNet heads initialise it: normal, and no bias.

    Their truncated normal is cut off at ±2, a hundred standard deviations; Keras' own at two of them.
    """
    return _built(
        layers.Dense(units, kernel_initializer=tf.keras.initializers.RandomNormal(0.0, HEAD_STD), **options),
        (None, features),
    )


def _built(layer: Any, shape: tuple[int | None, ...]) -> Any:
    """Return ``layer`` with its weights made for inputs of ``shape``."""
    if hasattr(layer, "path"):  # Keras 3, where build() itself gives every weight its path
        with tf.variable_creator_scope(_unscoped):
            layer.build(shape)
    else:
        with tf.name_scope(layer.name):
            layer.build(shape)
    return layer


def _unscoped(create: Any, **options: Any) -> Any:
    """Make a TF variable outside all name scopes; beneath Keras 3's variables nobody sees these names.

    TF sets up the op that makes a variable anew for every name, which for 303 names is a third of the construction.
    """
    with tf.name_scope(""):
        return create(**options)


def _uniform(fan_in: int) -> Any:
    """PyTorch's default for kernels and biases alike: uniform in ±1/sqrt(fan_in), Kaiming with a = sqrt(5).

    Not VarianceScaling, which would count the fan-in of a depthwise kernel times its channels. One for each weight, for
    a Keras 3 initializer gives the same values every time.
    """
    return tf.keras.initializers.RandomUniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def _pad(inputs: Any, pad: int) -> Any:
    return tf.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else inputs


def _padded_shape(shape: Any, pad: int) -> tuple[int | None, ...]:
    batch, height, width, channels = tuple(shape)
    return batch, None if height is None else height + 2 * pad, None if width is None else width + 2 * pad, channels
