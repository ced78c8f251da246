"""Builders for the tests of the comparison: facts by hand, and small traces on disk."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from portproof.compare import verdict as rules
from portproof.compare.checks import Check
from portproof.compare.facts import CallFacts, Facts, Measurement, Structure
from portproof.compare.measure import Distance
from portproof.compare.policy import Policy
from portproof.compare.verdict import judge
from portproof.plan import PARITY
from portproof.trace import MODEL, CallRecord, LayerRecord, Manifest, ParameterRecord, Trace, TraceWriter

COUNTS = {
    "trainable": 10, "trainable_tensors": 2, "non_trainable": 4, "non_trainable_tensors": 2,
    "bookkeeping_tensors": 0, "layers": 2,
}  # fmt: skip


def make_distance(relative: float = 1e-15, **changes: Any) -> Distance:
    shape = (2, 3)
    return replace(Distance(shape, shape, "float64", "float64", False, relative, relative, 1.0, 1.0, (1, 2)), **changes)


def make_measurement(
    name: str = "conv", group: str = "outputs", phase: str = "float64.eval", relative: float = 1e-15, **changes: Any
) -> Measurement:
    own = {key: changes.pop(key) for key in ("error_a", "error_b", "layer", "other") if key in changes}
    plain = Measurement(phase, group, name, "", name.rpartition(".")[0] or name, make_distance(relative, **changes))
    return replace(plain, **own)


def make_call(layer: str, inputs: list[Measurement | None], outputs: list[Measurement], **changes: Any) -> CallFacts:
    keys = tuple(each and each.key for each in inputs), tuple(each.key for each in outputs)
    return replace(CallFacts(layer, layer, True, "linear", "linear", *keys), **changes)


def make_structure(**changes: Any) -> Structure:
    listed = ("only_a", "only_b", "wrong_shape", "wrong_trainable", "by_order", "weights_differ")
    empty = dict.fromkeys((*listed, "stages", "layers_only_a", "layers_only_b", "layers_by_order"), ())
    return Structure(**{"counts": {"a": dict(COUNTS), "b": dict(COUNTS)}, **empty, **changes})


def make_facts(*measurements: Measurement, **changes: Any) -> Facts:
    side = {"weights": "take", "environment": {"accelerators": []}}
    plain = Facts(
        sides={"a": dict(side), "b": dict(side)},
        structure=make_structure(),
        measurements=measurements,
        calls={},
        gradient_maxima={},
        layers_of={},
        batchnorm=(),
        settings=(),
        unavailable={"a": {}, "b": {}},
        coarse={"a": (), "b": ()},
    )
    return replace(plain, **changes)


MAXIMA = {"l.weight": 1.0, "l.bias": 0.5}
COUNTED = ("float32.count", "float64.count-eval", "float64.count-train")


def make_complete(**changes: Any) -> Facts:
    """Facts of two equal models with something for every check to look at."""
    wanted = dict.fromkeys((group, phase) for group, phase, *_ in (*rules._FUNCTION, *rules._PRECISION))
    measured = [
        make_measurement("l.weight", group, phase, error_a=2e-7, error_b=3e-7, layer="l") for group, phase in wanted
    ]
    plain = {
        "gradient_maxima": {phase: {"a": dict(MAXIMA), "b": dict(MAXIMA)} for phase in COUNTED},
        "layers_of": {"l.weight": "l", "l.bias": "l"},
        "structure": make_structure(stages=({"name": "s", "other": "s", "kind": "S", "a": [2, 3], "b": [2, 3]},)),
    }
    return make_facts(*measured, **{**plain, **changes})


def make_without_float64(**changes: Any) -> Facts:
    """Facts of a port that casts to float32 inside, with a float32 run that agrees."""
    phases = (("outputs", "float32.eval"), ("batches", "float32.forward"), ("gradients", "float32.eval"))
    measured = [make_measurement("l", group, phase, 1e-7, error_a=2e-7, error_b=2e-7) for group, phase in phases]
    return make_facts(*measured, **{"coarse": {"a": (), "b": ("l",)}, **changes})


def by_name(facts: Facts, policy: Policy | None = None) -> dict[str, Check]:
    checks = judge(facts, policy).checks
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)  # no check is asked twice
    return found


def statuses(facts: Facts, *, besides: str = "pass") -> dict[str, str]:
    return {name: check.status for name, check in by_name(facts).items() if check.status != besides}


def changed(facts: Facts, group: str, phase: str, **changes: Any) -> Facts:
    """The same facts with one group of measurements changed."""
    own = {key: changes.pop(key) for key in ("error_a", "error_b") if key in changes}
    return replace(
        facts,
        measurements=tuple(
            replace(each, distance=replace(each.distance, **changes), **own)
            if (each.group, each.phase) == (group, phase)
            else each
            for each in facts.measurements
        ),
    )


@pytest.fixture
def make() -> SimpleNamespace:
    """Facts and their parts; what a test does not name is unremarkable."""
    return SimpleNamespace(
        distance=make_distance,
        measurement=make_measurement,
        call=make_call,
        structure=make_structure,
        facts=make_facts,
        complete=make_complete,
        without_float64=make_without_float64,
        changed=changed,
        by_name=by_name,
        statuses=statuses,
    )


PHASES = {phase.name: phase for phase in PARITY}


class TraceBuilder:
    """One side's trace in the making: layers as they are called, and tensors by key."""

    def __init__(self, folder: Path, side: str = "torch", **facts: Any) -> None:
        self._folder, self._side = folder, side
        self.layers: dict[str, LayerRecord] = {MODEL: LayerRecord(MODEL, "model", "Model", None, False, False)}
        self.parameters: list[ParameterRecord] = []
        self.calls: dict[str, list[CallRecord]] = {}
        self.tensors: dict[str, Any] = {}
        self.phase_facts: dict[str, dict[str, Any]] = {}
        self.facts = {"seed": 0, "weights": "give", "factory": "pkg:build", **facts}

    def layer(
        self, name: str, kind: str = "linear", *, leaf: bool = True, stage: bool = False, **settings: Any
    ) -> None:
        self.layers[name] = LayerRecord(name, kind, kind.title(), MODEL, leaf, stage, settings)

    def parameter(self, name: str, value: Any, *, trainable: bool = True, excited: bool = True) -> None:
        layer, _, role = name.rpartition(".")
        self.parameters.append(ParameterRecord(name, layer, role, np.shape(value), trainable))
        if excited:
            self.tensors[f"weights/excited/{name}"] = np.asarray(value)

    def phase(self, phase: str, **facts: Any) -> None:
        """Make the phase part of the plan, whether or not anything is stored of it."""
        self.phase_facts.setdefault(phase, {}).update(facts)

    def call(self, phase: str, layer: str, inputs: tuple[str, ...], output: Any, *, kind: str = "linear") -> str:
        """One call with one output, which gets the key that the recorder would give it; returns that key."""
        self.phase(phase)
        if layer not in self.layers:
            self.layer(layer, kind)
        rows = self.calls.setdefault(phase, [])
        occurrence = sum(row.layer == layer for row in rows)
        key = f"output/{layer}" if occurrence == 0 else f"output/{layer}#{occurrence}"
        self.tensors[f"{phase}/{key}"] = np.asarray(output)
        rows.append(CallRecord(layer, occurrence, inputs, (key,)))
        return key

    def tensor(self, phase: str, key: str, value: Any) -> None:
        self.phase(phase)
        self.tensors[f"{phase}/{key}"] = np.asarray(value)

    def finish(self) -> Trace:
        with TraceWriter(self._folder) as writer:
            for key, value in self.tensors.items():
                writer.add(key, value)
            return writer.finish(
                Manifest(
                    side=self._side,
                    subject="demo",
                    environment={"accelerators": []},
                    plan=[asdict(PHASES[name]) for name in self.phase_facts],
                    parameters=tuple(self.parameters),
                    layers=tuple(self.layers.values()),
                    calls={name: tuple(self.calls.get(name, ())) for name in self.phase_facts},
                    tensors={},
                    facts={"phases": self.phase_facts, **self.facts},
                )
            )


@pytest.fixture
def sides(tmp_path: Path) -> tuple[TraceBuilder, TraceBuilder]:
    """Builders for the two traces of a comparison."""
    return TraceBuilder(tmp_path / "a", "torch"), TraceBuilder(tmp_path / "b", "tensorflow")
