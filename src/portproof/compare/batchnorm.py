"""BatchNorm's running variance: which rule each side follows, measured from its own data, and taken out.

torch updates the running variance with the unbiased variance of the batch (n - 1 in the denominator), Keras 3 with the
biased one, fused layers of Keras 2 with the unbiased one again. The frameworks differ by design, by a factor of
n/(n-1); everything else about the statistics has to agree to rounding. So the rule is found out, stated, and removed:
with momentum m, k steps leave ``(1-m)^k start + factor * (what the batches brought)``, and the factor is divided out.

A rule is a side's as a whole: where one layer follows neither the other side's rule nor that of most of its own side's
layers, no framework explains it, and nothing is taken out of it. Layers whose inputs have the same rank are one set:
Keras 2 fuses BatchNorms of images, and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.measure import dot
from portproof.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from portproof.compare.pairing import Pairs

BIASED, UNBIASED = "biased", "unbiased"
_PHASE = "float64.train"
# The measured factor is 1 or n/(n-1) to far better than this; n is rarely above 1e5.
_TOLERANCE = 1e-7
_FLAT = 2.0**-40  # of its size, what a channel varies by at least if it is more than rounding (2^-53 an operation)


def measured_rules(pairs: Pairs) -> list[dict[str, Any]]:
    """For every BatchNorm that both sides ran in training mode: momentum, n, and the rule of each side."""
    rules = list(_each(pairs))
    for side, trace in (("a", pairs.a), ("b", pairs.b)):
        ranks = [_rank(trace, rule["layer" if side == "a" else "other"]) for rule in rules]
        for rank in set(ranks):
            _hold_to_the_usual([rule for rule, each in zip(rules, ranks, strict=True) if each == rank], side)
    return rules


def _hold_to_the_usual(rules: list[dict[str, Any]], side: str) -> None:
    """Give layers that depart from their side's usual rule the factor of that rule, which leaves their difference."""
    known = Counter(rule[f"rule_{side}"] for rule in rules if rule[f"rule_{side}"] in (BIASED, UNBIASED))
    ((usual, count), *others) = known.most_common() or [("", 0)]
    if not others or others[0][1] == count:  # one rule, or nothing to say which of two is the usual one
        return
    for rule in rules:
        departs = rule[f"rule_{side}"] in (BIASED, UNBIASED) and rule[f"rule_{side}"] != usual
        if departs and rule["rule_a"] != rule["rule_b"]:
            rule[f"factor_{side}"] = rule["n"] / (rule["n"] - 1) if usual == UNBIASED else 1.0
            rule[f"rule_{side}"] += f", unlike the {usual} one of most layers"


def _rank(trace: Trace, layer: str) -> int:
    info = trace.manifest.tensors.get(f"{_PHASE}/output/{layer}")
    return len(info.shape) if info else 0


def _each(pairs: Pairs) -> Iterator[dict[str, Any]]:
    for layer in pairs.a.names(_PHASE, "batch-variance"):
        other = pairs.layers.pairs.get(layer)
        if other is None or f"{_PHASE}/batch-variance/{other}" not in pairs.b:
            continue
        momentum_a, rule_a, factor_a = _rule(pairs.a, layer)
        momentum_b, rule_b, factor_b = _rule(pairs.b, other)
        yield {
            "layer": layer,
            "other": other,
            "n": int(pairs.a.tensor(f"{_PHASE}/batch-count/{layer}")),
            "momentum_a": momentum_a,
            "momentum_b": momentum_b,
            "rule_a": rule_a,
            "rule_b": rule_b,
            "factor_a": factor_a,
            "factor_b": factor_b,
        }


def flat_layers(trace: Trace, phase: str) -> Iterator[str]:
    """BatchNorms most of whose channels are one value throughout the batch, but for its rounding.

    What they return in training mode is that rounding, divided by the square root of eps: other rounding, other values.
    A channel of zeros has none.
    """
    for layer, variance in trace.items(phase, "batch-variance"):
        key = f"{phase}/batch-square/{layer}"
        if key in trace:
            square = trace.tensor(key)
            if np.mean((square > 0) & (variance <= _FLAT**2 * square)) > 0.5:
                yield layer


def without_rule(
    variance: NDArray[Any], start: NDArray[Any], momentum: float, steps: int, factor: float
) -> NDArray[Any]:
    """The running variance as the biased rule would have left it.

    Args:
        variance: the running variance after ``steps`` updates, shape (C,).
        start: the running variance before, shape (C,).
        momentum: torch's, the share of the new batch.
        steps: number of updates.
        factor: 1 for the biased rule, n/(n-1) for the unbiased one.
    """
    kept = (1.0 - momentum) ** steps * start
    return kept + (variance - kept) / factor


def _rule(trace: Trace, layer: str) -> tuple[float | None, str, float]:
    """Momentum, name and factor of the rule that one side's layer follows."""
    settings = next(record.settings for record in trace.manifest.layers if record.name == layer)
    momentum = settings.get("momentum")
    after = f"{_PHASE}/buffer/{layer}.running_var"
    if not isinstance(momentum, (int, float)) or momentum == 0 or after not in trace:
        return None, "none", 1.0
    n = float(trace.tensor(f"{_PHASE}/batch-count/{layer}"))
    batch = trace.tensor(f"{_PHASE}/batch-variance/{layer}").astype(np.float64)
    start = trace.tensor(f"weights/excited/{layer}.running_var").astype(np.float64)
    brought = (trace.tensor(after).astype(np.float64) - (1.0 - momentum) * start) / momentum
    square = dot(batch, batch)
    factor = dot(brought, batch) / square if square > 0 else 1.0
    if abs(factor - 1.0) <= _TOLERANCE:
        return momentum, BIASED, 1.0
    if n > 1 and abs(factor - n / (n - 1)) <= _TOLERANCE:
        return momentum, UNBIASED, n / (n - 1)
    return momentum, f"neither (factor {factor:.6g} at n = {n:.0f})", 1.0
