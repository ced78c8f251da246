"""Drift: one side of one mirror in many cells, bit-identical or how far apart, and at which layer that begins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from portproof.compare import compare
from portproof.compare.facts import MODEL, CallFacts, Facts, Measurement
from portproof.matrix.causes import changed, known_causes
from portproof.matrix.facts import Beginning, Drift, DriftGroup, DriftPair
from portproof.trace import Trace

PHASES = {"float64": "float64.eval", "float32": "float32.eval"}  # precision -> where its layers' outputs are compared
_WORDS = {
    "outputs": "outputs of the layers",
    "inputs": "what reaches the layers",
    "batches": "logits of the other batches",
    "loss": "loss",
    "input-gradient": "gradient of the input",
    "gradients": "gradients of the parameters",
    "buffers": "BatchNorm statistics",
    "parameters": "parameters after the steps",
}


def measure_drift(side: str, traces: Mapping[str, Trace]) -> Drift:
    """Hold the traces of one side against each other, cell by cell; cells of equal bits are measured once.

    ``traces`` are by cell, in the order in which cells are to be shown.
    """
    classes: dict[str, list[str]] = {}
    known: dict[tuple[str, ...], str] = {}  # files of one content need not be read twice
    for cell, trace in traces.items():
        files = (*trace.manifest.shards, *sorted(trace.manifest.tensors))
        if files not in known:
            known[files] = _content(trace)
        classes.setdefault(known[files], []).append(cell)
    groups = [tuple(cells) for cells in classes.values()]
    firsts = [traces[cells[0]] for cells in groups]
    order: dict[str, str] = {}
    for trace in firsts:
        order |= {name: kind for name, kind in _layers(trace) if name not in order}
    pairs = [
        _pair(i, j, firsts[i], firsts[j], tuple(order)) for j in range(len(firsts)) for i in range(j)
    ]  # by the later class, so that the rows of a page grow
    return Drift(side, tuple(order), tuple(order.values()), tuple(groups), tuple(pairs))


def _content(trace: Trace) -> str:
    """A digest of every tensor with its name, however they are spread over files."""
    whole = hashlib.sha256()
    for key in sorted(trace.manifest.tensors):
        value = np.ascontiguousarray(trace.tensor(key))
        whole.update(f"{key} {value.dtype} {value.shape} ".encode())
        whole.update(value.data if value.size else b"")
    return whole.hexdigest()


def _layers(trace: Trace) -> Iterator[tuple[str, str]]:
    """The outputs that a forward pass stored, in order of execution, each with the kind of its layer."""
    kinds = {record.name: record.kind for record in trace.manifest.layers}
    phase = next((phase for phase in PHASES.values() if trace.manifest.calls.get(phase)), "")
    for call in trace.manifest.calls.get(phase, ()):
        for key in call.outputs:
            if key.startswith("output/"):
                yield key.removeprefix("output/"), kinds.get(call.layer, "")


def _pair(i: int, j: int, a: Trace, b: Trace, layers: tuple[str, ...]) -> DriftPair:
    differences = tuple(changed(a.manifest.environment, b.manifest.environment))
    reason = why_not_comparable(a, b)
    if reason:
        return DriftPair(i, j, changed=differences, not_comparable=reason)
    facts = compare(a, b)
    begins = dict(beginnings(facts))
    found = {
        precision: {m.name: m.distance.relative for m in facts.measurements if (m.phase, m.group) == (phase, "outputs")}
        for precision, phase in PHASES.items()
    }
    return DriftPair(
        a=i,
        b=j,
        float64=tuple(found["float64"].get(name) for name in layers),
        float32=tuple(found["float32"].get(name) for name in layers),
        begins=begins,
        groups=tuple(drift_groups(facts)),
        causes=tuple(known_causes(a.manifest.side, begins, a.manifest.environment, b.manifest.environment)),
        changed=differences,
    )


def why_not_comparable(a: Trace, b: Trace) -> str:
    """Why two traces of one side say nothing about drift: other weights, inputs or seeds. Empty if they do."""
    for what, words in (("weights/", "weights"), ("/source/", "inputs")):
        for key in a.manifest.tensors:
            given = key.startswith(what) if what[0] != "/" else what in key
            if given and key in b and not _same_bits(a.tensor(key), b.tensor(key)):
                return f"they did not start from the same {words} ({key.rpartition('/')[2]} differs)"
    seeds = a.manifest.facts.get("seed"), b.manifest.facts.get("seed")
    if seeds[0] != seeds[1]:
        return f"they were captured with the seeds {seeds[0]} and {seeds[1]}"
    if not set(a.phases()) & set(b.phases()):
        return "they have no experiment in common"
    return ""


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def beginnings(facts: Facts) -> Iterator[tuple[str, Beginning]]:
    """Where a difference of any size begins: by precision in a forward pass; ``gradients`` if only these differ."""
    measured = {each.key: each for each in facts.measurements}
    forward = False
    for precision, phase in PHASES.items():
        found = _first(facts.calls.get(phase, ()), measured)
        if found:
            call, measurement, equal = found
            forward = True
            yield precision, _beginning(phase, call.layer, call.kind_a, measurement, inputs_equal=equal)
    if not forward:
        order = {call.layer: index for index, call in enumerate(facts.calls.get(PHASES["float64"], ()))}
        kinds = {call.layer: call.kind_a for call in facts.calls.get(PHASES["float64"], ())}
        wrong = [m for m in facts.measurements if m.group == "gradients" and not m.distance.equal]
        if wrong:  # gradients are computed from the last layer to the first
            last = max(wrong, key=lambda m: order.get(m.layer, -1))
            yield "gradients", _beginning(last.phase, last.layer, kinds.get(last.layer, ""), last, inputs_equal=True)


def _first(
    calls: tuple[CallFacts, ...], measured: Mapping[str, Measurement]
) -> tuple[CallFacts, Measurement, bool] | None:
    first = None
    for call in calls:
        wrong = next((measured[key] for key in call.outputs if not measured[key].distance.equal), None)
        if wrong is None:
            continue
        if all(key is None or measured[key].distance.equal for key in call.inputs):
            return first if first and call.layer == MODEL else (call, wrong, True)
        first = first or (call, wrong, False)
    return first


def _beginning(phase: str, layer: str, kind: str, measurement: Measurement, *, inputs_equal: bool) -> Beginning:
    found = measurement.distance
    return Beginning(phase, layer, kind, found.relative, found.max_abs, found.scale, inputs_equal)


def drift_groups(facts: Facts) -> Iterator[DriftGroup]:
    """Every kind of tensor in every phase: how many are equal, and the largest difference."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in facts.measurements:
        groups.setdefault((each.phase, each.group), []).append(each)
    for (phase, group), found in groups.items():
        worst = max(found, key=lambda each: each.distance.relative)
        yield DriftGroup(
            name=group,
            title=_WORDS.get(group, group),
            phase=phase,
            tensors=len(found),
            equal=sum(each.distance.equal for each in found),
            relative=worst.distance.relative,
            where=worst.name if not worst.distance.equal else "",
        )
