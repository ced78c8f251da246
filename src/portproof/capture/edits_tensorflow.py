"""Edits of a Keras model: the machinery that puts them in force for one phase and takes them back, and the basic ones.

An edit is a function registered under a name; what it may do is what `Edited` offers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.capture.keras_model import ACTIVATION, KerasModel
from portproof.edits import Edit
from portproof.errors import InputError
from portproof.trace import MODEL
from portproof.transfer.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = dict[str, NDArray[Any]]
    Transform = Callable[[NDArray[Any]], NDArray[Any]]

_ABSENT = object()

EDITS: dict[str, Callable[..., None]] = {}
"""Name -> function(edited, paths, **options)."""


def edit(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the edit of this name."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        EDITS[name] = function
        return function

    return register


class Edited:
    """A Keras model while edits are in force, and what an edit may do to it."""

    def __init__(self, model: KerasModel, undo: ExitStack, *, training: bool) -> None:
        self.model = model
        self.training = training  # the mode that the model is run in
        self.given: Values = {}  # what the variables were meant to get, before any edit
        self._undo = undo
        self._on_values: list[Callable[[Values], Values]] = []
        self._on_objective: list[Callable[[Any, Sequence[Any]], Any]] = []
        self._on_optimizer: list[Callable[[Any, int], None]] = []
        self._on_update: list[Callable[[list[NDArray[Any]], list[NDArray[Any]]], list[NDArray[Any]]]] = []
        self._on_gradients: list[Callable[[list[NDArray[Any]], list[NDArray[Any]]], list[NDArray[Any]]]] = []

    def layer(self, path: str) -> Any:
        """The layer at a path; the model itself is called as it is in a trace.

        Raises:
            InputError: there is none.
        """
        path = "" if path == MODEL else path
        if path not in self.model.layers:
            raise InputError(f"The port has no layer {path!r} to be edited.")
        return self.model.layers[path][0]

    def set_attribute(self, target: Any, name: str, value: Any) -> None:
        """Set an attribute of a layer, past Keras' own bookkeeping where that is possible."""
        before = vars(target).get(name, _ABSENT)
        if isinstance(getattr(type(target), name, None), property):
            own = getattr(target, name)
            setattr(target, name, value)
            self._undo.callback(setattr, target, name, own)
            return
        object.__setattr__(target, name, value)
        if before is _ABSENT:
            self._undo.callback(object.__delattr__, target, name)
        else:
            self._undo.callback(object.__setattr__, target, name, before)

    def wrap(self, path: str, function: Callable[..., Any]) -> None:
        """Run ``function(call, *args, **kwargs)`` in the place of the layer's ``call(*args, **kwargs)``."""
        layer = self.layer(path)
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        self.set_attribute(layer, "call", update_wrapper(call, original))

    def undo(self, function: Callable[[], None]) -> None:
        """Have something done when the edits are taken back."""
        self._undo.callback(function)

    def remember(self, path: str, *, given: bool) -> dict[str, Any]:
        """A mapping that holds, as ``value``, what the layer was given first, or what it gave, when last called."""
        memory: dict[str, Any] = {}

        def call(original: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
            if given:
                memory["value"] = x
            output = original(x, *args, **kwargs)
            if not given:
                memory["value"] = output
            return output

        self.wrap(path, call)
        return memory

    def on_values(self, function: Callable[[Values], Values]) -> None:
        """Change what is written into the variables: canonical arrays by name, before every phase."""
        self._on_values.append(function)

    def transform(self, name: str, write: Transform, read: Transform) -> None:
        """Lay a variable out otherwise: ``write`` maps its canonical array to what is written, ``read`` back."""
        self.model.replace_variables(
            [
                replace(each, layout=_Rearranged("rearranged", each.layout, write, read))
                if each.record.name == name
                else each
                for each in self.model.variables
            ]
        )
        self._undo.callback(self.model.forget_variables)

    def hide(self, names: set[str]) -> None:
        """Let variables not be part of the model."""
        self.model.replace_variables([each for each in self.model.variables if each.record.name not in names])
        self._undo.callback(self.model.forget_variables)

    def look_again(self) -> None:
        """Let variables be listed anew, after a change of what is trainable; also when the edits are taken back."""
        self.model.forget_variables()
        self._undo.callback(self.model.forget_variables)

    def on_objective(self, function: Callable[[Any, Sequence[Any]], Any]) -> None:
        """Change the scalar that is differentiated: ``function(scalar, outputs)``."""
        self._on_objective.append(function)

    def on_optimizer(self, function: Callable[[Any, int], None]) -> None:
        """Change the optimizer before its step 1, 2, ...: ``function(optimizer, step)``."""
        self._on_optimizer.append(function)

    def on_gradients(self, function: Callable[[list[NDArray[Any]], list[NDArray[Any]]], list[NDArray[Any]]]) -> None:
        """Change the gradients that the optimizer gets: ``function(gradients, parameters)``, in Keras' layout."""
        self._on_gradients.append(function)

    def on_update(self, function: Callable[[list[NDArray[Any]], list[NDArray[Any]]], list[NDArray[Any]]]) -> None:
        """Change what an optimizer's step makes of the parameters: ``function(before, after)``, in Keras' layout."""
        self._on_update.append(function)

    def values(self, values: Values) -> Values:
        """What is written into the variables, with the edits in force."""
        self.given = values
        for function in self._on_values:
            values = function(dict(values))
        return values

    def objective(self, scalar: Any, outputs: Sequence[Any]) -> Any:
        """The scalar that is differentiated, with the edits in force."""
        for function in self._on_objective:
            scalar = function(scalar, outputs)
        return scalar

    def optimizer(self, optimizer: Any, step: int) -> None:
        """Bring the optimizer into the state that the edits ask for."""
        for function in self._on_optimizer:
            function(optimizer, step)

    def gradients(self, gradients: list[NDArray[Any]], parameters: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The gradients for the optimizer, with the edits in force."""
        for function in self._on_gradients:
            gradients = function(gradients, parameters)
        return gradients

    def updated(self, before: list[NDArray[Any]], after: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The parameters after an optimizer's step, with the edits in force."""
        for function in self._on_update:
            after = function(before, after)
        return after


@contextmanager
def edited(model: KerasModel, edits: Sequence[Edit], *, training: bool = False) -> Iterator[Edited]:
    """The model with edits in force while the block runs it, in training mode or not.

    Raises:
        InputError: an edit or a layer that does not exist.
    """
    with ExitStack() as undo:
        made = Edited(model, undo, training=training)
        for each in edits:
            if each.what not in EDITS:
                raise InputError(f"There is no edit {each.what!r}; there are {', '.join(sorted(EDITS))}.")
            EDITS[each.what](made, each.layers, **each.options)
        yield made


@dataclass(frozen=True)
class _Rearranged(Layout):
    """A layout behind which an array is rearranged once more."""

    layout: Layout = field(default_factory=Layout)
    write: Transform = np.asarray
    read: Transform = np.asarray

    def to_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        return self.read(self.layout.to_canonical(array))

    def from_canonical(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        return self.layout.from_canonical(self.write(array), shape)

    def canonical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.layout.canonical_shape(shape)


def _exact_gelu(x: Any) -> Any:
    return 0.5 * x * (1.0 + tf.math.erf(x * np.sqrt(0.5)))


# In the words of capture/kinds.py and compare/standard.py.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "gelu": _exact_gelu,
    "tanh GELU": lambda x: 0.5 * x * (1.0 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "sigmoid GELU": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "leaky relu (0.01)": lambda x: tf.where(x > 0, x, 0.01 * x),
    "leaky relu (0.2)": lambda x: tf.where(x > 0, x, 0.2 * x),
    "leaky relu (0.3)": lambda x: tf.where(x > 0, x, 0.3 * x),
    "silu": lambda x: x * tf.sigmoid(x),
    "sigmoid": tf.sigmoid,
    "hard sigmoid (x/6)": lambda x: tf.clip_by_value(x / 6.0 + 0.5, 0.0, 1.0),
    "hard sigmoid (0.2 x)": lambda x: tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0),
    "hard swish": lambda x: x * tf.clip_by_value(x / 6.0 + 0.5, 0.0, 1.0),
    "tanh": tf.tanh,
    "elu": tf.nn.elu,
    "selu": tf.nn.selu,
    "softmax": tf.nn.softmax,
}
_LEAKY = re.compile(r"leaky relu \(([0-9.e+-]+)\)")


def activation(name: str) -> Callable[[Any], Any]:
    """The activation of this name; a leaky relu of any slope.

    Raises:
        InputError: there is none.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    match = _LEAKY.fullmatch(name)
    if match is None:
        raise InputError(f"There is no activation {name!r}; there are {', '.join(ACTIVATIONS)}.")
    slope = float(match[1])
    return lambda x: tf.where(x > 0, x, slope * x)


@edit("set")
def _set(made: Edited, paths: Sequence[str], **options: Any) -> None:
    """Set attributes, in Keras' own names, of each layer."""
    for path in paths:
        for name, value in options.items():
            made.set_attribute(made.layer(path), name, tuple(value) if isinstance(value, list) else value)
    if "trainable" in options:
        made.look_again()


@edit("activation")
def _activation(made: Edited, paths: Sequence[str], *, function: str) -> None:
    """Let each layer compute another activation; ``<path>.activation`` is the one inside of a layer."""
    compute = activation(function)
    for path in paths:
        owner, _, last = path.rpartition(".")
        if path not in made.model.layers and last == ACTIVATION:
            made.set_attribute(made.layer(owner), ACTIVATION, compute)
        else:
            made.wrap(path, lambda _call, x, *_args, **_kwargs: compute(x))


@edit("skip")
def _skip(made: Edited, paths: Sequence[str]) -> None:
    """Let each layer give back its input."""
    for path in paths:
        made.wrap(path, lambda _call, x, *_args, **_kwargs: x)
