"""Re-parameterization by names alone: weights of RepViT's training form become those of its fused form. NumPy only.

Names and layouts are those of the official state dict (OIHW kernels). Each Conv2d_BN becomes one biased convolution,
RepVGGDW one depthwise 3x3, a head's BatchNorm and linear layer one linear layer, and two heads their mean. Computed in
float64 whatever the weights' own precision, so that a fused model in float32 carries a single rounding. Source: section
3.2 of the paper; "RepVGG: Making VGG-style ConvNets Great Again" (CVPR 2021), section 3.3.

It holds for BatchNorm in eval mode only: a fused model is not what one trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from portproof.models.repvit.config import BN_EPSILON

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEAD = "classifier"
_HEADS = ("classifier.classifier", "classifier.classifier_dist")


class _Affine(NamedTuple):
    """``y = weight x + bias``, where ``weight`` is a kernel and ``x`` the input of the convolution."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


def is_folded(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a fused RepViT: no BatchNorm is left in it."""
    return not any(".bn." in name for name in names)


def fold(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The weights of the fused form, float64 where something was computed; what needs no folding stays as it is.

    Raises:
        ValueError: a part of a convolution and its BatchNorm is missing.
    """
    parts: dict[str, dict[str, NDArray[Any]]] = {}  # in the order of the names, so that the result reads like them
    for name, value in values.items():
        if not name.endswith("num_batches_tracked"):
            owner = _owner(name)
            parts.setdefault(owner, {})[name[len(owner) + 1 :]] = value
    folded: dict[str, NDArray[Any]] = {}
    heads: dict[str, _Affine] = {}
    for owner, part in parts.items():
        try:
            if owner in _HEADS:
                heads[owner] = _linear(part)
            elif "conv1.weight" in part:
                folded |= _named(owner, _rep_vgg_dw(part))
            elif any(name.startswith(("c.", "bn.")) for name in part):
                folded |= _named(owner, _conv_bn(part, "c.", "bn."))
            else:
                folded |= {f"{owner}.{name}": value for name, value in part.items()}
        except KeyError as error:
            raise ValueError(f"{owner} cannot be folded without its {error.args[0]}") from error
    if heads:
        count = len(heads)
        weight, bias = (sum(each) / count for each in zip(*heads.values(), strict=True))
        folded |= _named(_HEAD, _Affine(np.asarray(weight), np.asarray(bias)))
    return folded


def _owner(name: str) -> str:
    """The module that a tensor is folded into: ``features.1.token_mixer.0`` for its ``conv.bn.weight``."""
    parts = name.split(".")[:-1]
    while parts and parts[-1] in ("c", "bn", "conv", "conv1", "l"):
        parts.pop()
    return ".".join(parts)


def _named(owner: str, affine: _Affine) -> dict[str, NDArray[Any]]:
    return {f"{owner}.weight": affine.weight, f"{owner}.bias": affine.bias}


def _batch_norm(part: Mapping[str, NDArray[Any]], prefix: str) -> _Affine:
    """A BatchNorm in eval mode as ``scale * x + shift``, per channel."""
    weight, bias, mean, variance = (
        part[f"{prefix}{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + BN_EPSILON)
    return _Affine(scale, bias - mean * scale)


def _conv_bn(part: Mapping[str, NDArray[Any]], conv: str, norm: str) -> _Affine:
    scale, shift = _batch_norm(part, norm)
    return _Affine(part[f"{conv}weight"].astype(np.float64) * scale[:, None, None, None], shift)


def _rep_vgg_dw(part: Mapping[str, NDArray[Any]]) -> _Affine:
    """``bn(conv(x) + conv1(x) + x)``: the 1x1 kernel and the identity sit in the middle of the 3x3 kernel."""
    kernel, bias = _conv_bn(part, "conv.c.", "conv.bn.")
    middle = kernel.shape[-1] // 2
    kernel[:, 0, middle, middle] += part["conv1.weight"].astype(np.float64)[:, 0, 0, 0] + 1.0
    scale, shift = _batch_norm(part, "bn.")
    return _Affine(kernel * scale[:, None, None, None], (bias + part["conv1.bias"]) * scale + shift)


def _linear(part: Mapping[str, NDArray[Any]]) -> _Affine:
    """A BatchNorm in front of a linear layer: it scales the layer's columns and adds to its bias."""
    scale, shift = _batch_norm(part, "bn.")
    weight = part["l.weight"].astype(np.float64)
    return _Affine(weight * scale, part["l.bias"] + weight @ shift)
