"""First divergence: the earliest layer whose output differs although everything that reached it agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from portproof.compare.facts import MODEL, CallFacts, Facts, Measurement, provable

# Where to look, in order: the forward passes first, for what goes wrong there shows up in everything after it.
_FORWARD = ("float64.eval", "float64.train", "float32.eval")
_AFTER = (
    ("float64.train", "buffers", "running statistics after one training step"),
    ("float64.eval", "gradients", "gradient in eval mode"),
    ("float64.train", "gradients", "gradient in training mode"),
    ("float64.sgd", "parameters", "value after steps of SGD"),
    ("float64.adamw", "parameters", "value after steps of AdamW"),
    ("float64.sgd", "buffers", "running statistics after steps of SGD"),
)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two models part. ``what`` says which of the layer's values; ``causes`` are patterns that explain it."""

    layer: str
    other: str
    what: str
    phase: str
    name: str
    relative: float
    index: tuple[int, ...]
    value_a: float
    value_b: float
    inputs_agree: bool
    settings: tuple[str, ...]
    causes: tuple[str, ...]


def first_divergence(
    facts: Facts, differs: Callable[[Measurement], bool], imprecise: Callable[[Measurement], bool]
) -> Divergence | None:
    """The first layer, in the original's order of execution, at which ``differs`` becomes true.

    If there is none, the first at which ``imprecise`` does: the same function, computed with a larger rounding error.
    """
    measurements = {each.key: each for each in facts.measurements}
    for phase in _FORWARD:
        if phase.startswith("float32") == provable(facts.coarse, facts.unavailable):
            continue  # float64 locates where it is a proof, float32 where it has to do instead
        found = _in_calls(facts.calls.get(phase, ()), measurements, differs)
        if found:
            call, measurement, agree = found
            return _divergence(facts, call.layer, call.other, "output", phase, measurement, agree)
    found = _in_calls(facts.calls.get("float64.eval", ()), measurements, imprecise)
    if found:
        call, measurement, agree = found
        return _divergence(facts, call.layer, call.other, "float32 error", "float32.eval", measurement, agree)
    for phase, group, what in _AFTER:
        wrong = [each for each in facts.measurements if each.phase == phase and each.group == group and differs(each)]
        if wrong:
            order = _order(facts)
            backwards = group == "gradients"  # gradients go wrong from the last layer to the first
            wrong.sort(
                key=lambda each: (each.layer, -each.distance.relative, each.name)
            )  # for those that nothing orders
            first = (max if backwards else min)(wrong, key=lambda each: order.get(each.layer, len(order)))
            return _divergence(facts, first.layer, "", what, phase, first, True)
    return None


def _in_calls(
    calls: tuple[CallFacts, ...], measurements: dict[str, Measurement], differs: Callable[[Measurement], bool]
) -> tuple[CallFacts, Measurement, bool] | None:
    first: tuple[CallFacts, Measurement, bool] | None = None
    for call in calls:
        wrong = next((measurements[key] for key in call.outputs if differs(measurements[key])), None)
        if wrong is None:
            continue
        if not any(key is not None and differs(measurements[key]) for key in call.inputs):
            # If only the model as a whole qualifies, its own code between the layers is wrong: the first layer that
            # sees it says where.
            return first if first and call.layer == MODEL else (call, wrong, True)
        first = first or (call, wrong, False)
    return first


def _divergence(
    facts: Facts, layer: str, other: str, what: str, phase: str, measurement: Measurement, inputs_agree: bool
) -> Divergence:
    distance = measurement.distance
    return Divergence(
        layer=layer,
        other=other,
        what=what,
        phase=phase,
        name=measurement.name,
        relative=distance.relative if what != "float32 error" else measurement.error_b or 0.0,
        index=distance.worst,
        value_a=distance.worst_a if what != "float32 error" else measurement.error_a or 0.0,
        value_b=distance.worst_b if what != "float32 error" else measurement.error_b or 0.0,
        inputs_agree=inputs_agree,
        settings=tuple(_settings(facts, layer)),
        causes=tuple(cause.text for cause in facts.causes if cause.layer == layer),
    )


def _settings(facts: Facts, layer: str) -> Iterator[str]:
    for row in facts.settings:
        if row["layer"] == layer:
            yield f"{row['setting']} is {row['a']} in the original and {row['b']} in the port"


def _order(facts: Facts) -> dict[str, int]:
    order: dict[str, int] = {}
    for calls in facts.calls.values():
        for call in calls:
            order.setdefault(call.layer, len(order))
    return order
