"""The two names of every RepViT tensor: those of the official code, and those of timm. Imports no framework.

timm counts the last stride-1 block of a stage as the beginning of the next one's ``downsample``, and calls the parts
of a block otherwise. Fused models have the same names for what is left. Source: model/repvit.py of the official code
(THU-MIG/RepViT) and timm/models/repvit.py, version 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from portproof.models.repvit.config import RepViTConfig

_Value = TypeVar("_Value")
_STRIDED = {"token_mixer.0": "spatial_downsample", "token_mixer.2": "channel_downsample"}
_BRANCH = {"m.0": "conv1", "m.2": "conv2"}


def are_timm_names(names: Mapping[str, object]) -> bool:
    """Whether these tensors are named as in timm."""
    return any(name.startswith(("stem.", "stages.")) for name in names)


def to_timm(values: Mapping[str, _Value], config: RepViTConfig) -> dict[str, _Value]:
    """``values`` under timm's names.

    Raises:
        ValueError: a name is not one of the official code's, or timm has no network like it.
    """
    return _renamed(values, dict(_prefixes(config)), "the official code's")


def from_timm(values: Mapping[str, _Value], config: RepViTConfig) -> dict[str, _Value]:
    """``values`` under the official names.

    Raises:
        ValueError: a name is not one of timm's for this network, or timm has no network like it.
    """
    return _renamed(values, {timm: official for official, timm in _prefixes(config)}, "timm's")


def _renamed(values: Mapping[str, _Value], prefixes: Mapping[str, str], whose: str) -> dict[str, _Value]:
    renamed: dict[str, _Value] = {}
    strangers = []
    for name, value in values.items():
        parts = name.split(".")
        # The longest prefix that is known: `classifier.classifier_dist` before `classifier`.
        known = next((n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in prefixes), 0)
        if known:
            renamed[".".join([prefixes[".".join(parts[:known])], *parts[known:]])] = value
        else:
            strangers.append(name)
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise ValueError(f"not {whose} names for this RepViT: {', '.join(strangers[:3])}{more}")
    return renamed


def _prefixes(config: RepViTConfig) -> Iterator[tuple[str, str]]:
    """The official and the timm path of every module that is renamed."""
    if any(block.downsamples and block.stride != (2, 2) for block in config.blocks):
        raise ValueError("timm has no RepViT with unequal strides: only the ImageNet family has names there")
    yield "features.0.0", "stem.conv1"
    yield "features.0.2", "stem.conv2"
    stage = position = 0
    for index, block in enumerate(config.blocks, start=1):
        here = f"features.{index}"
        if block.downsamples:
            stage, position = stage + 1, 0
            there, mixer = f"stages.{stage}.downsample", "ffn"
            yield from ((f"{here}.{old}", f"{there}.{new}") for old, new in _STRIDED.items())
        else:
            last = index < len(config.blocks) and config.blocks[index].downsamples
            there = f"stages.{stage + 1}.downsample.pre_block" if last else f"stages.{stage}.blocks.{position}"
            mixer = "channel_mixer"
            position += 1
            yield f"{here}.token_mixer.0", f"{there}.token_mixer"
            yield f"{here}.token_mixer.1", f"{there}.se"
        yield from ((f"{here}.channel_mixer.{old}", f"{there}.{mixer}.{new}") for old, new in _BRANCH.items())
    yield "classifier.classifier", "head.head"
    yield "classifier.classifier_dist", "head.head_dist"
    yield "classifier", "head"  # fused
