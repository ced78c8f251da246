"""Defects of the training step: the same gradients, and other weights after it."""

from __future__ import annotations

from portproof.defects.defect import OPTIMIZER, Defect, Places, anywhere, at, group
from portproof.defects.defect import STEPS as AFTER_STEPS
from portproof.defects.port import Port


def _optimizer(how: str) -> Places:
    return anywhere("optimizer", how=how)


def _trained(port: Port) -> list[str]:
    return [record.layer for record in port.parameters("conv1d", "conv2d", "linear", "einsumdense", "embedding")]


def _defect(name: str, story: str, how: str) -> Defect:
    return Defect(name, story, _optimizer(how), AFTER_STEPS, OPTIMIZER)


STEPS = group(
    "training step",
    _defect(
        "weight-decay-coupled",
        "Weight decay as an L2 penalty in the gradient (Adam with weight_decay) where AdamW decouples it.",
        "decay coupled",
    ),
    _defect("weight-decay-missing", "Adam in place of AdamW: the weights do not decay.", "no decay"),
    _defect(
        "weight-decay-unscaled",
        "Weight decay that is not multiplied by the learning rate, as in the paper and in tensorflow-addons.",
        "decay unscaled",
    ),
    _defect(
        "weight-decay-added",
        "Weight decay in SGD where the original has none: PyTorch's argument defaults to 0.",
        "decay in sgd",
    ),
    _defect(
        "adam-epsilon-inside",
        "Adam's epsilon before the bias correction, as Keras has it, where PyTorch adds it afterwards.",
        "epsilon before the correction",
    ),
    _defect("adam-epsilon-default", "Keras' default epsilon of 1e-7 in place of the original's.", "epsilon 1e-7"),
    _defect(
        "adam-bias-correction-missing",
        "Adam without bias correction, as BERT's original optimizer has it.",
        "no bias correction",
    ),
    _defect(
        "adam-beta-default",
        "Keras' default beta_2 of 0.999 in place of the original's.",
        "beta_2 default",
    ),
    _defect("amsgrad", "AMSGrad switched on: the largest second moment so far.", "amsgrad"),
    _defect("nesterov", "Nesterov momentum where the original's is plain.", "nesterov"),
    _defect(
        "dampened-momentum",
        "Momentum that averages, m v + (1 - m) g, where PyTorch's adds the whole gradient.",
        "dampening",
    ),
    _defect("no-momentum", "SGD without momentum: Keras' default is 0.", "no momentum"),
    _defect("learning-rate-scaled", "A learning rate scaled by the number of replicas or accumulated batches.", "rate"),
    _defect(
        "learning-rate-warmup", "A schedule that begins one step early: the first step has half the rate.", "warmup"
    ),
    _defect("gradients-clipped", "clipnorm=1 left in the optimizer, where the original does not clip.", "clip"),
    Defect(
        "layer-not-updated",
        "A layer's weights are missing from the list that the optimizer was given.",
        at(_trained, "not updated"),
        AFTER_STEPS,
    ),
)
