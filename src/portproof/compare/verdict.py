"""The verdict: a pure function of facts and a policy. Which questions are asked, and how the answers sum up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from portproof.compare import checks, numeric
from portproof.compare.checks import FAIL, PASS, UNKNOWN, Check
from portproof.compare.divergence import Divergence, first_divergence
from portproof.compare.facts import Facts, Measurement, provable
from portproof.compare.policy import Limits, Policy

SAME, DIFFERS, UNDECIDED = "same", "differs", "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``outcome`` is `same`, `differs` or `undecided`; ``divergence`` is the first layer that goes wrong, if any."""

    outcome: str
    summary: str
    checks: tuple[Check, ...]
    divergence: Divergence | None
    policy: Policy

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


# Group of measurements, phase -> name and title of the check. The order is that of the report.
_FUNCTION = (
    ("outputs", "float64.eval", "function-layers", "every layer's output, eval mode, float64"),
    ("inputs", "float64.eval", "function-between", "what reaches the layers, eval mode, float64"),
    ("batches", "float64.forward", "function-batches", "logits of every batch, float64"),
    ("loss", "float64.eval", "function-loss", "loss, eval mode, float64"),
    ("input-gradient", "float64.eval", "function-input-gradient", "gradient of the input, eval mode, float64"),
    ("gradients", "float64.eval", "function-gradients", "gradient of every parameter, eval mode, float64"),
    ("outputs", "float64.train", "training-layers", "every layer's output, training mode, float64"),
    ("inputs", "float64.train", "training-between", "what reaches the layers, training mode, float64"),
    ("loss", "float64.train", "training-loss", "loss, training mode, float64"),
    ("input-gradient", "float64.train", "training-input-gradient", "gradient of the input, training mode, float64"),
    ("gradients", "float64.train", "training-gradients", "gradient of every parameter, training mode, float64"),
    ("buffers", "float64.train", "batchnorm", "BatchNorm statistics after one training step"),
    ("parameters", "float64.sgd", "sgd", "parameters after 5 steps of SGD with momentum"),
    ("buffers", "float64.sgd", "sgd-statistics", "BatchNorm statistics after 5 steps of SGD"),
    ("parameters", "float64.adamw", "adamw", "parameters after 5 steps of AdamW"),
    ("buffers", "float64.adamw", "adamw-statistics", "BatchNorm statistics after 5 steps of AdamW"),
)
_PRECISION = (
    ("outputs", "float64.eval", "precision-layers", "float32 error of every layer's output"),
    ("batches", "float64.forward", "precision-batches", "float32 error of the logits of every batch"),
    ("gradients", "float64.eval", "precision-gradients", "float32 error of every gradient"),
    ("gradients", "float64.train", "precision-training", "float32 error of every gradient, training mode"),
)


def judge(facts: Facts, policy: Policy | None = None) -> Verdict:
    """Answer every question that the facts allow, and sum up."""
    policy = policy or Policy()
    by_group: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in facts.measurements:
        by_group.setdefault((measurement.phase, measurement.group), []).append(measurement)
    limits = Limits.of(facts, policy)
    proof = provable(facts.coarse, facts.unavailable)
    answers = [
        checks.isolation(facts),
        checks.parameters(facts),
        checks.weights(facts),
        checks.stages(facts),
        checks.outputs(facts),
        checks.dropout(facts),
        checks.coverage(facts),
        *checks.finite(facts),
    ]
    if not proof:
        answers.append(checks.no_float64(facts))
    answers += checks.unavailable(facts)
    answers += numeric.gradient_counts(facts, policy)
    for group, phase, name, title in _FUNCTION if proof else ():
        if found := by_group.get((phase, group)):
            answers.append(numeric.function(found, name, title, limits, facts))
    for group, phase, name, title in _PRECISION if proof else ():
        if found := [each for each in by_group.get((phase, group), ()) if None not in (each.error_a, each.error_b)]:
            answers.append(numeric.precision(found, name, title, limits))
    if not proof:
        answers += numeric.fallback(by_group, limits)
        if before := numeric.before_the_cast(facts):
            title = "every layer's output before the first cast, eval mode, float64"
            answers.append(numeric.function(before, "function-layers", title, limits, facts))
        answers.append(checks.not_judged([title for _, _, _, title in (*_FUNCTION, *_PRECISION)]))

    divergence = first_divergence(facts, *questions(facts, policy))
    return _sum_up([check for check in answers if check is not None], divergence, policy, proof)


def questions(facts: Facts, policy: Policy) -> tuple[Callable[[Measurement], bool], Callable[[Measurement], bool]]:
    """Whether a measurement differs by more than its limit, and whether its float32 error is larger than it may be."""
    limits = Limits.of(facts, policy)
    proof = provable(facts.coarse, facts.unavailable)

    def differs(each: Measurement) -> bool:
        return not each.distance.relative <= (limits.beyond(each) if proof else limits.float32(each))

    def imprecise(each: Measurement) -> bool:
        return proof and each.error_b is not None and each.error_b > limits.precision(each)

    return differs, imprecise


def failures(facts: Facts, verdict: Verdict) -> frozenset[str]:
    """Everything that is wrong, as names: measurements by key, checks, and what the structure lists.

    A change of the port is an improvement if this becomes smaller and nothing new is in it. What reaches a layer may
    differ by design, so it counts through the checks alone.
    """
    differs, imprecise = questions(facts, verdict.policy)
    # As where the first divergence is looked for: float32 has to do only where float64 is no proof.
    judged = "float64" if provable(facts.coarse, facts.unavailable) else "float32"
    found = {
        each.key
        for each in facts.measurements
        if each.group != "inputs" and each.phase.startswith(judged) and differs(each)
    }
    found |= {f"imprecise {each.key}" for each in facts.measurements if imprecise(each)}
    found |= {f"check {check.name}" for check in verdict.checks if check.status in (FAIL, UNKNOWN)}
    s = facts.structure
    for name in ("only_a", "only_b", "wrong_shape", "wrong_trainable", "weights_differ"):
        found |= {f"{name} {item}" for item in getattr(s, name)}
    found |= {f"dropout {row['layer']}" for row in facts.settings if row["setting"] == "p"}
    found |= {f"coarse {side} {layer}" for side, layers in facts.coarse.items() for layer in layers}
    return frozenset(found)


def _sum_up(answers: Sequence[Check], divergence: Divergence | None, policy: Policy, proof: bool) -> Verdict:
    failed = [check for check in answers if check.status == FAIL]
    unknown = [check for check in answers if check.status == UNKNOWN and check.name != "float64"]
    if unknown and not failed:
        summary = f"could not be judged: {unknown[0].title}: {unknown[0].value}"
        return Verdict(UNDECIDED, summary, tuple(answers), divergence, policy)
    if failed:
        where = f", first in {divergence.layer}" if divergence else ""
        plural = "check" if len(failed) == 1 else "checks"
        return Verdict(
            DIFFERS, f"not the same model: {len(failed)} {plural} failed{where}", tuple(answers), divergence, policy
        )
    judged = {check.name.partition("-")[0] for check in answers}
    if divergence:
        summary = f"could not be judged: {divergence.layer} differs, and no check covers it"
        return Verdict(UNDECIDED, summary, tuple(answers), divergence, policy)
    if not proof and not any(check.name.startswith("fallback") and check.status == PASS for check in answers):
        summary = (
            "could not be judged: a float64 proof was not possible, and there is nothing in float32 to fall back on"
        )
        return Verdict(UNDECIDED, summary, tuple(answers), divergence, policy)
    summary = "the same model: same function, same precision"
    if not {"function", "training", "sgd", "adamw", "precision"} <= judged:
        summary = "the same outputs in eval mode, layer by layer"
    if "function-layers" not in {check.name for check in answers}:
        summary = "no difference found in what was checked"
    if not proof:
        summary = "no difference found in float32; a float64 proof was not possible"
    return Verdict(SAME, summary, tuple(answers), divergence, policy)
