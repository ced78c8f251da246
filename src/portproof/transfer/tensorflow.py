"""Weights of a Keras model (Keras 2 and 3): named by attribute path, read and written as canonical arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.trace import ParameterRecord
from portproof.transfer.layout import ROLES, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LAYOUTS = (
    (("DepthwiseConv1D", "DepthwiseConv2D"), ("kernel", "depthwise_kernel"), Layout("depthwise")),
    (("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), ("kernel",), Layout("conv_transpose")),
    (("SeparableConv1D", "SeparableConv2D"), ("depthwise_kernel",), Layout("depthwise")),
    (("SeparableConv1D", "SeparableConv2D"), ("pointwise_kernel",), Layout("conv")),
    (("Conv1D", "Conv2D", "Conv3D"), ("kernel",), Layout("conv")),
    (("Dense",), ("kernel",), Layout("dense")),
)


# Attributes in which Keras and TensorFlow themselves list the layers below a layer.
_BOOKKEEPING = ("_layers", "_self_")


@dataclass(frozen=True)
class Variable:
    """One variable of a model with its canonical record and how it is laid out."""

    record: ParameterRecord
    variable: Any
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """The Keras shape."""
        return tuple(int(size) for size in self.variable.shape)

    def read(self) -> NDArray[Any]:
        """The value as a canonical array."""
        # ascontiguousarray makes 0-d arrays 1-d.
        return np.ascontiguousarray(self.layout.to_canonical(np.asarray(self.variable))).reshape(self.record.shape)

    def write(self, value: NDArray[Any]) -> None:
        """Assign a canonical array."""
        native = self.layout.from_canonical(value, self.shape)
        dtype = tf.as_dtype(self.variable.dtype).as_numpy_dtype
        self.variable.assign(np.ascontiguousarray(native, dtype).reshape(self.shape))


def layers(model: Any) -> dict[str, tuple[Any, str | None]]:
    """Every layer below ``model`` (and the model itself, named ``""``) with its path and its parent's path.

    The path follows attributes, list positions and keys, as a torch module's does; layers of a functional or sequential
    model go by their own names. A layer that is reachable in two ways keeps its first path.
    """
    found: dict[str, tuple[Any, str | None]] = {"": (model, None)}
    seen = {id(model)}

    def descend(parent: Any, parent_path: str) -> None:
        for key, child in _children(parent):
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = f"{parent_path}.{key}" if parent_path else key
            while path in found:  # two layers of one name: rare, and only possible in hand-made containers
                path += "_"
            found[path] = (child, parent_path)
            descend(child, path)

    descend(model, "")
    return found


def variables(model: Any) -> list[Variable]:
    """Every variable of the model, once, with its canonical name and layout."""
    result: list[Variable] = []
    seen: set[int] = set()
    for path, (layer, _) in layers(model).items():
        for variable, trainable in _own_variables(layer):
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            native = _variable_name(layer, variable)
            layout = _layout(layer, native)
            role = ROLES.get(native, native)
            owner = _owner(path, layer, native)
            shape = layout.canonical_shape(tuple(int(size) for size in variable.shape))
            record = ParameterRecord(
                f"{owner}.{role}" if owner else role, owner, role, shape, trainable, _path(variable)
            )
            result.append(Variable(record, variable, layout))
    for variable in model.variables:  # held by something that is not a layer: named by the framework's own path
        if id(variable) not in seen and "seed_generator" not in _path(variable):
            path = _path(variable)
            shape = tuple(int(size) for size in variable.shape)
            record = ParameterRecord(path, "", path, shape, bool(variable.trainable), path)
            result.append(Variable(record, variable, Layout()))
    return result


def read(model: Any) -> dict[str, NDArray[Any]]:
    """Every variable as a canonical array, by canonical name."""
    return {each.record.name: each.read() for each in variables(model)}


def write(model: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Assign canonical arrays to the variables of the same canonical names."""
    for each in variables(model):
        if each.record.name in values:
            each.write(values[each.record.name])


def export(model: Any, folder: Path) -> None:
    """Write a SavedModel with the endpoint ``serve``.

    Its input is as the model's ``export_signature`` says, a list of ``tf.TensorSpec``; without one as Keras chooses,
    which in Keras 2 is the size that the model was last called with.
    """
    signature = getattr(model, "export_signature", None)
    if signature is None:
        model.export(str(folder))
        return
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(name="serve", fn=model.__call__, input_signature=signature)
    archive.write_out(str(folder))


def _children(layer: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(layer, tf.keras.Sequential) or getattr(layer, "_is_graph_network", False) or _is_functional(layer):
        for child in layer.layers:
            yield child.name, child
        return
    attributes = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    # Some people keep their layers in private attributes; Keras' own bookkeeping comes last, as a safety net.
    attributes |= {
        key.lstrip("_"): value
        for key, value in vars(layer).items()
        if key.startswith("_") and not key.startswith(_BOOKKEEPING) and any(_layers_in(key, value))
    }
    for key, value in attributes.items():
        yield from _layers_in(key, value)
    for child in getattr(layer, "_layers", None) or getattr(layer, "_self_tracked_trackables", None) or ():
        if _is_layer(child):
            yield child.name, child


def _layers_in(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if _is_layer(value):
        yield key, value
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _layers_in(f"{key}.{index}", each)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _layers_in(f"{key}.{name}", each)


def _is_layer(value: Any) -> bool:
    return isinstance(value, tf.keras.layers.Layer) and not isinstance(value, tf.keras.metrics.Metric)


def _is_functional(layer: Any) -> bool:
    return any(cls.__name__ == "Functional" for cls in type(layer).__mro__)


def _own_variables(layer: Any) -> Iterator[tuple[Any, bool]]:
    # Keras 3 and Keras 2 keep a layer's own variables under these names; the public properties include its children's.
    trainable = getattr(layer, "_trainable_variables", None)
    frozen = getattr(layer, "_non_trainable_variables", None)
    if trainable is None or isinstance(layer, tf.Module):
        trainable, frozen = layer._trainable_weights, layer._non_trainable_weights
    for variable in trainable:
        yield variable, bool(layer.trainable and getattr(variable, "trainable", True))
    for variable in frozen or ():
        if "seed_generator" not in _path(variable):
            yield variable, False


def _variable_name(layer: Any, variable: Any) -> str:
    for key, value in vars(layer).items():
        if value is variable:
            return key.lstrip("_")
    return _path(variable).rpartition("/")[2].partition(":")[0]


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name))


def _owner(path: str, layer: Any, name: str) -> str:
    """The layer that a variable belongs to in torch's words, where a separable convolution is two of them."""
    if {cls.__name__ for cls in type(layer).__mro__}.isdisjoint(("SeparableConv1D", "SeparableConv2D")):
        return path
    part = "depthwise" if name == "depthwise_kernel" else "pointwise"
    return f"{path}.{part}" if path else part


def _layout(layer: Any, name: str) -> Layout:
    classes = {cls.__name__ for cls in type(layer).__mro__}
    for kinds, names, layout in _LAYOUTS:
        if name in names and not classes.isdisjoint(kinds):
            return layout
    return Layout()
