"""RepViT in TensorFlow, one source for Keras 2 (TF 2.15) and Keras 3 (TF 2.16 and later); for KWS: ``KWSRepViT``.

Tensors are NHWC, where H is time and W is frequency for the KWS network. Every layer sits under the attribute path that
the PyTorch module has (``features.1.token_mixer.0.conv.c``), carries that path as its Keras name, and is one Keras
layer where PyTorch has one module, so the two sides pair up by path alone. Source: "RepViT: Revisiting Mobile CNN From
ViT Perspective" (CVPR 2024) and its official code.

Layers are built in their constructors, from channel counts alone: the weights exist at once, without a forward pass.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from portproof.models.repvit.config import (
    BN_EPSILON,
    BN_MOMENTUM,
    KWS_INPUT_SHAPE,
    KWS_TINY_CFGS,
    BlockConfig,
    RepViTConfig,
    check_num_classes,
    squeeze_channels,
)

layers: Any = tf.keras.layers
_registered = tf.keras.utils.register_keras_serializable(package="portproof.repvit")

DEPTHWISE_LAYERS = ("depthwise", "grouped")  # DepthwiseConv2D, or Conv2D(groups=channels)


@tf.function(jit_compile=True)
def _compiled_conv2d(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> Any:
    """tf.nn.conv2d through XLA: TF's own CPU kernels have no gradient of a grouped convolution unless oneDNN is on.

    Keras compiles these as well, but Keras 3 anew at every call.
    """
    return tf.nn.conv2d(inputs, kernel, strides, padding)


@_registered
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


@_registered
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


@_registered
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


class Composite(layers.Layer):
    """A layer made of layers, which are built; ``name`` is its path in the model, and the start of theirs."""

    def __init__(self, *, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.built = True

    def _member(self, path: str) -> dict[str, Any]:
        """Return name and dtype for the layer at ``path`` beneath this one."""
        return {"name": f"{self.name}.{path}", "dtype": self.dtype_policy}


class Chain(Composite):
    """Layers one after another, at the attributes "0", "1", ...: PyTorch's Sequential and ModuleList in one."""

    def __init__(self, *members: Any, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.length = len(members)
        for index, member in enumerate(members):
            setattr(self, str(index), member)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(range(self.length)[index]))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map the first member's input to the last member's output."""
        for member in self:
            x = _run(member, x, training)
        return x


class ConvBN(Composite):
    """Convolution ``c`` without bias, then BatchNorm ``bn`` (``Conv2d_BN`` in the official code).

    ``gamma`` is the initial weight of the BatchNorm: 0 where a residual branch ends, so that it starts as the identity.
    A ``depthwise`` of DEPTHWISE_LAYERS convolves every channel by itself; None is an ordinary convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int | tuple[int, int] = 1,
        pad: int = 0,
        depthwise: str | None = None,
        gamma: float = 1.0,
        name: str,
        dtype: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        options = {"strides": stride, "pad": pad, "use_bias": False, **self._member("c")}
        if depthwise is None:
            self.c = _conv(in_channels, out_channels, kernel_size, **options)
        else:
            self.c = _depthwise_conv(depthwise, in_channels, kernel_size, **options)
        self.bn = _batch_norm(out_channels, gamma, **self._member("bn"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, in) to (B, H', W', out)."""
        return self.bn(self.c(x), training=training)


class RepVGGDW(Composite):
    """Depthwise token mixer: ``bn(conv(x) + conv1(x) + x)``, of 3x3 with BatchNorm, 1x1 with bias, and identity."""

    def __init__(self, channels: int, *, depthwise: str, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.conv = ConvBN(channels, channels, 3, pad=1, depthwise=depthwise, **self._member("conv"))
        self.conv1 = _depthwise_conv(depthwise, channels, 1, **self._member("conv1"))
        self.bn = _batch_norm(channels, **self._member("bn"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, C) to the same shape."""
        return self.bn(_run(self.conv, x, training) + self.conv1(x) + x, training=training)


class SqueezeExcite(Composite):
    """Channel gate from the mean over H and W (Hu et al., 2018), under the names of timm's layer as officially used."""

    def __init__(self, channels: int, *, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        hidden = squeeze_channels(channels)
        self.fc1 = _conv(channels, hidden, 1, **self._member("fc1"))
        self.act = layers.ReLU(**self._member("act"))
        self.fc2 = _conv(hidden, channels, 1, **self._member("fc2"))
        self.gate = layers.Activation("sigmoid", **self._member("gate"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, C) to the same shape."""
        squeezed = tf.reduce_mean(x, (1, 2), keepdims=True)
        return x * self.gate(self.fc2(self.act(self.fc1(squeezed))))


class Residual(Composite):
    """``x + m(x)``."""

    def __init__(self, m: Any, *, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.m = m

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, C) to the same shape."""
        return x + _run(self.m, x, training)


class RepViTBlock(Composite):
    """One block: ``token_mixer`` over space, then ``channel_mixer`` over channels (figure 3 of the paper)."""

    def __init__(self, config: BlockConfig, *, depthwise: str, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        member = self._member
        into, out, hidden = config.in_channels, config.out_channels, config.hidden_channels
        gate = member("token_mixer.1")
        squeeze_excite = SqueezeExcite(into, **gate) if config.use_se else layers.Identity(**gate)
        spatial = {"depthwise": depthwise, **member("token_mixer.0")}
        mixer: tuple[Any, ...]
        if config.downsamples:
            size = config.kernel_size
            strided = ConvBN(into, into, size, stride=config.stride, pad=(size - 1) // 2, **spatial)
            mixer = (strided, squeeze_excite, ConvBN(into, out, **member("token_mixer.2")))
        else:
            mixer = (RepVGGDW(into, **spatial), squeeze_excite)
        self.token_mixer = Chain(*mixer, **member("token_mixer"))
        branch = Chain(
            ConvBN(out, hidden, **member("channel_mixer.m.0")),
            GELU(**member("channel_mixer.m.1")),
            ConvBN(hidden, out, gamma=0.0, **member("channel_mixer.m.2")),
            **member("channel_mixer.m"),
        )
        self.channel_mixer = Residual(branch, **member("channel_mixer"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, in) to (B, H / stride, W / stride, out), sizes rounded up."""
        return _run(self.channel_mixer, _run(self.token_mixer, x, training), training)


class RepViT(tf.keras.Model):
    """Stem and blocks (``features``), global average ``pool``, and a ``classifier`` that the subclass supplies."""

    classifier: Any

    def __init__(self, config: RepViTConfig, *, depthwise: str, **kwargs: Any) -> None:
        if depthwise not in DEPTHWISE_LAYERS:
            raise ValueError(f"depthwise must be one of {', '.join(DEPTHWISE_LAYERS)}, got {depthwise!r}")
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        half = config.stem_channels // 2
        stem = Chain(
            ConvBN(config.in_channels, half, 3, stride=2, pad=1, name="features.0.0", dtype=dtype),
            GELU(name="features.0.1", dtype=dtype),
            ConvBN(half, config.stem_channels, 3, stride=2, pad=1, name="features.0.2", dtype=dtype),
            name="features.0",
            dtype=dtype,
        )
        blocks = [
            RepViTBlock(block, depthwise=depthwise, name=f"features.{index}", dtype=dtype)
            for index, block in enumerate(config.blocks, start=1)
        ]
        self.features = Chain(stem, *blocks, name="features", dtype=dtype)
        self.pool = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)

    # AutoGraph has nothing to convert here, and trying takes Keras 2 most of the time of a trace.
    @tf.autograph.experimental.do_not_convert
    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map images (B, H, W, in_channels) to logits (B, num_classes)."""
        return self.classifier(self.pool(_run(self.features, x, training)))


@_registered
class KWSRepViT(RepViT):
    """RepViT for keyword spotting: log-mel spectrograms (B, time, mel) or (B, time, mel, 1) to logits (B, num_classes).

    With the default ``cfgs`` it has 214,222 trainable parameters. ``cfgs`` are rows as in ``KWS_TINY_CFGS``; wrong
    ones, and inputs of another rank, raise ``ValueError``. Depthwise convolutions are DepthwiseConv2D layers, or with
    ``depthwise="grouped"`` Conv2D layers of as many groups as channels: the same function, slower on the CPU.
    ``dtype`` is that of weights and computation, a name or a Keras policy; by default Keras' global policy decides.
    """

    def __init__(
        self,
        cfgs: Sequence[Sequence[Any]] = KWS_TINY_CFGS,
        num_classes: int = 2,
        *,
        depthwise: str = "depthwise",
        name: str = "kws_repvit",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        config = RepViTConfig.from_rows(cfgs, in_channels=1)
        super().__init__(config, depthwise=depthwise, name=name, dtype=dtype, **kwargs)
        self.config = config
        self.num_classes = check_num_classes(num_classes)
        self.depthwise = depthwise
        fan_in = config.out_channels
        self.classifier = _built(
            layers.Dense(
                num_classes,
                kernel_initializer=_uniform(fan_in),
                bias_initializer=_uniform(fan_in),
                name="classifier",
                dtype=self.dtype_policy,
            ),
            (None, fan_in),
        )
        self.build((None, *KWS_INPUT_SHAPE))

    def build(self, input_shape: Any) -> None:
        """Do nothing, for all is built; Keras 3 notes ``input_shape`` for the signature of ``export``."""
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map spectrograms (B, time, mel) or (B, time, mel, 1) to logits (B, num_classes)."""
        if len(x.shape) == 3:
            x = x[..., tf.newaxis]
        elif len(x.shape) != 4 or x.shape[-1] != 1:
            raise ValueError(f"KWSRepViT takes (batch, time, mel[, 1]), got an input of shape {tuple(x.shape)}")
        return super().call(x, training)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with lists for tuples as JSON has it."""
        rows = [[list(entry) if isinstance(entry, tuple) else entry for entry in row] for row in self.config.rows]
        return {
            "cfgs": rows,
            "num_classes": self.num_classes,
            "depthwise": self.depthwise,
            "name": self.name,
            "dtype": self.dtype_policy.name,
        }


def _run(layer: Any, x: Any, training: bool | None) -> Any:
    """Call ``layer``; a composite without the checks of Keras' ``__call__``, which its members make again."""
    return layer.call(x, training) if isinstance(layer, Composite) else layer(x)


def _conv(in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> Any:
    fan_in = in_channels * kernel_size**2
    layer = PaddedConv2D(
        out_channels,
        kernel_size,
        kernel_initializer=_uniform(fan_in),
        bias_initializer=_uniform(fan_in),
        **options,
    )
    return _built(layer, (None, None, None, in_channels))


def _depthwise_conv(depthwise: str, channels: int, kernel_size: int, **options: Any) -> Any:
    initial, options["bias_initializer"] = _uniform(kernel_size**2), _uniform(kernel_size**2)
    if depthwise == "grouped":
        layer = PaddedConv2D(channels, kernel_size, groups=channels, kernel_initializer=initial, **options)
    else:
        layer = PaddedDepthwiseConv2D(kernel_size, depthwise_initializer=initial, **options)
    return _built(layer, (None, None, None, channels))


def _batch_norm(channels: int, gamma: float = 1.0, **options: Any) -> Any:
    """BatchNorm with PyTorch's settings; Keras' momentum is the weight of the old average."""
    initial = tf.keras.initializers.Constant(gamma)
    layer = layers.BatchNormalization(
        epsilon=BN_EPSILON, momentum=1 - BN_MOMENTUM, gamma_initializer=initial, **options
    )
    return _built(layer, (None, None, None, channels))


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
