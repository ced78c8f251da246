"""RepViT in PyTorch, with the official state-dict names; the KWS network is ``KWSRepViT``.

Tensors are NCHW, where H is time and W is frequency for the KWS network. Source: "RepViT: Revisiting Mobile CNN From
ViT Perspective" (CVPR 2024) and its official code, whose checkpoints load with ``strict=True``.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from portproof.models.repvit.config import (
    BN_EPSILON,
    BN_MOMENTUM,
    KWS_TINY_CFGS,
    BlockConfig,
    RepViTConfig,
    check_num_classes,
    squeeze_channels,
)


def _batch_norm(channels: int) -> Any:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)


class ConvBN(nn.Sequential):
    """Convolution ``c`` without bias, then BatchNorm ``bn`` (``Conv2d_BN`` in the official code).

    ``gamma`` is the initial weight of the BatchNorm: 0 where a residual branch ends, so that it starts as the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int = 0,
        groups: int = 1,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        self.add_module(
            "c", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        )
        self.add_module("bn", _batch_norm(out_channels))
        nn.init.constant_(self.bn.weight, gamma)


class RepVGGDW(nn.Module):
    """Depthwise token mixer: ``bn(conv(x) + conv1(x) + x)``, of 3x3 with BatchNorm, 1x1 with bias, and identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, padding=1, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = _batch_norm(channels)

    def forward(self, x: Any) -> Any:
        """Map (B, C, H, W) to the same shape."""
        return self.bn(self.conv(x) + self.conv1(x) + x)


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over H and W (Hu et al., 2018), under the names of timm's layer as officially used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = squeeze_channels(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Any) -> Any:
        """Map (B, C, H, W) to the same shape."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(squeezed))))


class Residual(nn.Module):
    """``x + m(x)``."""

    def __init__(self, m: Any) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Any) -> Any:
        """Map (B, C, H, W) to the same shape."""
        return x + self.m(x)


class RepViTBlock(nn.Module):
    """One block: ``token_mixer`` over space, then ``channel_mixer`` over channels (figure 3 of the paper)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        into, out = config.in_channels, config.out_channels
        squeeze_excite = SqueezeExcite(into) if config.use_se else nn.Identity()
        if config.downsamples:
            size = config.kernel_size
            spatial = ConvBN(into, into, size, stride=config.stride, padding=(size - 1) // 2, groups=into)
            self.token_mixer = nn.Sequential(spatial, squeeze_excite, ConvBN(into, out))
        else:
            self.token_mixer = nn.Sequential(RepVGGDW(into), squeeze_excite)
        hidden = config.hidden_channels
        self.channel_mixer = Residual(nn.Sequential(ConvBN(out, hidden), nn.GELU(), ConvBN(hidden, out, gamma=0.0)))

    def forward(self, x: Any) -> Any:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride), sizes rounded up."""
        return self.channel_mixer(self.token_mixer(x))


class GlobalAveragePool(nn.Module):
    """Mean over H and W; a module of its own so that its output has a name."""

    def forward(self, x: Any) -> Any:
        """Map (B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


class RepViT(nn.Module):
    """Stem and blocks (``features``), global average ``pool``, and a ``classifier`` that the subclass supplies."""

    classifier: nn.Module

    def __init__(self, config: RepViTConfig) -> None:
        super().__init__()
        half = config.stem_channels // 2
        stem = nn.Sequential(
            ConvBN(config.in_channels, half, 3, stride=2, padding=1),
            nn.GELU(),
            ConvBN(half, config.stem_channels, 3, stride=2, padding=1),
        )
        self.features = nn.ModuleList([stem, *(RepViTBlock(block) for block in config.blocks)])
        self.pool = GlobalAveragePool()

    def forward(self, x: Any) -> Any:
        """Map images (B, in_channels, H, W) to logits (B, num_classes)."""
        for feature in self.features:
            x = feature(x)
        return self.classifier(self.pool(x))


class KWSRepViT(RepViT):
    """RepViT for keyword spotting: log-mel spectrograms (B, time, mel), float, to logits (B, num_classes).

    With the default ``cfgs`` it has 214,222 trainable parameters. ``cfgs`` are rows as in ``KWS_TINY_CFGS``; wrong
    ones, and inputs of another rank, raise ``ValueError``.
    """

    def __init__(self, cfgs: Sequence[Sequence[Any]] = KWS_TINY_CFGS, num_classes: int = 2) -> None:
        config = RepViTConfig.from_rows(cfgs, in_channels=1)
        super().__init__(config)
        self.classifier = nn.Linear(config.out_channels, check_num_classes(num_classes))

    def forward(self, x: torch.Tensor) -> Any:
        """Map spectrograms (B, time, mel) to logits (B, num_classes)."""
        if x.ndim != 3:
            raise ValueError(f"KWSRepViT takes (batch, time, mel), got an input of shape {tuple(x.shape)}")
        return super().forward(x.unsqueeze(1))
