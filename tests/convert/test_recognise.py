"""Recognising checkpoints: by their tensors alone, without a framework, and without executing what a file may hold."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from portproof.capture.loading import load_factory
from portproof.convert.recognise import recognise, sizes, tensors
from portproof.errors import CheckpointError, MirrorError, TransferError
from portproof.mirror import get, names

SHIPPED = [name for name in names() if name.startswith("repvit-")]


def arrays(mirror: str, *, prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}{name}": np.zeros(shape, np.float32) for name, shape in load_factory(get(mirror).shapes)().items()
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(arrays("repvit-kws"), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", SHIPPED)
def test_no_two_mirrors_have_the_same_tensors(name: str) -> None:
    own = sizes(load_factory(get(name).shapes)())
    assert [other for other in SHIPPED if sizes(load_factory(get(other).shapes)()) == own] == [name]


def test_a_mirror_is_told_by_the_tensors(checkpoint: Path, tmp_path: Path) -> None:
    found = recognise(checkpoint)
    assert (found.mirror, found.guessed, found.tensors) == ("repvit-kws", True, 357)
    assert not recognise(checkpoint, "repvit-kws").guessed
    save_file(arrays("repvit-kws-fused", prefix="module."), tmp_path / "fused.safetensors")
    assert recognise(tmp_path / "fused.safetensors").mirror == "repvit-kws-fused"


@pytest.mark.torch
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_a_pickle_is_read_without_torch(wrap: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in arrays("repvit-kws").items()}
    state["classifier.bias"] = torch.nn.Parameter(state["classifier.bias"])
    path = tmp_path / "model.pth"
    torch.save(wrap(state), path)
    code = (
        "import sys, pathlib; from portproof.convert.recognise import recognise; "
        f"print(recognise(pathlib.Path({str(path)!r})).mirror, 'torch' in sys.modules, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["repvit-kws", "False", "False"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_a_keras_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    from portproof.models.repvit import KWSRepViT_TF
    from portproof.transfer.checkpoints import save_tensorflow

    save_tensorflow(KWSRepViT_TF(), tmp_path / name)
    assert recognise(tmp_path / name).mirror == "repvit-kws"


def test_the_wrong_mirror_is_refused_with_the_right_one(checkpoint: Path, tmp_path: Path) -> None:
    save_file(arrays("repvit-m0-6-distilled"), tmp_path / "m0_6.safetensors")
    with pytest.raises(TransferError) as caught:
        recognise(tmp_path / "m0_6.safetensors", "repvit-m0-6")
    message = str(caught.value)
    assert "do not fit repvit-m0-6: 6 left over" in message
    assert "left over: classifier.classifier_dist.bn.weight" in message
    assert message.endswith("They are those of repvit-m0-6-distilled: --mirror repvit-m0-6-distilled.")
    with pytest.raises(TransferError, match=r"missing: features\.3\.token_mixer(.|\n)*  and \d+ more\n"):
        recognise(checkpoint, "repvit-m0-6")
    renamed = {f"net.{name}": array for name, array in arrays("repvit-kws").items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    with pytest.raises(TransferError, match=r"The 357 tensors in .* are not those of repvit-m0-6\. .*repvit-kws"):
        recognise(tmp_path / "renamed.safetensors", "repvit-m0-6")


def test_what_fits_no_mirror(tmp_path: Path) -> None:
    save_file({"w": np.zeros((3, 4), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"The 1 tensors in .* fit no registered mirror: name one with --mirror"):
        recognise(tmp_path / "other.safetensors")
    with pytest.raises(TransferError, match="No registered mirror has them all"):
        recognise(tmp_path / "other.safetensors", "repvit-kws")
    with pytest.raises(MirrorError, match="There is no mirror 'nothing'"):
        recognise(tmp_path / "other.safetensors", "nothing")


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "text": b"not a checkpoint",
    "header": struct.pack("<Q", 2**60),
    "json": struct.pack("<Q", 3) + b"{x}",
    "list": struct.pack("<Q", 2) + json.dumps([]).encode(),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".keras", ".weights.h5"])
@pytest.mark.parametrize("content", BROKEN)
def test_broken_files_show_nothing(content: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(BROKEN[content])
    assert tensors(path) == {}
    with pytest.raises(CheckpointError, match="does not show its tensors: name one with --mirror"):
        recognise(path)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("model.pth", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"model": {"w": Hostile()}}, protocol=2))
    assert tensors(Path("model.pth")) == {}
    assert not Path("executed").exists()
