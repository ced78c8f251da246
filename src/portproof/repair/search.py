"""Search: finds one cause after the other; those that are proven stay repaired while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from portproof.errors import PortproofError

if TYPE_CHECKING:
    from portproof.compare.candidates import Candidate, Target
    from portproof.compare.proof import Diagnosis, Proven
    from portproof.edits import Edit
    from portproof.repair.bench import Bench, State

_MOST_TRIALS = 16  # for one divergence
_MOST_CAUSES = 12  # a port with more of them is not to be repaired one by one
_SHOWN = 6


@dataclass
class _Repair:
    """A proven cause while the search goes on: the way that was taken, and what it had made vanish."""

    candidate: Candidate
    way: int
    target: Target
    residual: float = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        return self.candidate.layers(self.way)

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.candidate.way(self.way)


class Search:
    """Finds one cause after the other; those that are proven stay repaired."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.first: State | None = None  # the port as it is, where it differs
        self.repairs: list[_Repair] = []
        self.state: State

    def run(self) -> None:
        """Search until both sides are the same in every phase, or nothing more can be proven."""
        *cheap, everything = self.bench.looks
        for look in cheap:
            # What was wrong in a cheap look is mostly all that was; a port without a fault yet needs the next one.
            if not self.repairs and not self._searched(look):
                return
        narrowed: set[tuple[str, ...]] = set()
        while True:
            self.bench.say("looking at the port in every phase")
            self.state = self.bench.look(self._edits(), everything)
            if self.state.same:
                return
            self.first = self.first or self.state
            look = self._narrowed(everything)
            if look == everything or look in narrowed:
                break
            narrowed.add(look)
            if not self._searched(look):
                return
        self._search(everything)

    def _narrowed(self, everything: tuple[str, ...]) -> tuple[str, ...]:
        """The phases that show what is wrong now: those of the divergence, and those that explain it."""
        found = self.state.verdict.divergence
        if found is None or self.state.facts.coarse["b"]:
            return everything
        wanted = {"float64.eval", found.phase}
        if found.phase not in ("float64.eval", "float32.eval"):
            wanted.add("float64.train")  # where statistics and the first gradients are compared
        return tuple(name for name in everything if name in wanted)

    def _searched(self, look: tuple[str, ...]) -> bool:
        """Search in some phases; whether there is any use in going on to others."""
        self.bench.say("looking at the port")
        self.state = self.bench.look(self._edits(), look)
        self._search(look)
        # Without a float64 proof these phases alone may not suffice for a verdict.
        return self.state.verdict.outcome != "differs"

    def _search(self, look: tuple[str, ...]) -> None:
        while not self.state.same:
            self.first = self.first or self.state
            if len(self.repairs) >= _MOST_CAUSES or not self._step(look):
                return

    def _edits(self, without: _Repair | None = None) -> tuple[Edit, ...]:
        return tuple(edit for repair in self.repairs if repair is not without for edit in repair.edits)

    def _step(self, look: tuple[str, ...]) -> bool:
        """Prove one more cause, or a better repair for one; whether that succeeded."""
        from portproof.compare.candidates import Candidates
        from portproof.compare.pairing import Pairs

        pairs = Pairs(self.bench.original(look), self.state.trace)
        candidates = Candidates(pairs, self.state.facts, self.state.verdict)
        target = candidates.target()
        if target is None or not target.keys:
            return False
        if self._taken_back(target, look) or self._revised(target, look):
            return True
        trials = 0
        for candidate in candidates.at(target):
            for way in range(len(candidate.cause.ways)):
                # With the same cause everywhere, or in this layer alone.
                for tried in (candidate, replace(candidate, others=())) if candidate.others else (candidate,):
                    trials += 1
                    if trials > _MOST_TRIALS:
                        return False
                    self.bench.say(f"{target.layer}: {candidate.cause.text}")
                    state = self._tried((*self._edits(), *tried.way(way)), look, target)
                    if state is not None:
                        self._accept(_Repair(tried, way, target), state)
                        return True
        return False

    def _taken_back(self, target: Target, look: tuple[str, ...]) -> bool:
        """Leave a layer alone that was repaired because it looked like another one, if it is what differs first now."""
        for repair in self.repairs:
            kept = tuple(each for each in repair.candidate.others if each.layer != target.layer)
            if target.what == "output" and len(kept) < len(repair.candidate.others):
                repair.candidate = replace(repair.candidate, others=kept)
                self._take(self.bench.look(self._edits(), look))
                return True
        return False

    def _revised(self, target: Target, look: tuple[str, ...]) -> bool:
        """Try the other ways of a cause whose repair made the outputs right, and left something else wrong.

        A tensor that is laid out otherwise and one with wrong values give the same outputs, and other gradients.
        """
        for repair in self.repairs:
            if target.layer not in repair.layers and target.what == "output":
                continue
            for way in range(repair.way + 1, len(repair.candidate.cause.ways)):
                edits = (*self._edits(without=repair), *repair.candidate.way(way))
                state = self._tried(edits, look, target)
                if state is not None:
                    repair.way = way
                    self._take(state)
                    return True
        return False

    def _tried(self, edits: Sequence[Edit], look: tuple[str, ...], target: Target) -> State | None:
        """The state under these edits if they are a proof; ``None`` if not."""
        try:
            state = self.bench.look(edits, look)
        except PortproofError:
            return None  # a port that cannot be run so is not repaired
        gone = not target.keys & state.failures if target.what != "weights" else bool(target.keys - state.failures)
        if gone and state.failures < self.state.failures:
            return state
        self.bench.forget(state)
        return None

    def _accept(self, repair: _Repair, state: State) -> None:
        alike = next(
            (
                each
                for each in self.repairs
                if (each.candidate.cause.key, each.candidate.cause.change, each.way)
                == (repair.candidate.cause.key, repair.candidate.cause.change, repair.way)
                and each.target.what == repair.target.what
            ),
            None,
        )
        if alike is None:
            self.repairs.append(repair)
        else:  # the same once more, in a layer in which it was not recognised before
            others = (*alike.candidate.others, repair.candidate.cause, *repair.candidate.others)
            alike.candidate = replace(alike.candidate, others=others)
        repair.residual = _residual(state, repair.target)
        self._take(state)

    def _take(self, state: State) -> None:
        if self.state is not self.first:
            self.bench.forget(self.state)
        self.state = state

    def diagnosis(self, seconds: float) -> Diagnosis:
        """What was found."""
        from portproof.compare.proof import Diagnosis

        verdict = self.state.verdict
        return Diagnosis(
            proven=tuple(self._proven(repair) for repair in self.repairs),
            outcome=verdict.outcome,
            summary=verdict.summary,
            phases=tuple(self.state.trace.phases()),
            remaining=tuple(_remaining(self.state)),
            tried=self.bench.captures,
            seconds=round(seconds, 2),
        )

    def _proven(self, repair: _Repair) -> Proven:
        from portproof.compare.pairing import Pairs
        from portproof.compare.proof import Proven

        # Of the layers behind what still differs it is not known whether their repair was right.
        wrong = {
            call.layer
            for calls in self.state.facts.calls.values()
            for call in calls
            if self.state.failures.intersection(call.outputs)
        }
        others = tuple(each for each in repair.candidate.others if each.layer not in wrong)
        candidate = replace(repair.candidate, others=others)
        cause, target, edits = candidate.cause, repair.target, candidate.way(repair.way)
        look = tuple(self.state.trace.phases())
        named = Pairs(self.bench.original(look), self.state.trace).layers.pairs
        back = {other: layer for layer, other in named.items()}
        owners = {record.name: record.layer for record in self.state.trace.manifest.parameters}
        changed = {name: None for edit in edits for name in edit.options.get("names", ())}
        touched = dict.fromkeys(
            [*(named.get(layer, layer) for layer in candidate.layers(repair.way)), *(owners[name] for name in changed)]
        )
        return Proven(
            text=cause.text,
            change=cause.change,
            layers=tuple(back.get(other, other) for other in touched),
            others=tuple(touched),
            edits=edits,
            phase=target.phase,
            what=target.what,
            relative=target.relative,
            residual=_residual(self.state, target) or repair.residual,
        )


def _residual(state: State, target: Target) -> float:
    """How far apart the two are now where the target was."""
    calls = [call for call in state.facts.calls.get(target.phase, ()) if call.layer == target.layer]
    keys = {key.removeprefix("imprecise ") for key in target.keys} | {key for call in calls for key in call.outputs}
    found = [each for each in state.facts.measurements if each.key in keys]
    if not found:  # the target was no measurement: whatever differs most now
        found = [each for each in state.facts.measurements if each.phase == "float64.eval" and each.group == "outputs"]
    if target.what == "float32 error":
        return max((each.error_b or 0.0 for each in found), default=0.0)
    return max((each.distance.relative for each in found), default=0.0)


def _remaining(state: State) -> list[str]:
    """What still differs, in words."""
    verdict = state.verdict
    if state.same:
        return []
    lines = []
    if verdict.divergence is not None:
        found = verdict.divergence
        lines.append(f"{found.layer}: {found.what}, {found.phase}, relative difference {found.relative:.3g}")
    failed = [f"{check.title}: {check.value}" for check in verdict.checks if check.status in ("fail", "unknown")]
    lines += failed[:_SHOWN]
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more checks")
    return lines
