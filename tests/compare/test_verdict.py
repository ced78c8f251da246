"""Tests of the verdict: every check passes and fails for its own reason, and every limit is where it is said to be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from portproof.compare import verdict as rules
from portproof.compare.policy import Policy
from portproof.compare.verdict import DIFFERS, SAME, UNDECIDED, failures, judge

# --- Every check ------------------------------------------------------------------------------------------------------


def test_equal_models_pass_every_check(make: Any) -> None:
    verdict = judge(make.complete())
    assert {check.status for check in verdict.checks} == {"pass"}
    assert (verdict.outcome, verdict.divergence) == (SAME, None)
    assert verdict.summary == "the same model: same function, same precision"
    # Written out, so that a check cannot go missing together with its row in the verdict's tables.
    names = """cpu parameters weights stages coverage forward count-original count-eval count-train
        function-layers function-between function-batches function-loss function-input-gradient function-gradients
        training-layers training-between training-loss training-input-gradient training-gradients
        batchnorm sgd sgd-statistics adamw adamw-statistics
        precision-layers precision-batches precision-gradients precision-training"""
    assert [check.name for check in verdict.checks] == names.split()


# What is said whenever there is no float64 proof.
OPEN = {"float64": "unknown", "fallback-open": "note"}


@pytest.mark.parametrize(("group", "phase", "name", "title"), rules._FUNCTION)
def test_a_difference_in_float64_fails_its_own_check(make: Any, group: str, phase: str, name: str, title: str) -> None:
    facts = make.changed(make.complete(), group, phase, relative=1e-8, worst=(1, 2), worst_a=0.25, worst_b=0.5)
    assert make.statuses(facts) == {name: "fail"}
    check = make.by_name(facts)[name]
    assert (check.title, check.value, check.where, check.count) == (title, "1.0e-08", "l.weight", 1)
    assert check.details[-1] == "l.weight: 1.0e-08, worst at [1, 2]: 0.25 and 0.5"
    assert judge(facts).outcome == DIFFERS


@pytest.mark.parametrize(("group", "phase", "name", "title"), rules._PRECISION)
def test_a_larger_float32_error_fails_its_own_check(make: Any, group: str, phase: str, name: str, title: str) -> None:
    facts = make.changed(make.complete(), group, phase, error_b=1e-3)
    assert make.statuses(facts) == {name: "fail"}
    assert make.by_name(facts)[name].title == title
    assert make.by_name(facts)[name].details == ("l.weight: 1.0e-03, original 2.0e-07",)
    assert judge(facts).outcome == DIFFERS
    # A coarser original is no fault of the port.
    assert make.statuses(make.changed(make.complete(), group, phase, error_a=1e-3)) == {}
    for missing in ("error_a", "error_b"):  # what was not measured is not judged
        assert name not in make.by_name(make.changed(make.complete(), group, phase, **{missing: None}))


STRUCTURE = [
    ("only_a", ("w (3,)",), "only in the original: w (3,)"),
    ("only_b", ("w (3,)",), "only in the port: w (3,)"),
    ("wrong_shape", ("w: (3,) and (4,)",), "shapes differ: w: (3,) and (4,)"),
    ("wrong_trainable", ("w: trainable and frozen",), "trainability differs: w: trainable and frozen"),
]


@pytest.mark.parametrize(("field", "value", "detail"), STRUCTURE)
def test_parameters_without_a_counterpart_fail(make: Any, field: str, value: tuple[str, ...], detail: str) -> None:
    facts = make.complete(structure=make.structure(**{field: value}))
    assert make.statuses(facts) == {"parameters": "fail"}
    assert detail in make.by_name(facts)["parameters"].details


@pytest.mark.parametrize("key", ["trainable", "trainable_tensors", "non_trainable", "non_trainable_tensors"])
def test_other_counts_fail_the_parameters(make: Any, key: str) -> None:
    counts = make.structure().counts
    counts["b"][key] += 1
    assert make.statuses(make.facts(structure=make.structure(counts=counts))) == {"parameters": "fail"}


def test_bookkeeping_and_pairs_by_order_are_named_and_not_judged(make: Any) -> None:
    counts = make.structure().counts
    counts["a"]["bookkeeping_tensors"] = 7
    by_order = tuple(f"a{i} = b{i}" for i in range(10))
    check = make.by_name(make.facts(structure=make.structure(counts=counts, by_order=by_order)))["parameters"]
    assert check.status == "pass"
    assert check.details[0] == "paired by order, not by name: a0 = b0"
    assert check.details[-2:] == ("and 2 more by order", check.details[-1])
    assert "7 and 0" in check.details[-1]


def test_other_starting_weights_fail(make: Any) -> None:
    facts = make.complete(structure=make.structure(weights_differ=("excited: w",)))
    assert make.statuses(facts) == {"weights": "fail"}
    assert make.by_name(facts)["weights"].details == ("excited: w",)
    own = {**facts.sides["b"], "weights": "own"}
    assert "own weights" in make.by_name(replace(facts, sides={**facts.sides, "b": own}))["weights"].title


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        ([2, 8, 5, 4], [2, 8, 5, 4], "pass"),
        ([2, 8, 5, 4], [2, 5, 4, 8], "pass"),  # channels last
        ([2, 8], [2, 1, 1, 8], "pass"),
        ([2, 8, 5, 4], [2, 8, 4, 5], "fail"),
        ([2, 8, 5, 4], [2, 8, 5], "fail"),
        ([2, 3], [3, 2], "fail"),
        ([2, 3], None, "note"),
    ],
)
def test_shapes_of_stages(make: Any, a: list[int], b: list[int] | None, status: str) -> None:
    fine = {"name": "t", "other": "t", "kind": "T", "a": [1], "b": [1]}
    stage = {"name": "s", "other": b and "s", "kind": "S", "a": a, "b": b}
    check = make.by_name(make.facts(structure=make.structure(stages=(fine, stage))))["stages"]
    assert check.status == status
    assert check.value == ("2 of 2 equal" if status == "pass" else "1 of 2 equal")
    assert all("s: " in detail for detail in check.details)
    assert bool(check.details) == (status != "pass")


def test_layers_without_a_counterpart_are_a_note(make: Any) -> None:
    structure = make.structure(layers_only_a=("x",), layers_only_b=("y",), layers_by_order=("p = q",))
    facts = make.complete(structure=structure)
    assert make.statuses(facts) == {"coverage": "note"}
    details = make.by_name(facts)["coverage"].details
    assert details == ("only in the original: x", "only in the port: y", "paired by order, not by name: p = q")
    assert judge(facts).outcome == SAME


def test_a_visible_accelerator_fails(make: Any) -> None:
    facts = make.complete()
    seen = {**facts.sides["b"], "environment": {"accelerators": ["GPU:0"]}}
    facts = replace(facts, sides={**facts.sides, "b": seen})
    assert make.statuses(facts) == {"cpu": "fail"}
    assert make.by_name(facts)["cpu"].value == "GPU:0"


# --- Gradients that are not zero --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "status"), [("float32.count", "note"), ("float64.count-eval", "fail"), ("float64.count-train", "fail")]
)
def test_a_dead_gradient_fails_where_it_is_no_noise(make: Any, phase: str, status: str) -> None:
    facts = make.complete()
    facts.gradient_maxima[phase]["b"]["l.bias"] = 0.0
    name = {"float32.count": "count-original"}.get(phase, phase.replace("float64.", ""))
    assert make.statuses(facts) == {name: status}
    check = make.by_name(facts)[name]
    assert (check.value, check.limit, check.count) == ("1", "2", 2)
    assert check.details == ("l.bias: live only in the original",)


def test_as_many_live_gradients_of_other_tensors_fail(make: Any) -> None:
    facts = make.complete()
    for maxima in facts.gradient_maxima.values():
        maxima["a"]["l.weight"] = maxima["b"]["l.bias"] = 0.0
    # The count alone is the same: the original's own test would not see it.
    assert make.statuses(facts) == {"count-eval": "fail", "count-train": "fail"}


@pytest.mark.parametrize(("share", "live"), [(1.0, 2), (1.01e-9, 2), (1e-9, 1), (0.0, 1)])
def test_a_gradient_counts_as_dead_at_a_share_of_its_layers_largest(make: Any, share: float, live: int) -> None:
    layers = {"l.weight": "l", "l.bias": "l", "m.weight": "m"}
    maxima = {"l.weight": 1e-6, "l.bias": 1e-6 * share, "m.weight": 1e-6}
    facts = make.facts(gradient_maxima={"float64.count-eval": {"a": maxima, "b": maxima}}, layers_of=layers)
    assert make.by_name(facts)["count-eval"].value == str(live + 1)
    assert make.by_name(facts, Policy(dead=0.5))["count-eval"].value == str((share == 1.0) + 2)


def test_a_layer_of_noise_alone_is_dead(make: Any) -> None:
    maxima = {"l.weight": 1.0, "m.weight": 1e-13}
    facts = make.facts(
        gradient_maxima={"float64.count-eval": {"a": maxima, "b": {"l.weight": 1.0, "m.weight": 0.0}}},
        layers_of={"l.weight": "l", "m.weight": "m"},
    )
    check = make.by_name(facts)["count-eval"]
    assert (check.status, check.value, check.limit) == ("pass", "1", "1")


# --- NaN, Inf, and what could not be run ------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["outputs", "batches", "loss"])
@pytest.mark.parametrize(
    ("bad_a", "bad_b", "status", "outcome"),
    [(0, 0, "pass", SAME), (1, 1, "unknown", UNDECIDED), (1, 0, "fail", DIFFERS), (0, 1, "fail", DIFFERS)],
)
def test_nan_on_one_side_differs_and_on_both_is_undecided(
    make: Any, group: str, bad_a: int, bad_b: int, status: str, outcome: str
) -> None:
    facts = make.facts(make.measurement("l", group, "float32.forward", 0.0, bad_a=bad_a, bad_b=bad_b))
    assert make.by_name(facts)["forward"].status == status
    assert judge(facts).outcome == outcome


@pytest.mark.parametrize(
    ("group", "phase", "name"),
    [("gradients", "float64.eval", "function-gradients"), ("parameters", "float64.sgd", "sgd")],
)
def test_nan_after_a_backward_pass_on_both_sides_proves_nothing(make: Any, group: str, phase: str, name: str) -> None:
    facts = make.facts(make.measurement("l", group, phase, 0.0, bad_a=6, bad_b=6), make.measurement("k", group, phase))
    check = make.by_name(facts)[name]
    assert (check.status, check.value, check.details) == (
        "unknown",
        "1 with NaN or Inf",
        ("NaN or Inf on both sides: l",),
    )
    assert judge(facts).outcome == UNDECIDED


def test_nan_in_other_tensors_of_the_two_sides_differs(make: Any) -> None:
    one = make.measurement("k", "batches", "float32.forward", math.inf, bad_a=1)
    other = make.measurement("l", "batches", "float32.forward", math.inf, bad_b=1)
    assert judge(make.facts(one, other)).outcome == DIFFERS


def test_logits_of_another_shape_fail(make: Any) -> None:
    facts = make.facts(make.measurement("l", "batches", "float32.forward", math.inf, shape_a=(3, 2), shape_b=(3, 4)))
    assert make.statuses(facts) == {"forward": "fail"}
    assert make.by_name(facts)["forward"].details == ("l: (3, 2) and (3, 4)",)


@pytest.mark.parametrize("phase", ["float64.train", "float64.adamw", "float32.forward"])
def test_an_experiment_that_raised_is_undecided_unless_another_check_failed(make: Any, phase: str) -> None:
    facts = make.complete(unavailable={"a": {}, "b": {phase: "ValueError: no"}})
    assert make.statuses(facts) == {phase: "unknown"}
    assert make.by_name(facts)[phase].details == ("ValueError: no",)
    assert judge(facts).outcome == UNDECIDED
    assert "could not be judged" in judge(facts).summary
    assert judge(make.changed(facts, "batches", "float64.forward", bad_b=1)).outcome == DIFFERS
    assert judge(make.changed(facts, "outputs", "float64.eval", relative=1.0)).outcome == DIFFERS


# --- Without float64 --------------------------------------------------------------------------------------------------


def test_without_float64_the_rounding_of_float32_is_the_limit(make: Any) -> None:
    facts = make.without_float64()
    checks = make.by_name(facts)
    assert make.statuses(facts) == OPEN
    assert {"fallback-layers", "fallback-batches", "fallback-gradients"} < set(checks)
    assert not any(name.startswith(("function", "precision")) for name in checks)
    verdict = judge(facts)
    assert (verdict.outcome, verdict.divergence) == (SAME, None)
    assert verdict.summary == "no difference found in float32; a float64 proof was not possible"


@pytest.mark.parametrize(
    ("group", "phase", "name"),
    [
        ("outputs", "float32.eval", "fallback-layers"),
        ("batches", "float32.forward", "fallback-batches"),
        ("gradients", "float32.eval", "fallback-gradients"),
    ],
)
def test_without_float64_each_fallback_fails_for_its_own(make: Any, group: str, phase: str, name: str) -> None:
    limit = 2 * 16 * 2e-7  # twice the multiple of the original's own error
    assert make.statuses(make.changed(make.without_float64(), group, phase, relative=limit)) == OPEN
    facts = make.changed(make.without_float64(), group, phase, relative=limit * (1 + 1e-12))
    assert make.statuses(facts) == {**OPEN, name: "fail"}
    assert judge(facts).outcome == DIFFERS


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_side_that_raises_in_float64_is_said_to(make: Any, side: str) -> None:
    gone = {"a": {}, "b": {}, side: {"float64.eval": "TypeError: no"}}
    facts = make.without_float64(coarse={"a": (), "b": ()}, unavailable=gone)
    assert make.statuses(facts) == OPEN
    word = {"a": "original", "b": "port"}[side]
    assert make.by_name(facts)["float64"].details == (f"the {word} raised: TypeError: no",)
    assert judge(facts).outcome == SAME


def test_without_the_originals_own_error_the_policys_guess_has_to_do(make: Any) -> None:
    facts = make.without_float64(unavailable={"a": {"float64.eval": "TypeError: no"}, "b": {}})
    facts = make.changed(facts, "outputs", "float32.eval", error_a=None, error_b=None, relative=1e-4)
    assert judge(facts).outcome == SAME
    assert judge(facts, Policy(float32=9e-5)).outcome == DIFFERS


def test_nothing_to_fall_back_on_is_undecided(make: Any) -> None:
    facts = make.facts(make.measurement("l", "buffers", "float64.train"), coarse={"a": (), "b": ("l",)})
    assert judge(facts).outcome == UNDECIDED


# --- What the summary claims ------------------------------------------------------------------------------------------


def test_the_summary_claims_no_more_than_was_checked(make: Any) -> None:
    proof = make.measurement("l")
    assert judge(make.facts(proof)).summary == "the same outputs in eval mode, layer by layer"
    assert judge(make.complete()).summary == "the same model: same function, same precision"
    assert judge(make.facts()).summary == "no difference found in what was checked"


def test_the_summary_of_a_failure_counts_and_locates(make: Any) -> None:
    wrong = make.measurement("conv", relative=1.0)
    facts = make.facts(wrong, calls={"float64.eval": (make.call("conv", [None], [wrong]),)})
    assert judge(facts).summary == "not the same model: 1 check failed, first in conv"
    facts = replace(facts, structure=make.structure(only_a=("w (3,)",)))
    assert judge(facts).summary == "not the same model: 2 checks failed, first in conv"


def test_long_lists_are_cut_and_say_so(make: Any) -> None:
    facts = make.facts(*(make.measurement(f"l{i}", relative=1.0) for i in range(11)))
    details = make.by_name(facts)["function-layers"].details
    assert len(details) == 9
    assert details[-1] == "and 3 more"


def test_the_rule_of_the_running_variance_is_named(make: Any) -> None:
    rule = {"layer": "bn", "rule_a": "unbiased", "rule_b": "biased"}
    facts = make.facts(make.measurement("bn.running_var", "buffers", "float64.train"), batchnorm=(rule, {**rule}))
    (said,) = make.by_name(facts)["batchnorm"].details
    assert said.startswith("running variance: unbiased in the original, biased in the port, which is the frameworks'")
    facts = replace(facts, batchnorm=(rule, {**rule, "layer": "bn2", "rule_b": "neither"}))
    second = make.by_name(facts)["batchnorm"].details[1]
    assert second == "running variance of bn2: unbiased in the original, neither in the port"
    facts = replace(facts, batchnorm=({**rule, "rule_b": "unbiased"},))
    assert make.by_name(facts)["batchnorm"].details == (
        "running variance: unbiased in the original, unbiased in the port",
    )


# --- What is wrong, as names ------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_equal_models_although_float32_rounds(make: Any) -> None:
    facts = make.changed(make.complete(), "outputs", "float64.eval", relative=1e-15)
    rounded = make.measurement("l.weight", "outputs", "float32.eval", 1e-7)
    facts = replace(facts, measurements=(*facts.measurements, rounded))
    assert failures(facts, judge(facts)) == frozenset()


def test_what_is_wrong_is_named_by_measurement_check_and_structure(make: Any) -> None:
    facts = make.changed(make.complete(), "outputs", "float64.eval", relative=1e-3)
    structure = make.structure(wrong_trainable=("l.weight: trainable and frozen",))
    facts = replace(facts, structure=structure, coarse={"a": (), "b": ()})
    found = failures(facts, judge(facts))
    assert {"check function-layers", "check parameters", "wrong_trainable l.weight: trainable and frozen"} <= found
    assert any(name.startswith("float64.eval/outputs/") for name in found)
    assert not any("training" in name for name in found)


def test_without_a_float64_proof_float32_says_what_is_wrong(make: Any) -> None:
    facts = make.changed(make.without_float64(), "outputs", "float32.eval", relative=1e-2)
    found = failures(facts, judge(facts))
    assert any(name.startswith("float32.eval/outputs/") for name in found)
    assert "coarse b l" in found
