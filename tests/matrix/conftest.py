"""Small traces and the folders of whole cells, for the tests of the matrix; no framework is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from portproof.compare import compare
from portproof.compare.policy import Policy
from portproof.compare.verdict import judge
from portproof.matrix.cell import RECORD, SUITES, CellRecord
from portproof.matrix.gather import gather
from portproof.matrix.inputs import Inputs
from portproof.matrix.table import Cell
from portproof.plan import PARITY
from portproof.report import Report
from portproof.trace import MODEL, CallRecord, LayerRecord, Manifest, ParameterRecord, Trace, TraceWriter

PHASES = {phase.name: phase for phase in PARITY}
LAYERS = {"conv": "conv2d", "bn": "batchnorm", "act": "gelu", "head": "linear"}  # a chain, in this order
NOW = Inputs(lock="1" * 64, source="2" * 64, mirror="3" * 64, policy=asdict(Policy()))
VERSIONS = {"torch": "2.13.0+cpu", "tensorflow": "2.19.1"}
Edit = Callable[[str, str, np.ndarray], np.ndarray]


def environment_of(side: str, version: str = "", **changes: Any) -> dict[str, Any]:
    machine = {
        "python": {"version": "3.12.1"},
        "cpu": {"model": "a CPU", "instruction_sets": ["avx2"]},
        "numerics": {},
        "distributions": {"numpy": "2.1.3", "keras": "3.15.1", "protobuf": "5.29.6"},
    }
    own = {"keras": "3.15.1"} if side == "tensorflow" else {}
    plain = {"framework": side, "version": version or VERSIONS[side], "build": "CPU", "accelerators": [], "threads": 1}
    return {**plain, **own, "machine": machine, **changes}


def write_trace(
    folder: Path, side: str, *, edit: Edit | None = None, seed: int = 0, skip: tuple[str, ...] = (), **environment: Any
) -> Trace:
    """A chain of four layers in both precisions. ``edit`` changes the output of (phase, layer) before it is stored.

    As in a real network, what a layer gives depends on what reaches it: an edit shows in every layer after it.
    """
    rng = np.random.default_rng(seed)
    weights = {f"{name}.weight": rng.standard_normal(3) for name in LAYERS}
    given = rng.standard_normal((2, 4, 3))
    tensors: dict[str, Any] = {f"weights/excited/{name}": value for name, value in weights.items()}
    calls: dict[str, list[CallRecord]] = {}
    last = given
    phases = ("float64.eval", "float32.eval", "float64.forward")
    for phase in phases:
        dtype = phase.partition(".")[0]
        value, before = given.astype(dtype), "source/x"
        tensors[f"{phase}/source/x"] = value
        if phase == "float64.forward":
            continue
        calls[phase] = []
        for name in LAYERS:
            if name in skip:
                continue
            value = (np.tanh(value) * weights[f"{name}.weight"].astype(dtype) + value).astype(dtype)
            value = edit(phase, name, value) if edit else value
            tensors[f"{phase}/output/{name}"] = value
            calls[phase].append(CallRecord(name, 0, (before,), (f"output/{name}",)))
            before = f"output/{name}"
        calls[phase].append(CallRecord(MODEL, 0, ("source/x",), (before,)))
        for name, weight in weights.items():
            # Of another size on purpose: `value` is what changes with the layers.
            tensors[f"{phase}/gradient/{name}"] = (weight * float(np.float64(value).sum())).astype(dtype)
        last = value if phase == "float64.eval" else last
    tensors["float64.forward/batch/batch of 1:0"] = np.asarray(last[:1], np.float64)
    with TraceWriter(folder) as writer:
        for key, tensor in tensors.items():
            writer.add(key, np.asarray(tensor))
        records = [LayerRecord(MODEL, "model", "Model", None, False, False)]
        records += [LayerRecord(name, kind, kind.title(), MODEL, True, True) for name, kind in LAYERS.items()]
        return writer.finish(
            Manifest(
                side=side,
                subject="demo",
                environment=environment_of(side, **environment),
                plan=[asdict(PHASES[name]) for name in phases],
                parameters=tuple(ParameterRecord(name, name[:-7], "weight", (3,), True) for name in weights),
                layers=tuple(records),
                calls={name: tuple(rows) for name, rows in calls.items()},
                tensors={},
                facts={
                    "phases": {name: {} for name in phases},
                    "seed": seed,
                    "weights": "give",
                    "factory": "pkg:build",
                },
            )
        )


def report_of(folder: Path) -> Report:
    facts = compare(Trace.open(folder / "torch"), Trace.open(folder / "tensorflow"))
    return Report(facts, judge(facts), {"seconds": 1.5})


class Reports:
    """A folder of cells. What a test does not name is up to date and the same model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cell(
        self,
        name: str = "3.12-tf2.19.1",
        *,
        torch: Mapping[str, Any] | None = None,
        tensorflow: Mapping[str, Any] | None = None,
        inputs: Inputs = NOW,
        at: str = "",
        **record: Any,
    ) -> Path:
        python, _, version = name.partition("-tf")
        folder = self.folder / (at or name)
        shutil.rmtree(folder, ignore_errors=True)
        write_trace(folder / "torch", "torch", **(torch or {}))
        write_trace(folder / "tensorflow", "tensorflow", **{"version": version, **(tensorflow or {})})
        report = report_of(folder)
        for suite in SUITES:
            report.save(folder / f"{suite}.json")
        plain = CellRecord(
            id=name,
            python=python,
            tensorflow=version,
            subject="demo",
            inputs=inputs,
            installed={},
            machine="x86_64",
            outcomes=dict.fromkeys(SUITES, report.verdict.outcome),
            recorded={"at": "2026-01-02T03:04:05Z", "seconds": {"smoke": 1.0, "parity": 2.5}},
        )
        (folder / RECORD).write_text(json.dumps(replace(plain, **record).to_json()))
        return folder

    def gather(self, *names: str, now: Inputs = NOW, **options: Any) -> Any:
        """The matrix over these cells."""
        cells = [Cell(*name.split("-tf"), {}) for name in names or ("3.12-tf2.19.1",)]
        return gather(self.folder, cells, lambda _: now, **{"locks": None, "subject": "demo", **options})


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "reports")


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(trace=write_trace, environment=environment_of, report=report_of, now=NOW, layers=LAYERS)
