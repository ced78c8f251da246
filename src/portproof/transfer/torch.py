"""Weights of a torch model: read and written as canonical arrays."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from portproof.errors import CheckpointError
from portproof.trace import ParameterRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Name, tensor and whether it is trainable, for every parameter and every buffer of the state dict, by module."""
    saved = model.state_dict(keep_vars=True)
    for name, tensor in saved.items():
        if isinstance(tensor, torch.Tensor):  # get_extra_state may put anything there
            yield name, tensor, isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad


def records(model: torch.nn.Module) -> list[ParameterRecord]:
    """What the model holds. Tied parameters appear under each of their names, as in the state dict."""
    found = []
    for name, tensor, trainable in tensors(model):
        layer, _, role = name.rpartition(".")
        found.append(ParameterRecord(name, layer, role, tuple(tensor.shape), trainable, name))
    return found


def read(model: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """A copy of every parameter and buffer, in its own dtype (bfloat16 as float32, which holds it exactly)."""
    return {name: to_numpy(tensor) for name, tensor, _ in tensors(model)}


def write(model: torch.nn.Module, values: Mapping[str, NDArray[Any]]) -> None:
    """Copy values of the same names and shapes into the model, in its own dtypes."""
    with torch.no_grad():
        for name, tensor, _ in tensors(model):
            if name in values:
                tensor.copy_(torch.from_numpy(values[name]))


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A copy as a NumPy array, shape kept; bfloat16 becomes float32."""
    detached = tensor.detach()
    if detached.dtype == torch.bfloat16:
        detached = detached.float()
    return detached.cpu().contiguous().numpy().copy()


def read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a ``.pth`` or ``.pt`` file, which may hold a state dict or one under ``state_dict`` or ``model``.

    Raises:
        CheckpointError: the file is broken, would execute code when loaded, or holds no state dict.
    """
    try:
        with _plain_classes():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):  # a zip file, or the start of any pickle that torch wrote
            raise CheckpointError(f"{path} is not a torch checkpoint, or is broken.") from error
        raise CheckpointError(
            f"{path} holds more than tensors, and loading it could execute code: refused. Save it again with "
            "torch.save(model.state_dict(), ...), or as .safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not a complete torch checkpoint: {text}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise CheckpointError(f"{path} is no state dict: these entries are not tensors: {', '.join(strangers[:12])}.")
    return {name: to_numpy(value) for name, value in content.items()}


def _plain_classes() -> AbstractContextManager[Any]:
    """Let a file hold the arguments that it was trained with, as training scripts put them beside the weights.

    An ``argparse.Namespace`` is names and values; making one runs no code of the file's.
    """
    allow = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    return allow([Namespace]) if allow else nullcontext()


def write_pickle(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict with ``torch.save``."""
    torch.save(dict(state), path)
