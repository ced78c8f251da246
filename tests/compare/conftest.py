"""Builders for the tests of the comparison: facts by hand, and small traces on disk."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from portproof.compare.facts import CallFacts, Facts, Measurement, Structure
from portproof.compare.measure import Distance
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


@pytest.fixture
def make() -> SimpleNamespace:
    """Facts and their parts; what a test does not name is unremarkable."""
    return SimpleNamespace(
        distance=make_distance,
        measurement=make_measurement,
        call=make_call,
        structure=make_structure,
        facts=make_facts,
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

    def layer(self, name: str, kind: str = "linear", *, leaf: bool = True, stage: bool = False, **settings: Any) -> None:
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
