"""Defects of gradients and the loss: the same outputs, learning something else."""

from __future__ import annotations

from portproof.defects.defect import LOSS, TRAIN, Defect, anywhere, at, group
from portproof.defects.port import Port

_WITH_GRADIENT = (
    "conv1d", "conv2d", "linear", "einsumdense", "batchnorm", "layernorm", "gelu", "relu", "silu", "sigmoid",
)  # fmt: skip


def _differentiable(port: Port) -> list[str]:
    """Layers behind the first one that has parameters: in front of it a stopped gradient stops nothing."""
    found = port.of_kind(*_WITH_GRADIENT)
    return found[1:]


def _trained(port: Port) -> list[str]:
    return [record.layer for record in port.parameters("conv1d", "conv2d", "linear", "einsumdense", "embedding")]


GRADIENT = group(
    "gradient",
    Defect(
        "stopped-gradient",
        "tf.stop_gradient left in, or a value that went through NumPy: `detach()` was meant for one branch.",
        at(_differentiable, "stop gradient"),
    ),
    Defect(
        "half-the-gradient",
        "A gradient scaled on its way back: a custom_gradient written for another definition.",
        at(_differentiable, "scale gradient", factor=0.5),
    ),
    Defect(
        "frozen-layer",
        "trainable=False, left from fine-tuning.",
        at(_trained, "freeze"),
    ),
    Defect(
        "loss-summed",
        "The loss as a sum over the batch where the original takes the mean.",
        anywhere("loss", how="sum"),
        about=LOSS,
    ),
    Defect(
        "loss-scaled",
        "A loss scale that is not divided out again before the step, as with mixed precision.",
        anywhere("loss", how="scaled"),
        about=LOSS,
    ),
    Defect(
        "loss-of-probabilities",
        "Softmax twice: from_logits=False means probabilities, and from_logits=True was given some.",
        anywhere("loss", how="of probabilities"),
        about=LOSS,
    ),
    Defect(
        "loss-regularized",
        "An L2 penalty of the outputs that Keras adds from a layer's activity_regularizer, in training alone.",
        anywhere("loss", how="regularized in training"),
        TRAIN,
        about=LOSS,
    ),
)
