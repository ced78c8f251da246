"""`fuse` in PyTorch: a model's fused twin, and the refusal of every model that is not what its constructor made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from portproof.models.repvit.folding import fold

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_MOMENTUM = re.compile(r"momentum=[^,]*, ")  # of a BatchNorm, which eval mode does not use


def fused_twin(model: Any) -> Any:
    """A new model in eval mode that computes what ``model`` computes in eval mode, in its dtype and on its device.

    What is folded goes by names, so that every module is first held against the one that the constructor makes: an
    exchanged activation, another eps, an additional BatchNorm or a hook would be lost without a trace.

    Raises:
        ValueError: the model is in train mode, is fused already, or differs from what its constructor makes.
    """
    name = type(model).__name__
    if model.fused:
        raise ValueError(f"this {name} is fused already")
    training = [path or name for path, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"{training[0]} is in train mode, where BatchNorm uses the batch's statistics and cannot be folded: "
            "call model.eval() first"
        )
    with torch.device("meta"):  # neither memory nor time for weights that nobody uses
        reference = model.twin(fused=False)
    differences = list(_differences(model, reference))
    if differences:
        raise ValueError(f"fuse knows only the modules that {name} makes, but {'; '.join(differences[:3])}")
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    first = tensors["features.0.0.c.weight"]
    folded = fold({key: tensor.double().cpu().numpy() for key, tensor in tensors.items()})
    twin = model.twin(fused=True).to(device=first.device, dtype=first.dtype).eval()
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in folded.items()})
    return twin


def _differences(model: nn.Module, reference: nn.Module) -> Iterator[str]:
    """What one would lose by building ``model`` anew: modules of other kinds or settings, hooks, tensors."""
    expected, found = (dict(each.named_modules()) for each in (reference, model))
    for path in [*expected, *(path for path in found if path not in expected)]:
        where = path or "the model"
        if path not in found:
            yield f"{where} is missing"
        elif path not in expected:
            yield f"{where} is a {type(found[path]).__name__} that it does not make"
        elif type(found[path]) is not type(expected[path]):
            yield f"{where} is a {type(found[path]).__name__}, not a {type(expected[path]).__name__}"
        elif _settings(found[path]) != _settings(expected[path]):
            yield f"{where} has the settings ({_settings(found[path])}), not ({_settings(expected[path])})"
        elif any(getattr(found[path], hooks) for hooks in _HOOKS):
            yield f"{where} has a forward hook"
        elif "forward" in vars(found[path]):
            yield f"{where} has a forward method of its own"
    if set(model.state_dict()) != set(reference.state_dict()):
        yield f"it holds {sorted(set(model.state_dict()) ^ set(reference.state_dict()))[0]}"


def _settings(module: nn.Module) -> str:
    return _MOMENTUM.sub("", module.extra_repr())
