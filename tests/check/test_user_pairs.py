"""Pairs of a user's own: what ports look like in the wild, honest and not, through the whole check.

Both sides run in this process one after the other (conftest.py); that two processes give the same is for test_cli.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portproof.check import Settings, check
from portproof.compare.verdict import DIFFERS, FAIL, SAME, UNDECIDED, UNKNOWN
from portproof.errors import TransferError, WorkerError
from portproof.mirror import InputSpec, Mirror
from portproof.plan import PARITY, phases_for
from portproof.report import Report

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow, pytest.mark.usefixtures("in_process")]

FUNCTION = phases_for(["function"])
VECTOR = ("3,6",)
TOKENS = ("ids=2,7:int64<50", "features=2,7,3")

Check = Callable[..., Report]


@pytest.fixture
def run(ports: Path) -> Check:
    def run(torch: str, keras: str, *inputs: str, phases: Any = FUNCTION, **settings: Any) -> Report:
        specs = tuple(InputSpec.parse(text) for text in inputs or VECTOR)
        mirror = Mirror("pair", f"{ports / 'pairs_torch.py'}:{torch}", f"{ports / 'pairs_keras.py'}:{keras}", specs)
        return check(mirror, phases=phases, settings=Settings(**settings))

    return run


def failed(report: Report) -> dict[str, tuple[str, ...]]:
    return {each.name: each.details for each in report.verdict.checks if each.status == FAIL}


def details(report: Report, name: str) -> str:
    return " / ".join(next(each for each in report.verdict.checks if each.name == name).details)


HONEST = [
    # The classifier: NHWC, other layer names, ReLU as layer, function and inside of a convolution, Permute, odd sizes.
    ("classifier", "classifier", ("2,3,17,13",)),
    ("pooled", "pooled", ("2,2,15,11",)),
    # Two inputs by name in another order, as keyword arguments, as a list; three outputs, one of integers.
    ("two_inputs", "two_inputs", TOKENS),
    ("two_inputs", "two_inputs_by_name", TOKENS),
    ("two_inputs", "two_inputs_as_list", TOKENS),
    ("reordered", "reordered", VECTOR),
    ("perceptron", "perceptron", VECTOR),
    ("perceptron", "functional_perceptron", VECTOR),
    ("shared", "shared", VECTOR),
    ("shared", "shared_functional", VECTOR),
    ("in_place", "in_place", ("2,3,9",)),
    ("perceptron", "compiled", VECTOR),
    ("perceptron", "compiled_part", VECTOR),
    ("gated", "gated", VECTOR),
    ("separable", "separable", ("2,3,7,6",)),
    ("with_dropout", "with_dropout", VECTOR),
]


@pytest.mark.parametrize(("torch", "keras", "inputs"), HONEST, ids=[f"{row[0]}-{row[1]}" for row in HONEST])
def test_honest_ports_are_the_same_model(run: Check, torch: str, keras: str, inputs: tuple[str, ...]) -> None:
    report = run(torch, keras, *inputs, phases=PARITY)
    assert report.verdict.outcome == SAME, failed(report)
    assert report.verdict.summary == "the same model: same function, same precision"
    assert report.verdict.divergence is None
    # Not by having looked at nothing: outputs of layers, gradients and parameters were compared in float64.
    measured = {(each.phase, each.group) for each in report.facts.measurements}
    assert {("float64.eval", "outputs"), ("float64.eval", "gradients"), ("float64.adamw", "parameters")} <= measured


DIFFERENT = [
    ("classifier", "classifier_without_permute", ("2,3,17,13",), "flatten"),
    ("perceptron", "missing_bias", VECTOR, "hidden"),
    ("perceptron", "compiled_wrong", VECTOR, None),
    ("gated", "gated_wrong", VECTOR, None),
    ("shared", "shared_once", VECTOR, None),
]


@pytest.mark.parametrize(("torch", "keras", "inputs", "layer"), DIFFERENT, ids=[row[1] for row in DIFFERENT])
def test_wrong_ports_differ(run: Check, torch: str, keras: str, inputs: tuple[str, ...], layer: str | None) -> None:
    report = run(torch, keras, *inputs)
    assert report.verdict.outcome == DIFFERS
    assert "function-layers" in failed(report)
    assert report.verdict.divergence is not None
    if layer:  # elsewhere the mistake lies between the layers, in the model's own code
        assert report.verdict.divergence.layer == layer
        assert report.verdict.divergence.inputs_agree
    else:  # and every layer that was given the right thing gave the right thing
        wrong = {each.split(":")[0] for each in failed(report)["function-layers"]}
        assert wrong == {"head"}
        assert "function-between" in failed(report)


def test_layers_without_a_counterpart_are_listed(run: Check) -> None:
    report = run("classifier", "classifier", "2,3,17,13")
    listed = details(report, "coverage")
    for name in ("zero_padding2d", "permute", "conv_out.activation"):
        assert f"only in the port: {name}" in listed
    assert "paired by order, not by name: pool = max_pooling2d" in listed
    assert "paired by order, not by name: stem.weight = conv_in.weight" in details(report, "parameters")


def test_an_extra_parameter_is_listed_though_it_changes_nothing(run: Check) -> None:
    report = run("perceptron", "extra_parameter")
    assert report.verdict.outcome == DIFFERS
    assert failed(report) == {"parameters": ("only in the port: temperature.weight (4, 4)",)}


def test_a_missing_bias_is_listed(run: Check) -> None:
    report = run("perceptron", "missing_bias", phases=())
    assert report.verdict.outcome == DIFFERS
    assert failed(report) == {"parameters": ("only in the original: hidden.bias (5,)",)}


def test_a_frozen_layer_is_listed(run: Check) -> None:
    report = run("perceptron", "frozen_layer", phases=phases_for(["counts"]))
    assert report.verdict.outcome == DIFFERS
    assert failed(report)["parameters"] == (
        "trainability differs: hidden.weight: trainable and frozen",
        "trainability differs: hidden.bias: trainable and frozen",
    )
    assert "hidden.weight: live only in the original" in failed(report)["count-eval"]


def test_own_weights_that_are_equal(run: Check) -> None:
    report = run("seeded", "seeded", weights="own")
    assert report.verdict.outcome == SAME, failed(report)


def test_own_weights_of_which_one_value_is_off_by_an_ulp(run: Check) -> None:
    report = run("seeded", "seeded_but_one", weights="own")
    assert report.verdict.outcome == DIFFERS
    assert failed(report)["weights"] == ("initial: head.weight", "excited: head.weight")
    assert "function-layers" in failed(report)  # 6e-8 in one weight, in float64


def test_weights_of_a_torch_checkpoint(run: Check, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    state = {
        "hidden.weight": torch.randn(5, 6),
        "hidden.bias": torch.randn(5),
        "head.weight": torch.randn(4, 5),
        "head.bias": torch.randn(4),
    }
    path, traces = tmp_path / "model.pth", tmp_path / "traces"
    torch.save(state, path)
    report = run("perceptron", "functional_perceptron", weights=path, traces=traces)
    assert report.verdict.outcome == SAME, failed(report)
    from portproof.trace import Trace

    carried = Trace.open(traces / "tensorflow").tensor("weights/initial/encode.weight")
    np.testing.assert_array_equal(carried, state["hidden.weight"].numpy())
    assert sorted(each.name for each in traces.iterdir()) == ["tensorflow", "torch"]


@pytest.mark.parametrize("port", ["perceptron", "functional_perceptron"])
def test_weights_of_a_keras_checkpoint(run: Check, ports: Path, port: str, tmp_path: Path) -> None:
    import tensorflow as tf

    from portproof.capture.loading import load_factory
    from portproof.trace import Trace

    model = load_factory(f"{ports / 'pairs_keras.py'}:{port}")()
    model(tf.zeros((1, 6)))
    rng = np.random.default_rng(0)
    model.set_weights([rng.random(weight.shape, np.float32) for weight in model.get_weights()])
    model.save_weights(tmp_path / "model.weights.h5")
    report = run("perceptron", port, weights=tmp_path / "model.weights.h5", traces=tmp_path / "traces")
    assert report.verdict.outcome == SAME, failed(report)
    carried = Trace.open(tmp_path / "traces" / "torch").tensor("weights/initial/hidden.weight")
    np.testing.assert_array_equal(carried, model.get_weights()[0].T)


def test_a_checkpoint_of_another_model_ends_the_check(run: Check, tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(6, 5).state_dict(), tmp_path / "model.pth")
    with pytest.raises(TransferError, match="4 missing, 2 left over"):
        run("perceptron", "perceptron", weights=tmp_path / "model.pth", traces=tmp_path / "traces")
    assert list((tmp_path / "traces").iterdir()) == []


def test_dropout_is_off_and_noted(run: Check) -> None:
    report = run("with_dropout", "with_dropout", phases=phases_for(["training"]))
    assert report.verdict.outcome == SAME, failed(report)
    for side in report.facts.sides.values():
        (note,) = side["notes"]
        assert note.startswith("dropout is off in training mode, for the frameworks draw different masks: ")


@pytest.mark.parametrize(
    ("torch", "keras", "word"), [("casting", "perceptron", "original"), ("perceptron", "casting", "port")]
)
def test_a_model_that_casts_inside_is_judged_in_float32_and_says_so(
    run: Check, torch: str, keras: str, word: str
) -> None:
    report = run(torch, keras)
    assert report.verdict.outcome == SAME, failed(report)
    assert report.verdict.summary == "no difference found in float32; a float64 proof was not possible"
    assert f"layers of the {word} that compute below float64: (model)" in details(report, "float64")
    names = [each.name for each in report.verdict.checks]
    assert "fallback-layers" in names
    assert "function-layers" not in names
    notes = [note for side in report.facts.sides.values() for note in side["notes"]]
    file = "pairs_torch.py" if word == "original" else "pairs_keras.py"
    assert notes
    assert all(note.startswith(f"computes in float32 when given float64: {file}:") for note in notes)


@pytest.mark.parametrize(
    ("torch", "keras", "word"), [("stubborn", "perceptron", "original"), ("perceptron", "stubborn", "port")]
)
def test_a_model_that_raises_in_float64_does_not_end_the_check(run: Check, torch: str, keras: str, word: str) -> None:
    report = run(torch, keras, phases=[phase for phase in PARITY if phase.name in ("float64.eval", "float32.eval")])
    assert report.verdict.outcome == SAME, failed(report)
    assert report.verdict.summary == "no difference found in float32; a float64 proof was not possible"
    found = next(each for each in report.verdict.checks if each.name == "float64")
    assert found.status == UNKNOWN
    assert f"the {word} raised: " in found.details[0]
    assert "pairs_" in found.details[0]  # the line that raised


def test_tf_functions_are_opened_and_noted(run: Check) -> None:
    report = run("perceptron", "compiled_part")
    notes = report.facts.sides["b"]["notes"]
    assert notes == ["a tf.function that was run eagerly, so that its layers can be seen: hidden"]
    assert "head" in {row.layer for row in report.facts.calls["float64.eval"]}


def test_nan_on_both_sides_cannot_be_judged(run: Check) -> None:
    report = run("nans", "nans")
    assert report.verdict.outcome == UNDECIDED
    assert "NaN" in report.verdict.summary


@pytest.mark.parametrize(("torch", "keras"), [("nans", "perceptron"), ("perceptron", "nans")])
def test_nan_on_one_side_is_a_difference(run: Check, torch: str, keras: str) -> None:
    report = run(torch, keras)
    assert report.verdict.outcome == DIFFERS
    assert "forward" in failed(report)


@pytest.mark.parametrize(("inputs", "side"), [(("3,7",), "torch"), (("3,6", "more=3,6"), "torch")])
def test_inputs_that_do_not_fit_are_a_clear_error(run: Check, inputs: tuple[str, ...], side: str) -> None:
    with pytest.raises(WorkerError, match=rf"The {side} model raised on its main inputs \(inputs x \(3, ") as caught:
        run("perceptron", "perceptron", *inputs)
    assert "\n" not in str(caught.value)


def test_outputs_of_other_shapes_differ(run: Check) -> None:
    report = run("perceptron", "reordered", phases=phases_for(["forward"]))
    assert report.verdict.outcome == DIFFERS
    assert {"parameters", "forward"} <= set(failed(report))
