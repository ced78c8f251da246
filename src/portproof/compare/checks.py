"""Checks of structure and of what was run: one question each, answered from facts. Those of values: numeric.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from portproof.compare.facts import Facts

PASS, FAIL, NOTE, UNKNOWN = "pass", "fail", "note", "unknown"
_WORDS = {"a": "original", "b": "port"}


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. ``value`` and ``limit`` are those of the tensor that came closest to its limit.

    ``measured`` and ``allowed`` are the same two as numbers, where the answer hangs on a limit of the policy.
    """

    name: str
    title: str
    status: str
    value: str = ""
    limit: str = ""
    where: str = ""
    count: int = 0
    details: tuple[str, ...] = ()
    measured: float | None = None
    allowed: float | None = None


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
