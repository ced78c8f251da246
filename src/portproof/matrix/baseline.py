"""Baseline: what both sides computed once, kept small, so that drift across time and machines becomes a test.

    baseline.json             for which mirror, from which environment
    torch/  tensorflow/       a trace each, of every tensor at most `VALUES` values, evenly spread

Layers' outputs are megabytes, and what changes one of them changes values all over it and in everything after it. So a
sample is enough to measure by how much, and it is a trace like any other: `portproof compare` reads it.

In float64 two runs of one function differ by rounding alone, and the policy's float64 limit holds. In float32 they may
differ by the rounding that the baseline itself shows against its own float64 run, times ``precision`` of the policy.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import compare
from portproof.compare.facts import Facts, Measurement
from portproof.compare.policy import Limits, Policy
from portproof.errors import InputError, TraceError
from portproof.files import write_text
from portproof.matrix.drift import beginnings, why_not_comparable
from portproof.matrix.facts import SIDES, Beginning
from portproof.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "portproof-baseline/1"
RECORD = "baseline.json"
VALUES = 512
# What the same experiment is called in the other precision, where a float32 tensor finds its exact value.
_TWIN = {"float32.eval": "float64.eval", "float32.train": "float64.train", "float32.forward": "float64.forward"}
_TITLES = {
    "outputs": "outputs of the layers",
    "inputs": "what reaches the layers",
    "batches": "logits of the other batches",
    "loss": "loss",
    "input-gradient": "gradient of the input",
    "gradients": "gradients of the parameters",
    "buffers": "BatchNorm statistics",
    "parameters": "parameters after the steps",
}


@dataclass(frozen=True, slots=True)
class DriftCheck:
    """All tensors of one kind in one phase: the one closest to its limit, and how many are above theirs."""

    phase: str
    title: str
    measured: float
    limit: float
    where: str
    tensors: int
    equal: int
    above: int


@dataclass(frozen=True)
class SideDrift:
    """One side against its baseline. ``begins`` is the first layer above its limit; ``missing`` has no counterpart."""

    side: str
    checks: tuple[DriftCheck, ...]
    begins: Beginning | None
    missing: tuple[str, ...]
    baseline_version: str
    version: str

    @property
    def drifted(self) -> bool:
        """Whether anything is above its limit, or gone."""
        return bool(self.missing) or any(check.above for check in self.checks)

    @property
    def identical(self) -> bool:
        """Whether every value that the baseline holds is the same to the bit."""
        return not self.missing and all(check.equal == check.tensors for check in self.checks)


def save(traces: Mapping[str, Trace], target: Path, *, subject: str) -> int:
    """Write the baseline of both sides' traces to the folder ``target``; returns its size in bytes.

    Raises:
        InputError: the folder exists and is not a baseline.
    """
    if target.exists() and not (target / RECORD).is_file():
        raise InputError(f"{target} exists and is not a baseline: name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for side, trace in traces.items():
            thin(trace, folder / side)
        record = {"schema": SCHEMA, "subject": subject, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
        folder.chmod(0o755)
        _put(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _put(folder: Path, target: Path) -> None:
    """Move a complete baseline to its place. An older one steps aside first, and back if that fails."""
    if not target.exists():
        folder.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    older = target.rename(aside / "older")
    try:
        folder.rename(target)
    except BaseException:
        older.rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path) -> tuple[str, dict[str, Trace]]:
    """The mirror's name and the traces of a baseline.

    Raises:
        InputError: it is not one; TraceError: it was changed or truncated.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise InputError(f"{folder} has schema {record['schema']!r}, this version reads {SCHEMA!r}: save it again.")
        subject = str(record["subject"])
    except OSError as error:
        raise InputError(
            f"{folder} is not a baseline ({error.strerror}): `portproof baseline save` makes one."
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder / RECORD} was truncated or edited: save the baseline again.") from error
    return subject, {side: Trace.open(folder / side) for side in SIDES}


def thin(trace: Trace, target: Path) -> Trace:
    """A copy of a trace that keeps at most `VALUES` values of every tensor, flattened and evenly spread."""
    with TraceWriter(target) as writer:
        for key in trace.manifest.tensors:
            writer.add(key, sample(trace.tensor(key)))
        return writer.finish(trace.manifest)


def sample(value: NDArray[Any]) -> NDArray[Any]:
    """At most `VALUES` values of a tensor, its first and its last among them; small ones as they are."""
    if value.size <= VALUES:
        return value
    places = np.linspace(0, value.size - 1, VALUES).round().astype(np.int64)
    return value.reshape(-1)[places]


def check_side(baseline: Trace, trace: Trace, policy: Policy | None = None) -> SideDrift:
    """Hold a new trace of one side against its baseline, in both precisions.

    Raises:
        TraceError: the two did not start from the same weights and inputs, so that nothing can be said.
    """
    policy = policy or Policy()
    reason = why_not_comparable(baseline, trace)
    if reason:
        raise TraceError(
            f"The baseline of {baseline.manifest.side} cannot be compared with this run: {reason}. "
            "Save it anew if the mirror, the seed or what draws random numbers was changed on purpose."
        )
    facts = compare(baseline, trace)
    limit = _Limits(facts, policy)
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in facts.measurements:
        groups.setdefault((each.phase, each.group), []).append(each)
    return SideDrift(
        side=baseline.manifest.side,
        checks=tuple(_check(phase, group, found, limit) for (phase, group), found in groups.items()),
        begins=_begins(facts, limit),
        missing=tuple(_missing(facts)),
        baseline_version=str(baseline.manifest.environment.get("version", "")),
        version=str(trace.manifest.environment.get("version", "")),
    )


class _Limits:
    """What each measurement may drift by."""

    def __init__(self, facts: Facts, policy: Policy) -> None:
        self._limits = Limits.of(facts, policy)
        self._exact = {(each.phase, each.group, each.name): each for each in facts.measurements}

    def __call__(self, each: Measurement) -> float:
        if each.phase.startswith("float64"):
            return self._limits.function(each)
        phase = _TWIN.get(each.phase, "float64.train")
        twin = self._exact.get((phase, each.group, each.name))
        if twin is not None and twin.error_a is not None and math.isfinite(twin.error_a):
            return self._limits.precision(twin)
        # Not stored in both precisions: what the gradients err by has to do.
        return self._limits.gradients()

    def above(self, each: Measurement) -> bool:
        """Whether it drifted further than it may."""
        return not each.distance.relative <= self(each)


def _check(phase: str, group: str, found: list[Measurement], limit: _Limits) -> DriftCheck:
    worst = max(found, key=lambda each: each.distance.relative / limit(each))
    return DriftCheck(
        phase=phase,
        title=_TITLES.get(group, group),
        measured=worst.distance.relative,
        limit=limit(worst),
        where=worst.name,
        tensors=len(found),
        equal=sum(each.distance.equal for each in found),
        above=sum(map(limit.above, found)),
    )


def _begins(facts: Facts, limit: _Limits) -> Beginning | None:
    """The first place above its limit: what lies within counts as equal."""

    def judged(each: Measurement) -> Measurement:
        return replace(each, distance=replace(each.distance, equal=not limit.above(each)))

    found = dict(beginnings(replace(facts, measurements=tuple(map(judged, facts.measurements)))))
    return found.get("float64") or found.get("float32") or found.get("gradients")


def _missing(facts: Facts) -> Iterator[str]:
    structure = facts.structure
    yield from (f"the baseline alone has {name}" for name in (*structure.only_a, *structure.layers_only_a))
    yield from (f"this run alone has {name}" for name in (*structure.only_b, *structure.layers_only_b))
    yield from (f"shapes differ: {name}" for name in structure.wrong_shape)
    yield from (f"the baseline alone has {name}" for name in facts.alone["a"])
