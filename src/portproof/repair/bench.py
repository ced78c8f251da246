"""Bench: both sides of a mirror in workers that stay, to look at the port under one edit after the other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from portproof import processes
from portproof.check import SIDES, Settings, capture, source_side
from portproof.plan import Phase
from portproof.processes import Servers

if TYPE_CHECKING:
    from portproof.compare.facts import Facts
    from portproof.compare.policy import Policy
    from portproof.compare.verdict import Verdict
    from portproof.edits import Edit
    from portproof.mirror import Mirror
    from portproof.processes import Progress
    from portproof.trace import Trace

# What is run for a look at the port, cheapest first; everything that was asked for comes last.
_LOOKS = (("float64.eval",), ("float64.eval", "float64.train"))


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
        self._logs = processes.log_folder()
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
        # The first look is not to wait for everything; the others share one trace.
        for look in dict.fromkeys((self.looks[0], self.looks[-1])):
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
        return self._original.get(look, self._original[self.looks[-1]]).result()

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
        # The original was run in more phases, for the limits.
        alone = tuple(each for each in facts.alone["a"] if not each.startswith("the phase "))
        facts = replace(facts, alone={**facts.alone, "a": alone})
        verdict = judge(facts, self.policy)
        return State(trace, facts, verdict, failures(facts, verdict))

    def forget(self, state: State) -> None:
        """Remove a trace that is not needed any more."""
        shutil.rmtree(state.trace.path.parent, ignore_errors=True)

    def say(self, text: str) -> None:
        """Tell whoever watches what is being tried."""
        if self._progress:
            self._progress("diagnosis", {"event": "step", "name": text})
