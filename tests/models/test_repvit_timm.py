"""Parity with the real timm package: same weights, same output in float64, unfused and fused. `nox -s timm` runs it."""

from __future__ import annotations

from typing import Any

import pytest

from portproof.models.repvit.names import from_timm, to_timm

torch = pytest.importorskip("torch")

from portproof.models.repvit import torch_model  # noqa: E402 - after torch is known to be there

pytestmark = [pytest.mark.torch, pytest.mark.slow]
NAMES = ["repvit_m0_9", "repvit_m1_0", "repvit_m1_1", "repvit_m1_5", "repvit_m2_3"]
LIMIT = 1e-12


@pytest.fixture(scope="module")
def timm() -> Any:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        # A torchvision of another build than torch's has no operators, and fails over these two, which RepViT does not
        # use. Once they have a name, it can be imported.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # what was defined lives as long as this
    return pytest.importorskip("timm", reason="timm is not installed: nox -s timm")


@pytest.fixture(autouse=True)
def double() -> Any:
    """timm's fuse makes its layers in the default dtype, so float32 would round what it computed."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def lively(name: str) -> Any:
    """Our network with weights and statistics that leave no path idle."""
    torch.manual_seed(0)
    model = getattr(torch_model, name)(distillation=True).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def relative(ours: Any, theirs: Any) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", NAMES)
def test_same_weights_same_output(name: str, timm: Any) -> None:
    ours, theirs = lively(name), timm.create_model(name).eval()
    theirs.load_state_dict(to_timm(ours.state_dict(), ours.config), strict=True)
    back = getattr(torch_model, name)(distillation=True).eval()
    back.load_state_dict(from_timm(theirs.state_dict(), back.config), strict=True)
    with torch.no_grad():
        for shape in ((2, 3, 64, 64), (1, 3, 97, 75)):
            x = torch.randn(shape)
            assert relative(ours(x), theirs(x)) < LIMIT
            assert relative(back(x), theirs(x)) < LIMIT
        unfused = theirs(x)
        fused, theirs = ours.fuse(), theirs.fuse()
        assert relative(fused(x), theirs(x)) < LIMIT
        assert relative(fused(x), unfused) < LIMIT
    renamed = to_timm(fused.state_dict(), fused.config)
    assert renamed.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert relative(renamed[key], value) < LIMIT, key


def test_two_parts_with_each_others_names_would_show(timm: Any) -> None:
    ours, theirs = lively("repvit_m0_9"), timm.create_model("repvit_m0_9").eval()
    swapped = to_timm(ours.state_dict(), ours.config)
    first, second = "stages.2.blocks.1.channel_mixer.conv1.bn", "stages.2.blocks.3.channel_mixer.conv1.bn"
    for key in ("weight", "bias", "running_mean", "running_var"):
        swapped[f"{first}.{key}"], swapped[f"{second}.{key}"] = swapped[f"{second}.{key}"], swapped[f"{first}.{key}"]
    theirs.load_state_dict(swapped, strict=True)
    x = torch.randn((1, 3, 64, 64))
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) > 1e-6
