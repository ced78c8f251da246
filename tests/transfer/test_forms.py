"""Weights in other forms: from unfused to fused models and under timm's names, across frameworks, by adopt_weights."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repvit_sides import SMALL_CFGS, relative, spectrograms

from portproof.errors import CheckpointError, TransferError
from portproof.trace import ParameterRecord
from portproof.transfer import adopt, tensorflow_to_torch, torch_to_tensorflow
from portproof.transfer.checkpoints import load_torch, save_torch

torch = pytest.importorskip("torch")

from portproof.models.repvit.torch_model import KWSRepViT, RepViT, RepViTFeatures  # noqa: E402 - torch is there

pytestmark = pytest.mark.torch
IMAGE_CFGS = ((3, 2, 8, 1, 0, 1), (3, 2, 16, 0, 1, 2), (3, 2, 16, 1, 1, 1))


def lively(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith(("bn.weight", "running_var")) else -0.5
                tensor.uniform_(low, low + 1.0, generator=generator)
    return model.double().eval()


def logits(model: Any) -> np.ndarray:
    x = spectrograms(2, 40, 16)
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    return model(x, training=False).numpy()


@pytest.mark.tensorflow
@pytest.mark.parametrize("fused", [(False, True), (True, True), (False, False)], ids=["to fused", "fused", "unfused"])
def test_from_torch_to_tensorflow_and_back(fused: tuple[bool, bool]) -> None:
    pytest.importorskip("tensorflow")
    from portproof.models.repvit import KWSRepViT_TF

    source = lively(KWSRepViT(SMALL_CFGS, fused=fused[0]))
    target = KWSRepViT_TF(SMALL_CFGS, fused=fused[1], dtype="float64")
    torch_to_tensorflow(source, target)
    assert relative(logits(target), logits(source)) < 1e-13
    back = KWSRepViT(SMALL_CFGS, fused=True).double().eval()
    tensorflow_to_torch(target, back)
    assert relative(logits(back), logits(source)) < 1e-13


@pytest.mark.tensorflow
def test_nothing_can_be_unfused() -> None:
    pytest.importorskip("tensorflow")
    from portproof.models.repvit import KWSRepViT_TF

    target = KWSRepViT_TF(SMALL_CFGS)
    before = target.get_weights()
    with pytest.raises(TransferError, match="re-parameterized: they fit a fused model, and cannot be unfused"):
        torch_to_tensorflow(KWSRepViT(SMALL_CFGS, fused=True), target)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(target.get_weights(), before, strict=True))


def images(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)))).numpy()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_checkpoint_of_any_form_loads(name: str, tmp_path: Path) -> None:
    source = lively(RepViT(IMAGE_CFGS, 5, distillation=True))
    save_torch(source, tmp_path / name, "timm")
    for options in ({"distillation": True}, {"fused": True}):
        target = RepViT(IMAGE_CFGS, 5, **options).double().eval()
        load_torch(target, tmp_path / name)
        assert relative(images(target), images(source)) < 1e-13
    features = RepViTFeatures(IMAGE_CFGS).double().eval()
    load_torch(features, tmp_path / name)
    assert torch.equal(features.features[1].token_mixer[0].bn.weight, source.features[1].token_mixer[0].bn.weight)


def test_a_plain_model_refuses_the_distillation_head(tmp_path: Path) -> None:
    save_torch(RepViT(IMAGE_CFGS, 5, distillation=True), tmp_path / "model.pth")
    with pytest.raises(TransferError, match=r"6 left over\.\n  left over: classifier\.classifier_dist\.bn\.weight"):
        load_torch(RepViT(IMAGE_CFGS, 5), tmp_path / "model.pth")


def test_a_training_checkpoint_of_the_official_code_loads(tmp_path: Path) -> None:
    # main.py of the official code saves these keys; `args` is an argparse.Namespace.
    source, target = RepViT(IMAGE_CFGS, 5), RepViT(IMAGE_CFGS, 5)
    whole = {"model": source.state_dict(), "optimizer": {"state": {}}, "epoch": 299, "args": Namespace(lr=1e-3)}
    torch.save(whole, tmp_path / "checkpoint_best.pth")
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        with pytest.raises(CheckpointError, match="more than tensors"):
            load_torch(target, tmp_path / "checkpoint_best.pth")
        return
    load_torch(target, tmp_path / "checkpoint_best.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_names_that_a_model_does_not_know(tmp_path: Path) -> None:
    for model in (torch.nn.Linear(2, 2), KWSRepViT(SMALL_CFGS)):
        with pytest.raises(CheckpointError, match="--names timm: "):
            save_torch(model, tmp_path / "model.pth", "timm")
    assert list(tmp_path.iterdir()) == []


class Doubling:
    """A model whose form of a weight is its double."""

    def adopt_weights(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"twice": values["w"] * 2, "kept": values["kept"]}


class Renaming:
    def adopt_weights(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {f"a.{name}": value for name, value in values.items()}


def test_what_was_computed_is_told_from_what_was_renamed() -> None:
    values = {"w": np.ones(2), "kept": np.zeros(3)}
    records = [ParameterRecord(name, "", name, value.shape, False) for name, value in values.items()]
    computed, renamed, as_it_is = (adopt(model, records, values) for model in (Doubling(), Renaming(), object()))
    assert (computed.computed, renamed.computed, as_it_is.computed) == (True, False, False)
    assert [(each.name, each.layer, each.role, each.trainable) for each in renamed.records] == [
        ("a.w", "a", "w", False),
        ("a.kept", "a", "kept", False),
    ]
    assert [(each.name, each.shape) for each in computed.records] == [("twice", (2,)), ("kept", (3,))]
    assert as_it_is.values is values
