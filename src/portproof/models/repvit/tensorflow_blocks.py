"""The blocks of RepViT in Keras 2 and Keras 3; each in its training form and its fused form.

Tensors are NHWC, where H is time and W is frequency for the KWS network. Every layer sits under the attribute path that
the PyTorch module has (``features.1.token_mixer.0.conv.c``), carries that path as its Keras name, and is one Keras
layer where PyTorch has one module, so the two sides pair up by path alone. Source: "RepViT: Revisiting Mobile CNN From
ViT Perspective" (CVPR 2024) and its official code.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from typing import Any

import tensorflow as tf

from portproof.models.repvit.config import BlockConfig, squeeze_channels
from portproof.models.repvit.tensorflow_layers import GELU, batch_norm, conv, depthwise_conv, head_linear

layers: Any = tf.keras.layers


def conv_bn(*shape: int, name: str, dtype: Any, fused: bool, gamma: float = 1.0, **options: Any) -> Any:
    """Convolution and BatchNorm: a `ConvBN` of the same arguments, or fused one biased convolution."""
    if not fused:
        return ConvBN(*shape, gamma=gamma, name=name, dtype=dtype, **options)
    into, out, size = (*shape, 1)[:3]
    return _convolution(into, out, size, use_bias=True, name=name, dtype=dtype, **options)


def token_mixer(channels: int, *, depthwise: str, fused: bool, name: str, dtype: Any) -> Any:
    """The depthwise 3x3 of a stride-1 block: a `RepVGGDW`, or fused one biased convolution."""
    if fused:
        return depthwise_conv(depthwise, channels, 3, pad=1, name=name, dtype=dtype)
    return RepVGGDW(channels, depthwise=depthwise, name=name, dtype=dtype)


def _convolution(
    into: int, out: int, size: int, *, depthwise: str | None = None, stride: Any = 1, **options: Any
) -> Any:
    if depthwise is None:
        return conv(into, out, size, strides=stride, **options)
    return depthwise_conv(depthwise, into, size, strides=stride, **options)


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
            x = run(member, x, training)
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
        options = {"depthwise": depthwise, "stride": stride, "pad": pad, "use_bias": False, **self._member("c")}
        self.c = _convolution(in_channels, out_channels, kernel_size, **options)
        self.bn = batch_norm(out_channels, gamma, **self._member("bn"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, in) to (B, H', W', out)."""
        return self.bn(self.c(x), training=training)


class RepVGGDW(Composite):
    """Depthwise token mixer: ``bn(conv(x) + conv1(x) + x)``, of 3x3 with BatchNorm, 1x1 with bias, and identity."""

    def __init__(self, channels: int, *, depthwise: str, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.conv = ConvBN(channels, channels, 3, pad=1, depthwise=depthwise, **self._member("conv"))
        self.conv1 = depthwise_conv(depthwise, channels, 1, **self._member("conv1"))
        self.bn = batch_norm(channels, **self._member("bn"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, C) to the same shape."""
        return self.bn(run(self.conv, x, training) + self.conv1(x) + x, training=training)


class SqueezeExcite(Composite):
    """Channel gate from the mean over H and W (Hu et al., 2018), under the names of timm's layer as officially used."""

    def __init__(self, channels: int, *, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        hidden = squeeze_channels(channels)
        self.fc1 = conv(channels, hidden, 1, **self._member("fc1"))
        self.act = layers.ReLU(**self._member("act"))
        self.fc2 = conv(hidden, channels, 1, **self._member("fc2"))
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
        return x + run(self.m, x, training)


class RepViTBlock(Composite):
    """One block: ``token_mixer`` over space, then ``channel_mixer`` over channels (figure 3 of the paper)."""

    def __init__(self, config: BlockConfig, *, depthwise: str, fused: bool, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        member = self._member
        into, out, hidden = config.in_channels, config.out_channels, config.hidden_channels
        gate = member("token_mixer.1")
        squeeze_excite = SqueezeExcite(into, **gate) if config.use_se else layers.Identity(**gate)
        spatial = {"depthwise": depthwise, "fused": fused, **member("token_mixer.0")}
        mixer: tuple[Any, ...]
        if config.downsamples:
            size = config.kernel_size
            strided = conv_bn(into, into, size, stride=config.stride, pad=(size - 1) // 2, **spatial)
            mixer = (strided, squeeze_excite, conv_bn(into, out, fused=fused, **member("token_mixer.2")))
        else:
            mixer = (token_mixer(into, **spatial), squeeze_excite)
        self.token_mixer = Chain(*mixer, **member("token_mixer"))
        branch = Chain(
            conv_bn(out, hidden, fused=fused, **member("channel_mixer.m.0")),
            GELU(**member("channel_mixer.m.1")),
            conv_bn(hidden, out, gamma=0.0, fused=fused, **member("channel_mixer.m.2")),
            **member("channel_mixer.m"),
        )
        self.channel_mixer = Residual(branch, **member("channel_mixer"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, in) to (B, H / stride, W / stride, out), sizes rounded up."""
        return run(self.channel_mixer, run(self.token_mixer, x, training), training)


class BNLinear(Composite):
    """BatchNorm ``bn``, then a linear layer ``l`` (``BN_Linear`` in the official code)."""

    def __init__(self, features: int, num_classes: int, *, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.bn = batch_norm(features, rank=2, **self._member("bn"))
        self.l = head_linear(features, num_classes, **self._member("l"))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, features) to (B, num_classes)."""
        return self.l(self.bn(x, training=training))


class Classifier(Composite):
    """The head of the ImageNet models: ``classifier``, and beside it ``classifier_dist`` where one distils.

    With both, a call with ``training=True`` returns both logits, any other their mean.
    """

    def __init__(self, features: int, num_classes: int, *, distillation: bool, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.classifier = BNLinear(features, num_classes, **self._member("classifier"))
        self.classifier_dist = (
            BNLinear(features, num_classes, **self._member("classifier_dist")) if distillation else None
        )

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, features) to (B, num_classes), or to two such tensors."""
        logits = run(self.classifier, x, training)
        if self.classifier_dist is None:
            return logits
        distilled = run(self.classifier_dist, x, training)
        return (logits, distilled) if training else (logits + distilled) / 2


def run(layer: Any, x: Any, training: bool | None) -> Any:
    """Call ``layer``; a composite without the checks of Keras' ``__call__``, which its members make again."""
    return layer.call(x, training) if isinstance(layer, Composite) else layer(x)
