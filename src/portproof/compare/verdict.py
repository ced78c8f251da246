"""The verdict: a pure function of facts and a policy. Every rule and every limit stands in this file.

Limits are not guessed. In float64 two equal functions differ by rounding alone, about 1e-15 per operation; 1e-12 is
generous for a whole network, and a BatchNorm eps of 1.001e-5 instead of 1e-5 stands five orders of magnitude above it.
A network that amplifies rounding shows by how much in its own float32 run, and the limit follows. In float32 each side
is held against its own float64 run: two honest implementations err by the same order, TF32 or bfloat16 do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from portproof.compare.divergence import Divergence, first_divergence
from portproof.compare.facts import Facts, Measurement, provable
from portproof.errors import InputError

SAME, DIFFERS, UNDECIDED = "same", "differs", "undecided"
PASS, FAIL, NOTE, UNKNOWN = "pass", "fail", "note", "unknown"
_FLOAT32_TO_FLOAT64 = 2.0**-29  # the ratio of the two precisions' units in the last place
_FLOAT32_ULP = 2.0**-24
_WORDS = {"a": "original", "b": "port"}


@dataclass(frozen=True, slots=True)
class Policy:
    """What two models may differ by. All values are relative to a tensor's norm.

    ``float64``: the least limit of the float64 checks. ``conditioning``: how much more than its share of the float32
    error (2^-29 of it) a tensor may differ in float64, for networks that amplify rounding; never above
    ``float64_most``. ``precision``: how much larger than the reference's float32 error the port's may be, once it is
    above ``precision_floor``. ``dead``: a gradient below this share of its layer's largest counts as zero. ``float32``:
    the last resort, where neither a float64 proof nor the original's float32 error can be had; it is a guess.
    """

    float64: float = 1e-12
    conditioning: float = 64.0
    float64_most: float = 1e-9
    precision: float = 16.0
    precision_floor: float = 16 * _FLOAT32_ULP
    dead: float = 1e-9
    float32: float = 1e-4

    @classmethod
    def from_mapping(cls, values: dict[str, Any], source: str) -> Policy:
        """From a parsed policy file; raises `InputError` for unknown names and for anything but positive numbers."""
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"{source}: no such limit: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InputError(f"{source}: {name} needs to be a positive number, not {value!r}.")
        return cls(**{name: float(value) for name, value in values.items()})


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. ``value`` and ``limit`` are those of the tensor that came closest to its limit."""

    name: str
    title: str
    status: str
    value: str = ""
    limit: str = ""
    where: str = ""
    count: int = 0
    details: tuple[str, ...] = ()


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
    overall = _overall_error(facts)
    limit = partial(limit64, policy=policy, overall=overall)
    proof = provable(facts.coarse, facts.unavailable)
    checks = [_isolation(facts), _parameters(facts), _weights(facts), _stages(facts), _coverage(facts)]
    checks += _finite(facts)
    if not proof:
        checks.append(_no_float64(facts))
    checks += _unavailable(facts)
    checks += _gradient_counts(facts, policy)
    for group, phase, name, title in _FUNCTION if proof else ():
        if found := by_group.get((phase, group)):
            checks.append(_function(found, name, title, limit, facts))
    for group, phase, name, title in _PRECISION if proof else ():
        if found := [each for each in by_group.get((phase, group), ()) if None not in (each.error_a, each.error_b)]:
            checks.append(_precision(found, name, title, policy))
    if not proof:
        checks += _fallback(by_group, policy)

    def differs(each: Measurement) -> bool:
        return not each.distance.relative <= (limit(each) if proof else limit32(each, policy))

    def imprecise(each: Measurement) -> bool:
        return proof and each.error_b is not None and each.error_b > precision_limit(each, policy)

    divergence = first_divergence(facts, differs, imprecise)
    return _sum_up([check for check in checks if check is not None], divergence, policy, proof)


def limit64(measurement: Measurement, policy: Policy, overall: float = 0.0) -> float:
    """What two values of one function may differ by in float64, for this tensor.

    ``overall`` is the largest float32 error of the reference's training gradients; it stands in for tensors that have
    no float32 run of their own, such as the state after optimizer steps.
    """
    error = measurement.error_a
    if error is None or not math.isfinite(error):
        error = overall
    share = policy.conditioning * error * _FLOAT32_TO_FLOAT64
    return max(policy.float64, min(share, policy.float64_most))


def precision_limit(measurement: Measurement, policy: Policy) -> float:
    """What the port's float32 error may be: a multiple of the original's, or a few units in the last place."""
    return max(policy.precision * (measurement.error_a or 0.0), policy.precision_floor)


def limit32(measurement: Measurement, policy: Policy) -> float:
    """Without a float64 proof: what two float32 values may differ by, from the original's own measured rounding.

    Where that is not known either (the original has no float64 run), ``float32`` of the policy has to do.
    """
    return 2 * precision_limit(measurement, policy) if measurement.error_a is not None else policy.float32


def _overall_error(facts: Facts) -> float:
    errors = (
        each.error_a for each in facts.measurements if each.phase == "float64.train" and each.group == "gradients"
    )
    return max((error for error in errors if error is not None and math.isfinite(error)), default=0.0)


def _function(
    found: Sequence[Measurement], name: str, title: str, limit: Callable[[Measurement], float], facts: Facts
) -> Check:
    worst = max(found, key=lambda each: each.distance.relative / limit(each))
    wrong = [each for each in found if not each.distance.relative <= limit(each)]
    details = [_pair(each) for each in wrong[:8]] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
    if name == "batchnorm":
        details = [*_rules(facts), *details]
    return Check(
        name=name,
        title=title,
        status=FAIL if wrong else PASS,
        value=_number(worst.distance.relative),
        limit=_number(limit(worst)),
        where=worst.name,
        count=len(found),
        details=tuple(details),
    )


def _precision(found: Sequence[Measurement], name: str, title: str, policy: Policy) -> Check:
    limit = partial(precision_limit, policy=policy)
    worst = max(found, key=lambda each: (each.error_b or 0.0) / limit(each))
    wrong = [each for each in found if not (each.error_b or 0.0) <= limit(each)]
    return Check(
        name=name,
        title=title,
        status=FAIL if wrong else PASS,
        value=f"{_number(worst.error_b or 0.0)} (original {_number(worst.error_a or 0.0)})",
        limit=_number(limit(worst)),
        where=worst.name,
        count=len(found),
        details=tuple(
            f"{each.name}: {_number(each.error_b or 0)}, original {_number(each.error_a or 0)}" for each in wrong[:8]
        ),
    )


def _fallback(by_group: dict[tuple[str, str], list[Measurement]], policy: Policy) -> Iterator[Check]:
    """Without a float64 proof: float32 against float32, judged by the original's own rounding where it is known."""
    for group, phase, name, title in (
        ("outputs", "float32.eval", "fallback-layers", "every layer's output, float32 (no float64 proof)"),
        ("batches", "float32.forward", "fallback-batches", "logits of every batch, float32 (no float64 proof)"),
        ("gradients", "float32.eval", "fallback-gradients", "gradient of every parameter, float32 (no float64 proof)"),
    ):
        if found := by_group.get((phase, group)):
            limit = partial(limit32, policy=policy)
            worst = max(found, key=lambda each: each.distance.relative / limit(each))
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
            )


def _isolation(facts: Facts) -> Check:
    seen = [name for side in facts.sides.values() for name in side["environment"]["accelerators"]]
    return Check("cpu", "no accelerator is visible to either side", FAIL if seen else PASS, ", ".join(seen) or "none")


def _parameters(facts: Facts) -> Check:
    a, b = facts.structure.counts["a"], facts.structure.counts["b"]
    s = facts.structure
    details = [f"only in the original: {each}" for each in s.only_a] + [
        f"only in the port: {each}" for each in s.only_b
    ]
    details += [f"shapes differ: {each}" for each in s.wrong_shape]
    details += [f"trainability differs: {each}" for each in s.wrong_trainable]
    same = all(a[key] == b[key] for key in ("trainable", "trainable_tensors", "non_trainable", "non_trainable_tensors"))
    if s.by_order:
        details += [f"paired by order, not by name: {each}" for each in s.by_order[:8]]
        details += [f"and {len(s.by_order) - 8} more by order"] if len(s.by_order) > 8 else []
    failed = bool(s.only_a or s.only_b or s.wrong_shape or s.wrong_trainable) or not same
    value = f"{b['trainable']:,} in {b['trainable_tensors']} + {b['non_trainable']:,} in {b['non_trainable_tensors']}"
    limit = f"{a['trainable']:,} in {a['trainable_tensors']} + {a['non_trainable']:,} in {a['non_trainable_tensors']}"
    if a["bookkeeping_tensors"] or b["bookkeeping_tensors"]:
        counted = a["bookkeeping_tensors"], b["bookkeeping_tensors"]
        details.append(f"batch counters, which no output depends on, are left out: {counted[0]} and {counted[1]}")
    return Check(
        "parameters",
        "trainable and other values pair up one to one",
        FAIL if failed else PASS,
        value,
        limit,
        count=a["trainable_tensors"] + a["non_trainable_tensors"],
        details=tuple(details),
    )


def _weights(facts: Facts) -> Check:
    wrong = facts.structure.weights_differ
    own = facts.sides["b"]["weights"] == "own"
    title = "the port's own weights are the original's" if own else "weights were carried over bit for bit"
    value = f"{len(wrong)} differ" if wrong else "all equal"
    return Check("weights", title, FAIL if wrong else PASS, value, "all equal", details=tuple(wrong[:12]))


def _stages(facts: Facts) -> Check | None:
    stages = facts.structure.stages
    if not stages:
        return None
    alone = [stage for stage in stages if stage["b"] is None]
    wrong = [stage for stage in stages if stage["b"] is not None and not same_shape(stage["a"], stage["b"])]
    details = [f"{stage['name']}: {stage['a']} and {stage['b']}" for stage in wrong]
    details += [f"{stage['name']}: {stage['a']}, no counterpart in the port" for stage in alone]
    value = f"{len(stages) - len(wrong) - len(alone)} of {len(stages)} equal"
    status = FAIL if wrong else NOTE if alone else PASS
    return Check(
        "stages", "shape of every stage", status, value, f"{len(stages)}", count=len(stages), details=tuple(details)
    )


def same_shape(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two output shapes say the same, dimensions of size one and channels last or first apart."""
    drop = [[size for size in shape if size != 1] for shape in (a, b)]
    moved = [b[0], b[-1], *b[1:-1]] if len(b) > 2 else list(b)
    return drop[0] == drop[1] or list(a) == moved


def _coverage(facts: Facts) -> Check:
    s = facts.structure
    alone = [f"only in the original: {name}" for name in s.layers_only_a]
    alone += [f"only in the port: {name}" for name in s.layers_only_b]
    details = alone + [f"paired by order, not by name: {each}" for each in s.layers_by_order]
    judged = len({row.layer for rows in facts.calls.values() for row in rows})
    return Check(
        "coverage",
        "layers that have a counterpart",
        NOTE if alone else PASS,
        f"{judged} compared, {len(alone)} without",
        count=judged,
        details=tuple(details),
    )


def _finite(facts: Facts) -> Iterator[Check]:
    measured = [each for each in facts.measurements if each.group in ("outputs", "batches", "loss")]
    bad = [each for each in measured if each.distance.bad_a or each.distance.bad_b]
    on_one_side = any((each.distance.bad_a == 0) != (each.distance.bad_b == 0) for each in bad)
    wrong_shape = [
        each for each in measured if each.group == "batches" and each.distance.shape_a != each.distance.shape_b
    ]
    details = [
        f"{each.phase} {each.name}: {each.distance.bad_a} NaN or Inf in the original, {each.distance.bad_b} in the port"
        for each in bad[:8]
    ]
    details += [f"{each.name}: {each.distance.shape_a} and {each.distance.shape_b}" for each in wrong_shape]
    status = FAIL if wrong_shape or on_one_side else UNKNOWN if bad else PASS
    where = bad[0].name if bad else wrong_shape[0].name if wrong_shape else ""
    value = f"{len(bad)} tensors with NaN or Inf" if bad else "all finite" if not wrong_shape else "shapes differ"
    yield Check(
        "forward",
        "forward passes: equal shapes, no NaN, no Inf",
        status,
        value,
        "all finite",
        where,
        len(measured),
        tuple(details),
    )


def _no_float64(facts: Facts) -> Check:
    details = []
    for name, word in _WORDS.items():
        if "float64.eval" in facts.unavailable[name]:
            details.append(f"the {word} raised: {facts.unavailable[name]['float64.eval']}")
        if facts.coarse[name]:
            details.append(f"layers of the {word} that compute below float64: {', '.join(facts.coarse[name][:8])}")
    return Check("float64", "both sides run in float64", UNKNOWN, "no", "yes", details=tuple(details))


def _unavailable(facts: Facts) -> Iterator[Check]:
    """Experiments that a model could not run in float64, although it runs in float32."""
    for name, word in _WORDS.items():
        for phase, reason in facts.unavailable[name].items():
            if phase != "float64.eval":
                yield Check(phase, f"the {word} runs in {phase}", UNKNOWN, "it raised", "it runs", details=(reason,))


def _gradient_counts(facts: Facts, policy: Policy) -> Iterator[Check]:
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
        live_a, live_b = (_live(sides[side], facts.layers_of, least) for side in ("a", "b"))
        differing = sorted(live_a ^ live_b)
        wrong = len(live_a) != len(live_b) if name == "count-original" else bool(differing)
        # What is counted in float32 is partly rounding noise, so a difference there is shown and not judged.
        status = PASS if not wrong else NOTE if name == "count-original" else FAIL
        details = [f"{each}: live only in the {'original' if each in live_a else 'port'}" for each in differing[:8]]
        yield Check(
            name, title, status, str(len(live_b)), str(len(live_a)), count=len(sides["a"]), details=tuple(details)
        )


def _live(maxima: dict[str, float], layers_of: dict[str, str], least: float) -> set[str]:
    """The tensors whose gradient is more than rounding noise, judged against the largest of their layer."""
    largest: dict[str, float] = {}
    for name, value in maxima.items():
        layer = layers_of.get(name, "")
        largest[layer] = max(largest.get(layer, 0.0), value)
    overall = max(largest.values(), default=0.0)
    # A layer that is noise as a whole has nothing of its own to be judged by.
    floor = {layer: max(value * least, overall * least * 1e-3) for layer, value in largest.items()}
    return {name for name, value in maxima.items() if value > floor[layers_of.get(name, "")]}


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


def _sum_up(checks: Sequence[Check], divergence: Divergence | None, policy: Policy, proof: bool) -> Verdict:
    failed = [check for check in checks if check.status == FAIL]
    unknown = [check for check in checks if check.status == UNKNOWN and check.name != "float64"]
    if unknown and not failed:
        summary = f"could not be judged: {unknown[0].title}: {unknown[0].value}"
        return Verdict(UNDECIDED, summary, tuple(checks), divergence, policy)
    if failed:
        where = f", first in {divergence.layer}" if divergence else ""
        plural = "check" if len(failed) == 1 else "checks"
        return Verdict(
            DIFFERS, f"not the same model: {len(failed)} {plural} failed{where}", tuple(checks), divergence, policy
        )
    judged = {check.name.partition("-")[0] for check in checks}
    if not proof and "fallback" not in judged:
        summary = (
            "could not be judged: a float64 proof was not possible, and there is nothing in float32 to fall back on"
        )
        return Verdict(UNDECIDED, summary, tuple(checks), divergence, policy)
    summary = "the same model: same function, same precision"
    if "precision" not in judged:
        summary = "the same function"
    if "function" not in judged:
        summary = "no difference found in what was checked"
    if not proof:
        summary = "no difference found in float32; a float64 proof was not possible"
    return Verdict(SAME, summary, tuple(checks), divergence, policy)
