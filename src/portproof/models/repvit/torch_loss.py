"""The distillation loss in PyTorch, with hard and soft teacher labels: a loss, and no recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from portproof.models.repvit.config import check_distillation


def distillation_loss(
    logits: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    kind: str = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> Any:
    """``(1 - alpha) * cross_entropy(classifier, labels) + alpha * distance(classifier_dist, teacher)``, a scalar.

    ``hard``: the distance is the cross-entropy against the teacher's most likely class ("Training data-efficient image
    transformers & distillation through attention", ICML 2021, equation 3). RepViT is trained so, with alpha 0.5.
    ``soft``: it is the Kullback-Leibler divergence from the teacher at ``temperature``, times its square ("Distilling
    the Knowledge in a Neural Network", 2015), divided by the number of logits as in the code of DeiT and RepViT,
    where equation 2 of the paper divides by the batch alone.

    Args:
        logits: those of both heads, (B, classes) each, as the model returns them in train mode.
        labels: classes (B,), int64, or probabilities (B, classes), as mixing images gives them.
        teacher_logits: (B, classes); no gradient flows into them.
        kind: ``hard`` or ``soft``.
        alpha: share of the teacher, in [0, 1].
        temperature: of the soft labels, above 0.

    Raises:
        ValueError: ``logits`` are not those of two heads, or an option is out of its range.
    """
    check_distillation(logits, kind, alpha, temperature)
    own, distilled = logits
    teacher = teacher_logits.detach()
    base = functional.cross_entropy(own, labels)
    if kind == "hard":
        return (1 - alpha) * base + alpha * functional.cross_entropy(distilled, teacher.argmax(1))
    ours, theirs = (functional.log_softmax(each / temperature, 1) for each in (distilled, teacher))
    divergence = (theirs.exp() * (theirs - ours)).sum() * temperature**2 / distilled.numel()
    return (1 - alpha) * base + alpha * divergence
