"""Checkpoints: reading and writing files of weights, without executing anything that a file may hold.

``.pth``/``.pt`` (with ``weights_only=True``), ``.safetensors``, ``.weights.h5`` and ``.keras``. Keras files are read
into a model, the others give named tensors. Files are written complete or not at all.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof.errors import CheckpointError, TransferError
from portproof.files import atomic_path
from portproof.trace import ParameterRecord
from portproof.transfer import adopt, fit_shape, raise_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

TORCH_SUFFIXES = (".pth", ".pt", ".safetensors")
KERAS_SUFFIXES = (".weights.h5", ".keras")  # a path without suffix is a SavedModel folder, which is only written


def side_of(path: Path) -> str:
    """Which framework's checkpoint a file is, by its name: ``torch`` or ``tensorflow``.

    Raises:
        CheckpointError: there is no such file, or its name ends in none of the known ways.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if path.name.endswith(TORCH_SUFFIXES):
        return "torch"
    if path.name.endswith(KERAS_SUFFIXES):
        return "tensorflow"
    raise CheckpointError(f"{path}: a checkpoint ends in {', '.join((*TORCH_SUFFIXES, *KERAS_SUFFIXES))}.")


def load_torch(model: Any, path: Path) -> None:
    """Load a ``.pth``, ``.pt`` or ``.safetensors`` file into a ``torch.nn.Module``.

    Raises:
        CheckpointError: the file is broken, or holds more than tensors.
        TransferError: listing every tensor that is missing, left over or of the wrong shape; nothing is changed then.
    """
    from portproof.transfer import torch

    values = _read_safetensors(path) if path.suffix == ".safetensors" else torch.read_pickle(path)
    if values and all(name.startswith("module.") for name in values):  # saved from DataParallel
        values = {name.removeprefix("module."): value for name, value in values.items()}
    values = dict(adopt(model, (), values).values)
    torch.write(model, _fit_state_dict(values, torch.records(model), path))


def load_tensorflow(model: Any, path: Path) -> None:
    """Load a ``.weights.h5`` or ``.keras`` file into a built ``keras.Model``.

    Raises:
        CheckpointError: the file is broken or is not what Keras writes.
        TransferError: listing every tensor that is missing, left over or of the wrong shape; nothing is changed then.
    """
    # Keras loads what it can before it raises, and says nothing of layers in the file that the model does not have.
    before = model.get_weights()
    try:
        model.load_weights(path)
        _raise_for_misfits(model, path, left_over_alone=True)
    except TransferError:
        model.set_weights(before)
        raise
    except Exception as error:  # h5py, zipfile and Keras each raise their own kinds
        model.set_weights(before)
        _raise_for_misfits(model, path)
        text = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{path} does not fit this Keras model, or is broken: {text}") from error


def save_torch(model: Any, path: Path, names: str = "") -> None:
    """Write a ``torch.nn.Module``'s state dict as ``.pth``, ``.pt`` or ``.safetensors``.

    ``names`` asks the model for other names than its own, by its method ``rename_weights``.

    Raises:
        CheckpointError: the model has no such names.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from portproof.transfer import torch

    state = dict(model.state_dict())
    if names:
        rename = getattr(model, "rename_weights", None)
        try:
            if rename is None:
                raise ValueError(f"a {type(model).__name__} knows no names but its own")
            state = rename(state, names)
        except ValueError as error:
            raise CheckpointError(f"--names {names}: {error}.") from error
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            arrays = {name: torch.to_numpy(tensor) for name, tensor in state.items()}
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        else:
            torch.write_pickle(state, temporary)


def save_tensorflow(model: Any, path: Path) -> None:
    """Write a ``keras.Model`` as ``.weights.h5``, ``.keras``, or without a suffix as a SavedModel folder."""
    # Keras goes by the ending of the name, so the temporary file lies in a folder of its own instead.
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        if path.name.endswith(".weights.h5"):
            model.save_weights(temporary)
        elif path.name.endswith(".keras"):
            model.save(temporary)
        else:
            from portproof.transfer import tensorflow

            tensorflow.export(model, temporary)
        temporary.replace(path)


def _raise_for_misfits(model: Any, path: Path, *, left_over_alone: bool = False) -> None:
    """Hold the tensors of a Keras file against those that the model itself would write; paths are those in the file.

    With ``left_over_alone`` the file could be loaded, perhaps under the names of another version of Keras: then only
    more tensors than the model has are an error. Does nothing if the file cannot be read.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(Path(folder) / "own.weights.h5")
        wanted = keras_shapes(Path(folder) / "own.weights.h5")
    try:
        given = keras_shapes(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return
    if left_over_alone and len(given) <= len(wanted):
        return
    raise_for(
        missing=[name for name in wanted if name not in given],
        left_over=[name for name in given if name not in wanted],
        wrong_shape=[
            f"{name}: {shape} given, {wanted[name]} wanted"
            for name, shape in given.items()
            if name in wanted and shape != wanted[name]
        ],
        where=f" in {path}",
    )


def keras_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a ``.weights.h5`` or ``.keras`` file and their shapes, without those of optimizer and metrics."""
    import h5py

    found: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: Any) -> None:
        top = name.partition("/")[0]
        if isinstance(item, h5py.Dataset) and top not in ("optimizer", "metrics", "compile_metrics"):
            found.setdefault(name, tuple(item.shape))

    if path.name.endswith(".keras"):
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as content:
            content.visititems(note)
    else:
        with h5py.File(path) as content:
            content.visititems(note)
    # The state of dropout's random numbers: a model that is run once without dropout has it, its twin has not.
    return {name: shape for name, shape in found.items() if "seed_generator" not in name}


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error


def _fit_state_dict(
    values: Mapping[str, NDArray[Any]], records: Sequence[ParameterRecord], path: Path
) -> dict[str, NDArray[Any]]:
    shapes = {record.name: record.shape for record in records}
    fitted = {name: fit_shape(value, shapes[name]) for name, value in values.items() if name in shapes}
    raise_for(
        missing=[name for name in shapes if name not in values],
        left_over=[name for name in values if name not in shapes],
        wrong_shape=[
            f"{name}: {values[name].shape} given, {shapes[name]} wanted"
            for name, value in fitted.items()
            if value is None
        ],
        where=f" in {path}",
    )
    return {name: value for name, value in fitted.items() if value is not None}
