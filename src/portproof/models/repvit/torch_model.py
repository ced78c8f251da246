"""RepViT in PyTorch: the ImageNet family, its use as a backbone, and the KWS network; training form and fused form.

Tensors are NCHW, where H is time and W is frequency for the KWS network. State-dict names are the official ones, so
that a checkpoint of the official code loads with ``strict=True``. Source: "RepViT: Revisiting Mobile CNN From ViT
Perspective" (CVPR 2024) and its official code.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from portproof.models.repvit.config import KWS_TINY_CFGS, VARIANTS, RepViTConfig, check_num_classes
from portproof.models.repvit.forms import adopted
from portproof.models.repvit.names import to_timm
from portproof.models.repvit.torch_blocks import Classifier, GlobalAveragePool, RepViTBlock, conv_bn
from portproof.models.repvit.torch_fuse import fused_twin

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RepViTFeatures(nn.Module):
    """Stem and blocks (``features``) as a backbone: images (B, in_channels, H, W) to the output of every stage.

    ``cfgs`` are rows as in `portproof.models.repvit.config.Variant.rows`; wrong ones raise ``ValueError``. ``fused``
    is the form of `fuse`.
    """

    def __init__(self, cfgs: Sequence[Sequence[Any]], *, in_channels: int = 3, fused: bool = False) -> None:
        super().__init__()
        self.config = config = RepViTConfig.from_rows(cfgs, in_channels=in_channels)
        self.fused = fused
        half = config.stem_channels // 2
        stem = nn.Sequential(
            conv_bn(config.in_channels, half, 3, stride=2, padding=1, fused=fused),
            nn.GELU(),
            conv_bn(half, config.stem_channels, 3, stride=2, padding=1, fused=fused),
        )
        self.features = nn.ModuleList([stem, *(RepViTBlock(block, fused=fused) for block in config.blocks)])

    def forward(self, x: Any) -> Any:
        """Map (B, in_channels, H, W) to one (B, C, H / reduction, W / reduction) per stage, sizes rounded up."""
        outputs = []
        for index, feature in enumerate(self.features):
            x = feature(x)
            if index in self.config.stage_ends:
                outputs.append(x)
        return tuple(outputs)

    def fuse(self) -> Any:
        """A new model that computes the same in eval mode, without BatchNorm and with one depthwise kernel per mixer.

        Raises:
            ValueError: this model is in train mode, is fused already, or is not as its constructor made it.
        """
        return fused_twin(self)

    def adopt_weights(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """``values`` of another form of this network (timm's names, not yet fused) in the form that this model holds.

        Raises:
            ValueError: they are of a fused network and this one is not, or a name is unknown.
        """
        return adopted(values, self.config, fused=self.fused, classifier=hasattr(self, "classifier"))

    def rename_weights(self, values: Mapping[str, Any], names: str) -> dict[str, Any]:
        """This model's tensors under other ``names``: ``official`` (its own) or ``timm``.

        Raises:
            ValueError: there are no such names, or timm has no network like this one.
        """
        if names not in ("official", "timm"):
            raise ValueError(f"RepViT has official and timm names, not {names!r}")
        return dict(values) if names == "official" else to_timm(values, self.config)

    def twin(self, *, fused: bool) -> Any:
        """A new model of the same arguments, in either form, with weights of its own."""
        return type(self)(**self._arguments(), fused=fused)

    def _arguments(self) -> dict[str, Any]:
        return {"cfgs": self.config.rows, "in_channels": self.config.in_channels}


class _Network(RepViTFeatures):
    """The features, their global average ``pool``, and a ``classifier`` that the subclass supplies."""

    classifier: nn.Module

    def __init__(self, cfgs: Sequence[Sequence[Any]], num_classes: int, *, in_channels: int, fused: bool) -> None:
        super().__init__(cfgs, in_channels=in_channels, fused=fused)
        self.num_classes = check_num_classes(num_classes)
        self.pool = GlobalAveragePool()

    def forward(self, x: Any) -> Any:
        """Map images (B, in_channels, H, W) to logits (B, num_classes)."""
        for feature in self.features:
            x = feature(x)
        return self.classifier(self.pool(x))


class RepViT(_Network):
    """RepViT for images (B, in_channels, H, W) of any size, to logits (B, num_classes).

    ``cfgs`` are rows as in the official code; wrong ones raise ``ValueError``. With ``distillation`` there are two
    heads: train mode returns both logits, eval mode their mean. ``fused`` is the form of `fuse`, whose one linear
    layer holds that mean.
    """

    def __init__(
        self,
        cfgs: Sequence[Sequence[Any]],
        num_classes: int = 1000,
        distillation: bool = False,
        *,
        in_channels: int = 3,
        fused: bool = False,
    ) -> None:
        super().__init__(cfgs, num_classes, in_channels=in_channels, fused=fused)
        self.distillation = distillation
        width = self.config.out_channels
        head = Classifier(width, num_classes, distillation=distillation) if not fused else None
        self.classifier = head or nn.Linear(width, num_classes)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "num_classes": self.num_classes, "distillation": self.distillation}


class KWSRepViT(_Network):
    """RepViT for keyword spotting: log-mel spectrograms (B, time, mel), float, to logits (B, num_classes).

    With the default ``cfgs`` it has 214,222 trainable parameters. ``cfgs`` are rows as in ``KWS_TINY_CFGS``; wrong
    ones, and inputs of another rank, raise ``ValueError``. ``fused`` is the form of `fuse`.
    """

    def __init__(
        self, cfgs: Sequence[Sequence[Any]] = KWS_TINY_CFGS, num_classes: int = 2, *, fused: bool = False
    ) -> None:
        super().__init__(cfgs, num_classes, in_channels=1, fused=fused)
        self.classifier = nn.Linear(self.config.out_channels, num_classes)

    def forward(self, x: torch.Tensor) -> Any:
        """Map spectrograms (B, time, mel) to logits (B, num_classes)."""
        if x.ndim != 3:
            raise ValueError(f"KWSRepViT takes (batch, time, mel), got an input of shape {tuple(x.shape)}")
        return super().forward(x.unsqueeze(1))

    def _arguments(self) -> dict[str, Any]:
        return {"cfgs": self.config.rows, "num_classes": self.num_classes}


def _constructor(name: str) -> Callable[..., Any]:
    rows = VARIANTS[name].rows

    def construct(
        num_classes: int = 1000, distillation: bool = False, *, fused: bool = False, features_only: bool = False
    ) -> Any:
        if features_only:
            return RepViTFeatures(rows, fused=fused)
        return RepViT(rows, num_classes, distillation, fused=fused)

    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = (
        f"Make {name.replace('_', '-', 1).replace('_', '.')}, a `RepViT`; with ``features_only`` a `RepViTFeatures`."
    )
    return construct


# Under the names of the official constructors.
repvit_m0_6 = _constructor("repvit_m0_6")
repvit_m0_9 = _constructor("repvit_m0_9")
repvit_m1_0 = _constructor("repvit_m1_0")
repvit_m1_1 = _constructor("repvit_m1_1")
repvit_m1_5 = _constructor("repvit_m1_5")
repvit_m2_3 = _constructor("repvit_m2_3")
