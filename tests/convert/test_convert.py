"""`portproof convert`, in whole: every pair of formats, its proof, and nothing left behind where it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from portproof import convert as package
from portproof import mirror as mirrors
from portproof.cli import cli
from portproof.convert import Conversion, convert, target_side
from portproof.errors import CheckpointError, InputError, PortproofError

torch = pytest.importorskip("torch")
pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the KWS network as training scripts write it, with everything in it at work."""
    from portproof.models.repvit import KWSRepViT_Torch

    model = KWSRepViT_Torch()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bn." in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.0, generator=generator)
    path = tmp_path_factory.mktemp("source") / "model.pth"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, "epoch": 1}, path)
    return path


def assert_proven(done: Conversion, blocks: int = 13) -> None:
    assert done.blocks == blocks
    assert done.layers > 100 or done.rounding is not None or "fused" in done.mirror
    assert done.relative < 1e-12


def test_to_keras_and_back_is_bit_for_bit(source: Path, tmp_path: Path) -> None:
    seen: set[str] = set()
    to_keras = convert(source, tmp_path / "new" / "model.keras", progress=lambda side, event: seen.add(side))
    assert_proven(to_keras)
    assert seen == {"read", "write", "verify"}
    assert to_keras.reader.startswith("tensorflow ")
    back = convert(tmp_path / "new" / "model.keras", tmp_path / "back.pth")
    assert_proven(back)
    assert back.recognised.mirror == "repvit-kws"
    ours = torch.load(tmp_path / "back.pth", weights_only=True)
    theirs = torch.load(source, weights_only=True)["model"]
    for name, tensor in ours.items():
        if not name.endswith("num_batches_tracked"):  # of which Keras keeps none
            assert torch.equal(tensor, theirs[f"module.{name}"]), name
    assert sorted(each.name for each in tmp_path.iterdir()) == ["back.pth", "new"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.weights.h5", "saved_model"])
def test_every_target(name: str, source: Path, tmp_path: Path) -> None:
    assert_proven(convert(source, tmp_path / name))
    assert_proven(convert(source, tmp_path / name))  # an older result is replaced
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_the_fused_form_is_proven_before_and_after_rounding(source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "fused.keras", fused=True)
    assert_proven(done)
    assert done.mirror == "repvit-kws-fused"
    assert done.rounding is not None
    assert 1e-9 < done.rounding < 1e-5  # float32 rounds by 6e-8, and does so in 108 tensors
    with pytest.raises(InputError, match="repvit-kws-fused is re-parameterized already"):
        convert(tmp_path / "fused.keras", tmp_path / "again.keras", fused=True)


# --- Refused ----------------------------------------------------------------------------------------------------------


def wrong_epsilon() -> Any:
    """A port with the epsilon that Keras has by default: the usual defect."""
    from portproof.models.repvit import KWSRepViT_TF

    model = KWSRepViT_TF()
    for layer in model._flatten_layers():
        if type(layer).__name__ == "BatchNormalization":
            layer.epsilon = 1e-3
    return model


def test_a_result_that_is_another_function_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect = replace(mirrors.get("repvit-kws"), tensorflow=f"{__file__}:wrong_epsilon")
    monkeypatch.setattr(package.mirrors, "get", lambda name: defect)
    target = tmp_path / "model.weights.h5"
    target.write_text("what was there before")
    with pytest.raises(CheckpointError, match=r"The result is not the same model .*; nothing was written"):
        convert(source, target, mirror="repvit-kws")
    assert [each.name for each in tmp_path.iterdir()] == ["model.weights.h5"]
    assert target.read_text() == "what was there before"


def test_a_file_that_lost_a_value_is_noticed(source: Path, tmp_path: Path) -> None:
    exact, stored = {"weights/excited/w": np.array([1 / 3, 2 / 3])}, {"weights/excited/w": np.float32([1 / 3, 0.7])}
    with pytest.raises(CheckpointError, match="does not hold what was computed for w"):
        package._rounding(*(_traces(tmp_path, exact, stored)))


def _traces(folder: Path, *tensors: dict[str, np.ndarray]) -> list[Any]:
    from portproof.trace import Manifest, ParameterRecord, TraceWriter

    made = []
    for index, values in enumerate(tensors):
        with TraceWriter(folder / str(index)) as writer:
            for key, value in values.items():
                writer.add(key, value)
            records = (ParameterRecord("w", "", "w", (2,), True),)
            made.append(writer.finish(Manifest("torch", "t", {}, [], records, (), {}, {})))
    return made


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.onnx", {}, "a target ends in .pth"),
        ("model.keras", {"names": "timm"}, "only torch files have names to choose"),
        ("model.pth", {"names": "mine"}, "is not one of official, timm"),
        ("folder", {}, "is a folder, and not a SavedModel"),
    ],
)
def test_targets_that_cannot_be(name: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        target_side(tmp_path / name, **options)


def test_timm_has_no_network_like_this_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--names timm: timm has no RepViT with unequal strides"):
        convert(source, tmp_path / "model.pth", names="timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_broken_source_is_one_clear_message(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken{ending}"
    path.write_bytes(b"PK\x03\x04 this is not a checkpoint")
    with pytest.raises(PortproofError, match="is not a"):
        convert(path, tmp_path / "model.keras", mirror="repvit-kws")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "m.safetensors")], standalone_mode=False)
    assert done.return_value == 0, done.exception
    lines = done.output.splitlines()
    assert lines[0] == "recognised: repvit-kws, by its 357 tensors"
    assert lines[1] == "verified: 13 blocks, max relative difference 0"
    assert lines[2].startswith(f"written: {tmp_path / 'm.safetensors'}, 0.9 MB, repvit-kws, read back by torch ")
