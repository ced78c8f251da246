"""Candidates: which repairs are worth a try, given where two traces first differ. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from portproof.compare.between import causes_between, causes_in_container
from portproof.compare.causes import causes_in_layer, same_cause, subject_of, tensor_of
from portproof.compare.divergence import Divergence
from portproof.compare.facts import CallFacts, Cause, Facts, Measurement
from portproof.compare.hypotheses import setting_hypotheses
from portproof.compare.pairing import Pairs
from portproof.compare.subject import Ways, standard_edit
from portproof.compare.verdict import Verdict, failures
from portproof.compare.weights import weight_causes
from portproof.edits import Edit
from portproof.trace import CallRecord

_NEXT = 4  # how many layers behind a stopped gradient are suspected


@dataclass(frozen=True)
class Target:
    """What a repair is to make vanish: names of `failures`, the layer, and where it shows."""

    layer: str
    what: str
    phase: str
    keys: frozenset[str]
    relative: float


@dataclass(frozen=True)
class Candidate:
    """A cause at a target, and the same cause in other layers."""

    cause: Cause
    others: tuple[Cause, ...] = ()

    def way(self, index: int) -> tuple[Edit, ...]:
        """The edits of one way, for all of the layers."""
        causes = [self.cause, *(each for each in self.others if index < len(each.ways))]
        return joined(edit for cause in causes for edit in cause.ways[index])

    def layers(self, index: int) -> tuple[str, ...]:
        """The original's names of the layers that the way repairs."""
        return (self.cause.layer, *(each.layer for each in self.others if index < len(each.ways)))


def joined(edits: Iterator[Edit]) -> tuple[Edit, ...]:
    """The same edits, with those that differ in their layers alone as one."""
    found: list[Edit] = []
    for edit in edits:
        alike = next(
            (
                i
                for i, each in enumerate(found)
                if each.layers and (each.what, each.options) == (edit.what, edit.options)
            ),
            None,
        )
        if alike is None:
            found.append(edit)
        elif not set(edit.layers) <= set(found[alike].layers):
            found[alike] = replace(found[alike], layers=(*found[alike].layers, *edit.layers))
    return tuple(found)


class Candidates:
    """What to try for one pair of traces that differ."""

    def __init__(self, pairs: Pairs, facts: Facts, verdict: Verdict) -> None:
        self._pairs, self._facts, self._verdict = pairs, facts, verdict
        self._measurements: Mapping[str, Measurement] = {each.key: each for each in facts.measurements}
        self._failures = failures(facts, verdict)

    def target(self) -> Target | None:
        """What to repair next; ``None`` where nothing is wrong that a layer could be blamed for."""
        s, found = self._facts.structure, self._verdict.divergence
        if s.weights_differ and self._own:
            names = frozenset(f"weights_differ {each}" for each in s.weights_differ)
            first = s.weights_differ[0].partition(": ")[2]
            return Target(self._facts.layers_of.get(first, first), "weights", "", names, float("inf"))
        # A layer that is frozen by mistake has no gradient to be compared: what is wrong in eval mode comes first, or
        # its gradients would differ as soon as there are any.
        in_eval = found is not None and found.phase == "float64.eval" and found.what == "output"
        if s.wrong_trainable and not in_eval:
            names = frozenset(f"wrong_trainable {each}" for each in s.wrong_trainable)
            layer = self._facts.layers_of.get(s.wrong_trainable[0].partition(": ")[0], "")
            return Target(layer, "trainable or not", "", names, float("inf"))
        if coarse := [each for each in self._facts.coarse["b"] if each not in self._facts.coarse["a"]]:
            return Target(self._named(coarse[0]), "precision", "", frozenset([f"coarse b {coarse[0]}"]), float("inf"))
        if found is not None:
            return Target(found.layer, found.what, found.phase, self._keys(found), found.relative)
        rows = [row for row in self._facts.settings if row["setting"] == "p"]
        if rows:
            names = frozenset(f"dropout {row['layer']}" for row in rows)
            return Target(rows[0]["layer"], "dropout rate", "", names, float("inf"))
        return None

    def at(self, target: Target) -> Iterator[Candidate]:
        """What may have caused it, the likelier first, with the layers that have the same cause."""
        seen: set[tuple[str, str]] = set()
        for cause in self._causes(target):
            # Of tensors that went wrong in the same way, the first stands for all.
            name = (cause.key, "" if target.what == "weights" else cause.layer)
            if cause.ways and name not in seen:
                seen.add(name)
                yield Candidate(cause, tuple(self._alike(target, cause)))

    @property
    def _own(self) -> bool:
        return self._facts.sides["b"]["weights"] == "own"

    def _named(self, other: str) -> str:
        return next((a for a, b in self._pairs.layers.pairs.items() if b == other), other)

    def _keys(self, found: Divergence) -> frozenset[str]:
        if found.what == "float32 error":
            wanted = [f"imprecise {key}" for call in self._calls("float64.eval", found.layer) for key in call.outputs]
        elif found.what == "output":
            wanted = [key for call in self._calls(found.phase, found.layer) for key in call.outputs]
        else:
            wanted = [
                each.key
                for each in self._facts.measurements
                if (each.phase, each.layer, each.name) == (found.phase, found.layer, found.name)
            ]
        return frozenset(wanted) & self._failures

    def _calls(self, phase: str, layer: str) -> list[CallFacts]:
        return [call for call in self._facts.calls.get(phase, ()) if call.layer == layer]

    def _causes(self, target: Target) -> Iterator[Cause]:
        if target.what == "weights":
            yield from weight_causes(self._pairs)
        elif target.what == "trainable or not":
            yield from self._frozen()
        elif target.what == "dropout rate":
            yield from self._settings(target.layer, "p")
        elif target.what in ("output", "float32 error", "precision"):
            yield from self._in_forward(target)
        elif "statistics" in target.what:
            yield from self._settings(target.layer, "momentum")
            yield from self._momentum(target)
            yield from self._own_code([target.layer])
        elif "gradient" in target.what:
            yield from self._own_code(self._behind(target), "the gradient does not come through it")

    def _in_forward(self, target: Target) -> Iterator[Cause]:
        phase = target.phase if target.what == "output" else "float64.eval"
        agreeing: list[str] = []
        for facts, (call, other) in self._paired(phase):
            wrong = [key for key in facts.outputs if key in target.keys or f"imprecise {key}" in target.keys]
            if facts.layer != target.layer or not (wrong or target.what == "precision"):
                if not any(key in self._failures for key in facts.outputs):
                    agreeing += call.outputs
                continue
            if target.what == "output" and not facts.leaf:
                yield from causes_in_container(self._pairs, phase, call, other)
            if target.what == "output" and not self._inputs_agree(facts):
                yield from causes_between(self._pairs, phase, call, other, agreeing)
            else:
                yield from causes_in_layer(self._pairs, phase, facts, call, other, self._rows(facts.layer))
            return

    def _rows(self, layer: str) -> list[dict[str, Any]]:
        """The settings of a layer that differ."""
        return [row for row in self._facts.settings if row["layer"] == layer]

    def _paired(self, phase: str) -> Iterator[tuple[CallFacts, tuple[CallRecord, CallRecord]]]:
        return zip(self._facts.calls.get(phase, ()), self._pairs.calls(phase), strict=True)

    def _inputs_agree(self, facts: CallFacts) -> bool:
        found = self._verdict.divergence
        return found is None or found.layer != facts.layer or found.inputs_agree

    def _frozen(self) -> Iterator[Cause]:
        layers = dict.fromkeys(
            self._facts.layers_of.get(name, "") for name in self._wrongly("frozen") if name in self._facts.layers_of
        )
        found = [layer for layer in layers if layer in self._pairs.layers.pairs]
        for layer in found[:1]:
            yield self._unfrozen(layer)

    def _wrongly(self, word: str) -> list[str]:
        """The parameters that are frozen (or trainable) in the port alone."""
        rows = (each.partition(": ") for each in self._facts.structure.wrong_trainable)
        return [name for name, _, sides in rows if sides.endswith(f"and {word}")]

    def _unfrozen(self, layer: str) -> Cause:
        other = self._pairs.layers.pairs[layer]
        ways = ((Edit("set", (other,), {"trainable": True}),),)
        return Cause(layer, "the layer is frozen in the port", "trainable=False -> True", "frozen", ways)

    def _settings(self, layer: str, *names: str) -> Iterator[Cause]:
        rows = [row for row in self._rows(layer) if row["setting"] in names]
        for facts, (call, other) in self._somewhere(layer):
            subject = subject_of(self._pairs, facts[0], facts[1], call, other)
            if subject is not None and rows:
                for text, change, key, ways in setting_hypotheses(subject, rows):
                    yield Cause(layer, text, change, key, ways, fits=False)
            return

    def _somewhere(self, layer: str) -> Iterator[tuple[tuple[str, CallFacts], tuple[CallRecord, CallRecord]]]:
        """The first calls of a layer, in any phase that was recorded."""
        for phase in ("float64.train", "float64.eval"):
            for facts, records in self._paired(phase):
                if facts.layer == layer:
                    yield (phase, facts), records
                    break

    def _momentum(self, target: Target) -> Iterator[Cause]:
        """The momentum that the running mean shows, where the layer's setting does not say it."""
        other = self._pairs.layers.pairs.get(target.layer, "")
        name = f"{target.layer}.running_mean"
        sides = []
        for trace, own in ((self._pairs.a, name), (self._pairs.b, self._pairs.parameters.pairs.get(name, ""))):
            after = tensor_of(trace, "float64.train", f"buffer/{own}")
            start = trace.tensor(f"weights/excited/{own}") if f"weights/excited/{own}" in trace else None
            if after is None or start is None:
                return
            sides.append(after - start.astype(np.float64))
        square = float(sides[0] @ sides[0])
        momentum = next(
            (r.settings.get("momentum") for r in self._pairs.a.manifest.layers if r.name == target.layer), None
        )
        if not square or not isinstance(momentum, float):
            return
        share = float(sides[1] @ sides[0]) / square
        if share > 0 and np.linalg.norm(sides[1] - share * sides[0]) < 1e-6 * np.linalg.norm(sides[1]):
            text = (
                f"the statistics move by {share * momentum:.6g} of the way in one step, the original's by {momentum:g}"
            )
            ways = ((Edit("set", (other,), {"momentum": round(1.0 - momentum, 12)}),),)
            change = f"momentum {1 - share * momentum:.6g} -> {1 - momentum:.6g}"
            yield Cause(target.layer, text, change, f"momentum {share:.6g}", ways)

    def _behind(self, target: Target) -> list[str]:
        """The leaves that a layer's output reaches first, and the layer itself: a gradient is lost in one of them."""
        phase = target.phase if target.phase in self._facts.calls else "float64.eval"
        leaves = {facts.layer for facts in self._facts.calls.get(phase, ()) if facts.leaf}
        calls = [call for _, (call, _) in self._paired(phase)]
        position = next((i for i, call in enumerate(calls) if call.layer == target.layer), None)
        if position is None:
            return [target.layer]
        behind = [call.layer for call in calls[position + 1 :] if call.layer in leaves]
        return [*list(dict.fromkeys(behind))[:_NEXT], target.layer]

    def _own_code(self, layers: Sequence[str], text: str = "") -> Iterator[Cause]:
        for layer in layers:
            for (used, facts), (call, other) in self._somewhere(layer):
                subject = subject_of(self._pairs, used, facts, call, other)
                edit = standard_edit(subject) if subject else None
                if subject and edit:
                    ways: Ways = ((edit,),)
                    said = text or f"its code does not compute a standard {facts.kind_a} from its weights and settings"
                    change = f"{subject.type}: replace its call by that of a standard {facts.kind_a}"
                    yield Cause(layer, said, change, "own code", ways, fits=False)
                break

    def _alike(self, target: Target, cause: Cause) -> Iterator[Cause]:
        """The same cause in other layers, by their settings or by what they computed."""
        if target.what == "weights":
            yield from (each for each in weight_causes(self._pairs) if each.key == cause.key and each != cause)
            return
        if cause.key == "frozen":
            layers = {self._facts.layers_of.get(name, "") for name in self._wrongly("frozen")} - {cause.layer}
            yield from (self._unfrozen(layer) for layer in sorted(layers) if layer in self._pairs.layers.pairs)
            return
        rows = {
            row["layer"]: row
            for row in self._facts.settings
            if f"{row['setting']} {_plain(row['b'])} {_plain(row['a'])}" == cause.key
        }
        for layer in rows:
            if layer != cause.layer:
                yield from (each for each in self._settings(layer, rows[layer]["setting"]) if each.key == cause.key)
        if rows or not cause.fits or target.what != "output":
            return
        calls = self._facts.calls.get(target.phase, ())
        kinds = {(call.kind_a, call.kind_b) for call in calls if call.layer == cause.layer}
        among = [
            call.layer
            for call in calls
            if (call.kind_a, call.kind_b) in kinds
            and call.layer != cause.layer
            and any(key in self._failures for key in call.outputs)
        ]
        yield from same_cause(self._pairs, target.phase, calls, cause, among)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
