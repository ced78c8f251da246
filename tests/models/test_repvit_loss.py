"""The distillation loss: both frameworks against the formulas of its papers, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from repvit_sides import both

OWN, DISTILLED, TEACHER = np.random.default_rng(0).normal(size=(3, 4, 6))
LABELS = np.array([0, 5, 2, 2])


def loss(side: str, *, labels: np.ndarray = LABELS, **options: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss, and its gradients by the logits of the distilled head and of the teacher."""
    if side == "torch":
        torch = pytest.importorskip("torch")
        from portproof.models.repvit.torch_loss import distillation_loss

        own, distilled, teacher = (torch.tensor(each, requires_grad=True) for each in (OWN, DISTILLED, TEACHER))
        value = distillation_loss((own, distilled), torch.from_numpy(labels), teacher, **options)
        value.backward()
        given = np.zeros_like(TEACHER) if teacher.grad is None else teacher.grad.numpy()
        return float(value.detach()), distilled.grad.numpy(), given
    tf = pytest.importorskip("tensorflow")
    from portproof.models.repvit.tensorflow_loss import distillation_loss

    own, distilled, teacher = (tf.constant(each) for each in (OWN, DISTILLED, TEACHER))
    with tf.GradientTape() as tape:
        tape.watch([distilled, teacher])
        value = distillation_loss((own, distilled), tf.constant(labels), teacher, **options)
    gradients = tape.gradient(value, [distilled, teacher], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return float(value), gradients[0].numpy(), gradients[1].numpy()


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def cross_entropy(logits: np.ndarray, probabilities: np.ndarray) -> float:
    return float(-(probabilities * log_softmax(logits)).sum(1).mean())


@both
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_hard_labels(side: str, alpha: float) -> None:
    value, _, teacher = loss(side, alpha=alpha)
    one_hot = np.eye(6)
    expected = (1 - alpha) * cross_entropy(OWN, one_hot[LABELS])
    expected += alpha * cross_entropy(DISTILLED, one_hot[TEACHER.argmax(1)])
    assert value == pytest.approx(expected, rel=1e-12)
    assert not teacher.any()


@both
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_labels(side: str, temperature: float) -> None:
    value, gradient, teacher = loss(side, kind="soft", alpha=0.25, temperature=temperature)
    ours, theirs = log_softmax(DISTILLED / temperature), log_softmax(TEACHER / temperature)
    divergence = (np.exp(theirs) * (theirs - ours)).sum() * temperature**2 / DISTILLED.size
    assert value == pytest.approx(0.75 * cross_entropy(OWN, np.eye(6)[LABELS]) + 0.25 * divergence, rel=1e-12)
    # Hinton et al., section 2: the square keeps the gradient's size over temperatures.
    expected = 0.25 * temperature * (np.exp(ours) - np.exp(theirs)) / DISTILLED.size
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    assert not teacher.any()


@both
def test_labels_may_be_probabilities(side: str) -> None:
    mixed = 0.7 * np.eye(6)[LABELS] + 0.3 * np.eye(6)[LABELS[::-1]]
    value, *_ = loss(side, labels=mixed, alpha=0.0)
    assert value == pytest.approx(cross_entropy(OWN, mixed), rel=1e-12)


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "warm"}, "hard or soft"), ({"alpha": 1.5}, r"\[0, 1\]"), ({"temperature": 0.0}, "above 0")],
)
def test_wrong_options(side: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(side, **options)


@both
def test_logits_of_one_head_are_refused(side: str) -> None:
    pytest.importorskip(side)
    module = __import__(f"portproof.models.repvit.{side}_loss", fromlist=["distillation_loss"])
    with pytest.raises(ValueError, match="build with distillation=True, and call in train mode"):
        module.distillation_loss(OWN, LABELS, TEACHER)
