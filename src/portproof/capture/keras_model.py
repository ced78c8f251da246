"""One Keras model (Keras 2 or 3) in canonical words: its inputs, variables and layers, and what these are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.capture import kinds
from portproof.capture.job import MAIN
from portproof.capture.loading import takes_by_name
from portproof.capture.recorder import flatten
from portproof.trace import MODEL, ParameterRecord
from portproof.transfer import tensorflow as weights_tf

if TYPE_CHECKING:
    from numpy.typing import NDArray


# The name of a layer's own activation, as Keras calls the attribute.
ACTIVATION = "activation"


class KerasModel:
    """One Keras model with its inputs, variables and layers in canonical words."""

    def __init__(
        self, keras: Any, precision: str, cases: dict[str, dict[str, NDArray[Any]]], layouts: dict[str, str]
    ) -> None:
        self.keras = keras
        self.notes: list[str] = []  # what was done to it
        self.precision = precision
        self._cases = cases
        # torch's NCHW reaches a Keras model as NHWC, unless the mirror says otherwise.
        self.moved = {name for name, array in cases[MAIN].items() if array.ndim in (4, 5) and layouts[name] == "auto"}
        self._variables: list[weights_tf.Variable] | None = None
        self._order: dict[str, int] | None = None  # of the variables by name, where it is not that of definition
        self._layers: dict[str, tuple[Any, str | None]] | None = None

    @property
    def variables(self) -> list[weights_tf.Variable]:
        """Every variable with its canonical name and layout."""
        if self._variables is None:
            found = weights_tf.variables(self.keras)
            order = self._order
            self._variables = found if order is None else sorted(found, key=lambda each: order[each.record.name])
        return self._variables

    @property
    def layers(self) -> dict[str, tuple[Any, str | None]]:
        """Every layer by path, with its parent's path."""
        if self._layers is None:
            self._layers = weights_tf.layers(self.keras)
        return self._layers

    def parameters(self) -> list[ParameterRecord]:
        """The records of all variables."""
        return [each.record for each in self.variables]

    def trainable(self) -> list[weights_tf.Variable]:
        """The variables that training changes."""
        return [each for each in self.variables if each.record.trainable]

    def write(self, values: dict[str, NDArray[Any]]) -> None:
        """Assign canonical arrays to the variables of the same canonical names."""
        for each in self.variables:
            if each.record.name in values:
                each.write(values[each.record.name])

    def inputs(self, case: str) -> dict[str, Any]:
        """The inputs of a case as tensors, in the model's precision and layout."""
        tensors = {}
        for name, array in self._cases[case].items():
            native = np.moveaxis(array, 1, -1) if name in self.moved else array
            dtype = self.precision if native.dtype.kind == "f" else native.dtype
            tensors[name] = tf.constant(np.ascontiguousarray(native, dtype))
        return tensors

    def __call__(self, case: str, *, training: bool = False) -> Any:
        """Call the model on an input case."""
        return self.call(self.inputs(case), training=training)

    def call(self, inputs: dict[str, Any], *, training: bool) -> Any:
        """Call the model: one input as it is, several by name where the model takes them so, else as a list."""
        if len(inputs) == 1:
            return self.keras(next(iter(inputs.values())), training=training)
        own = getattr(self.keras, "inputs", None) or ()
        if {getattr(each, "name", "").partition(":")[0] for each in own} == set(inputs):
            return self.keras(inputs, training=training)
        if takes_by_name(self.keras.call, inputs):
            return self.keras(**inputs, training=training)
        return self.keras(list(inputs.values()), training=training)

    def uncompile(self) -> list[str]:
        """Let layers whose ``call`` is a tf.function run eagerly from now on; returns their names.

        Keras 3 besides bakes the weights into such a function if it built the layers inside.
        """
        found = []
        for path, (layer, _) in self.layers.items():
            function = getattr(layer.call, "python_function", None)
            if function is not None:
                object.__setattr__(layer, "call", function)
                found.append(path or MODEL)
        return found

    def forget(self) -> None:
        """Look for layers and variables again: building the model has made more of them."""
        self._layers = self._variables = self._order = None

    def give(self, cases: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take other input cases."""
        self._cases = cases

    def replace_variables(self, variables: list[weights_tf.Variable]) -> None:
        """List other variables than the model's own, until `forget_variables`."""
        self._variables = variables

    def forget_variables(self) -> None:
        """List the model's own variables again."""
        self._variables = None

    def dropout(self) -> list[str]:
        """The names of the layers that drop something in training."""
        return [path for path, (layer, _) in self.layers.items() if kinds.kind(layer) == "dropout" and layer.rate > 0]

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Let nothing be dropped while the block runs. In eval mode nothing may be, so there it stays as it is."""
        rates = {path: self.layers[path][0].rate for path in self.dropout()}
        for path in rates:
            self.layers[path][0].rate = 0.0
        try:
            yield
        finally:
            for path, rate in rates.items():
                self.layers[path][0].rate = rate

    def sort_by_execution(self) -> None:
        """Put the variables in the order in which data flows through their layers, for pairing without names.

        That is the order of execution, but a layer comes right behind the one that feeds it alone: functional models
        run their branches side by side, where a torch model runs one after the other.
        """
        executed: list[str] = []
        made_by: dict[int, tuple[str, Any]] = {}  # holds the tensors: an id must not recur
        fed: dict[str, list[str]] = {}

        def wrap(path: str, layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                executed.append(path)
                for tensor in tensors_in((args, kwargs)):
                    if id(tensor) in made_by:
                        fed.setdefault(made_by[id(tensor)][0], []).append(path)
                output = original(*args, **kwargs)
                for tensor in tensors_in(output):
                    made_by.setdefault(id(tensor), (path, tensor))
                return output

            return call

        with wrapped_calls({path: layer for path, (layer, _) in self.layers.items()}, wrap):
            self(MAIN)
        order: dict[str, int] = {}
        for first in executed:
            path: str | None = first
            while path is not None and path not in order:
                order[path] = len(order)
                path = fed[path][0] if len(fed.get(path, ())) == 1 else None

        def position(each: weights_tf.Variable) -> int:
            layer = each.record.layer
            while layer not in order and "." in layer:  # a part of a layer, such as those of a separable convolution
                layer = layer.rpartition(".")[0]
            return order.get(layer, len(order))

        self._variables = sorted(self.variables, key=position)
        self._order = {each.record.name: index for index, each in enumerate(self._variables)}


@contextmanager
def wrapped_calls(
    layers: dict[str, Any], wrap: Callable[[str, Any, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Put ``wrap(path, layer, call)`` in the place of each layer's ``call``, as an attribute of the instance.

    Unlike ``__call__``, which Python looks up on the class, this also sees models that run a part's ``call`` directly.
    """
    # Past Keras' own __setattr__, which would look for variables to track in every function.
    own = {path: vars(layer)["call"] for path, layer in layers.items() if "call" in vars(layer)}
    for path, layer in layers.items():
        # update_wrapper keeps the signature: it says whether the model takes its inputs by name.
        object.__setattr__(layer, "call", update_wrapper(wrap(path, layer, layer.call), layer.call))
    try:
        yield
    finally:
        for path, layer in layers.items():
            if path in own:
                object.__setattr__(layer, "call", own[path])
            else:
                object.__delattr__(layer, "call")


def has_fused_activation(layer: Any) -> bool:
    """Whether the layer applies an activation to its result, which torch writes as a layer or a call of its own."""
    activation = getattr(layer, "activation", None)
    if activation is None or isinstance(activation, tf.keras.layers.Layer):
        return False  # a layer is recorded as such
    kind = kinds.kind(layer)
    fusing = kind.startswith(("conv", "separableconv")) or kind in ("linear", "einsumdense")
    return fusing and kinds.activation_kind(activation) != "identity"


@contextmanager
def activation_apart(layer: Any) -> Iterator[list[Any]]:
    """Collects what a layer's own activation is given while the block runs."""
    given: list[Any] = []
    activation = layer.activation

    def apply(x: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(x)
        return activation(x, *args, **kwargs)

    object.__setattr__(layer, "activation", apply)
    try:
        yield given
    finally:
        object.__setattr__(layer, "activation", activation)


class Layouts:
    """Which tensors of one run carry their channels last, so that they can be stored channels first.

    A layer with ``data_format`` says so itself; every other layer returns what it was given, if the rank is the same.
    """

    def __init__(self, channels_last: Iterator[Any]) -> None:
        self._last: dict[int, Any] = {
            id(tensor): tensor for tensor in channels_last
        }  # holds them: an id must not recur
        self._ranks: set[int] = {len(tensor.shape) for tensor in self._last.values()}

    def given(self, layer: Any, unknown: Sequence[Any]) -> None:
        """Tensors that came from between the layers: of the layout that their layer expects."""
        for tensor in unknown:
            rank = len(tensor.shape)
            if rank > 2 and (
                _is_channels_last(layer) or (_data_format(layer) is None and rank in self._ranks and rank > 3)
            ):
                self._mark(tensor)

    def returned(self, layer: Any, given: Sequence[Any], produced: Sequence[Any]) -> None:
        """Outputs of a finished call."""
        inherited = {len(tensor.shape) for tensor in given if id(tensor) in self._last}
        for tensor in produced:
            rank = len(tensor.shape)
            if rank > 2 and (_is_channels_last(layer) or rank in inherited or (rank > 3 and rank in self._ranks)):
                self._mark(tensor)

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """The tensor as a NumPy array in canonical layout."""
        array = np.asarray(tensor)
        return np.moveaxis(array, -1, 1) if id(tensor) in self._last else array

    def _mark(self, tensor: Any) -> None:
        self._last[id(tensor)] = tensor
        self._ranks.add(len(tensor.shape))


def tensors_in(value: Any) -> Iterator[Any]:
    """The tensors in nested arguments or outputs, in order."""
    return flatten(value, tf.is_tensor)


def _data_format(layer: Any) -> str | None:
    return getattr(layer, "data_format", None)


def _is_channels_last(layer: Any) -> bool:
    if isinstance(layer, tf.keras.layers.Flatten):
        return False
    return _data_format(layer) == "channels_last"
