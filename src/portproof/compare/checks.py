"""The checks: one question each, answered from facts and a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from portproof.compare.facts import MODEL, Facts, Measurement
from portproof.compare.policy import Policy, limit32, precision_limit

PASS, FAIL, NOTE, UNKNOWN = "pass", "fail", "note", "unknown"
_WORDS = {"a": "original", "b": "port"}


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


_BACKWARD = ("gradients", "input-gradient", "parameters", "buffers")


def function(
    found: Sequence[Measurement], name: str, title: str, limit: Callable[[Measurement], float], facts: Facts
) -> Check:
    """Same function: tensors of both sides in float64, each against its own ``limit``.

    What reaches a layer may differ by design: a port may do in front of it what the original does inside, such as
    padding. Then the layer's outputs agree, and the difference is a note.
    """
    differing = [each for each in found if not each.distance.relative <= limit(each)]
    designed = _made_up_for(differing, facts, limit)
    wrong = [each for each in differing if each.key not in designed]
    judged = [each for each in found if each.key not in designed] or list(found)
    worst = max(judged, key=lambda each: each.distance.relative / limit(each))
    details = [_pair(each) for each in wrong[:8]] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
    details += [
        f"{each.name}: reaches the layer otherwise, and its output agrees" for each in differing if each.key in designed
    ]
    if name == "batchnorm":
        details = [*_rules(facts), *details]
    bad = [each for each in found if each.distance.bad_a and each.distance.bad_b]
    if bad and bad[0].group in _BACKWARD and not wrong:  # of a forward pass, `finite` speaks
        details.append(f"NaN or Inf on both sides: {', '.join(each.name for each in bad[:8])}")
        return Check(name, title, UNKNOWN, f"{len(bad)} with NaN or Inf", "finite", details=tuple(details))
    return Check(
        name=name,
        title=title,
        status=FAIL if wrong else NOTE if designed else PASS,
        value=_number(worst.distance.relative),
        limit=_number(limit(worst)),
        where=worst.name,
        count=len(found),
        details=tuple(details),
    )


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


def precision(found: Sequence[Measurement], name: str, title: str, policy: Policy) -> Check:
    """Same precision: the port's float32 errors against the original's."""
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


def fallback(by_group: dict[tuple[str, str], list[Measurement]], policy: Policy) -> Iterator[Check]:
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


def not_judged(titles: Sequence[str]) -> Check:
    """What only a float64 proof could have answered."""
    title = "questions that only float64 answers"
    return Check("fallback-open", title, NOTE, f"{len(titles)} open", details=(f"not judged: {'; '.join(titles)}",))


def isolation(facts: Facts) -> Check:
    """No accelerator was visible to either worker."""
    seen = [name for side in facts.sides.values() for name in side["environment"]["accelerators"]]
    return Check("cpu", "no accelerator is visible to either side", FAIL if seen else PASS, ", ".join(seen) or "none")


def parameters(facts: Facts) -> Check:
    """Parameters and buffers pair up one to one, with shapes, counts and trainability."""
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
    if s.another_form:
        return _another_form(facts)
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


def _another_form(facts: Facts) -> Check:
    """The sides hold one function in different parameters, and each said how it came by its own."""
    a, b = (facts.structure.counts[side]["trainable"] for side in ("a", "b"))
    details = ("one side computed its weights from the other's (adopt_weights): only eval mode is compared",)
    return Check(
        "parameters", "trainable values of two forms of one network", NOTE, f"{b:,}", f"{a:,}", details=details
    )


def weights(facts: Facts) -> Check:
    """Both sides started from the same values."""
    wrong = facts.structure.weights_differ
    own = facts.sides["b"]["weights"] == "own"
    title = "the port's own weights are the original's" if own else "weights were carried over bit for bit"
    value = f"{len(wrong)} differ" if wrong else "all equal"
    return Check("weights", title, FAIL if wrong else PASS, value, "all equal", details=tuple(wrong[:12]))


def stages(facts: Facts) -> Check | None:
    """The output shape of every stage; nothing where no layers were recorded."""
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


def outputs(facts: Facts) -> Check | None:
    """Both models return as many tensors; and which phases only one trace has."""
    found = [f"only in the {word}: {each}" for name, word in _WORDS.items() for each in facts.alone[name]]
    if not found:
        return None
    wrong = [each for each in found if "the phase " not in each]
    status = FAIL if wrong else NOTE
    return Check(
        "outputs", "outputs and phases of both sides", status, f"{len(found)} alone", "none", details=tuple(found)
    )


def dropout(facts: Facts) -> Check | None:
    """Paired dropout layers drop as much on both sides; in training mode they are off, so nothing else would tell."""
    wrong = [row for row in facts.settings if row["setting"] == "p"]
    details = tuple(f"{row['layer']}: {row['a']} in the original, {row['b']} in the port" for row in wrong)
    if not wrong:
        return None
    return Check(
        "dropout", "dropout rates", FAIL, f"{len(wrong)} differ", "equal", wrong[0]["layer"], len(wrong), details
    )


def coverage(facts: Facts) -> Check:
    """Which layers have no counterpart; a note, for a port may be built otherwise and still be the same."""
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


def finite(facts: Facts) -> Iterator[Check]:
    """Forward passes without NaN and Inf, and outputs of equal shapes. Bad values on both sides cannot be judged."""
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


def no_float64(facts: Facts) -> Check:
    """Why there is no float64 proof."""
    details = []
    for name, word in _WORDS.items():
        if "float64.eval" in facts.unavailable[name]:
            details.append(f"the {word} raised: {facts.unavailable[name]['float64.eval']}")
        if facts.coarse[name]:
            details.append(f"layers of the {word} that compute below float64: {', '.join(facts.coarse[name][:8])}")
    return Check("float64", "both sides run in float64", UNKNOWN, "no", "yes", details=tuple(details))


def unavailable(facts: Facts) -> Iterator[Check]:
    """Experiments that a model could not run in float64, although it runs in float32."""
    for name, word in _WORDS.items():
        if "float64.eval" in facts.unavailable[name]:
            continue  # then it does not run in float64 at all, which `no_float64` says
        for phase, reason in facts.unavailable[name].items():
            if phase != "float64.eval":
                yield Check(phase, f"the {word} runs in {phase}", UNKNOWN, "it raised", "it runs", details=(reason,))


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
