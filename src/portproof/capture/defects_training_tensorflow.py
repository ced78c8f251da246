"""Edits of a Keras model that plant defects in gradients, the loss, an optimizer, and in the precision of float32."""

# mypy: allow-untyped-decorators
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.capture.edits_tensorflow import Edited, edit
from portproof.capture.rewrites import as_mantissa, rewritten
from portproof.capture.steps_tensorflow import objective
from portproof.errors import InputError
from portproof.plan import ADAMW, SGD
from portproof.trace import MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = list[NDArray[Any]]

_ACCIDENTAL_DECAY = 2.0**-5


@edit("stop gradient")
def _stop_gradient(made: Edited, paths: Sequence[str]) -> None:
    """Let no gradient pass through the layers."""
    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: tf.stop_gradient(call(*args, **kwargs)))


@edit("scale gradient")
def _scale_gradient(made: Edited, paths: Sequence[str], *, factor: float) -> None:
    """Scale the gradient that passes through the layers; their outputs stay bit for bit what they are."""

    @tf.custom_gradient
    def scaled(x: Any) -> Any:
        return tf.identity(x), lambda upstream: upstream * factor

    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: scaled(call(*args, **kwargs)))


@edit("loss")
def _loss(made: Edited, _: Sequence[str], *, how: str) -> None:
    """Differentiate another loss."""
    mode = {"training": False}

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        mode["training"] = bool(kwargs.get("training"))
        return original(*args, **kwargs)

    def wrong(scalar: Any, outputs: Sequence[Any]) -> Any:
        if how == "sum":
            return scalar * float(outputs[0].shape[0])
        if how == "scaled":
            return scalar * 1024.0
        if how == "of probabilities":
            return objective([tf.nn.softmax(each) if len(each.shape) == 2 else each for each in outputs], "loss")
        if how == "regularized in training":
            return scalar + 0.01 * tf.reduce_mean(outputs[0] ** 2) if mode["training"] else scalar
        raise InputError(f"There is no wrong loss {how!r}.")

    made.wrap(MODEL, call)
    made.on_objective(wrong)


@edit("not updated")
def _not_updated(made: Edited, paths: Sequence[str]) -> None:
    """Let an optimizer leave out the layers' parameters."""
    left_out = [each.record.layer in paths for each in made.model.trainable()]
    made.on_update(
        lambda before, after: [
            old if out else new for old, new, out in zip(before, after, left_out, strict=True)
        ]
    )  # fmt: skip


@edit("optimizer")
def _optimizer(made: Edited, _: Sequence[str], *, how: str) -> None:
    """Let an optimizer take other steps; each of the names in `OPTIMIZERS` changes one of the two."""
    if how not in OPTIMIZERS:
        raise InputError(f"There is no wrong optimizer {how!r}; there are {', '.join(OPTIMIZERS)}.")
    which, change = OPTIMIZERS[how]
    now: dict[str, Any] = {"name": "", "step": 0}

    def on_optimizer(optimizer: Any, step: int) -> None:
        now.update(name=type(optimizer).__name__.lower(), step=step)
        if which in ("", now["name"]):
            change(optimizer, step)

    def on_gradients(gradients: Arrays, parameters: Arrays) -> Arrays:
        other = GRADIENTS.get(how)
        applies = other is not None and which in ("", now["name"])
        return other(gradients, parameters, now["step"]) if other and applies else gradients

    made.on_optimizer(on_optimizer)
    made.on_gradients(on_gradients)


def _set(**attributes: Any) -> Callable[[Any, int], None]:
    def change(optimizer: Any, _: int) -> None:
        for name, value in attributes.items():
            setattr(optimizer, name, value)

    return change


def _nothing(_optimizer: Any, _step: int) -> None:
    pass


def _without_correction(optimizer: Any, step: int) -> None:
    """Keras multiplies the rate by the correction: divide it out, but not from the weight decay."""
    correction = (1 - ADAMW["beta_2"] ** step) ** 0.5 / (1 - ADAMW["beta_1"] ** step)
    optimizer.learning_rate = ADAMW["learning_rate"] / correction
    optimizer.weight_decay = ADAMW["weight_decay"] * correction
    optimizer.epsilon = ADAMW["epsilon"]


def _small_epsilon(optimizer: Any, step: int) -> None:
    optimizer.epsilon = 1e-7 * (1 - ADAMW["beta_2"] ** step) ** 0.5


def _other_beta(optimizer: Any, step: int) -> None:
    optimizer.beta_2 = 0.999
    optimizer.epsilon = ADAMW["epsilon"] * (1 - 0.999**step) ** 0.5


def _doubled_rate(optimizer: Any, step: int) -> None:
    if step == 1:
        optimizer.learning_rate = 2.0 * float(optimizer.learning_rate)


def _warm_up(optimizer: Any, step: int) -> None:
    if step <= 2:
        optimizer.learning_rate = (0.5 if step == 1 else 2.0) * float(optimizer.learning_rate)


# Name -> the optimizer that it is about (both where empty), and what is done to it before each step.
OPTIMIZERS: dict[str, tuple[str, Callable[[Any, int], None]]] = {
    "decay coupled": ("adamw", _set(weight_decay=0.0)),
    "no decay": ("adamw", _set(weight_decay=0.0)),
    "decay unscaled": ("adamw", _set(weight_decay=ADAMW["weight_decay"] / ADAMW["learning_rate"])),
    "decay in sgd": ("sgd", _set(weight_decay=_ACCIDENTAL_DECAY)),
    "epsilon before the correction": ("adamw", _set(epsilon=ADAMW["epsilon"])),
    "epsilon 1e-7": ("adamw", _small_epsilon),
    "no bias correction": ("adamw", _without_correction),
    "beta_2 default": ("adamw", _other_beta),
    "amsgrad": ("adamw", _set(amsgrad=True)),
    "nesterov": ("sgd", _set(nesterov=True)),
    "dampening": ("sgd", _nothing),
    "no momentum": ("sgd", _set(momentum=0.0)),
    "rate": ("", _doubled_rate),
    "warmup": ("", _warm_up),
    "clip": ("", _nothing),
}


def _decayed(gradients: Arrays, parameters: Arrays, _: int) -> Arrays:
    return [each + ADAMW["weight_decay"] * value for each, value in zip(gradients, parameters, strict=True)]


def _dampened(gradients: Arrays, _: Arrays, step: int) -> Arrays:
    return gradients if step == 1 else [each * (1.0 - SGD["momentum"]) for each in gradients]


def _clipped(gradients: Arrays, _: Arrays, __: int) -> Arrays:
    return [each / max(float(np.linalg.norm(each)), 1.0) for each in gradients]


# What else is done, to the gradients that it gets: function(gradients, parameters, step).
GRADIENTS: dict[str, Callable[[Arrays, Arrays, int], Arrays]] = {
    "decay coupled": _decayed,
    "dampening": _dampened,
    "clip": _clipped,
}

_MANTISSA = {"tf32": 10, "bfloat16": 7}  # bits


@edit("round inputs")
def _round_inputs(made: Edited, paths: Sequence[str], *, to: str) -> None:
    """In float32, let layers multiply coarser numbers: both the input and the kernel are rounded."""
    for path in paths:
        made.wrap(path, lambda call, x, *args, **kwargs: call(_rounded(x, to), *args, **kwargs))
    _round_kernel(made, paths, to=to)


@edit("round output")
def _round_output(made: Edited, paths: Sequence[str], *, to: str) -> None:
    """In float32, let layers give coarser numbers."""
    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: _rounded(call(*args, **kwargs), to))


@edit("round kernel")
def _round_kernel(made: Edited, paths: Sequence[str], *, to: str) -> None:
    """In float32, let layers compute with coarser kernels."""
    if made.model.precision != "float32":
        return
    names = [each.record.name for each in made.model.variables if each.record.layer in paths]
    names = [name for name in names if name.endswith("weight")]
    if to in _MANTISSA:
        made.on_values(lambda values: values | {name: as_mantissa(values[name], _MANTISSA[to]) for name in names})
    else:
        made.on_values(lambda values: rewritten(values, names, to))


@tf.custom_gradient
def _through(x: Any, rounded: Any) -> Any:
    """``rounded``, with the gradient of ``x``: as hardware rounds, which no gradient knows of."""
    return tf.identity(rounded), lambda upstream: (upstream, None)


def _rounded(x: Any, to: str) -> Any:
    if x.dtype != tf.float32:
        return x
    value = as_mantissa(x.numpy(), _MANTISSA[to]) if to in _MANTISSA else tf.cast(tf.cast(x, tf.float16), tf.float32)
    return _through(x, tf.constant(value))
