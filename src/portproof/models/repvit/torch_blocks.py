"""The blocks of RepViT in PyTorch, under the official state-dict names; each in its training form and its fused form.

Tensors are NCHW, where H is time and W is frequency for the KWS network. Source: "RepViT: Revisiting Mobile CNN From
ViT Perspective" (CVPR 2024) and its official code, whose checkpoints load with ``strict=True``.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from typing import Any

from torch import nn

from portproof.models.repvit.config import BN_EPSILON, BN_MOMENTUM, HEAD_STD, BlockConfig, squeeze_channels


def conv_bn(into: int, out: int, kernel_size: int = 1, *, fused: bool, gamma: float = 1.0, **options: Any) -> nn.Module:
    """Convolution and BatchNorm: a `ConvBN`, or fused one biased convolution."""
    if fused:
        return nn.Conv2d(into, out, kernel_size, **options)
    return ConvBN(into, out, kernel_size, gamma=gamma, **options)


def token_mixer(channels: int, *, fused: bool) -> nn.Module:
    """The depthwise 3x3 of a stride-1 block: a `RepVGGDW`, or fused one biased convolution."""
    if fused:
        return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    return RepVGGDW(channels)


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

    def __init__(self, config: BlockConfig, *, fused: bool) -> None:
        super().__init__()
        into, out, hidden = config.in_channels, config.out_channels, config.hidden_channels
        squeeze_excite = SqueezeExcite(into) if config.use_se else nn.Identity()
        if config.downsamples:
            size = config.kernel_size
            spatial = conv_bn(into, into, size, stride=config.stride, padding=(size - 1) // 2, groups=into, fused=fused)
            self.token_mixer = nn.Sequential(spatial, squeeze_excite, conv_bn(into, out, fused=fused))
        else:
            self.token_mixer = nn.Sequential(token_mixer(into, fused=fused), squeeze_excite)
        expand, project = conv_bn(out, hidden, fused=fused), conv_bn(hidden, out, gamma=0.0, fused=fused)
        self.channel_mixer = Residual(nn.Sequential(expand, nn.GELU(), project))

    def forward(self, x: Any) -> Any:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride), sizes rounded up."""
        return self.channel_mixer(self.token_mixer(x))


class GlobalAveragePool(nn.Module):
    """Mean over H and W; a module of its own so that its output has a name."""

    def forward(self, x: Any) -> Any:
        """Map (B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


class BNLinear(nn.Sequential):
    """BatchNorm ``bn``, then a linear layer ``l`` (``BN_Linear`` in the official code)."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.add_module("bn", nn.BatchNorm1d(features, eps=BN_EPSILON, momentum=BN_MOMENTUM))
        self.add_module("l", nn.Linear(features, num_classes))
        nn.init.trunc_normal_(self.l.weight, std=HEAD_STD)  # cut off at ±2, a hundred standard deviations
        nn.init.zeros_(self.l.bias)


class Classifier(nn.Module):
    """The head of the ImageNet models: ``classifier``, and beside it ``classifier_dist`` where one distils.

    With both, train mode returns both logits, and eval mode their mean.
    """

    def __init__(self, features: int, num_classes: int, *, distillation: bool) -> None:
        super().__init__()
        self.classifier = BNLinear(features, num_classes)
        self.classifier_dist = BNLinear(features, num_classes) if distillation else None

    def forward(self, x: Any) -> Any:
        """Map (B, features) to (B, num_classes), or to two such tensors."""
        if self.classifier_dist is None:
            return self.classifier(x)
        logits = self.classifier(x), self.classifier_dist(x)
        return logits if self.training else (logits[0] + logits[1]) / 2
