"""Repair: proves the causes of a divergence, by repairing the port in memory and capturing it again.

A cause is proven if its repair makes the divergence vanish, and nothing that agreed before differs now. Repairs that
were proven stay in force while the next divergence is looked into, cheap phases first, until both sides are the same or
nothing more can be proven. No repair takes anything from what the original returned.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from portproof.check import SIDES, Settings, capture, log_folder, source_side
from portproof.errors import PortproofError
from portproof.plan import PARITY, Phase
from portproof.processes import Servers

if TYPE_CHECKING:
    from portproof.compare.candidates import Candidate, Target
    from portproof.compare.facts import Facts
    from portproof.compare.policy import Policy
    from portproof.compare.proof import Diagnosis, Proven
    from portproof.compare.verdict import Verdict
    from portproof.edits import Edit
    from portproof.mirror import Mirror
    from portproof.processes import Progress
    from portproof.report import Report
    from portproof.trace import Trace

# What is run for a look at the port, cheapest first; everything that was asked for comes last.
_LOOKS = (("float64.eval",), ("float64.eval", "float64.train"))
_MOST_TRIALS = 16  # for one divergence
_MOST_CAUSES = 12  # a port with more of them is not to be repaired one by one
_SHOWN = 6


def diagnose(
    mirror: Mirror,
    *,
    phases: Sequence[Phase] = PARITY,
    settings: Settings | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare both sides of ``mirror`` and prove what makes them differ.

    Returns the report of the port as it is, over the first phases in which it differs, with a ``diagnosis``; or that
    over all phases, without one, if it does not.

    Raises:
        PortproofError: a side could not be run at all. A repair with which it cannot is no proof, and no error.
    """
    from portproof.report import Report

    started = time.perf_counter()
    with Bench(mirror, phases, settings or Settings(), policy, progress) as bench:
        search = Search(bench)
        search.run()
        differing = search.first
        diagnosis = search.diagnosis(time.perf_counter() - started) if differing else None
        state = differing or search.state
        recorded = {
            "seconds": round(time.perf_counter() - started, 2),
            "logs": bench.logs(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    return Report(state.facts, state.verdict, recorded, diagnosis)


@dataclass(frozen=True)
class State:
    """The port under some edits, compared with the original in some phases."""

    trace: Trace
    facts: Facts
    verdict: Verdict
    failures: frozenset[str]

    @property
    def same(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict.outcome == "same"


class Bench:
    """Both sides of a mirror in workers that stay, ready to be looked at again and again."""

    def __init__(
        self,
        mirror: Mirror,
        phases: Sequence[Phase],
        settings: Settings,
        policy: Policy | None,
        progress: Progress | None,
    ) -> None:
        self.mirror, self.policy, self._progress = mirror, policy, progress
        self.phases = {phase.name: phase for phase in phases}
        self.planted = settings.edits  # what is wrong with the port on purpose; another defect may take its place
        wanted = [tuple(name for name in look if name in self.phases) for look in (*_LOOKS, tuple(self.phases))]
        self.looks = [look for index, look in enumerate(wanted) if look and look not in wanted[:index]]
        self.captures = 0
        samples = settings.samples
        if samples is None:  # read once, for all of the captures
            samples = mirror.samples() if mirror.samples else {}
        self._logs = log_folder()
        # A side each: the original runs on while the port is being looked at.
        self._servers = {side: Servers() for side in SIDES}
        self._settings = {
            side: replace(settings, servers=servers, logs=self._logs, traces=None, lanes=1, samples=samples)
            for side, servers in self._servers.items()
        }
        self._exit = ExitStack()
        self._original: dict[tuple[str, ...], Future[Trace]] = {}

    def __enter__(self) -> Bench:
        try:
            self._folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="portproof-")))
            for servers in self._servers.values():
                self._exit.enter_context(servers)
            self._pool = self._exit.enter_context(ThreadPoolExecutor(1))
            self._begin()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _begin(self) -> None:
        port = self._settings["tensorflow"]
        source = None
        if port.weights == "own":
            pass
        elif source_side(port.weights) == "tensorflow":
            source = self._captured("tensorflow", self.looks[0], port, None)
        for look in self.looks:
            # Its own float32 run says by how much the original amplifies rounding, and the limits follow.
            names = [name for name in self.phases if name in look or name.replace("32", "64") in look]
            self._original[look] = self._pool.submit(self._captured, "torch", names, self._settings["torch"], source)
        if source is None:  # import the framework and build the model while the original is captured
            self._captured("tensorflow", self.looks[0][:1], replace(port, weights="own", edits=()), None)

    def _captured(self, side: str, names: Sequence[str], settings: Settings, source: Trace | None) -> Trace:
        target = Path(tempfile.mkdtemp(dir=self._folder)) / side
        phases = [self.phases[name] for name in names]
        return capture(
            self.mirror, side, target, phases=phases, settings=settings, weights_from=source, progress=self._progress
        )

    def logs(self) -> dict[str, str]:
        """Where the workers' logs are, by side."""
        return {side: str(self._logs / f"{side}.log") for side in SIDES}

    def original(self, look: tuple[str, ...]) -> Trace:
        """The original's trace for a look."""
        return self._original[look].result()

    def look(self, edits: Sequence[Edit], look: tuple[str, ...]) -> State:
        """Capture the port under edits, besides those that were planted, and compare it.

        Raises:
            PortproofError: it cannot be run so.
        """
        from portproof.compare import compare
        from portproof.compare.verdict import failures, judge

        settings = self._settings["tensorflow"]
        taken = settings.weights != "own" and source_side(settings.weights) == "torch"
        original = self.original(look)
        self.captures += 1
        trace = self._captured(
            "tensorflow",
            look,
            replace(settings, edits=(*self.planted, *edits)),
            original if taken else None,
        )
        facts = compare(original, trace)
        verdict = judge(facts, self.policy)
        return State(trace, facts, verdict, failures(facts, verdict))

    def forget(self, state: State) -> None:
        """Remove a trace that is not needed any more."""
        shutil.rmtree(state.trace.path.parent, ignore_errors=True)

    def say(self, text: str) -> None:
        """Tell whoever watches what is being tried."""
        if self._progress:
            self._progress("diagnosis", {"event": "step", "name": text})


@dataclass
class _Repair:
    """A proven cause while the search goes on: the way that was taken, and what it had made vanish."""

    candidate: Candidate
    way: int
    target: Target
    layers: tuple[str, ...]
    residual: float = 0.0

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
        while True:
            # What was wrong in a cheap look is mostly all that was; only a port without a fault yet needs them all.
            while cheap and not self.repairs:
                if not self._searched(cheap.pop(0)):
                    return
            self.bench.say("looking at the port in every phase")
            self.state = self.bench.look(self._edits(), everything)
            if self.state.same or not cheap:
                break
            for look in (*cheap,):
                cheap.remove(look)
                if not self._searched(look):
                    return
        self._search(everything)

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
        if target is None:
            return False
        if self._revised(target, look):
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
                        self._accept(_Repair(tried, way, target, tried.layers(way)), state)
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
            alike.layers = alike.candidate.layers(alike.way)
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

        cause, target = repair.candidate.cause, repair.target
        look = tuple(self.state.trace.phases())
        named = Pairs(self.bench.original(look), self.state.trace).layers.pairs
        back = {other: layer for layer, other in named.items()}
        owners = {record.name: record.layer for record in self.state.trace.manifest.parameters}
        changed = {name: None for edit in repair.edits for name in edit.options.get("names", ())}
        others = dict.fromkeys(
            [*(named.get(layer, layer) for layer in repair.layers), *(owners[name] for name in changed)]
        )
        return Proven(
            text=cause.text,
            change=cause.change,
            layers=tuple(back.get(other, other) for other in others),
            others=tuple(others),
            edits=repair.edits,
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
