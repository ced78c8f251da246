"""The distillation loss in TensorFlow, with hard and soft teacher labels: a loss, and no recipe."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from portproof.models.repvit.config import check_distillation


def distillation_loss(
    logits: tuple[Any, Any],
    labels: Any,
    teacher_logits: Any,
    *,
    kind: str = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> Any:
    """``(1 - alpha) * cross_entropy(classifier, labels) + alpha * distance(classifier_dist, teacher)``, a scalar.

    The same function as `portproof.models.repvit.torch_loss.distillation_loss`, where the sources stand.

    Args:
        logits: those of both heads, (B, classes) each, as the model returns them with ``training=True``.
        labels: classes (B,), integers, or probabilities (B, classes), as mixing images gives them.
        teacher_logits: (B, classes); no gradient flows into them.
        kind: ``hard`` or ``soft``.
        alpha: share of the teacher, in [0, 1].
        temperature: of the soft labels, above 0.

    Raises:
        ValueError: ``logits`` are not those of two heads, or an option is out of its range.
    """
    check_distillation(logits, kind, alpha, temperature)
    own, distilled = logits
    teacher = tf.stop_gradient(teacher_logits)
    base = _cross_entropy(own, labels)
    if kind == "hard":
        return (1 - alpha) * base + alpha * _cross_entropy(distilled, tf.argmax(teacher, 1))
    ours, theirs = (tf.nn.log_softmax(each / temperature) for each in (distilled, teacher))
    divergence = tf.reduce_sum(tf.exp(theirs) * (theirs - ours)) * temperature**2
    divergence /= tf.cast(tf.size(distilled), divergence.dtype)
    return (1 - alpha) * base + alpha * divergence


def _cross_entropy(logits: Any, labels: Any) -> Any:
    if len(labels.shape) == 1:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
