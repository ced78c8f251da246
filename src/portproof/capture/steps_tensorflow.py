"""What TensorFlow's training phases share: the loss, gradients as arrays, and the steps of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.capture.keras_model import KerasModel, tensors_in
from portproof.plan import ADAMW, SGD, STEPS, Phase

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from portproof.capture.edits_tensorflow import Edited


@dataclass(frozen=True)
class FirstStep:
    """What the first training step gives, for the optimizers: they start from the same weights and batch."""

    gradients: list[NDArray[Any]]
    buffers: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, model: KerasModel, gradients: list[NDArray[Any]]) -> FirstStep:
        """The gradients just computed, and the buffers as the step left them."""
        return cls(gradients, {each.record.name: each.read() for each in model.variables if not each.record.trainable})

    def take(self, model: KerasModel) -> list[NDArray[Any]]:
        """Put the buffers as the step left them; returns the gradients."""
        model.write(self.buffers)
        return self.gradients


def optimize(model: KerasModel, phase: Phase, edits: Edited, first: FirstStep | None) -> FirstStep:
    """Take `STEPS` steps of the phase's optimizer on the main batch; returns what the first one gave.

    ``first`` is what another phase already knows of the first step.
    """
    inputs = model.inputs("main")
    trainable = model.trainable()
    variables = [each.variable for each in trainable]
    # One flat variable instead of hundreds: these optimizers work element by element, so the numbers are the same,
    # and Keras' cost per variable (0.4 s a step on RepViT KWS) is paid once.
    flat = _keras_variable(_flattened(variables))
    ends = np.cumsum([each.record.size for each in trainable])[:-1]
    if phase.optimizer == "sgd":
        optimizer = tf.keras.optimizers.SGD(SGD["learning_rate"], momentum=SGD["momentum"])
    else:
        optimizer = tf.keras.optimizers.AdamW(**ADAMW)
    for step in range(1, STEPS + 1):
        if step == 1 and first:
            gradients = first.take(model)
        else:
            with tf.GradientTape() as tape:
                outputs = list(tensors_in(model.call(inputs, training=True)))
                loss = edits.objective(objective(outputs, phase.objective), outputs)
            gradients = as_arrays(variables, tape.gradient(loss, variables))
        if step == 1:
            first = FirstStep.of(model, gradients)
        if phase.optimizer == "adamw":
            # Keras adds epsilon to the square root of the raw second moment, torch to that of the corrected one.
            optimizer.epsilon = ADAMW["epsilon"] * (1 - ADAMW["beta_2"] ** step) ** 0.5
        edits.optimizer(optimizer, step)
        before = [np.asarray(variable) for variable in variables]
        given = edits.gradients(gradients, before)
        optimizer.apply_gradients([(tf.constant(_flattened(given)), flat)])
        parts = [part.reshape(old.shape) for old, part in zip(before, np.split(np.asarray(flat), ends), strict=True)]
        after = edits.updated(before, parts)
        if after is not parts:
            flat.assign(_flattened(after))
        for variable, part in zip(variables, after, strict=True):
            variable.assign(part)
    assert first is not None  # STEPS is not 0
    return first


def objective(outputs: Sequence[Any], which: str) -> Any:
    """The scalar that is differentiated: the mean of the first output, or the loss that plan.py states."""
    if which == "mean":
        return tf.reduce_mean(outputs[0])
    total = tf.zeros((), outputs[0].dtype)
    for output in outputs:
        if not output.dtype.is_floating:
            continue
        if len(output.shape) == 2 and output.shape[1] > 1:
            labels = tf.range(output.shape[0]) % output.shape[1]
            total += tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, output))
        else:
            total += tf.reduce_mean(output * output) / 2
    return total


def as_arrays(sources: Sequence[Any], gradients: Sequence[Any]) -> list[NDArray[Any]]:
    """Gradients as arrays in the framework's layout; zeros for sources that the objective does not depend on."""
    return [
        np.zeros(source.shape, tf.as_dtype(source.dtype).as_numpy_dtype)
        if gradient is None
        else np.asarray(tf.convert_to_tensor(gradient))
        for source, gradient in zip(sources, gradients, strict=True)
    ]


def _keras_variable(value: NDArray[Any]) -> Any:
    keras_3 = getattr(tf.keras, "Variable", None)
    return keras_3(value, dtype=value.dtype.name) if keras_3 else tf.Variable(value)


def _flattened(arrays: Sequence[Any]) -> NDArray[Any]:
    return np.concatenate([np.asarray(each).reshape(-1) for each in arrays])
