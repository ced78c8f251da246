"""Reports made by hand: facts about a model of two layers, each test changing what it is about; and whole ones."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from portproof.compare.facts import CallFacts, Cause, Facts, Measurement, Structure
from portproof.compare.measure import Distance
from portproof.compare.policy import Policy
from portproof.compare.proof import Diagnosis, Proven
from portproof.compare.verdict import judge
from portproof.edits import Edit
from portproof.matrix.facts import (
    COMPLETE,
    Beginning,
    CellCheck,
    CellResult,
    Drift,
    DriftGroup,
    DriftPair,
    Environment,
    LayerErrors,
    Matrix,
)
from portproof.report import Report

COUNTS = {
    "trainable": 1234, "trainable_tensors": 3, "non_trainable": 8, "non_trainable_tensors": 2,
    "bookkeeping_tensors": 0, "layers": 2,
}  # fmt: skip


def environment(framework, version, **more):
    machine = {"python": {"version": "3.11.9"}, "cpu": {"model": "Some CPU"}, "accelerators": ["NVIDIA A100"]}
    return {"framework": framework, "version": version, "build": "CPU", "accelerators": [], "threads": 1,
            "machine": machine, **more}  # fmt: skip


def side(name, weights, env, **more):
    return {"side": name, "subject": "demo", "factory": f"pkg.{name}:build", "weights": weights, "seed": 7,
            "environment": env, "notes": [], **more}  # fmt: skip


def distance(relative=3e-15, **more):
    plain = {"shape_a": (2, 4), "shape_b": (2, 4), "dtype_a": "float64", "dtype_b": "float64", "equal": False,
             "max_abs": 1e-15, "scale": 1.0, "cosine": 1.0, "worst": (1, 2),
             "worst_a": 0.25, "worst_b": 0.5}  # fmt: skip
    return Distance(relative=relative, **{**plain, **more})


def measurement(name="conv", group="outputs", phase="float64.eval", relative=3e-15, layer=None, **more):
    own = {key: more.pop(key) for key in ("error_a", "error_b", "note", "other") if key in more}
    return Measurement(
        phase, group, name, own.pop("other", ""), name if layer is None else layer, distance(relative, **more), **own
    )


def structure(**changes):
    stages = (
        {"name": "stem", "other": "stem", "kind": "Sequential", "a": [2, 24, 25, 10], "b": [2, 24, 25, 10]},
        {"name": "head", "other": "head", "kind": "Linear", "a": [2, 2], "b": [2, 2]},
    )
    empty = dict.fromkeys(
        ("only_a", "only_b", "wrong_shape", "wrong_trainable", "by_order", "weights_differ", "layers_only_a",
         "layers_only_b", "layers_by_order"), ()
    )  # fmt: skip
    return Structure(**{"counts": {"a": COUNTS, "b": COUNTS}, "stages": stages, **empty, **changes})


def facts(measurements=None, **changes):
    if measurements is None:
        measurements = [
            measurement("conv", error_a=3e-7, error_b=4e-7),
            measurement("bn", error_a=3e-7, error_b=4e-7),
            measurement("loss", "loss", layer=""),
        ]
    keys = {each.name: each.key for each in measurements if (each.phase, each.group) == ("float64.eval", "outputs")}
    calls = [
        CallFacts(name, name, True, name, name, (keys.get(before),), (keys[name],))
        for name, before in (("conv", ""), ("bn", "conv"))
        if name in keys
    ]
    plain = {
        "sides": {
            "a": side("torch", "give", environment("torch", "2.13.0+cpu")),
            "b": side("tensorflow", "take", environment("tensorflow", "2.19.1", keras="3.15.1")),
        },
        "structure": structure(),
        "measurements": tuple(measurements),
        "calls": {"float64.eval": tuple(calls)},
        "gradient_maxima": {},
        "layers_of": {},
        "batchnorm": (),
        "settings": (),
        "unavailable": {"a": {}, "b": {}},
        "coarse": {"a": (), "b": ()},
    }
    return Facts(**{**plain, **changes})


def report(found=None, policy=None, **recorded):
    found = found or facts()
    return Report(found, judge(found, policy or Policy()), {"seconds": 7.25, "at": "2026-01-02T03:04:05Z", **recorded})


def differing():
    """BatchNorm's eps is another: its output differs, its input does not."""
    wrong = measurement("bn", relative=4.3e-5, worst=(1, 2), worst_a=0.1234567890123, worst_b=0.1234567890456)
    return report(
        facts(
            [measurement("conv"), wrong, measurement("loss", "loss", relative=1e-6, layer="")],
            settings=({"layer": "bn", "setting": "eps", "a": 1e-5, "b": 1.001e-5},),
            causes=(Cause("bn", "BatchNorm eps is 1.001e-05 in the port, 1e-05 in the original"),),
        )
    )


def undecided():
    """NaN on both sides, in the same places."""
    return report(facts([measurement("conv"), measurement("bn", bad_a=3, bad_b=3)]))


def whole(layers=12, *, wrong_from=None, name="features.{}.block.conv"):
    """A parity run of a chain of layers, with every kind of measurement; from ``wrong_from`` on, the port is wrong."""
    names = [name.format(i) for i in range(layers)]
    relative = [3e-15 if wrong_from is None or i < wrong_from else 2e-4 for i in range(layers)]
    found = []
    for i, layer in enumerate(names):
        own = {"error_a": 3e-7 * (1 + i % 3), "error_b": 4e-7 * (1 + i % 3)}
        for phase in ("float64.eval", "float64.train"):
            found.append(measurement(layer, phase=phase, relative=relative[i], **own))
            found.append(
                measurement(f"{layer}.weight", "gradients", phase, relative=relative[i] * 2, layer=layer, **own)
            )
        for phase in ("float64.train", "float64.sgd", "float64.adamw"):
            found.append(measurement(f"{layer}.running_var", "buffers", phase, relative=0.0, layer=layer))
        for phase in ("float64.sgd", "float64.adamw"):
            found.append(measurement(f"{layer}.weight", "parameters", phase, relative=1e-14, layer=layer))
    found += [
        measurement("batch of 1:0", "batches", "float64.forward", layer=""),
        measurement("loss", "loss", layer=""),
    ]
    outputs = {(m.phase, m.name): m.key for m in found if m.group == "outputs"}
    calls = {
        phase: tuple(
            CallFacts(layer, layer, True, "conv2d", "conv2d", (outputs.get((phase, before)),), (outputs[phase, layer],))
            for before, layer in zip(["", *names], names, strict=False)
        )
        for phase in ("float64.eval", "float64.train")
    }
    causes = (Cause(names[wrong_from], "the port pads 'same'"),) if wrong_from is not None else ()
    stages = tuple(
        {"name": each.partition(".block")[0], "other": "", "kind": "Block", "a": [2, 4], "b": [2, 4]} for each in names
    )
    every = facts(found, calls=calls, causes=causes, structure=structure(stages=stages))
    return report(every, logs={"torch": "/somewhere/torch.log"}, samples=[])


CELLS = tomllib.loads((Path(__file__).parents[2] / "src/portproof/cells.toml").read_text(encoding="utf-8"))["cells"]


def cell(row, errors, checks, **changes):
    seen = Environment(
        row["python"], row["tensorflow"], row["keras"], row["torch"], "CPU", row["numpy"], "5.29", "A CPU"
    )
    return CellResult(**{
        "id": f"{row['python']}-tf{row['tensorflow']}", "python": row["python"], "tensorflow": row["tensorflow"],
        "state": COMPLETE, "outcome": "same", "summary": "the same model", "environment": seen, "checks": checks,
        "errors": errors, "seconds": {"parity": 7.25}, **changes,
    })  # fmt: skip


def matrix(layers=12, classes=3, checks=20, **changes):
    """All cells of the table, green; TensorFlow's in ``classes`` classes, torch's in one."""
    names = tuple(f"features.{i}.block.conv" for i in range(layers))
    results = []
    for i, row in enumerate(CELLS):
        own = 1 + min(i, classes - 1)
        each = [(value,) * layers for value in (own * 1e-15, 3e-7, own * 3e-7, 1e-12, 4.8e-6)]
        errors = LayerErrors(names, *each)
        measured = [
            CellCheck(
                "parity", f"function-{k}", f"check {k}, eval mode, float64", "pass", f"{own}.{k % 10}e-15", "1.0e-12",
                f"features.{k}.block.conv", layers, (f"detail of {k}",),
            )
            for k in range(checks)
        ]  # fmt: skip
        precision = CellCheck("parity", "precision-layers", "float32 error of every layer's output", "pass",
                              f"{own}.0e-07 (original 3.0e-07)", "4.8e-06", names[-1], layers)  # fmt: skip
        smoke = CellCheck("smoke", "parameters", "trainable values pair up", "pass", "1,234 in 3", "1,234 in 3")
        results.append(cell(row, errors, (*measured, precision, smoke)))
    ids = [each.id for each in results]
    members = [tuple(ids[i : i + 1]) for i in range(classes - 1)] + [tuple(ids[classes - 1 :])]
    pairs = tuple(
        DriftPair(
            i, j, (0.0,) * layers, (0.0, *(1.5e-7 * (i + j),) * (layers - 1)),
            {"float32": Beginning("float32.eval", names[1], "gelu", 1.5e-7, 1e-6, 10.0)},
            (DriftGroup("gradients", "gradients of the parameters", "float32.eval", 195, 3, 4.4e-6, "stem.weight"),),
            ("erf is another one",), (f"tensorflow {i} and {j}",),
        )
        for j in range(classes)
        for i in range(j)
    )  # fmt: skip
    kinds = ("conv2d",) * layers
    drifts = (Drift("torch", names, kinds, (tuple(ids),)), Drift("tensorflow", names, kinds, tuple(members), pairs))
    return Matrix(**{"subject": "demo", "cells": tuple(results), "drift": drifts, **changes})


VOID = {"meta", "br", "input", "link", "img"}


class Parsed(HTMLParser):
    """A page as a tree would have it: elements with their attributes, and text; errors where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in {"circle", "path", "rect", "use"}, f"<{tag}/> closes nothing in HTML"
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag):
        assert self._open[-1] == tag, f"</{tag}> in {self._open}"
        self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs, _ in self.elements if name == tag]


def diagnosed(**changes):
    """The cause of `differing`, proven: eps in two layers."""
    cause = Proven(
        text="BatchNorm eps is 1.001e-05 in the port, 1e-05 in the original",
        change="BatchNormalization(epsilon=1.001e-05) -> 1e-05",
        layers=("bn", "bn2"),
        others=("bn", "bn_2"),
        edits=(Edit("set", ("bn", "bn_2"), {"epsilon": 1e-5}),),
        phase="float64.eval",
        what="output",
        relative=4.3e-5,
        residual=3e-15,
    )
    plain = {"proven": (cause,), "outcome": "same", "summary": "the same model: same function, same precision",
             "phases": ("float64.eval", "float64.train"), "remaining": (), "tried": 4, "seconds": 9.5}  # fmt: skip
    return replace(differing(), diagnosis=Diagnosis(**{**plain, **changes}))


@pytest.fixture
def given():
    """The factories, as one namespace: with importlib as the import mode, tests cannot import from each other."""
    return SimpleNamespace(
        distance=distance, measurement=measurement, structure=structure, facts=facts, report=report, side=side,
        environment=environment, differing=differing, diagnosed=diagnosed, undecided=undecided, replace=replace,
        whole=whole, matrix=matrix, cells=CELLS, cell=cell, parsed=Parsed,
    )  # fmt: skip
