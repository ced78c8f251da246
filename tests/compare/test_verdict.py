"""Tests of the verdict: every check passes and fails for its own reason, and every limit is where it is said to be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portproof.compare import verdict as rules
from portproof.compare.facts import Facts
from portproof.compare.verdict import DIFFERS, SAME, UNDECIDED, Check, Policy, judge, limit32, limit64, precision_limit
from portproof.errors import InputError

MAXIMA = {"l.weight": 1.0, "l.bias": 0.5}
COUNTED = ("float32.count", "float64.count-eval", "float64.count-train")


def complete(make: Any, **changes: Any) -> Facts:
    """Facts of two equal models with something for every check to look at."""
    wanted = dict.fromkeys((group, phase) for table in (rules._FUNCTION, rules._PRECISION) for group, phase, *_ in table)
    measured = [
        make.measurement("l.weight", group, phase, error_a=2e-7, error_b=3e-7, layer="l") for group, phase in wanted
    ]
    plain = {
        "gradient_maxima": {phase: {"a": dict(MAXIMA), "b": dict(MAXIMA)} for phase in COUNTED},
        "layers_of": {"l.weight": "l", "l.bias": "l"},
        "structure": make.structure(stages=({"name": "s", "other": "s", "kind": "S", "a": [2, 3], "b": [2, 3]},)),
    }
    return make.facts(*measured, **{**plain, **changes})


def without_float64(make: Any, **changes: Any) -> Facts:
    """Facts of a port that casts to float32 inside, with a float32 run that agrees."""
    phases = (("outputs", "float32.eval"), ("batches", "float32.forward"), ("gradients", "float32.eval"))
    measured = [make.measurement("l", group, phase, 1e-7, error_a=2e-7, error_b=2e-7) for group, phase in phases]
    return make.facts(*measured, **{"coarse": {"a": (), "b": ("l",)}, **changes})


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


# --- Every check ------------------------------------------------------------------------------------------------------


def test_equal_models_pass_every_check(make: Any) -> None:
    verdict = judge(complete(make))
    assert {check.status for check in verdict.checks} == {"pass"}
    assert (verdict.outcome, verdict.divergence) == (SAME, None)
    assert verdict.summary == "the same model: same function, same precision"
    names = [row[2] for table in (rules._FUNCTION, rules._PRECISION) for row in table]
    structure = ["cpu", "parameters", "weights", "stages", "coverage", "forward"]
    assert [check.name for check in verdict.checks] == [*structure, "count-original", "count-eval", "count-train", *names]


@pytest.mark.parametrize(("group", "phase", "name", "title"), rules._FUNCTION)
def test_a_difference_in_float64_fails_its_own_check(make: Any, group: str, phase: str, name: str, title: str) -> None:
    facts = changed(complete(make), group, phase, relative=1e-8, worst=(1, 2), worst_a=0.25, worst_b=0.5)
    assert statuses(facts) == {name: "fail"}
    check = by_name(facts)[name]
    assert (check.title, check.value, check.where, check.count) == (title, "1.0e-08", "l.weight", 1)
    assert check.details[-1] == "l.weight: 1.0e-08, worst at [1, 2]: 0.25 and 0.5"
    assert judge(facts).outcome == DIFFERS


@pytest.mark.parametrize(("group", "phase", "name", "title"), rules._PRECISION)
def test_a_larger_float32_error_fails_its_own_check(make: Any, group: str, phase: str, name: str, title: str) -> None:
    facts = changed(complete(make), group, phase, error_b=1e-3)
    assert statuses(facts) == {name: "fail"}
    assert by_name(facts)[name].title == title
    assert by_name(facts)[name].details == ("l.weight: 1.0e-03, original 2.0e-07",)
    assert judge(facts).outcome == DIFFERS
    assert statuses(changed(complete(make), group, phase, error_a=1e-3)) == {}  # a coarser original is no fault of the port
    for missing in ("error_a", "error_b"):  # what was not measured is not judged
        assert name not in by_name(changed(complete(make), group, phase, **{missing: None}))


STRUCTURE = [
    ("only_a", ("w (3,)",), "only in the original: w (3,)"),
    ("only_b", ("w (3,)",), "only in the port: w (3,)"),
    ("wrong_shape", ("w: (3,) and (4,)",), "shapes differ: w: (3,) and (4,)"),
    ("wrong_trainable", ("w: trainable and frozen",), "trainability differs: w: trainable and frozen"),
]


@pytest.mark.parametrize(("field", "value", "detail"), STRUCTURE)
def test_parameters_without_a_counterpart_fail(make: Any, field: str, value: tuple[str, ...], detail: str) -> None:
    facts = complete(make, structure=make.structure(**{field: value}))
    assert statuses(facts) == {"parameters": "fail"}
    assert detail in by_name(facts)["parameters"].details


@pytest.mark.parametrize("key", ["trainable", "trainable_tensors", "non_trainable", "non_trainable_tensors"])
def test_other_counts_fail_the_parameters(make: Any, key: str) -> None:
    counts = make.structure().counts
    counts["b"][key] += 1
    assert statuses(make.facts(structure=make.structure(counts=counts))) == {"parameters": "fail"}


def test_bookkeeping_and_pairs_by_order_are_named_and_not_judged(make: Any) -> None:
    counts = make.structure().counts
    counts["a"]["bookkeeping_tensors"] = 7
    by_order = tuple(f"a{i} = b{i}" for i in range(10))
    check = by_name(make.facts(structure=make.structure(counts=counts, by_order=by_order)))["parameters"]
    assert check.status == "pass"
    assert check.details[0] == "paired by order, not by name: a0 = b0"
    assert check.details[-2:] == ("and 2 more by order", check.details[-1])
    assert "7 and 0" in check.details[-1]


def test_other_starting_weights_fail(make: Any) -> None:
    facts = complete(make, structure=make.structure(weights_differ=("excited: w",)))
    assert statuses(facts) == {"weights": "fail"}
    assert by_name(facts)["weights"].details == ("excited: w",)
    own = {**facts.sides["b"], "weights": "own"}
    assert "own weights" in by_name(replace(facts, sides={**facts.sides, "b": own}))["weights"].title


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
    check = by_name(make.facts(structure=make.structure(stages=(fine, stage))))["stages"]
    assert check.status == status
    assert check.value == ("2 of 2 equal" if status == "pass" else "1 of 2 equal")
    assert all("s: " in detail for detail in check.details)
    assert bool(check.details) == (status != "pass")


def test_layers_without_a_counterpart_are_a_note(make: Any) -> None:
    facts = complete(make, structure=make.structure(layers_only_a=("x",), layers_only_b=("y",), layers_by_order=("p = q",)))
    assert statuses(facts) == {"coverage": "note"}
    details = by_name(facts)["coverage"].details
    assert details == ("only in the original: x", "only in the port: y", "paired by order, not by name: p = q")
    assert judge(facts).outcome == SAME


def test_a_visible_accelerator_fails(make: Any) -> None:
    facts = complete(make)
    seen = {**facts.sides["b"], "environment": {"accelerators": ["GPU:0"]}}
    facts = replace(facts, sides={**facts.sides, "b": seen})
    assert statuses(facts) == {"cpu": "fail"}
    assert by_name(facts)["cpu"].value == "GPU:0"


# --- Gradients that are not zero --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "status"), [("float32.count", "note"), ("float64.count-eval", "fail"), ("float64.count-train", "fail")]
)
def test_a_dead_gradient_fails_where_it_is_no_noise(make: Any, phase: str, status: str) -> None:
    facts = complete(make)
    facts.gradient_maxima[phase]["b"]["l.bias"] = 0.0
    name = {"float32.count": "count-original"}.get(phase, phase.replace("float64.", ""))
    assert statuses(facts) == {name: status}
    check = by_name(facts)[name]
    assert (check.value, check.limit, check.count) == ("1", "2", 2)
    assert check.details == ("l.bias: live only in the original",)


def test_as_many_live_gradients_of_other_tensors_fail(make: Any) -> None:
    facts = complete(make)
    for phase in COUNTED:
        facts.gradient_maxima[phase]["a"]["l.weight"] = facts.gradient_maxima[phase]["b"]["l.bias"] = 0.0
    # The count alone is the same: the original's own test would not see it.
    assert statuses(facts) == {"count-eval": "fail", "count-train": "fail"}


@pytest.mark.parametrize(("share", "live"), [(1.0, 2), (1.01e-9, 2), (1e-9, 1), (0.0, 1)])
def test_a_gradient_counts_as_dead_at_a_share_of_its_layers_largest(make: Any, share: float, live: int) -> None:
    layers = {"l.weight": "l", "l.bias": "l", "m.weight": "m"}
    maxima = {"l.weight": 1e-6, "l.bias": 1e-6 * share, "m.weight": 1e-6}
    facts = make.facts(gradient_maxima={"float64.count-eval": {"a": maxima, "b": maxima}}, layers_of=layers)
    assert by_name(facts)["count-eval"].value == str(live + 1)
    assert by_name(facts, Policy(dead=0.5))["count-eval"].value == str((share == 1.0) + 2)


def test_a_layer_of_noise_alone_is_dead(make: Any) -> None:
    maxima = {"l.weight": 1.0, "m.weight": 1e-13}
    facts = make.facts(
        gradient_maxima={"float64.count-eval": {"a": maxima, "b": {"l.weight": 1.0, "m.weight": 0.0}}},
        layers_of={"l.weight": "l", "m.weight": "m"},
    )
    check = by_name(facts)["count-eval"]
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
    assert by_name(facts)["forward"].status == status
    assert judge(facts).outcome == outcome


def test_nan_in_other_tensors_of_the_two_sides_differs(make: Any) -> None:
    one = make.measurement("k", "batches", "float32.forward", math.inf, bad_a=1)
    other = make.measurement("l", "batches", "float32.forward", math.inf, bad_b=1)
    assert judge(make.facts(one, other)).outcome == DIFFERS


def test_logits_of_another_shape_fail(make: Any) -> None:
    facts = make.facts(make.measurement("l", "batches", "float32.forward", math.inf, shape_a=(3, 2), shape_b=(3, 4)))
    assert statuses(facts) == {"forward": "fail"}
    assert by_name(facts)["forward"].details == ("l: (3, 2) and (3, 4)",)


@pytest.mark.parametrize("phase", ["float64.train", "float64.adamw", "float32.forward"])
def test_an_experiment_that_raised_is_undecided_unless_another_check_failed(make: Any, phase: str) -> None:
    facts = complete(make, unavailable={"a": {}, "b": {phase: "ValueError: no"}})
    assert statuses(facts) == {phase: "unknown"}
    assert by_name(facts)[phase].details == ("ValueError: no",)
    assert judge(facts).outcome == UNDECIDED
    assert "could not be judged" in judge(facts).summary
    assert judge(changed(facts, "batches", "float64.forward", bad_b=1)).outcome == DIFFERS
    assert judge(changed(facts, "outputs", "float64.eval", relative=1.0)).outcome == DIFFERS


# --- Without float64 --------------------------------------------------------------------------------------------------


def test_without_float64_the_rounding_of_float32_is_the_limit(make: Any) -> None:
    facts = without_float64(make)
    checks = by_name(facts)
    assert statuses(facts) == {"float64": "unknown"}
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
    assert statuses(changed(without_float64(make), group, phase, relative=limit)) == {"float64": "unknown"}
    facts = changed(without_float64(make), group, phase, relative=limit * (1 + 1e-12))
    assert statuses(facts) == {"float64": "unknown", name: "fail"}
    assert judge(facts).outcome == DIFFERS


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_side_that_raises_in_float64_is_said_to(make: Any, side: str) -> None:
    gone = {"a": {}, "b": {}, side: {"float64.eval": "TypeError: no"}}
    facts = without_float64(make, coarse={"a": (), "b": ()}, unavailable=gone)
    assert statuses(facts) == {"float64": "unknown"}
    assert by_name(facts)["float64"].details == (f"the {rules._WORDS[side]} raised: TypeError: no",)
    assert judge(facts).outcome == SAME


def test_nothing_to_fall_back_on_is_undecided(make: Any) -> None:
    facts = make.facts(make.measurement("l", "buffers", "float64.train"), coarse={"a": (), "b": ("l",)})
    assert judge(facts).outcome == UNDECIDED


# --- What the summary claims ------------------------------------------------------------------------------------------


def test_the_summary_claims_no_more_than_was_checked(make: Any) -> None:
    proof = make.measurement("l")
    assert judge(make.facts(proof)).summary == "the same function"
    assert judge(make.facts(replace(proof, error_a=1e-7, error_b=1e-7))).summary.startswith("the same model")
    assert judge(make.facts()).summary == "no difference found in what was checked"


def test_the_summary_of_a_failure_counts_and_locates(make: Any) -> None:
    wrong = make.measurement("conv", relative=1.0)
    facts = make.facts(wrong, calls={"float64.eval": (make.call("conv", [None], [wrong]),)})
    assert judge(facts).summary == "not the same model: 1 check failed, first in conv"
    facts = replace(facts, structure=make.structure(only_a=("w (3,)",)))
    assert judge(facts).summary == "not the same model: 2 checks failed, first in conv"


def test_long_lists_are_cut_and_say_so(make: Any) -> None:
    facts = make.facts(*(make.measurement(f"l{i}", relative=1.0) for i in range(11)))
    details = by_name(facts)["function-layers"].details
    assert len(details) == 9
    assert details[-1] == "and 3 more"


def test_the_rule_of_the_running_variance_is_named(make: Any) -> None:
    rule = {"layer": "bn", "rule_a": "unbiased", "rule_b": "biased"}
    facts = make.facts(make.measurement("bn.running_var", "buffers", "float64.train"), batchnorm=(rule, {**rule}))
    (said,) = by_name(facts)["batchnorm"].details
    assert said.startswith("running variance: unbiased in the original, biased in the port, which is the frameworks'")
    facts = replace(facts, batchnorm=(rule, {**rule, "layer": "bn2", "rule_b": "neither"}))
    assert by_name(facts)["batchnorm"].details[1] == "running variance of bn2: unbiased in the original, neither in the port"
    facts = replace(facts, batchnorm=({**rule, "rule_b": "unbiased"},))
    assert by_name(facts)["batchnorm"].details == ("running variance: unbiased in the original, unbiased in the port",)


# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (None, 1e-12),
        (1e-6, 1e-12),  # a network that does not amplify rounding
        (1e-3, 64 * 1e-3 * 2.0**-29),
        (1.0, 1e-9),  # never above float64_most
        (math.inf, 1e-12),
    ],
)
def test_the_float64_limit_follows_the_conditioning(make: Any, error: float | None, limit: float) -> None:
    def outcome(relative: float) -> str:
        return judge(make.facts(make.measurement("l", relative=relative, error_a=error, error_b=error))).outcome

    assert limit64(make.measurement("l", error_a=error), Policy()) == limit
    assert outcome(limit) == SAME
    assert outcome(math.nextafter(limit, 1)) == DIFFERS
    assert outcome(math.nan) == DIFFERS


def test_what_has_no_float32_run_takes_the_largest_error_of_the_training_gradients(make: Any) -> None:
    gradients = [make.measurement(f"g{i}", "gradients", "float64.train", error_a=error, error_b=error)
                 for i, error in enumerate((1e-5, 1e-3, math.inf, None))]  # fmt: skip
    state = make.measurement("w", "parameters", "float64.adamw", relative=1e-10)
    assert judge(make.facts(*gradients, state)).outcome == SAME
    assert statuses(make.facts(gradients[0], state)) == {"adamw": "fail"}
    other = replace(gradients[1], phase="float64.eval")
    assert statuses(make.facts(other, state)) == {"adamw": "fail"}


@pytest.mark.parametrize(("error_a", "limit"), [(0.0, 2.0**-20), (1e-9, 2.0**-20), (1e-6, 1.6e-5)])
def test_the_precision_limit_is_a_multiple_of_the_originals_error_above_a_floor(
    make: Any, error_a: float, limit: float
) -> None:
    def outcome(error_b: float) -> str:
        return judge(make.facts(make.measurement("l", error_a=error_a, error_b=error_b))).outcome

    measurement = make.measurement("l", error_a=error_a)
    assert precision_limit(measurement, Policy()) == pytest.approx(limit, rel=1e-12)
    assert limit32(measurement, Policy()) == 2 * precision_limit(measurement, Policy())
    exact = precision_limit(measurement, Policy())
    assert outcome(exact) == SAME
    assert outcome(math.nextafter(exact, 1)) == DIFFERS
    assert outcome(math.nan) == DIFFERS


def test_the_check_shows_the_tensor_that_came_closest_to_its_own_limit(make: Any) -> None:
    far = make.measurement("far", relative=5e-11, error_a=1e-3, error_b=1e-3)  # half of its limit
    near = make.measurement("near", relative=9e-13, error_a=1e-7, error_b=3e-7)  # nine tenths of its own
    check = by_name(make.facts(far, near))["function-layers"]
    assert (check.where, check.value, check.limit, check.count) == ("near", "9.0e-13", "1.0e-12", 2)
    # 3e-7 is a third of the floor, 1e-3 a sixteenth of its limit.
    assert by_name(make.facts(far, near))["precision-layers"].where == "near"
    assert by_name(make.facts(far, near))["precision-layers"].value == "3.0e-07 (original 1.0e-07)"


# --- Policy -----------------------------------------------------------------------------------------------------------


def test_a_policy_from_a_file_keeps_what_it_does_not_name() -> None:
    assert Policy.from_mapping({}, "p.toml") == Policy()
    assert Policy.from_mapping({"float64": 1, "dead": 1e-6}, "p.toml") == Policy(float64=1.0, dead=1e-6)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1e-3", None, [1.0]])
def test_a_policy_takes_positive_numbers_only(value: Any) -> None:
    with pytest.raises(InputError, match=r"^p\.toml: precision needs to be a positive number"):
        Policy.from_mapping({"precision": value}, "p.toml")


def test_a_policy_names_all_unknown_limits() -> None:
    with pytest.raises(InputError, match=r"no such limit: atol, rtol\. Known: conditioning, dead, float64,"):
        Policy.from_mapping({"rtol": 1, "atol": 1, "float64": 1e-9}, "p.toml")


@given(relative=st.floats(1e-14, 1e-6), limit=st.floats(1e-14, 1e-6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the builders keep no state
def test_a_policy_decides_on_its_own_limit(make: Any, relative: float, limit: float) -> None:
    facts = make.facts(make.measurement("l", relative=relative))
    assert (judge(facts, Policy(float64=limit)).outcome == SAME) == (relative <= limit)


def test_another_policy_turns_the_verdict_on_the_same_facts(make: Any) -> None:
    facts = changed(complete(make), "outputs", "float64.eval", relative=1e-10)
    assert judge(facts).outcome == DIFFERS
    assert judge(facts, Policy(float64=1e-9)).outcome == SAME
    assert judge(complete(make), Policy(float64=1e-16, conditioning=1e-9)).outcome == DIFFERS
    assert judge(complete(make), Policy(precision=1.0, precision_floor=1e-12)).outcome == DIFFERS
    assert judge(facts, Policy(float64=1e-9)).policy == Policy(float64=1e-9)


# --- Stored facts -----------------------------------------------------------------------------------------------------


def test_stored_facts_give_the_same_verdict(make: Any) -> None:
    facts = changed(complete(make), "gradients", "float64.train", relative=math.inf)
    wrong = make.measurement("conv", relative=0.5, error_a=1e-7, error_b=1e-2)
    facts = replace(
        facts,
        measurements=(*facts.measurements, wrong),
        calls={"float64.eval": (make.call("conv", [None], [wrong]),)},
        settings=({"layer": "conv", "setting": "eps", "a": 1e-5, "b": 1e-3},),
        batchnorm=({"layer": "bn", "rule_a": "unbiased", "rule_b": "biased"},),
        unavailable={"a": {"float64.sgd": "ValueError"}, "b": {}},
    )
    stored = Facts.from_json(json.loads(json.dumps(facts.to_json())))
    assert stored == facts
    assert judge(stored) == judge(facts)
    divergence = judge(stored).divergence
    assert divergence is not None
    assert divergence.settings == ("eps is 1e-05 in the original and 0.001 in the port",)
    json.dumps(judge(stored).to_json())


@pytest.mark.parametrize("key", ["measurements", "structure", "calls", "coarse"])
def test_facts_with_a_part_missing_are_refused(make: Any, key: str) -> None:
    body = json.loads(json.dumps(complete(make).to_json()))
    del body[key]
    with pytest.raises((KeyError, TypeError, ValueError)):
        Facts.from_json(body)
