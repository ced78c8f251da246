"""Likely causes: known patterns of porting defects, tried on the data of a layer that diverges. NumPy only.

Each pattern predicts what the port would have returned if it had that defect, from the reference's input, weights and
settings; a prediction that fits the port's output far better than the reference's own output does is a likely cause.
What is wrong between layers is in between.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.between import causes_between, causes_in_container
from portproof.compare.facts import CallFacts, Cause, Measurement
from portproof.compare.hypotheses import finite_and_close, hypotheses, setting_hypotheses, standard_result
from portproof.compare.measure import relative_error
from portproof.compare.pairing import Pairs, same_layout
from portproof.compare.structure import layer_settings
from portproof.compare.subject import Subject, standard_edit
from portproof.edits import Edit
from portproof.trace import CallRecord, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_AGREES, _DIFFERS = 1e-12, 1e-11
_FITS = 1e-6  # a prediction is computed here, in NumPy, and only has to be much closer than the defect is large
_SAME_CAUSE = 1e-9  # where it is judged on the port's own data alone, it has to be closer
_MOST = 3  # later divergences are mostly consequences
_PHASES = ("float64.eval", "float64.train")


def likely_causes(
    pairs: Pairs, measurements: Mapping[str, Measurement], calls: Mapping[str, Sequence[CallFacts]]
) -> Iterator[Cause]:
    """Causes for the first layers that diverge although their inputs agree, in the first phase where any does."""
    for phase in _PHASES:
        found = False
        for cause in _in_phase(pairs, measurements, calls.get(phase, ()), phase):
            found = True
            yield cause
        if found:
            return


def _in_phase(
    pairs: Pairs, measurements: Mapping[str, Measurement], rows: Sequence[CallFacts], phase: str
) -> Iterator[Cause]:
    tried = 0
    agreeing: list[str] = []  # outputs of earlier layers on which both sides agree
    settings = _settings_by_layer(pairs)
    if not rows:  # a phase that is not compared
        return
    for facts, (call, other) in zip(rows, pairs.calls(phase), strict=True):
        inputs = [measurements[key].distance.relative for key in facts.inputs if key]
        outputs = [measurements[key].distance.relative for key in facts.outputs]
        if max(outputs, default=0.0) <= _DIFFERS:
            agreeing += call.outputs
            continue
        if max(inputs, default=0.0) > _AGREES:
            if tried == 0 and (found := list(causes_between(pairs, phase, call, other, agreeing))):
                yield from found
                tried += 1
            continue
        found = list(causes_in_layer(pairs, phase, facts, call, other, settings.get(facts.layer, [])))
        if not facts.leaf and not any(cause.fits for cause in found):
            found = [*causes_in_container(pairs, phase, call, other), *found]
        if facts.leaf and facts.kind_a != facts.kind_b and not any(cause.fits for cause in found):
            text = f"the layers are of different kinds: {facts.kind_a} and {facts.kind_b}"
            found.insert(0, Cause(facts.layer, text))
        yield from (cause for cause in found if cause.fits)
        tried += 1
        if tried == _MOST:
            return


def causes_in_layer(
    pairs: Pairs, phase: str, facts: CallFacts, call: CallRecord, other: CallRecord, settings: list[dict[str, Any]]
) -> Iterator[Cause]:
    """What explains a layer whose inputs agree: the pattern that fits, then settings that differ, then its own code."""
    y_a, y_b = (tensor_of(side, phase, each.outputs[0]) for side, each in ((pairs.a, call), (pairs.b, other)))
    if y_a is not None and y_b is not None:
        y_b, _ = same_layout(y_a, y_b)
        if y_a.shape != y_b.shape:
            yield Cause(facts.layer, f"the output shapes differ: {y_a.shape} and {y_b.shape}")
    subject = subject_of(pairs, phase, facts, call, other)
    if subject is None:
        return
    fitting = False
    if y_a is not None:
        finite = np.isfinite(subject.y)  # a defect may leave NaN behind, such as the root of a negative "variance"
        own = np.inf
        if y_a.shape == subject.y.shape:
            own = relative_error(subject.y[finite], y_a[finite]) if finite.any() else 0.0
        with np.errstate(all="ignore"):
            for each in hypotheses(subject):
                if finite_and_close(each, own, _FITS):
                    yield Cause(facts.layer, each.text, each.change, each.key, each.ways)
                    fitting = True
                    break
    for text, change, key, ways in setting_hypotheses(subject, settings):
        yield Cause(facts.layer, text, change, key, ways, fits=False)
    edit = standard_edit(subject)
    if edit and not fitting:
        text = f"its code does not compute a standard {facts.kind_a} from its own weights and settings"
        change = f"{subject.type}: replace its call by that of a standard {facts.kind_a}"
        yield Cause(facts.layer, text, change, "own code", ((edit,),), fits=False)
    if subject.names and not subject.own and not fitting:
        text = f"it does not hold the values that were carried over: {', '.join(subject.names)}"
        ways = ((Edit("restore", (), {"names": list(subject.names.values())}),),)
        yield Cause(facts.layer, text, f"{subject.type}: carry its weights over", "values", ways, fits=False)


def same_cause(
    pairs: Pairs, phase: str, calls: Sequence[CallFacts], cause: Cause, among: Sequence[str]
) -> Iterator[Cause]:
    """The same cause in other layers, recognised in the port's own inputs and outputs, whatever reached them.

    ``among`` are the layers to look at.
    """
    wanted = set(among)
    for facts, (call, other) in zip(calls, pairs.calls(phase), strict=True):
        if facts.layer not in wanted or call.occurrence:
            continue
        subject = subject_of(pairs, phase, facts, call, other, from_port=True)
        result = standard_result(subject) if subject else None
        if subject is None or result is None or result[0].shape != result[1].shape:
            continue
        with np.errstate(all="ignore"):
            own = relative_error(result[1], result[0])
            if not own > _DIFFERS:
                continue
            for each in hypotheses(subject):
                if each.key == cause.key and finite_and_close(each, own, _SAME_CAUSE):
                    yield Cause(facts.layer, each.text, each.change, each.key, each.ways)
                    break


def subject_of(
    pairs: Pairs, phase: str, facts: CallFacts, call: CallRecord, other: CallRecord, *, from_port: bool = False
) -> Subject | None:
    """What the hypotheses about a layer need; ``None`` where its input or output is not stored."""
    if not call.inputs or not other.inputs or not call.outputs or not other.outputs:
        return None
    x = tensor_of(pairs.a, phase, call.inputs[0])
    y_a, y = tensor_of(pairs.a, phase, call.outputs[0]), tensor_of(pairs.b, phase, other.outputs[0])
    if x is None or y is None or y_a is None:
        return None
    y, _ = same_layout(y_a, y)
    if from_port:
        x_b = tensor_of(pairs.b, phase, other.inputs[0])
        if x_b is None:
            return None
        x, _ = same_layout(x, x_b)
    records = {record.name: record for record in pairs.a.manifest.layers}
    records_b = {record.name: record for record in pairs.b.manifest.layers}
    weights = _weights(pairs.a, "excited")
    named = pairs.parameters.pairs
    own = weights.get(call.layer, {})
    others = {
        layer: values
        for layer, values in weights.items()
        if layer != call.layer and records.get(layer) and records[layer].kind == facts.kind_a
    }
    return Subject(
        layer=call.layer,
        other=other.layer,
        kind=facts.kind_a,
        type=_class_name(records_b[other.layer].type, facts.kind_b),
        x=x,
        y=y,
        settings=records[call.layer].settings,
        settings_b=records_b[other.layer].settings,
        weights=own,
        initial=_weights(pairs.a, "initial").get(call.layer, {}),
        others=others,
        names={role: named[f"{call.layer}.{role}"] for role in own if f"{call.layer}.{role}" in named},
        names_of=lambda layer, role: named.get(f"{layer}.{role}", f"{layer}.{role}"),
        training=phase.endswith("train"),
        own=pairs.b.manifest.facts.get("weights") == "own",
    )


def tensor_of(trace: Trace, phase: str, key: str) -> Array | None:
    """A stored floating-point tensor of a phase, in float64."""
    full = f"{phase}/{key}"
    if full not in trace:
        return None
    array = trace.tensor(full)
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else None


def _weights(trace: Trace, which: str) -> dict[str, dict[str, Array]]:
    """The floating-point tensors by layer and role."""
    found: dict[str, dict[str, Array]] = {}
    for record in trace.manifest.parameters:
        key = f"weights/{which}/{record.name}"
        if key in trace and (value := trace.tensor(key)).dtype.kind == "f":
            found.setdefault(record.layer, {})[record.role] = value.astype(np.float64)
    return found


def _settings_by_layer(pairs: Pairs) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in layer_settings(pairs):
        found.setdefault(row["layer"], []).append(row)
    return found


def _class_name(name: str, kind: str) -> str:
    return kind if name == "activation" else name
