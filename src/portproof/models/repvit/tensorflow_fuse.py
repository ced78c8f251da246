"""`fuse` in TensorFlow: a model's fused twin, and the refusal of every model that is not what its constructor made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from portproof.models.repvit.folding import fold

# Of a layer's configuration, what its output with training=False does not depend on.
_IRRELEVANT = ("name", "trainable", "dtype", "momentum", "_initializer", "_regularizer", "_constraint", "renorm")
_ROLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def fused_twin(model: Any) -> Any:
    """A new model that computes what ``model`` computes with ``training=False``, of the same dtype.

    What is folded goes by names, so that every layer is first held against the one that the constructor makes: an
    exchanged activation, another epsilon or an additional BatchNorm would be lost without a trace.

    Raises:
        ValueError: the model is fused already, or differs from what its constructor makes.
    """
    name, config = type(model).__name__, model.get_config()
    if model.fused:
        raise ValueError(f"this {name} is fused already")
    reference, twin = type(model).from_config(config), type(model).from_config({**config, "fused": True})
    differences = list(_differences(model, reference))
    if differences:
        raise ValueError(f"fuse knows only the layers that {name} makes, but {'; '.join(differences[:3])}")
    folded = fold({key: _to_torch(kind, variable.numpy()) for key, kind, variable in _variables(model)})
    for key, kind, variable in _variables(twin):
        variable.assign(_from_torch(kind, folded.pop(key)))
    assert not folded, sorted(folded)  # or the two forms' names have come apart
    return twin


def _differences(model: Any, reference: Any) -> Iterator[str]:
    """What one would lose by building ``model`` anew: layers of other kinds or settings."""
    expected, found = dict(_layers(reference)), dict(_layers(model))
    for path in [*expected, *(path for path in found if path not in expected)]:
        where = path or "the model"
        if path not in found:
            yield f"{where} is missing"
        elif path not in expected:
            yield f"{where} is a {type(found[path]).__name__} that it does not make"
        elif type(found[path]) is not type(expected[path]):
            yield f"{where} is a {type(found[path]).__name__}, not a {type(expected[path]).__name__}"
        elif "call" in vars(found[path]):
            yield f"{where} has a call method of its own"
        else:
            ours, theirs = _settings(found[path]), _settings(expected[path])
            for key in (key for key in theirs if ours.get(key) != theirs[key]):
                yield f"{where} has {key}={ours.get(key)!r}, not {theirs[key]!r}"


def _layers(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer by attribute path, which is the path of PyTorch's module."""
    yield path, layer
    for name, value in vars(layer).items():
        if isinstance(value, tf.keras.layers.Layer) and not name.startswith("_"):
            yield from _layers(value, f"{path}.{name}" if path else name)


def _settings(layer: Any) -> dict[str, Any]:
    if any(True for _ in list(_layers(layer))[1:]):
        return {}  # its members are compared one by one
    try:
        config = layer.get_config()
    except NotImplementedError:  # Keras 3, of layers that take nothing but a name and a dtype
        config = {}
    # As text: a list says the same as a tuple.
    settings = {key: str(value) for key, value in config.items() if not key.endswith(_IRRELEVANT)}
    return {**settings, "weights": str([tuple(weight.shape) for weight in layer.weights])}


def _variables(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Name in the PyTorch state dict, how the layer lays its kernel out, and variable."""
    for path, layer in _layers(model):
        if list(_layers(layer))[1:]:
            continue
        for variable in layer.weights:
            own = variable.name.split("/")[-1].split(":")[0]
            if not own.endswith("kernel"):
                kind = ""
            elif isinstance(layer, tf.keras.layers.DepthwiseConv2D):
                kind = "depthwise"
            else:
                kind = "conv" if isinstance(layer, tf.keras.layers.Conv2D) else "linear"
            yield f"{path}.{'weight' if kind else _ROLES.get(own, own)}", kind, variable


# Axes of PyTorch's tensor in Keras' and back: OIHW and HWIO; (C, 1, kH, kW) and (kH, kW, C, 1).
_TO_TORCH = {"conv": (3, 2, 0, 1), "depthwise": (2, 3, 0, 1), "linear": (1, 0)}


def _to_torch(kind: str, value: Any) -> Any:
    return value.transpose(_TO_TORCH[kind]) if kind else value


def _from_torch(kind: str, value: Any) -> Any:
    return value.transpose(np.argsort(_TO_TORCH[kind])) if kind else value
