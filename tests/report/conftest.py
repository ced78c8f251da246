"""Reports made by hand: facts about a model of two layers, each test changing what it is about."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from portproof.compare.facts import CallFacts, Cause, Facts, Measurement, Structure
from portproof.compare.measure import Distance
from portproof.compare.policy import Policy
from portproof.compare.proof import Diagnosis, Proven
from portproof.compare.verdict import judge
from portproof.edits import Edit
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
    )  # fmt: skip
