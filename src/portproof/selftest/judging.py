"""Was a planted defect caught, and was the right layer named? And what do simpler methods see of it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.checks import FAIL
from portproof.compare.facts import Facts
from portproof.compare.structure import counts
from portproof.compare.verdict import Verdict
from portproof.defects.defect import LAYER, LOSS, Defect, Place
from portproof.defects.port import Port
from portproof.plan import COUNT, INITIAL
from portproof.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIMPLE = (INITIAL, COUNT)
"""The phases that simpler methods look at."""


def named(verdict: Verdict, facts: Facts, port: Port) -> str:
    """What a verdict names: the layer of the first divergence, in the port's words, or else what a failed check says.

    Where no value diverges, a parameter may be missing or frozen, or a dropout rate be another.
    """
    ported = {call.layer: call.other for calls in facts.calls.values() for call in calls}
    if verdict.divergence is not None:
        return verdict.divergence.other or ported.get(verdict.divergence.layer, verdict.divergence.layer)
    failed = [check for check in verdict.checks if check.status == FAIL]
    for check in failed:
        if ported.get(check.where) in port.layers:
            return ported[check.where]
        for detail in check.details if check.name == "parameters" else ():
            owner = next((layer for name, layer in port.owner.items() if f": {name}" in detail), "")
            if owner:
                return owner
    return ""


def is_located(defect: Defect, place: Place, verdict: Verdict, facts: Facts, port: Port) -> bool:
    """Whether the verdict names the right thing.

    For a layer: the first divergence is in one of the defect's layers or in an immediate consumer; for gradients, which
    flow backwards, in the nearest layers with parameters in front of it. For the loss: every layer agrees, and the loss
    is the first to differ. For an optimizer: nothing differs but the state after its steps.
    """
    failed = [check for check in verdict.checks if check.status == FAIL]
    if defect.about == LOSS:
        of_loss = bool(failed) and failed[0].name.endswith("-loss")
        return of_loss and not any(check.name.endswith(("-layers", "-between", "-batches")) for check in failed)
    if defect.about != LAYER:
        return bool(failed) and all(check.name.startswith(("sgd", "adamw")) for check in failed)
    right = set(place.layers)
    for layer in place.layers:
        right |= port.consumers(layer)
        if verdict.divergence and "gradient" in verdict.divergence.what:
            right |= port.upstream(layer)
    return named(verdict, facts, port) in right


def seen(original: Trace, port: Trace, honest: Trace) -> Iterator[str]:
    """The simpler methods (result.py) that notice a difference between the original and an edited port.

    The stages of the unedited port stand for those of the original, which may go by other names.
    """
    sizes = [counts(trace) for trace in (original, port)]
    if any(sizes[0][key] != sizes[1][key] for key in sizes[0] if "trainable" in key):
        yield "parameters"
    expected = _shapes(honest)
    if any(shape != expected[name] for name, shape in _shapes(port).items()):
        yield "shapes"
    live = [trace.manifest.facts["phases"][COUNT.name]["gradient_maxima"] for trace in (original, port)]
    if len({sum(value > 0 for value in maxima.values()) for maxima in live}) > 1:
        yield "gradients"
    pairs = [
        (x, port.tensor(f"{INITIAL.name}/batch/{name}"))
        for name, x in original.items(INITIAL.name, "batch")
        if f"{INITIAL.name}/batch/{name}" in port
    ]
    alike = [x.shape == y.shape for x, y in pairs]
    if not all(alike) or any(bool((x.argmax(-1) != y.argmax(-1)).any()) for x, y in pairs if x.ndim > 1):
        yield "argmax"
    for text in ("1e-3", "1e-4", "1e-5"):
        if not all(alike) or not all(_close(x, y, float(text)) for x, y in pairs):
            yield text


def _close(x: NDArray[Any], y: NDArray[Any], tolerance: float) -> bool:
    return bool(np.allclose(x, y, rtol=tolerance, atol=tolerance))


def _shapes(trace: Trace) -> dict[str, tuple[int, ...]]:
    """The output shapes of stages, where layers were recorded, and of every batch; sizes of one do not count."""
    stages = {record.name for record in trace.manifest.layers if record.stage}
    found = {
        key.partition("/")[2]: info.shape
        for key, info in trace.manifest.tensors.items()
        if key.startswith(f"{INITIAL.name}/batch/")
    }
    for call in trace.manifest.calls.get("float64.eval", ()):
        info = trace.manifest.tensors.get(f"float64.eval/{call.outputs[0]}") if call.outputs else None
        if call.layer in stages and info:
            found[call.layer] = info.shape
    return {name: tuple(size for size in shape if size != 1) for name, shape in found.items()}


def only(trace: Trace, phases: Sequence[str]) -> Trace:
    """The same trace as if these phases alone had been run."""
    plan = [phase for phase in trace.manifest.plan if phase["name"] in phases]
    calls = {phase: rows for phase, rows in trace.manifest.calls.items() if phase in phases}
    return Trace(trace.path, replace(trace.manifest, plan=plan, calls=calls))


def equal(honest: Trace, edited: Trace, phases: Sequence[str]) -> bool:
    """Whether everything that these phases captured is bit for bit what the unedited port gave, gradients and all."""
    if honest.manifest.parameters != edited.manifest.parameters or honest.manifest.layers != edited.manifest.layers:
        return False
    for phase in phases:
        facts = [trace.manifest.facts["phases"][phase] for trace in (honest, edited)]
        keys = [[key for key in trace.manifest.tensors if key.startswith(f"{phase}/")] for trace in (honest, edited)]
        if facts[0] != facts[1] or keys[0] != keys[1]:
            return False
        for key in keys[0]:
            x, y = honest.tensor(key), edited.tensor(key)
            if x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
                return False
    return True
