"""The official and timm's names: one to one for every network, and neither mistaken for the other."""

from __future__ import annotations

import pytest

from portproof.models.repvit.config import VARIANTS, RepViTConfig
from portproof.models.repvit.names import are_timm_names, from_timm, to_timm
from portproof.models.repvit.shapes import state_shapes

FAMILY = [name for name in VARIANTS if name != "repvit_kws"]
every = pytest.mark.parametrize("name", FAMILY)


def config(name: str) -> RepViTConfig:
    return RepViTConfig.from_rows(VARIANTS[name].rows, in_channels=VARIANTS[name].in_channels)


@every
@pytest.mark.parametrize("form", [{"distillation": True}, {"fused": True}], ids=["distilled", "fused"])
def test_there_and_back(name: str, form: dict[str, bool]) -> None:
    shapes = state_shapes(config(name), 1000, **form)
    renamed = to_timm(shapes, config(name))
    assert len(renamed) == len(shapes)
    assert are_timm_names(renamed)
    assert not are_timm_names(shapes)
    assert not set(renamed) & set(shapes)
    assert from_timm(renamed, config(name)) == shapes


@pytest.mark.parametrize(
    ("official", "timm"),
    [
        ("features.0.0.c.weight", "stem.conv1.c.weight"),
        ("features.0.2.bn.running_var", "stem.conv2.bn.running_var"),
        ("features.1.token_mixer.0.conv.c.weight", "stages.0.blocks.0.token_mixer.conv.c.weight"),
        ("features.1.token_mixer.1.fc2.bias", "stages.0.blocks.0.se.fc2.bias"),
        ("features.3.token_mixer.0.bn.weight", "stages.1.downsample.pre_block.token_mixer.bn.weight"),
        ("features.4.token_mixer.0.c.weight", "stages.1.downsample.spatial_downsample.c.weight"),
        ("features.4.token_mixer.2.bn.bias", "stages.1.downsample.channel_downsample.bn.bias"),
        ("features.4.channel_mixer.m.2.c.weight", "stages.1.downsample.ffn.conv2.c.weight"),
        ("features.5.channel_mixer.m.0.bn.weight", "stages.1.blocks.0.channel_mixer.conv1.bn.weight"),
        ("features.26.channel_mixer.m.2.bn.bias", "stages.3.blocks.1.channel_mixer.conv2.bn.bias"),
        ("classifier.classifier.l.weight", "head.head.l.weight"),
        ("classifier.classifier_dist.bn.running_mean", "head.head_dist.bn.running_mean"),
        ("classifier.weight", "head.weight"),
    ],
)
def test_names_of_m0_9(official: str, timm: str) -> None:
    assert to_timm({official: 1}, config("repvit_m0_9")) == {timm: 1}
    assert from_timm({timm: 1}, config("repvit_m0_9")) == {official: 1}


def test_strangers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not timm's names for this RepViT: stages\.0\.blocks\.7\.se\.fc1\.bias"):
        from_timm({"stages.0.blocks.7.se.fc1.bias": 1, "stem.conv1.c.weight": 2}, config("repvit_m0_9"))
    with pytest.raises(ValueError, match="not the official code's names"):
        to_timm({"stem.conv1.c.weight": 2}, config("repvit_m0_9"))
    kws = RepViTConfig.from_rows(VARIANTS["repvit_kws"].rows, in_channels=1)
    with pytest.raises(ValueError, match="unequal strides"):
        to_timm({"features.0.0.c.weight": 1}, kws)
