"""Edits of a Keras model that repair it: each does what a person could write into the port.

None of them knows what the original returned. They set, exchange and rearrange, and they replace a layer's code by that
of a standard layer, computed from the layer's own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.capture.edits_tensorflow import Edited, activation, edit
from portproof.errors import InputError
from portproof.rearrange import inverse, rearranged
from portproof.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray


# --- Weights ----------------------------------------------------------------------------------------------------------


@edit("rearrange")
def _rearrange(made: Edited, _paths: Sequence[str], *, name: str, step: Sequence[Any], where: str) -> None:
    """Put a variable's values into another order: in its values, or in how its layer reads it (``layout``)."""
    _check_known(made, [name])
    if where == "values":
        made.on_values(lambda values: values | {name: rearranged(values[name], step)})
        return
    shape = next(each.record.shape for each in made.model.variables if each.record.name == name)
    back = inverse(step, shape)
    made.transform(
        name, lambda array: rearranged(array.reshape(shape), step), lambda array: rearranged(array.reshape(shape), back)
    )


@edit("swap variables")
def _swap_variables(made: Edited, _paths: Sequence[str], *, names: Sequence[str], where: str) -> None:
    """Exchange two variables: their values, or what each of them stands for (``layout``)."""
    first, second = names
    _check_known(made, names)
    if where == "values":
        made.on_values(lambda values: values | {first: values[second], second: values[first]})
        return
    records = {each.record.name: each.record for each in made.model.variables}
    swapped = {first: records[second], second: records[first]}
    made.model.replace_variables(
        [replace(each, record=swapped.get(each.record.name, each.record)) for each in made.model.variables]
    )
    made.undo(made.model.forget_variables)


@edit("restore")
def _restore(made: Edited, _paths: Sequence[str], *, names: Sequence[str], trace: str = "", tensors: Any = ()) -> None:
    """Give variables the values that they were meant to get: those of the job, or the named tensors of a trace."""
    _check_known(made, names)
    stored = Trace.open(trace, verify=False) if trace else None

    def restored(values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if stored is None:
            return values | {name: made.given[name] for name in names if name in made.given}
        found = {name: stored.tensor(f"weights/excited/{key}") for name, key in zip(names, tensors, strict=True)}
        return values | {name: value.reshape(values[name].shape) for name, value in found.items()}

    made.on_values(restored)


def _check_known(made: Edited, names: Sequence[str]) -> None:
    known = {each.record.name for each in made.model.variables}
    if missing := [name for name in names if name not in known]:
        raise InputError(f"The port has no variable {missing[0]!r} to be edited.")


# --- What is computed around a layer ----------------------------------------------------------------------------------


@edit("before")
def _before(made: Edited, paths: Sequence[str], *, function: str, place: int = 0) -> None:
    """Apply an activation to one of a layer's inputs."""
    compute = activation(function)
    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: call(*_with(args, place, compute), **kwargs))


@edit("after")
def _after(made: Edited, paths: Sequence[str], *, function: str) -> None:
    """Apply an activation, or ``negative``, to a layer's output."""
    compute = tf.negative if function == "negative" else activation(function)
    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: compute(call(*args, **kwargs)))


@edit("reorder")
def _reorder(made: Edited, paths: Sequence[str], *, step: Sequence[Any], place: int = 0) -> None:
    """Put the values of each example of an input into another order. The step speaks of the canonical layout."""
    for path in paths:
        layer = made.layer(path)

        def reordered(x: Any, layer: Any = layer) -> Any:
            channels_last = len(x.shape) > 3 and getattr(layer, "data_format", "channels_last") == "channels_last"
            shape = [int(size) for size in x.shape[1:]]
            places = np.arange(int(np.prod(shape))).reshape(shape)
            if channels_last:
                places = np.moveaxis(places, -1, 0)
            places = rearranged(places, step)
            if channels_last:
                places = np.moveaxis(places, 0, -1)
            return tf.reshape(tf.gather(tf.reshape(x, (x.shape[0], -1)), places.reshape(-1), axis=1), x.shape)

        made.wrap(
            path,
            lambda call, *args, _change=reordered, **kwargs: call(*_with(args, place, _change), **kwargs),
        )


@edit("feed")
def _feed(made: Edited, paths: Sequence[str], *, source: str, function: str, place: int = 0) -> None:
    """Let a layer take an activation of another layer's output, whatever the code between them computes."""
    compute = activation(function)
    memory = made.remember(source, given=False)
    for path in paths:
        made.wrap(
            path,
            lambda call, *args, **kwargs: call(*_with(args, place, lambda _: compute(memory["value"])), **kwargs),
        )


@edit("add terms")
def _add_terms(made: Edited, paths: Sequence[str], *, terms: Sequence[Any], where: str, place: int = 0) -> None:
    """Add multiples of other layers' inputs or outputs (path, ``input`` or ``output``, times) to what reaches a layer
    or to what it returns."""
    found = [(made.remember(path, given=which == "input"), times) for path, which, times in terms]

    def added(x: Any) -> Any:
        for memory, times in found:
            x = x + tf.cast(times, x.dtype) * memory["value"]
        return x

    for path in paths:
        if where == "before":
            made.wrap(path, lambda call, *args, **kwargs: call(*_with(args, place, added), **kwargs))
        else:
            made.wrap(path, lambda call, *args, **kwargs: added(call(*args, **kwargs)))


def _with(args: Sequence[Any], place: int, change: Callable[[Any], Any]) -> list[Any]:
    """The arguments of a call, one tensor of them changed."""
    return [change(each) if index == place else each for index, each in enumerate(args)]


# --- What a layer computes --------------------------------------------------------------------------------------------


@edit("mode")
def _mode(made: Edited, paths: Sequence[str]) -> None:
    """Run layers in the mode that the model is run in."""
    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: call(*args[:1], **{**kwargs, "training": made.training}))


@edit("standard")
def _standard(made: Edited, paths: Sequence[str], *, kind: str, **options: Any) -> None:
    """Let layers compute what a standard layer of a kind does, from their own weights; settings in torch's terms."""
    if kind not in _STANDARD:
        raise InputError(f"There is no standard layer of the kind {kind!r} to take a layer's place.")
    for path in paths:
        layer = made.layer(path)
        if getattr(layer, "data_format", None) == "channels_first":
            raise InputError(f"{path} has its channels first; its code cannot be replaced.")
        compute = _STANDARD[kind](made, layer, **options)
        made.wrap(path, lambda _call, x, *_args, _compute=compute, **_kwargs: _compute(x))


def _linear(_made: Edited, layer: Any) -> Callable[[Any], Any]:
    def compute(x: Any) -> Any:
        kernel = tf.convert_to_tensor(layer.kernel)
        if len(kernel.shape) > 2:  # a 1x1 convolution in the place of a linear layer
            kernel = tf.reshape(kernel, kernel.shape[-2:])
        return _finished(layer, tf.tensordot(x, kernel, 1))

    return compute


def _convolution(
    _made: Edited, layer: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> Callable[[Any], Any]:
    def compute(x: Any) -> Any:
        axes = len(x.shape) - 2
        depthwise = hasattr(layer, "depthwise_kernel") or "Depthwise" in "".join(
            c.__name__ for c in type(layer).__mro__
        )
        kernel = tf.convert_to_tensor(
            getattr(layer, "depthwise_kernel", None) if hasattr(layer, "depthwise_kernel") else layer.kernel
        )
        strides, dilations = _each(stride, axes), _each(dilation, axes)
        if isinstance(padding, str):
            mode = padding.upper()
        else:
            mode = "VALID"
            x = tf.pad(x, [(0, 0), *((pad, pad) for pad in _each(padding, axes)), (0, 0)])
        if depthwise:
            if axes == 1:
                x, kernel = x[:, None], kernel[None]
                strides, dilations = [1, *strides], [1, *dilations]
            # TF's CPU kernel wants equal strides; every second row of the output at stride 1 is the same.
            step = strides[0] if len(set(strides)) == 1 and max(dilations) == 1 else 1
            output = tf.nn.depthwise_conv2d(x, kernel, (1, step, step, 1), mode, dilations=dilations)
            if step != strides[0] or step != strides[1]:
                output = output[:, :: strides[0], :: strides[1]]
            return _finished(layer, output[:, 0] if axes == 1 else output)
        groups = x.shape[-1] // kernel.shape[-2]
        # TF's CPU kernels have no gradient of a grouped convolution in every build: one convolution per group.
        parts = [
            tf.nn.convolution(part, own, strides, mode, dilations=dilations)
            for part, own in zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
        ]
        return _finished(layer, parts[0] if groups == 1 else tf.concat(parts, -1))

    return compute


def _finished(layer: Any, output: Any) -> Any:
    """Bias and activation, where the layer has them."""
    if getattr(layer, "bias", None) is not None:
        output = output + tf.convert_to_tensor(layer.bias)
    activated = getattr(layer, "activation", None)
    return activated(output) if activated is not None else output


def _batchnorm(made: Edited, layer: Any, *, eps: float = 1e-5, momentum: float = 0.1) -> Callable[[Any], Any]:
    def compute(x: Any) -> Any:
        axis = (layer.axis if isinstance(layer.axis, int) else layer.axis[0]) % len(x.shape)
        axes = [each for each in range(len(x.shape)) if each != axis]
        shape = [1 if each != axis else -1 for each in range(len(x.shape))]
        if made.training:
            mean, variance = tf.nn.moments(x, axes)
            for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
                moving.assign((1.0 - momentum) * tf.convert_to_tensor(moving) + momentum * tf.stop_gradient(value))
        else:
            mean, variance = tf.convert_to_tensor(layer.moving_mean), tf.convert_to_tensor(layer.moving_variance)
        mean, variance = tf.reshape(mean, shape), tf.reshape(variance, shape)
        return _scaled(layer, (x - mean) / tf.sqrt(variance + eps), shape)

    return compute


def _layernorm(_made: Edited, layer: Any, *, eps: float = 1e-5) -> Callable[[Any], Any]:
    def compute(x: Any) -> Any:
        variables = [each for each in (getattr(layer, "gamma", None), getattr(layer, "beta", None)) if each is not None]
        count = len(variables[0].shape) if variables else 1
        axes = list(range(len(x.shape) - count, len(x.shape)))
        mean, variance = tf.nn.moments(x, axes, keepdims=True)
        return _scaled(layer, (x - mean) / tf.sqrt(variance + eps), None)

    return compute


def _scaled(layer: Any, normal: Any, shape: Sequence[int] | None) -> Any:
    for name, apply in (("gamma", tf.multiply), ("beta", tf.add)):
        variable = getattr(layer, name, None)
        if variable is not None:
            value = tf.convert_to_tensor(variable)
            normal = apply(normal, value if shape is None else tf.reshape(value, shape))
    return normal


def _dropout(_made: Edited, _layer: Any) -> Callable[[Any], Any]:
    return lambda x: x  # what is dropped in training is off while it is captured


def _flatten(_made: Edited, _layer: Any) -> Callable[[Any], Any]:
    """In torch's order: channels first."""

    def compute(x: Any) -> Any:
        rank = len(x.shape)
        return tf.reshape(tf.transpose(x, (0, rank - 1, *range(1, rank - 1))), (x.shape[0], -1))

    return compute


def _each(value: Any, axes: int) -> list[int]:
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)] * axes


_STANDARD: dict[str, Callable[..., Callable[[Any], Any]]] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "batchnorm": _batchnorm,
    "layernorm": _layernorm,
    "dropout": _dropout,
    "flatten": _flatten,
}
