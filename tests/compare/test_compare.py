"""Tests of the comparison as a whole: two small traces, and what becomes of each of their parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from portproof.compare import compare
from portproof.compare.facts import Facts, Measurement
from portproof.compare.verdict import DIFFERS, SAME, judge
from portproof.errors import TraceError

EVAL, TRAIN, SGD, SINGLE = "float64.eval", "float64.train", "float64.sgd", "float32.eval"


def facts_of(sides: Any) -> Facts:
    return compare(sides[0].finish(), sides[1].finish())


def found(facts: Facts, name: str, group: str = "outputs", phase: str = EVAL) -> Measurement:
    wanted = (phase, group, name)
    (measurement,) = (each for each in facts.measurements if (each.phase, each.group, each.name) == wanted)
    return measurement


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 3, 5, 4))


# --- Layers and their calls -------------------------------------------------------------------------------------------


def test_equal_traces_have_equal_facts(sides: Any, images: np.ndarray) -> None:
    for side in sides:
        side.parameter("conv.weight", np.arange(3.0))
        first = side.call(EVAL, "conv", ("source/x",), images, kind="conv2d")
        side.call(EVAL, "act", (first,), np.tanh(images), kind="tanh")
    facts = facts_of(sides)
    assert [each.key for each in facts.measurements] == [f"{EVAL}/outputs/conv|conv", f"{EVAL}/outputs/act|act"]
    assert all(each.distance.equal and each.note == "" for each in facts.measurements)
    conv, act = facts.calls[EVAL]
    assert (conv.inputs, conv.outputs) == ((None,), (f"{EVAL}/outputs/conv|conv",))
    assert (act.inputs, act.kind_a, act.kind_b, act.leaf) == ((f"{EVAL}/outputs/conv|conv",), "tanh", "tanh", True)
    assert judge(facts).outcome == SAME
    assert (facts.sides["a"]["side"], facts.sides["b"]["side"]) == ("torch", "tensorflow")
    assert (facts.coarse, facts.unavailable) == ({"a": (), "b": ()}, {"a": {}, "b": {}})


def test_channels_last_is_moved_and_noted(sides: Any, images: np.ndarray) -> None:
    sides[0].call(EVAL, "net", ("source/x",), images)
    sides[1].call(EVAL, "net", ("source/x",), np.moveaxis(images, 1, -1))
    measurement = found(facts_of(sides), "net")
    assert measurement.distance.equal
    assert measurement.note == "channels moved first, by shape"


def test_where_both_layouts_fit_the_closer_one_is_taken(sides: Any, rng: np.random.Generator) -> None:
    square = rng.standard_normal((2, 4, 4, 4))
    for name, wanted in (("moved", np.moveaxis(square, 1, -1)), ("kept", square)):
        sides[0].call(EVAL, name, ("source/x",), square)
        sides[1].call(EVAL, name, ("source/x",), wanted + 1e-9)
    facts = facts_of(sides)
    for name, note in (("moved", "channels moved first, by shape"), ("kept", "")):
        assert found(facts, name).note == note
        assert found(facts, name).distance.max_abs == pytest.approx(1e-9, rel=1e-3)


def test_infinite_values_do_not_disturb_the_choice_of_a_layout(sides: Any, rng: np.random.Generator) -> None:
    masked = rng.standard_normal((2, 4, 4))
    masked[0, 1, 2] = -math.inf
    for side in sides:
        side.call(EVAL, "mask", ("source/x",), masked + (side is sides[1]))
    assert found(facts_of(sides), "mask").distance.max_abs == pytest.approx(1)


def test_dimensions_of_size_one_are_dropped_and_noted(sides: Any, rng: np.random.Generator) -> None:
    pooled, logits = rng.standard_normal((2, 8, 1, 1)), rng.standard_normal((2, 8))
    flat = pooled.reshape(2, 8)
    for name, a, b in (("pool", pooled, flat), ("head", logits, logits + 1), ("other", logits, logits.T)):
        sides[0].call(EVAL, name, ("source/x",), a)
        sides[1].call(EVAL, name, ("source/x",), b)
    facts = facts_of(sides)
    assert found(facts, "pool").distance.equal
    assert found(facts, "pool").note == "dimensions of size one dropped"
    assert found(facts, "head").note == ""
    assert found(facts, "other").distance.relative == math.inf  # a matrix is not turned to make it fit


def test_repeated_calls_are_paired_call_by_call(sides: Any, rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, 2, 4))
    for side, order in ((sides[0], (0, 1, 2)), (sides[1], (0, 2))):
        key = "source/x"
        for i in order:
            key = side.call(EVAL, "act", (key,), values[i], kind="tanh")
    facts = facts_of(sides)
    assert [each.name for each in facts.measurements] == ["act", "act#1"]
    assert found(facts, "act").distance.equal
    assert not found(facts, "act#1").distance.equal  # its second call, not the one that would fit
    assert [call.layer for call in facts.calls[EVAL]] == ["act", "act"]
    assert facts.calls[EVAL][1].inputs == (f"{EVAL}/outputs/act|act",)


def test_what_reaches_a_layer_is_measured_if_no_layer_returned_it(sides: Any, images: np.ndarray) -> None:
    for side, factor in ((sides[0], 1.0), (sides[1], 2.0)):
        first = side.call(EVAL, "conv", ("source/x",), images, kind="conv2d")
        side.tensor(EVAL, "input/act:0", factor * images)
        side.call(EVAL, "act", ("input/act:0",), images, kind="tanh")
        side.call(EVAL, "add", (first, "input/act:0"), images, kind="add")
    facts = facts_of(sides)
    between = found(facts, "act:0", "inputs")
    assert between.distance.relative == pytest.approx(0.5)
    assert facts.calls[EVAL][1].inputs == (between.key,)
    assert facts.calls[EVAL][2].inputs == (f"{EVAL}/outputs/conv|conv", between.key)
    # Both layers make up for it: the port may do before a layer what the original does inside.
    verdict = judge(facts)
    assert verdict.outcome == SAME
    assert next(check.status for check in verdict.checks if check.name == "function-between") == "note"


def test_what_reaches_a_layer_counts_if_the_layers_output_differs_too(sides: Any, images: np.ndarray) -> None:
    for side, factor in ((sides[0], 1.0), (sides[1], 2.0)):
        side.tensor(EVAL, "input/act:0", factor * images)
        side.call(EVAL, "act", ("input/act:0",), factor * images, kind="tanh")
    failed = {check.name for check in judge(facts_of(sides)).checks if check.status == "fail"}
    assert failed == {"function-between", "function-layers"}


def test_an_input_is_not_taken_for_an_output_of_the_same_name(sides: Any, rng: np.random.Generator) -> None:
    # The recorder calls the second input of a layer `input/lstm:1` and its second output `output/lstm:1`.
    states = rng.standard_normal((2, 3, 4))
    for side in sides:
        side.tensor(EVAL, "input/lstm:1", states[0] + (side is sides[1]))
        side.tensor(EVAL, "output/lstm:1", states[1])
        side.call(EVAL, "lstm", ("source/x", "input/lstm:1"), states[1], kind="lstm")
        row = side.calls[EVAL][-1]
        side.calls[EVAL][-1] = type(row)(row.layer, 0, row.inputs, (*row.outputs, "output/lstm:1"))
        side.call(EVAL, "after", ("input/lstm:1",), states[1], kind="tanh")
    facts = facts_of(sides)
    lstm, after = facts.calls[EVAL]
    assert lstm.inputs == (None, f"{EVAL}/inputs/lstm:1|lstm:1")
    assert after.inputs == (f"{EVAL}/inputs/lstm:1|lstm:1",)
    assert not found(facts, "lstm:1", "inputs").distance.equal


def test_renamed_layers_are_paired_and_both_names_kept(sides: Any, images: np.ndarray) -> None:
    for side, prefix, act in ((sides[0], "", "act"), (sides[1], "backbone.", "gelu_7")):
        side.parameter(f"{prefix}conv.weight", np.arange(3.0))
        key = side.call(EVAL, f"{prefix}conv", ("source/x",), images, kind="conv2d")
        side.call(EVAL, act, (key,), np.tanh(images), kind="gelu")
    facts = facts_of(sides)
    assert (found(facts, "conv").other, found(facts, "conv").layer) == ("backbone.conv", "conv")
    assert found(facts, "act").other == "gelu_7"
    assert facts.calls[EVAL][1].inputs == (f"{EVAL}/outputs/conv|backbone.conv",)
    assert facts.structure.layers_by_order == ("act = gelu_7",)
    assert facts.structure.by_order == ()
    assert facts.layers_of == {"conv.weight": "conv"}


def test_layers_of_other_names_are_paired_by_kind_and_output_shape(sides: Any, images: np.ndarray) -> None:
    for side, names in ((sides[0], ("pool", "act", "flat")), (sides[1], ("lambda_1", "gelu_7", "flatten_2"))):
        key = "source/x"
        for name, kind, y in zip(names, ("avgpool", "gelu", "avgpool"), (images, images, images[:, :, 0]), strict=True):
            if name != "lambda_1":
                key = side.call(EVAL, name, (key,), y, kind=kind)
    structure = facts_of(sides).structure
    assert structure.layers_by_order == ("act = gelu_7", "flat = flatten_2")
    assert structure.layers_only_a == ("pool",)
    # A pooling layer of another output shape is no counterpart.
    sides[1].tensors[f"{EVAL}/output/flatten_2"] = images[:1]
    structure = facts_of(sides).structure
    assert (structure.layers_only_a, structure.layers_only_b) == (("pool", "flat"), ("flatten_2",))


def test_what_has_no_counterpart_is_listed(sides: Any, images: np.ndarray) -> None:
    for side, extra in ((sides[0], "crop"), (sides[1], "scale")):
        key = side.call(EVAL, "conv", ("source/x",), images, kind="conv2d")
        side.parameter(f"{extra}.{extra}", np.zeros(len(extra)))
        side.call(EVAL, extra, (key,), images, kind=extra)
    facts = facts_of(sides)
    assert (facts.structure.layers_only_a, facts.structure.layers_only_b) == (("crop",), ("scale",))
    assert (facts.structure.only_a, facts.structure.only_b) == (("crop.crop (4,)",), ("scale.scale (5,)",))
    assert [call.layer for call in facts.calls[EVAL]] == ["conv"]
    assert judge(facts).outcome == DIFFERS


# --- Structure --------------------------------------------------------------------------------------------------------


def test_counts_shapes_trainability_and_starting_weights(sides: Any) -> None:
    rows = [("l.weight", (4, 3), True), ("l.bias", (4,), True), ("bn.running_mean", (4,), False)]
    for side in sides:
        for name, shape, trainable in rows:
            side.parameter(name, np.ones(shape), trainable=trainable)
    sides[0].parameter("bn.num_batches_tracked", np.array(0), trainable=False)
    sides[0].parameter("wrong.weight", np.ones((2, 3)))
    sides[1].parameter("wrong.weight", np.ones((3, 2)), trainable=False)
    sides[0].parameter("point.weight", np.ones((4, 3, 1, 1)))
    sides[1].parameter("point.weight", np.ones((4, 3)))
    sides[1].tensors["weights/excited/l.bias"] = np.zeros(4)
    structure = facts_of(sides).structure
    assert structure.counts["a"] == {
        "trainable": 12 + 4 + 6 + 12, "trainable_tensors": 4, "non_trainable": 4, "non_trainable_tensors": 1,
        "bookkeeping_tensors": 1, "layers": 0,
    }  # fmt: skip
    assert (structure.counts["b"]["trainable"], structure.counts["b"]["non_trainable"]) == (28, 10)
    assert structure.wrong_shape == ("wrong.weight: (2, 3) and (3, 2)",)
    assert structure.wrong_trainable == ("wrong.weight: trainable and frozen",)
    # Equal values in another order of dimensions are still equal values.
    assert structure.weights_differ == ("excited: l.bias",)


def test_stages_and_settings(sides: Any, images: np.ndarray) -> None:
    for side, eps, momentum in ((sides[0], 1e-5, 0.1), (sides[1], 1e-3, 0.1 + 1e-12)):
        side.layer("stem", "sequential", leaf=False, stage=True)
        side.layer("bn", "batchnorm", eps=eps, momentum=momentum, **({"affine": True} if side is sides[0] else {}))
        side.call(EVAL, "bn", ("source/x",), images)
        side.call(EVAL, "stem", ("source/x",), images if side is sides[0] else np.moveaxis(images, 1, -1))
    facts = facts_of(sides)
    assert facts.structure.stages == (
        {"name": "stem", "other": "stem", "kind": "Sequential", "a": [2, 3, 5, 4], "b": [2, 5, 4, 3]},
    )
    # A momentum that was turned round, 1 - 0.9, is the same momentum; a setting of one side alone says nothing.
    assert facts.settings == ({"layer": "bn", "setting": "eps", "a": 1e-5, "b": 1e-3},)


# --- Parameters, gradients and statistics -----------------------------------------------------------------------------


def test_gradients_of_other_shapes_of_the_same_function_agree(sides: Any, rng: np.random.Generator) -> None:
    gradient = rng.standard_normal((4, 3))
    for side, shape in ((sides[0], (4, 3, 1, 1)), (sides[1], (4, 3))):
        side.parameter("point.weight", np.ones(shape))
        side.tensor(EVAL, "gradient/point.weight", gradient.reshape(shape))
    measurement = found(facts_of(sides), "point.weight", "gradients")
    assert measurement.distance.equal
    assert measurement.note == "dimensions of size one dropped"


def test_a_gradient_of_noise_is_related_to_its_layer(sides: Any) -> None:
    # A bias in front of a BatchNorm has the gradient zero; what a framework gives for it is rounding.
    for side, noise in ((sides[0], 1e-17), (sides[1], -3e-17)):
        side.parameter("l.weight", np.ones((4, 4)))
        side.parameter("l.bias", np.ones(4))
        side.tensor(EVAL, "gradient/l.weight", np.full((4, 4), 2.0))
        side.tensor(EVAL, "gradient/l.bias", np.full(4, noise))
    facts = facts_of(sides)
    assert found(facts, "l.weight", "gradients").distance.scale == 8.0
    bias = found(facts, "l.bias", "gradients")
    assert bias.distance.scale == pytest.approx(2.0 * 2)  # the layer's 2.0 per value, for four values
    assert bias.distance.relative == pytest.approx(2e-17)


def test_the_state_after_steps_is_related_to_its_layers_update(sides: Any) -> None:
    for side, noise in ((sides[0], 1e-9), (sides[1], 2e-9)):
        for name, start, update in (("l.weight", np.full(4, 3.0), 0.5), ("l.bias", np.zeros(1), noise)):
            side.parameter(name, start)
            side.tensor(SGD, f"parameter/{name}", start + update)
    facts = facts_of(sides)
    assert found(facts, "l.weight", "parameters", SGD).distance.scale == pytest.approx(1.0)
    # What starts at zero and hardly moves has no scale of its own: the layer's update is 0.5 per value.
    assert found(facts, "l.bias", "parameters", SGD).distance.scale == pytest.approx(0.5)
    assert found(facts, "l.bias", "parameters", SGD).distance.relative == pytest.approx(2e-9)


@pytest.mark.parametrize(("phase", "steps"), [(TRAIN, 1), (SGD, 5)])
def test_the_rule_of_the_running_variance_is_taken_out(sides: Any, phase: str, steps: int) -> None:
    n, momentum = 8, 0.25
    start, batch = np.array([1.0, 2.0]), np.array([0.5, 3.0])
    for side, factor in ((sides[0], n / (n - 1)), (sides[1], 1.0)):
        side.layer("bn", "batchnorm", momentum=momentum)
        side.parameter("bn.running_var", start, trainable=False)
        side.tensor(TRAIN, "batch-variance/bn", batch)
        side.tensor(TRAIN, "batch-count/bn", np.array(float(n)))
        running = start
        for step in range(steps):
            running = (1 - momentum) * running + momentum * factor * batch
            if step == 0:
                side.tensor(TRAIN, "buffer/bn.running_var", running)
        side.tensor(phase, "buffer/bn.running_var", running)
    facts = facts_of(sides)
    measurement = found(facts, "bn.running_var", "buffers", phase)
    assert measurement.distance.relative < 1e-15
    assert measurement.note == "variance rule taken out"
    assert facts.batchnorm[0]["rule_a"] == "unbiased"
    assert judge(facts).outcome == SAME


def test_gradient_maxima_go_by_the_names_of_the_original(sides: Any) -> None:
    count = "float64.count-eval"
    for side, prefix in ((sides[0], ""), (sides[1], "net.")):
        side.parameter(f"{prefix}l.weight", np.ones(2))
        side.phase(count, gradient_maxima={f"{prefix}l.weight": 1.0, f"{prefix}extra": 2.0})
    maxima = facts_of(sides).gradient_maxima[count]
    assert maxima == {"a": {"l.weight": 1.0, "extra": 2.0}, "b": {"l.weight": 1.0, "net.extra": 2.0}}


def test_losses_batches_and_input_gradients_are_measured(sides: Any, images: np.ndarray) -> None:
    for side in sides:
        side.tensor(EVAL, "loss/loss", np.array(0.5))
        side.tensor(EVAL, "input-gradient/x", images)
        side.tensor("float64.forward", "batch/main:0", images if side is sides[0] else np.moveaxis(images, 1, -1))
    sides[0].tensor(EVAL, "input-gradient/y", images)
    facts = facts_of(sides)
    groups = {(each.phase, each.group, each.name) for each in facts.measurements}
    assert groups == {
        (EVAL, "loss", "loss"), (EVAL, "input-gradient", "x"), ("float64.forward", "batches", "main:0"),
    }  # fmt: skip
    assert all(each.distance.equal for each in facts.measurements)
    assert found(facts, "loss", "loss").distance.shape_a == ()


def test_short_outputs_for_the_real_examples_are_kept_to_be_shown(sides: Any, rng: np.random.Generator) -> None:
    key = "float32.forward/batch/samples:0"

    def samples(a: np.ndarray | None, b: np.ndarray) -> dict[str, Any]:
        for side, values in zip(sides, (a, b), strict=True):
            side.phase("float32.forward")
            side.tensors = {} if values is None else {key: values}
        return facts_of(sides).samples

    logits, long, images = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 16), (3, 17), (3, 2, 2)))
    assert samples(logits, logits + 1) == {"a": logits.tolist(), "b": (logits + 1).tolist()}
    for a, b in ((long, long), (images, images), (logits, long), (None, logits)):
        assert samples(a, b) == {}


# --- Precision --------------------------------------------------------------------------------------------------------


def single_and_double(sides: Any) -> None:
    exact = np.array([[1.0, 2.0, 2.0]])
    for side, error in ((sides[0], 3e-7), (sides[1], 6e-7)):
        side.call(EVAL, "l", ("source/x",), exact)
        side.call(SINGLE, "l", ("source/x",), np.array([[1.0 + error, 2.0, 2.0]], np.float32))


def test_each_side_is_held_against_its_own_float64(sides: Any) -> None:
    single_and_double(sides)
    facts = facts_of(sides)
    double, single = found(facts, "l"), found(facts, "l", phase=SINGLE)
    assert double.error_a == pytest.approx(1e-7, rel=0.3)  # of the norm 3, to a float32 ulp
    assert double.error_b == pytest.approx(2e-7, rel=0.3)
    assert (single.error_a, single.error_b) == (None, None)
    assert single.distance.ulp[2] > 0
    assert double.distance.ulp == (0.0, 0.0, 0.0)


def test_a_layer_that_computes_below_float64_makes_float32_the_judge(sides: Any) -> None:
    single_and_double(sides)
    sides[1].tensors[f"{EVAL}/output/l"] = sides[1].tensors[f"{EVAL}/output/l"].astype(np.float32)
    facts = facts_of(sides)
    assert facts.coarse == {"a": (), "b": ("l",)}
    assert found(facts, "l", phase=SINGLE).error_a == pytest.approx(1e-7, rel=0.3)
    assert "fallback-layers" in {check.name for check in judge(facts).checks}


def test_coarse_layers_are_named_once_whatever_the_plan_begins_with(sides: Any) -> None:
    half = np.ones((1, 2), np.float16)
    for side in sides:
        side.phase(SGD)  # stores no layers
        for _ in range(2):
            side.call(EVAL, "half", ("source/x",), half, kind="cast")
        side.call(EVAL, "ids", ("source/x",), np.ones((1, 2), np.int64), kind="argmax")
    assert facts_of(sides).coarse == {"a": ("half",), "b": ("half",)}


def test_a_phase_that_could_not_be_run_is_said_so(sides: Any, images: np.ndarray) -> None:
    sides[0].call(EVAL, "l", ("source/x",), images)
    sides[1].phase(EVAL, unavailable="TypeError: float64")
    for side in sides:
        side.phase("float64.sgd", unavailable="ValueError")
        side.call(SINGLE, "l", ("source/x",), images.astype(np.float32))
    facts = facts_of(sides)
    assert facts.unavailable == {
        "a": {"float64.sgd": "ValueError"}, "b": {EVAL: "TypeError: float64", "float64.sgd": "ValueError"},
    }  # fmt: skip
    assert [each.phase for each in facts.measurements] == [SINGLE]


# --- Which traces can be compared -------------------------------------------------------------------------------------


def test_phases_of_one_trace_alone_are_left_out(sides: Any, images: np.ndarray) -> None:
    for side in sides:
        side.call(EVAL, "l", ("source/x",), images)
    sides[0].call(TRAIN, "l", ("source/x",), images)
    assert list(facts_of(sides).calls) == [EVAL]


def test_traces_without_a_common_experiment_are_refused(sides: Any, images: np.ndarray) -> None:
    sides[0].call(EVAL, "l", ("source/x",), images)
    sides[1].call(TRAIN, "l", ("source/x",), images)
    with pytest.raises(TraceError, match=r"no experiment in common.*float64\.eval.*float64\.train"):
        facts_of(sides)


def test_traces_of_different_seeds_are_refused(sides: Any, images: np.ndarray) -> None:
    for side in sides:
        side.call(EVAL, "l", ("source/x",), images)
    sides[1].facts["seed"] = 1
    with pytest.raises(TraceError, match="seeds 0 and 1"):
        facts_of(sides)


def test_traces_of_the_structure_alone_can_be_compared(sides: Any) -> None:
    for side in sides:
        side.parameter("l.weight", np.ones(2))
    facts = facts_of(sides)
    assert facts.measurements == ()
    assert judge(facts).summary == "no difference found in what was checked"
