"""The runner: captures the pair once, then the port with one defect after the other, until a check fails.

The cheapest phases come first, those where the defect is expected to show, and the rest only if nothing was found: so
an ordinary case takes one short capture in a worker that stays. A defect counts as without effect only after every
phase gave what the unedited port gives, bit for bit.
"""

from __future__ import annotations

import math
import queue
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from portproof.check import Settings, capture, check
from portproof.compare import compare
from portproof.compare.policy import Policy
from portproof.compare.verdict import DIFFERS, SAME, judge
from portproof.defects import CATALOGUE, Defect, Place, Port
from portproof.defects.defect import EVAL, PRECISION, STEPS, TRAIN
from portproof.errors import InputError, PortproofError
from portproof.mirror import Mirror
from portproof.plan import PARITY, Phase
from portproof.processes import Servers
from portproof.selftest.judging import SIMPLE, equal, is_located, named, only, seen
from portproof.selftest.result import CAUGHT, MISSED, NO_EFFECT, RAISES, Outcome, Result, Row
from portproof.trace import Trace

# What is captured together. The state after steps is judged with the rule of the variance, which `train` measures.
STAGES: dict[str, tuple[str, ...]] = {
    EVAL: ("float64.eval",),
    TRAIN: ("float64.train",),
    STEPS: ("float64.train", "float64.sgd", "float64.adamw"),
    PRECISION: ("float64.eval", "float64.train", "float32.eval", "float32.train"),
    "rest": ("float64.forward", "float64.count-eval", "float64.count-train", "float32.forward", "float32.count"),
}

Progress = Callable[[int, int, str], None]
"""Called with how many cases are done, how many there are, and what was done last."""


@dataclass(frozen=True)
class _Pair:
    """What every case is judged against."""

    mirror: Mirror
    settings: Settings
    policy: Policy | None
    original: Trace
    honest: Trace
    port: Port
    folder: Path
    methods: bool
    alarms: tuple[str, ...] = ()  # simpler methods that object to the unedited port


def run(
    mirror: Mirror,
    *,
    defects: Sequence[Defect] = CATALOGUE,
    places: int = 1,
    jobs: int = 2,
    methods: bool = True,
    settings: Settings | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Result:
    """Plant every defect at up to ``places`` random places of the port, and judge each.

    ``jobs`` is how many ports are captured at once, one where ``settings`` bring servers; ``methods`` also asks simpler
    methods. The seed of ``settings`` decides on weights, inputs and places.

    Raises:
        InputError: the unedited pair is not the same model, so that nothing can be planted in it.
        PortproofError: a side could not be run.
    """
    settings, started = settings or Settings(), time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="portproof-", ignore_cleanup_errors=True)))
        own = [settings]
        if settings.servers is None:
            servers = [stack.enter_context(Servers()) for _ in range(jobs)]
            own = [replace(settings, servers=each, logs=folder / f"logs-{i}") for i, each in enumerate(servers)]
        if progress:
            progress(0, 0, "the pair as it is")
        pair = _unedited(mirror, own[0], policy, folder, methods)
        chosen = {defect.name: _places(defect, pair.port, settings.seed) for defect in defects}
        cases = [(defect, place) for defect in defects for place in chosen[defect.name][:places]]
        outcomes = _spread(cases, [replace(pair, settings=each) for each in own], progress)
    rows = tuple(
        Row(
            defect,
            len(chosen[defect.name]),
            tuple(outcome for (other, _), outcome in zip(cases, outcomes, strict=True) if other is defect),
        )
        for defect in defects
    )
    recorded = {
        "seconds": round(time.perf_counter() - started, 1),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "port": dict(pair.honest.manifest.environment),
    }
    return Result(mirror.name, settings.seed, rows, methods, pair.alarms, recorded)


def _unedited(mirror: Mirror, settings: Settings, policy: Policy | None, folder: Path, methods: bool) -> _Pair:
    """Capture both sides as they are, with everything that a case may be compared with."""
    phases = [*PARITY, *(phase for phase in SIMPLE if methods and phase not in PARITY)]
    report = check(mirror, phases=phases, settings=replace(settings, traces=folder), policy=policy)
    if report.verdict.outcome != SAME:
        raise InputError(
            f"{mirror.name}: the pair as it is does not come out as the same ({report.verdict.summary}), so that "
            "nothing can be planted in it: see `portproof check`."
        )
    original, honest = (Trace.open(folder / side, verify=False) for side in ("torch", "tensorflow"))
    alarms = tuple(seen(original, honest, honest)) if methods else ()
    return _Pair(mirror, settings, policy, original, honest, Port(honest), folder, methods, alarms)


def _places(defect: Defect, port: Port, seed: int) -> list[Place]:
    """Every place of a defect, shuffled by the seed and the defect's name."""
    found = list(defect.places(port))
    order = np.random.default_rng([seed, zlib.crc32(defect.name.encode())]).permutation(len(found))
    return [found[index] for index in order]


def _spread(cases: Sequence[tuple[Defect, Place]], pairs: Sequence[_Pair], progress: Progress | None) -> list[Outcome]:
    """Run the cases in as many threads as there are servers; the outcomes stand in the order of the cases."""
    outcomes: dict[int, Outcome] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    failures: list[BaseException] = []
    for index in range(len(cases)):
        waiting.put(index)

    def work(pair: _Pair, number: int) -> None:
        try:
            while not failures:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                outcomes[index] = _outcome(pair, *cases[index], pair.folder / f"port-{number}")
                if progress:
                    progress(len(outcomes), len(cases), f"{cases[index][0].name} in {cases[index][1]}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(pair, i)) for i, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # an interrupt arrives here; every thread ends with the case that it is at
        failures.append(error)
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return [outcomes[index] for index in range(len(cases))]


def _outcome(pair: _Pair, defect: Defect, place: Place, target: Path) -> Outcome:
    """One defect at one place: capture stage after stage until a check fails."""
    started = time.perf_counter()
    settings = replace(pair.settings, edits=place.edits)
    first = defect.shows
    noticed: tuple[str, ...] = ()
    changed = False
    for stage in (first, *(stage for stage in STAGES if stage != first)):
        names = STAGES[stage]
        extra = [phase.name for phase in SIMPLE] if stage == first and pair.methods else []
        try:
            port = capture(
                pair.mirror,
                "tensorflow",
                target,
                phases=_phases([*names, *extra]),
                settings=settings,
                weights_from=pair.original,
            )
        except PortproofError as error:
            return Outcome(str(place), RAISES, note=str(error), seconds=_since(started))
        raised = {each["unavailable"] for each in port.manifest.facts["phases"].values() if "unavailable" in each}
        if raised:
            return Outcome(str(place), RAISES, note=sorted(raised)[0], seconds=_since(started))
        if stage == first and pair.methods:
            noticed = tuple(each for each in seen(pair.original, port, pair.honest) if each not in pair.alarms)
        if equal(pair.honest, port, names):
            continue
        changed = True
        facts = compare(pair.original, only(port, names))
        verdict = judge(facts, pair.policy)
        if verdict.outcome == DIFFERS:
            failed = [check for check in verdict.checks if check.status == "fail"]
            values = {
                check.name: (check.measured, check.allowed)
                for check in failed
                if check.measured is not None and check.allowed is not None and math.isfinite(check.measured)
            }
            located = is_located(defect, place, verdict, facts, pair.port)
            return Outcome(
                str(place),
                CAUGHT,
                failed[0].name,
                named(verdict, facts, pair.port),
                located,
                noticed,
                measured=values,
                seconds=_since(started),
            )
    return Outcome(str(place), MISSED if changed else NO_EFFECT, seen=noticed, seconds=_since(started))


def _phases(names: Sequence[str]) -> list[Phase]:
    known = {phase.name: phase for phase in (*PARITY, *SIMPLE)}
    return [known[name] for name in known if name in names]


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
