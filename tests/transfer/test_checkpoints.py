"""Checkpoints: every format there and back bit for bit; broken, foreign and hostile files are refused; saving is all or
nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portproof.errors import CheckpointError, PortproofError, TransferError
from portproof.transfer.checkpoints import load_tensorflow, load_torch, save_tensorflow, save_torch, side_of

needs_torch = pytest.mark.torch
needs_tensorflow = pytest.mark.tensorflow
each_torch_file = pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.safetensors"])
each_keras_file = pytest.mark.parametrize("name", ["model.weights.h5", "model.keras"])


def torch_model(seed: int = 0) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (2, 3)), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    model.register_buffer("table", torch.arange(6).reshape(2, 3))
    model.register_parameter("scale", torch.nn.Parameter(torch.rand(())))
    model[1].running_mean.uniform_()
    return model


def keras_model(seed: int = 0, units: int = 4, depth: int = 2, *, bias: bool = True) -> Any:
    tf = pytest.importorskip("tensorflow")
    inputs = value = tf.keras.Input((5,))
    for index in range(depth):
        value = tf.keras.layers.Dense(units if index else 5, name=f"dense_{index}", use_bias=bias)(value)
    value = tf.keras.layers.BatchNormalization(name="norm")(tf.keras.layers.Dropout(0.5)(value))
    model = tf.keras.Model(inputs, value)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.random(weight.shape, np.float32) for weight in model.get_weights()])
    return model


def bits(model: Any) -> list[bytes]:
    """Everything that a model holds, of either framework."""
    if hasattr(model, "state_dict"):
        return [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]
    return [weight.tobytes() for weight in model.get_weights()]


@needs_torch
@each_torch_file
def test_torch_files_round_trip(name: str, tmp_path: Path) -> None:
    source, target, path = torch_model(), torch_model(seed=1), tmp_path / "new" / name
    assert bits(source) != bits(target)
    save_torch(source, path)
    assert side_of(path) == "torch"
    load_torch(target, path)
    assert bits(source) == bits(target)
    assert [each.name for each in path.parent.iterdir()] == [name]


@needs_tensorflow
@each_keras_file
def test_keras_files_round_trip(name: str, tmp_path: Path) -> None:
    source, target, path = keras_model(), keras_model(seed=1), tmp_path / "new" / name
    assert bits(source) != bits(target)
    save_tensorflow(source, path)
    assert side_of(path) == "tensorflow"
    load_tensorflow(target, path)
    assert bits(source) == bits(target)
    assert [each.name for each in path.parent.iterdir()] == [name]


@needs_torch
@pytest.mark.parametrize("key", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapped_and_prefixed_state_dicts_load(key: str, prefix: str, tmp_path: Path) -> None:
    import torch

    source, target, path = torch_model(), torch_model(seed=1), tmp_path / "model.pth"
    state: Any = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, path)
    load_torch(target, path)
    assert bits(source) == bits(target)


@needs_torch
@each_torch_file
def test_misfits_are_listed_together_and_change_nothing(name: str, tmp_path: Path) -> None:
    import torch

    other = torch_model()
    other[0] = torch.nn.Conv2d(3, 4, (5, 3), bias=False)  # another shape, and no bias
    other.extra = torch.nn.Linear(2, 2, bias=False)
    target, path = torch_model(seed=1), tmp_path / name
    save_torch(other, path)
    before = bits(target)
    with pytest.raises(TransferError) as caught:
        load_torch(target, path)
    message = str(caught.value)
    assert message.startswith(f"The weights in {path} do not fit: 1 missing, 1 left over, 1 of the wrong shape.")
    assert "missing: 0.bias" in message
    assert "left over: extra.weight" in message
    assert "of the wrong shape: 0.weight: (4, 3, 5, 3) given, (4, 3, 2, 3) wanted" in message
    assert bits(target) == before


@needs_tensorflow
@each_keras_file
@pytest.mark.parametrize(
    ("other", "listed"),
    [
        ({"units": 6}, ["vars/0: (5, 6) given, (5, 4) wanted", "vars/1: (6,) given, (4,) wanted"]),
        ({"depth": 3}, ["2 left over"]),  # Keras itself loads this one and says nothing
        ({"depth": 1}, ["2 missing"]),
        ({"bias": False}, ["2 missing"]),
    ],
    ids=["shape", "extra layer", "missing layer", "missing bias"],
)
def test_keras_files_of_another_model_are_refused(
    name: str, other: dict[str, Any], listed: list[str], tmp_path: Path
) -> None:
    path, target = tmp_path / name, keras_model(seed=1)
    save_tensorflow(keras_model(**other), path)
    before = bits(target)
    with pytest.raises(TransferError) as caught:
        load_tensorflow(target, path)
    message = str(caught.value)
    assert message.startswith(f"The weights in {path} do not fit: ")
    for line in listed:
        assert line in message
    assert bits(target) == before


@needs_tensorflow
def test_keras_files_with_an_optimizer_load(tmp_path: Path) -> None:
    source, target, path = keras_model(), keras_model(seed=1), tmp_path / "model.keras"
    source.compile("adam", "mse", metrics=["mae"])
    source.train_on_batch(np.ones((2, 5), np.float32), np.ones((2, 4), np.float32))
    save_tensorflow(source, path)
    load_tensorflow(target, path)
    assert target.get_layer("norm").get_weights()[0].tobytes() == source.get_layer("norm").get_weights()[0].tobytes()


class Hostile:
    """Unpickled, it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@needs_torch
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_would_execute_code_is_refused_unexecuted(wrapped: bool, legacy: bool, tmp_path: Path) -> None:
    import torch

    marker, path, target = tmp_path / "executed", tmp_path / "model.pth", torch_model()
    content = {**torch_model().state_dict(), "harmless": Hostile(marker)} if wrapped else Hostile(marker)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="could execute code: refused"):
        load_torch(target, path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))  # the trap is a real one
    assert marker.exists()


@needs_torch
def test_a_whole_pickled_module_is_refused_with_advice(tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"torch\.save\(model\.state_dict\(\)"):
        load_torch(torch.nn.Linear(2, 2), tmp_path / "model.pth")


@needs_torch
@pytest.mark.parametrize("content", [{}, [1, 2], {"lr": 0.1, "step": 3}], ids=["empty", "list", "numbers"])
def test_files_without_a_state_dict_are_refused(content: Any, tmp_path: Path) -> None:
    import torch

    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="state dict"):
        load_torch(torch_model(), tmp_path / "model.pt")


CUTS = {
    "empty": lambda size: 0,
    "a few bytes": lambda size: 7,
    "half": lambda size: size // 2,
    "all but one": lambda n: n - 1,
}
each_cut = pytest.mark.parametrize("cut", CUTS)


@needs_torch
@each_torch_file
@each_cut
def test_truncated_torch_files_are_refused(name: str, cut: str, tmp_path: Path) -> None:
    path, target = tmp_path / name, torch_model(seed=1)
    save_torch(torch_model(), path)
    os.truncate(path, CUTS[cut](path.stat().st_size))
    before = bits(target)
    with pytest.raises(CheckpointError) as caught:
        load_torch(target, path)
    assert str(path) in str(caught.value)
    assert bits(target) == before


@needs_tensorflow
@each_keras_file
@each_cut
def test_truncated_keras_files_are_refused(name: str, cut: str, tmp_path: Path) -> None:
    path, target = tmp_path / name, keras_model(seed=1)
    save_tensorflow(keras_model(), path)
    os.truncate(path, CUTS[cut](path.stat().st_size))
    before = bits(target)
    with pytest.raises(CheckpointError) as caught:
        load_tensorflow(target, path)
    assert str(path) in str(caught.value)
    assert bits(target) == before


@needs_torch
@each_torch_file
def test_files_that_are_something_else_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 this is no archive, whatever it says" * 20)
    with pytest.raises(CheckpointError):
        load_torch(torch_model(), tmp_path / name)


def test_files_that_are_not_there_and_foreign_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        side_of(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        side_of(tmp_path)
    for name in ("model.ckpt", "model.h5", "pth", "model.pth.gz"):
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=r"ends in \.pth, \.pt, \.safetensors, \.weights\.h5, \.keras"):
            side_of(tmp_path / name)


@needs_torch
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_a_clear_error(tmp_path: Path) -> None:
    save_torch(torch_model(), tmp_path / "model.pth")
    (tmp_path / "model.pth").chmod(0)
    with pytest.raises(CheckpointError):
        load_torch(torch_model(), tmp_path / "model.pth")


class FullDisk:
    """Stands in for a model whose saving breaks off in the middle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, path: Path) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    save_weights = save


@each_keras_file
def test_a_failed_keras_save_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        save_tensorflow(FullDisk(path), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@needs_torch
@each_torch_file
def test_a_failed_torch_save_leaves_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from portproof.transfer import torch as weights_torch

    def break_off(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_torch, "write_pickle", break_off)
    monkeypatch.setattr("safetensors.numpy.save_file", break_off)
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        save_torch(torch_model(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@needs_torch
@needs_tensorflow
def test_saved_files_have_the_mode_of_ordinary_ones(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    save_torch(torch_model(), tmp_path / "a.pth")
    save_tensorflow(keras_model(), tmp_path / "a.weights.h5")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {plain.stat().st_mode}


def test_all_errors_are_shown_without_a_traceback() -> None:
    assert issubclass(CheckpointError, PortproofError)
    assert issubclass(TransferError, PortproofError)
