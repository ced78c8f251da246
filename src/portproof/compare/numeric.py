"""Checks of values: tensors of both sides against the limits of policy.py, one question each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from portproof.compare.checks import FAIL, NOTE, PASS, UNKNOWN, Check
from portproof.compare.facts import MODEL, Facts, Measurement
from portproof.compare.policy import DEAD_LAYER, GRADIENTS_AGREE, Limits, Policy

_BACKWARD = ("gradients", "input-gradient", "parameters", "buffers")


def function(found: Sequence[Measurement], name: str, title: str, limits: Limits, facts: Facts) -> Check:
    """Same function: tensors of both sides in float64, each against its own limit.

    What reaches a layer may differ by design: a port may do in front of it what the original does inside, such as
    padding. Then the layer's outputs agree, and the difference is a note. What rounding alone may have made of a tensor
    is not judged, and what is zero on both sides tells nothing: both are said.
    """
    limit = limits.function
    differing = [each for each in found if not each.distance.relative <= limit(each)]
    designed = _made_up_for(differing, facts, limit)
    wrong = [
        each for each in differing if each.key not in designed and not each.distance.relative <= limits.beyond(each)
    ]
    hidden = [each for each in differing if each.key not in designed and each not in wrong]
    idle = [each for each in found if each.distance.scale == 0 and each.distance.relative == 0]
    judged = [each for each in found if each.key not in designed] or list(found)
    worst = max(judged, key=lambda each: _order(each.distance.relative / limit(each), each))
    details = [_pair(each) for each in wrong[:8]] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
    details += [
        f"{each.name}: reaches the layer otherwise, and its output agrees" for each in differing if each.key in designed
    ]
    details += [
        f"{each.name}: not judged: {_number(each.distance.relative)}, which may be rounding, so far does the original "
        f"amplify it (its float32 error: {_number(each.error_a or limits.overall)})"
        for each in hidden[:8]
    ]
    if idle:
        names = ", ".join(each.name for each in idle[:8]) + (", ..." if len(idle) > 8 else "")
        details.append(f"zero on both sides, which tells nothing: {len(idle)} of {len(found)}: {names}")
    if hidden:
        details += _flat(facts, "float64.train")
    if name == "batchnorm":
        details = [*_rules(facts), *details]
    bad = [each for each in found if each.distance.bad_a and each.distance.bad_b]
    if bad and bad[0].group in _BACKWARD and not wrong:  # of a forward pass, `finite` speaks
        details.append(f"NaN or Inf on both sides: {', '.join(each.name for each in bad[:8])}")
        return Check(name, title, UNKNOWN, f"{len(bad)} with NaN or Inf", "finite", details=tuple(details))
    unjudged = hidden or len(idle) == len(found)
    return Check(
        name=name,
        title=title,
        status=FAIL if wrong else UNKNOWN if unjudged else NOTE if designed or idle else PASS,
        value="all zero" if len(idle) == len(found) else _number(worst.distance.relative),
        limit=_number(limit(worst)),
        where=worst.name,
        count=len(found),
        details=tuple(details),
        measured=worst.distance.relative,
        allowed=limit(worst),
    )


def _order(share: float, each: Measurement) -> tuple[float, str]:
    """For finding the worst: NaN is worse than anything, and compares with nothing; the name settles the rest."""
    return math.inf if math.isnan(share) else share, each.name


def _made_up_for(
    differing: Sequence[Measurement], facts: Facts, limit: Callable[[Measurement], float]
) -> frozenset[str]:
    """The keys of inputs that differ although every output of the layers that take them agrees."""
    inputs = {each.key for each in differing if each.group == "inputs"}
    if not inputs:
        return frozenset()
    agreeing = {each.key for each in facts.measurements if each.distance.relative <= limit(each)}
    calls = [call for rows in facts.calls.values() for call in rows]
    needed = {key for call in calls if not agreeing.issuperset(call.outputs) for key in call.inputs}
    taken = {key for call in calls for key in call.inputs}
    return frozenset(inputs & taken - needed)


def precision(found: Sequence[Measurement], name: str, title: str, limits: Limits) -> Check:
    """Same precision: the port's float32 errors against the original's, where those say anything."""
    limit = limits.precision
    # Where the original's value is finite, a NaN of the port is judged in any case.
    unjudged = [
        each
        for each in found
        if limits.is_open(each) and (math.isfinite(each.error_b or 0.0) or not math.isfinite(each.error_a or 0.0))
    ]
    judged = [each for each in found if each not in unjudged] or list(found)
    worst = max(judged, key=lambda each: _order((each.error_b or 0.0) / limit(each), each))
    wrong = [each for each in found if each not in unjudged and not (each.error_b or 0.0) <= limit(each)]
    details = [
        f"{each.name}: {_number(each.error_b or 0)}, original {_number(each.error_a or 0)}" for each in wrong[:8]
    ]
    if unjudged:
        names = ", ".join(each.name for each in unjudged[:8]) + (", ..." if len(unjudged) > 8 else "")
        details.append(
            f"not judged, for the original's own float32 error is too large: {len(unjudged)} of {len(found)}: {names}"
        )
    return Check(
        name=name,
        title=title,
        status=FAIL if wrong else UNKNOWN if len(unjudged) == len(found) else NOTE if unjudged else PASS,
        value=f"{_number(worst.error_b or 0.0)} (original {_number(worst.error_a or 0.0)})",
        limit=_number(limit(worst)),
        where=worst.name,
        count=len(found),
        details=tuple(details),
        measured=worst.error_b or 0.0,
        allowed=limit(worst),
    )


def fallback(by_group: dict[tuple[str, str], list[Measurement]], limits: Limits) -> Iterator[Check]:
    """Without a float64 proof: float32 against float32, judged by the original's own rounding where it is known."""
    for group, phase, name, title in (
        ("outputs", "float32.eval", "fallback-layers", "every layer's output, float32 (no float64 proof)"),
        ("batches", "float32.forward", "fallback-batches", "logits of every batch, float32 (no float64 proof)"),
        ("gradients", "float32.eval", "fallback-gradients", "gradient of every parameter, float32 (no float64 proof)"),
        ("gradients", "float32.train", "fallback-training", "gradients in training mode, float32 (no float64 proof)"),
        ("buffers", "float32.train", "fallback-statistics", "BatchNorm running means, float32 (no float64 proof)"),
    ):
        found = by_group.get((phase, group), [])
        if group == "buffers":  # the rule of the running variance is measured in float64 alone
            found = [each for each in found if not each.name.endswith("running_var")]
        if found:
            limit = limits.float32
            worst = max(found, key=lambda each: _order(each.distance.relative / limit(each), each))
            wrong = [each for each in found if not each.distance.relative <= limit(each)]
            yield Check(
                name,
                title,
                FAIL if wrong else PASS,
                _number(worst.distance.relative),
                _number(limit(worst)),
                worst.name,
                len(found),
                tuple(_pair(each) for each in wrong[:8]),
                worst.distance.relative,
                limit(worst),
            )


def before_the_cast(facts: Facts) -> list[Measurement]:
    """Layer outputs that no cast to a lower precision can have reached: those before the first layer that casts."""
    if any("float64.eval" in phases for phases in facts.unavailable.values()):
        return []
    coarse = {*facts.coarse["a"], *facts.coarse["b"]}
    if MODEL in coarse:  # the model's own code casts, anywhere between its layers
        return []
    keys: list[str] = []
    for call in facts.calls.get("float64.eval", ()):
        # A layer that casts, or a part of one.
        if any(f"{name}.".startswith(f"{each}.") for name in (call.layer, call.other) for each in coarse):
            break
        keys += call.outputs
    return [each for each in facts.measurements if each.key in set(keys)]


def gradient_counts(facts: Facts, policy: Policy) -> Iterator[Check]:
    """Which parameters have a gradient, on both sides."""
    titles = {
        "float32.count": (
            "count-original",
            "non-zero gradients of mean(output), training mode, float32, noise included",
        ),
        "float64.count-eval": ("count-eval", "live gradients of mean(output), eval mode, float64"),
        "float64.count-train": ("count-train", "live gradients of the loss, training mode, float64"),
    }
    for phase, sides in facts.gradient_maxima.items():
        name, title = titles[phase]
        least = 0.0 if name == "count-original" else policy.dead
        shares = [_shares(sides[side], facts.layers_of, least) for side in ("a", "b")]
        live_a, live_b = (frozenset(name for name, share in side.items() if share > 1) for side in shares)
        differing = sorted(live_a ^ live_b)
        # Nearest to the limit: of tensors that only one side counts, the least; of noise on both sides, the largest.
        noise = [max(side.get(name, 0.0) for side in shares) for name in sides["a"] if name not in live_a | live_b]
        nearest = min(
            (max(side.get(name, 0.0) for side in shares) for name in differing), default=max(noise, default=0.0)
        )
        wrong = len(live_a) != len(live_b) if name == "count-original" else bool(differing)
        # What is counted in float32 is partly rounding noise, so a difference there is shown and not judged.
        status = PASS if not wrong else NOTE if name == "count-original" else FAIL
        details = [f"{each}: live only in the {'original' if each in live_a else 'port'}" for each in differing[:8]]
        if name != "count-original" and sides["a"] and _only_noise(facts, phase, policy, live_a & live_b):
            status = UNKNOWN
            details = ["not judged: the gradients are zero, or rounding noise as a whole", *details]
        elif status == FAIL and phase in facts.flat:
            status, details = UNKNOWN, [*_flat(facts, phase), *details]
        yield Check(
            name,
            title,
            status,
            str(len(live_b)),
            str(len(live_a)),
            count=len(sides["a"]),
            details=tuple(details),
            measured=nearest if least else None,
            allowed=1.0 if least else None,
        )


def _flat(facts: Facts, phase: str) -> list[str]:
    found = ", ".join(facts.flat.get(phase, ())[:8])
    return [f"not judged, for BatchNorms divide rounding, as their channels do not vary: {found}"] if found else []


def _only_noise(facts: Facts, phase: str, policy: Policy, live: frozenset[str]) -> bool:
    """Whether the gradients are rounding noise as a whole, and so have no scale by which one could be called zero.

    Where all entries of a batch are equal, the loss may be at its minimum, or each gradient a sum that cancels, while
    BatchNorms without any variance amplify what is left. So next to the loss nothing is there, or the two sides do not
    agree on most of what both call ``live``.
    """
    values = (each.distance.scale for each in facts.measurements if (each.phase, each.group) == (phase, "loss"))
    sides = facts.gradient_maxima[phase]
    largest = max(maximum for side in sides.values() for maximum in side.values())
    pairs = [(sides["a"][name], sides["b"][name]) for name in live]
    apart = sum(abs(x - y) > GRADIENTS_AGREE * max(x, y) for x, y in pairs)
    return largest <= policy.dead * max(values, default=0.0) or 2 * apart > len(pairs)


def _shares(maxima: dict[str, float], layers_of: dict[str, str], least: float) -> dict[str, float]:
    """Each tensor's largest gradient over what counts as rounding noise: a share of the largest of its layer."""
    largest: dict[str, float] = {}
    for name, value in maxima.items():
        layer = layers_of.get(name, "")
        largest[layer] = max(largest.get(layer, 0.0), value)
    overall = max(largest.values(), default=0.0)
    # A layer that is noise as a whole has nothing of its own to be judged by.
    floor = {layer: max(value * least, overall * least * DEAD_LAYER) for layer, value in largest.items()}
    return {
        name: value / floor[layers_of.get(name, "")] if floor[layers_of.get(name, "")] else math.inf if value else 0.0
        for name, value in maxima.items()
    }


def _rules(facts: Facts) -> list[str]:
    rules = {(rule["rule_a"], rule["rule_b"]) for rule in facts.batchnorm}
    if len(rules) == 1:
        a, b = next(iter(rules))
        same = "" if a == b else ", which is the frameworks' and was taken out before comparing"
        return [f"running variance: {a} in the original, {b} in the port{same}"]
    return [
        f"running variance of {rule['layer']}: {rule['rule_a']} in the original, {rule['rule_b']} in the port"
        for rule in facts.batchnorm[:8]
    ]


def _pair(each: Measurement) -> str:
    at = f" at {list(each.distance.worst)}" if each.distance.worst else ""
    if each.distance.shape_a != each.distance.shape_b:
        return f"{each.name}: shapes {each.distance.shape_a} and {each.distance.shape_b}"
    return (
        f"{each.name}: {_number(each.distance.relative)}, worst{at}: "
        f"{each.distance.worst_a:.9g} and {each.distance.worst_b:.9g}"
    )


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"
