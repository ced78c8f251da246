"""RepViT in TensorFlow, one source for Keras 2 (TF 2.15) and Keras 3: the ImageNet family, its use as a backbone, KWS.

Tensors are NHWC, where H is time and W is frequency for the KWS network. Every network has a training form and a fused
form. Source: "RepViT: Revisiting Mobile CNN From ViT Perspective" (CVPR 2024) and its official code.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from portproof.models.repvit.config import (
    KWS_INPUT_SHAPE,
    KWS_TINY_CFGS,
    VARIANTS,
    RepViTConfig,
    check_num_classes,
)
from portproof.models.repvit.forms import adopted
from portproof.models.repvit.tensorflow_blocks import Chain, Classifier, RepViTBlock, conv_bn, run
from portproof.models.repvit.tensorflow_fuse import fused_twin
from portproof.models.repvit.tensorflow_layers import DEPTHWISE_LAYERS, GELU, layers, linear, registered

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Network(tf.keras.Model):
    """What all of them share: stem and blocks (``features``), the two forms, and their arguments as a configuration."""

    def __init__(
        self,
        cfgs: Sequence[Sequence[Any]],
        *,
        in_channels: int,
        depthwise: str,
        fused: bool,
        **kwargs: Any,
    ) -> None:
        config = RepViTConfig.from_rows(cfgs, in_channels=in_channels)
        if depthwise not in DEPTHWISE_LAYERS:
            raise ValueError(f"depthwise must be one of {', '.join(DEPTHWISE_LAYERS)}, got {depthwise!r}")
        super().__init__(**kwargs)
        self.config, self.depthwise, self.fused = config, depthwise, fused
        dtype = self.dtype_policy
        half = config.stem_channels // 2
        convolution = {"stride": 2, "pad": 1, "dtype": dtype, "fused": fused}
        stem = Chain(
            conv_bn(config.in_channels, half, 3, name="features.0.0", **convolution),
            GELU(name="features.0.1", dtype=dtype),
            conv_bn(half, config.stem_channels, 3, name="features.0.2", **convolution),
            name="features.0",
            dtype=dtype,
        )
        blocks = [
            RepViTBlock(block, depthwise=depthwise, fused=fused, name=f"features.{index}", dtype=dtype)
            for index, block in enumerate(config.blocks, start=1)
        ]
        self.features = Chain(stem, *blocks, name="features", dtype=dtype)

    def build(self, input_shape: Any) -> None:
        """Do nothing, for all is built; Keras 3 notes ``input_shape`` for the signature of ``export``."""
        self.built = True

    @property
    def export_signature(self) -> list[Any]:
        """The inputs of an exported model: any batch, images of any size."""
        return [tf.TensorSpec((None, None, None, self.config.in_channels), self.compute_dtype)]

    def fuse(self) -> Any:
        """A new model that computes what this one computes with ``training=False``, with all BatchNorms folded.

        Raises:
            ValueError: this model is fused already, or is not as its constructor made it.
        """
        return fused_twin(self)

    def adopt_weights(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """``values`` of another form of this network (timm's names, not yet fused) in the form that this model holds.

        Names and layouts are those of the PyTorch state dict.

        Raises:
            ValueError: they are of a fused network and this one is not, or a name is unknown.
        """
        return adopted(values, self.config, fused=self.fused, classifier=hasattr(self, "classifier"))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with lists for tuples as JSON has it."""
        rows = [[list(entry) if isinstance(entry, tuple) else entry for entry in row] for row in self.config.rows]
        own = {"cfgs": rows, "depthwise": self.depthwise, "fused": self.fused}
        return {**own, "name": self.name, "dtype": self.dtype_policy.name}


@registered
class RepViTFeatures(Network):
    """RepViT as a backbone: images (B, H, W, in_channels) to the output of every stage.

    ``cfgs`` are rows as in `portproof.models.repvit.config.Variant.rows`; wrong ones raise ``ValueError``.
    ``depthwise`` and ``dtype`` are as in `KWSRepViT`, ``fused`` is the form of `fuse`.
    """

    def __init__(
        self,
        cfgs: Sequence[Sequence[Any]],
        *,
        in_channels: int = 3,
        depthwise: str = "depthwise",
        fused: bool = False,
        name: str = "repvit_features",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        form: dict[str, Any] = {"in_channels": in_channels, "depthwise": depthwise, "fused": fused}
        super().__init__(cfgs, **form, name=name, dtype=dtype, **kwargs)
        self.build((None, None, None, in_channels))

    @tf.autograph.experimental.do_not_convert
    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map (B, H, W, in_channels) to one (B, H / reduction, W / reduction, C) per stage, sizes rounded up."""
        outputs = []
        for index, feature in enumerate(self.features):
            x = run(feature, x, training)
            if index in self.config.stage_ends:
                outputs.append(x)
        return tuple(outputs)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "in_channels": self.config.in_channels}


class _Classifying(Network):
    """The features, their global average ``pool``, and a ``classifier`` that the subclass supplies."""

    classifier: Any

    def __init__(self, cfgs: Sequence[Sequence[Any]], num_classes: int, **kwargs: Any) -> None:
        super().__init__(cfgs, **kwargs)
        self.num_classes = check_num_classes(num_classes)
        self.pool = layers.GlobalAveragePooling2D(name="pool", dtype=self.dtype_policy)

    # AutoGraph has nothing to convert here, and trying takes Keras 2 most of the time of a trace.
    @tf.autograph.experimental.do_not_convert
    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map images (B, H, W, in_channels) to logits (B, num_classes)."""
        return run(self.classifier, self.pool(run(self.features, x, training)), training)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "num_classes": self.num_classes}


@registered
class RepViT(_Classifying):
    """RepViT for images (B, H, W, in_channels) of any size, to logits (B, num_classes).

    ``cfgs`` are rows as in the official code; wrong ones raise ``ValueError``. With ``distillation`` there are two
    heads: a call with ``training=True`` returns both logits, any other their mean. ``depthwise`` and ``dtype`` are as
    in `KWSRepViT`, ``fused`` is the form of `fuse`, whose one linear layer holds that mean.
    """

    def __init__(
        self,
        cfgs: Sequence[Sequence[Any]],
        num_classes: int = 1000,
        distillation: bool = False,
        *,
        in_channels: int = 3,
        depthwise: str = "depthwise",
        fused: bool = False,
        name: str = "repvit",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        form: dict[str, Any] = {"in_channels": in_channels, "depthwise": depthwise, "fused": fused}
        super().__init__(cfgs, num_classes, **form, name=name, dtype=dtype, **kwargs)
        self.distillation = distillation
        head = {"name": "classifier", "dtype": self.dtype_policy}
        width = self.config.out_channels
        if fused:
            self.classifier = linear(width, num_classes, **head)
        else:
            self.classifier = Classifier(width, num_classes, distillation=distillation, **head)
        self.build((None, None, None, in_channels))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {"distillation": self.distillation, "in_channels": self.config.in_channels}
        return {**super().get_config(), **own}


@registered
class KWSRepViT(_Classifying):
    """RepViT for keyword spotting: log-mel spectrograms (B, time, mel) or (B, time, mel, 1) to logits (B, num_classes).

    With the default ``cfgs`` it has 214,222 trainable parameters. ``cfgs`` are rows as in ``KWS_TINY_CFGS``; wrong
    ones, and inputs of another rank, raise ``ValueError``. Depthwise convolutions are DepthwiseConv2D layers, or with
    ``depthwise="grouped"`` Conv2D layers of as many groups as channels: the same function, slower on the CPU.
    ``dtype`` is that of weights and computation, a name or a Keras policy; by default Keras' global policy decides.
    ``fused`` is the form of `fuse`.
    """

    def __init__(
        self,
        cfgs: Sequence[Sequence[Any]] = KWS_TINY_CFGS,
        num_classes: int = 2,
        *,
        depthwise: str = "depthwise",
        fused: bool = False,
        name: str = "kws_repvit",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        form: dict[str, Any] = {"in_channels": 1, "depthwise": depthwise, "fused": fused}
        super().__init__(cfgs, num_classes, **form, name=name, dtype=dtype, **kwargs)
        self.classifier = linear(self.config.out_channels, num_classes, name="classifier", dtype=self.dtype_policy)
        self.build((None, *KWS_INPUT_SHAPE))

    @property
    def export_signature(self) -> list[Any]:
        """The inputs of an exported model: any batch of spectrograms of one second."""
        return [tf.TensorSpec((None, *KWS_INPUT_SHAPE), self.compute_dtype)]

    @tf.autograph.experimental.do_not_convert
    def call(self, x: Any, training: bool | None = None) -> Any:
        """Map spectrograms (B, time, mel) or (B, time, mel, 1) to logits (B, num_classes)."""
        if len(x.shape) == 3:
            x = x[..., tf.newaxis]
        elif len(x.shape) != 4 or x.shape[-1] != 1:
            raise ValueError(f"KWSRepViT takes (batch, time, mel[, 1]), got an input of shape {tuple(x.shape)}")
        return super().call(x, training)


def _constructor(variant: str) -> Callable[..., Any]:
    rows = VARIANTS[variant].rows

    def construct(
        num_classes: int = 1000, distillation: bool = False, *, features_only: bool = False, **options: Any
    ) -> Any:
        if features_only:
            return RepViTFeatures(rows, name=options.pop("name", f"{variant}_features"), **options)
        return RepViT(rows, num_classes, distillation, name=options.pop("name", variant), **options)

    construct.__name__ = construct.__qualname__ = variant
    construct.__doc__ = (
        f"Make {variant.replace('_', '-', 1).replace('_', '.')}, a `RepViT`; with ``features_only`` a `RepViTFeatures`."
        "\n\n    ``options`` are ``depthwise``, ``fused``, ``name`` and ``dtype``.\n    "
    )
    return construct


# Under the names of the official constructors.
repvit_m0_6 = _constructor("repvit_m0_6")
repvit_m0_9 = _constructor("repvit_m0_9")
repvit_m1_0 = _constructor("repvit_m1_0")
repvit_m1_1 = _constructor("repvit_m1_1")
repvit_m1_5 = _constructor("repvit_m1_5")
repvit_m2_3 = _constructor("repvit_m2_3")
