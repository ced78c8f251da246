"""Tests of the limits: each is where it is said to be, a policy moves it, and stored facts are judged the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portproof.compare.facts import Facts
from portproof.compare.policy import Limits, Policy
from portproof.compare.verdict import DIFFERS, SAME, UNDECIDED, judge
from portproof.errors import InputError

LIMITS = Limits(Policy())

# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (None, 1e-12),
        (1e-6, 1e-12),  # a network that does not amplify rounding
        (1e-3, 64 * 1e-3 * 2.0**-29),
        (0.008, 64 * 0.008 * 2.0**-29),
    ],
)
def test_the_float64_limit_follows_the_conditioning(make: Any, error: float | None, limit: float) -> None:
    def outcome(relative: float) -> str:
        return judge(make.facts(make.measurement("l", relative=relative, error_a=error))).outcome

    assert Limits(Policy()).function(make.measurement("l", error_a=error)) == limit
    assert outcome(limit) == SAME
    assert outcome(math.nextafter(limit, 1)) == DIFFERS
    assert outcome(math.nan) == DIFFERS


@pytest.mark.parametrize(("error", "beyond"), [(0.01, 64 * 0.01 * 2.0**-29), (0.09, 64 * 0.09 * 2.0**-29), (0.2, 1e9)])
def test_what_amplified_rounding_may_have_made_is_not_judged(make: Any, error: float, beyond: float) -> None:
    def check(relative: float) -> Any:
        return make.by_name(make.facts(make.measurement("l", relative=relative, error_a=error)))["function-layers"]

    assert check(1e-9).status == "pass"  # float64_most: equal to that is equal
    assert check(math.nextafter(1e-9, 1)).status == "unknown"
    assert "l: not judged: 1.0e-09, which may be rounding" in check(1.01e-9).details[0]
    assert check(beyond).status == "unknown"
    assert check(math.nan).status == "fail"
    if beyond < 1:
        assert check(math.nextafter(beyond, 1)).status == "fail"
    facts = make.facts(make.measurement("l", relative=1e-8 if beyond > 1 else beyond, error_a=error))
    assert judge(facts).outcome == UNDECIDED
    assert judge(facts).divergence is None
    other = make.measurement("m", relative=0.1, error_a=1e-6)
    assert judge(replace(facts, measurements=(*facts.measurements, other))).outcome == DIFFERS


def test_an_original_that_overflows_in_float32_leaves_differences_open(make: Any) -> None:
    outputs = [make.measurement("l", relative=relative, error_a=math.inf) for relative in (1e-12, 2e-12)]
    assert [judge(make.facts(each)).outcome for each in outputs] == [SAME, UNDECIDED]
    state = make.measurement("w", "parameters", "float64.sgd", relative=1e-7)
    assert judge(make.facts(state)).outcome == DIFFERS
    gradient = make.measurement("g", "gradients", "float64.train", error_a=math.inf)
    assert judge(make.facts(state, gradient)).outcome == UNDECIDED
    assert judge(make.facts(replace(state, distance=make.distance(1e-13)), gradient)).outcome == SAME


def test_the_originals_rounding_is_that_of_its_tensors_together(make: Any) -> None:
    """A bias of eight values, of which few count, is exact in one framework by luck."""
    gradients = [make.measurement(f"g{i}", "gradients", error_a=2e-6, error_b=3e-6) for i in range(4)]
    lucky = make.measurement("lucky", "gradients", error_a=4e-8, error_b=3e-6)
    assert make.statuses(make.facts(*gradients, lucky)) == {}
    assert make.statuses(make.facts(lucky)) == {"precision-gradients": "fail"}
    bad = replace(lucky, error_b=1e-3)
    assert make.statuses(make.facts(*gradients, bad)) == {"precision-gradients": "fail"}
    assert make.statuses(make.facts(*gradients, replace(lucky, group="outputs"))) == {"precision-layers": "fail"}
    one_coarse = make.measurement("coarse", "gradients", error_a=1e-2, error_b=1e-2)
    assert make.statuses(make.facts(lucky, one_coarse)) == {"precision-gradients": "fail"}


def test_sums_over_equal_values_may_round_as_often_as_there_are_values(make: Any) -> None:
    """Measured: a mean over 3,000 equal float32 values is off by 2.5e-6 in TensorFlow and by nothing in torch."""
    exact = make.measurement("l", error_a=0.0, error_b=2.5e-6)
    assert make.statuses(make.facts(exact)) == {"precision-layers": "fail"}
    assert make.statuses(make.facts(exact, repeats=3000)) == {}
    assert make.statuses(make.facts(replace(exact, error_b=2e-3), repeats=3000)) == {"precision-layers": "fail"}
    assert Limits.of(make.facts(repeats=3e5), Policy()).function(exact) == 3e5 * 2.0**-53
    assert Limits.of(make.facts(repeats=3e3), Policy()).function(exact) == 1e-12


def test_where_the_originals_own_float32_is_nothing_but_noise_precision_is_not_judged(make: Any) -> None:
    noise = make.measurement("noise", error_a=0.1, error_b=1.0)
    fine = make.measurement("fine", error_a=1e-6, error_b=1e-6)
    check = make.by_name(make.facts(noise, fine, fine))["precision-layers"]
    assert (check.status, check.where) == ("note", "fine")
    assert check.details == ("not judged, for the original's own float32 error is too large: 1 of 3: noise",)
    assert judge(make.facts(noise)).outcome == UNDECIDED
    assert judge(make.facts(make.measurement("l", error_a=math.inf, error_b=math.inf))).outcome == UNDECIDED
    assert judge(make.facts(make.measurement("l", error_a=0.1, error_b=math.inf))).outcome == DIFFERS
    assert judge(make.facts(make.measurement("l", error_a=0.05, error_b=0.7))).outcome == SAME  # a coarse original


def test_zeros_on_both_sides_are_said_to_tell_nothing(make: Any) -> None:
    zero = make.measurement("zero", relative=0.0, scale=0.0)
    live = make.measurement("live")
    check = make.by_name(make.facts(zero, live))["function-layers"]
    assert (check.status, check.where) == ("note", "live")
    assert check.details == ("zero on both sides, which tells nothing: 1 of 2: zero",)
    assert judge(make.facts(zero, live)).outcome == SAME
    assert judge(make.facts(zero)).outcome == UNDECIDED
    assert judge(make.facts(zero, replace(live, group="batches"))).outcome == UNDECIDED
    assert judge(make.facts(make.measurement("l", relative=math.inf, scale=0.0))).outcome == DIFFERS


def test_what_has_no_float32_run_takes_the_largest_error_of_the_training_gradients(make: Any) -> None:
    gradients = [make.measurement(f"g{i}", "gradients", "float64.train", error_a=error, error_b=error)
                 for i, error in enumerate((1e-5, 1e-3, math.inf, None))]  # fmt: skip
    state = make.measurement("w", "parameters", "float64.adamw", relative=1e-10)
    assert judge(make.facts(*gradients, state)).outcome == SAME
    assert make.statuses(make.facts(gradients[0], state)) == {"adamw": "fail"}
    other = replace(gradients[1], phase="float64.eval")
    assert make.statuses(make.facts(other, state)) == {"adamw": "fail"}


@pytest.mark.parametrize(("error_a", "limit"), [(0.0, 2.0**-20), (1e-9, 2.0**-20), (1e-6, 1.6e-5)])
def test_the_precision_limit_is_a_multiple_of_the_originals_error_above_a_floor(
    make: Any, error_a: float, limit: float
) -> None:
    def outcome(error_b: float) -> str:
        return judge(make.facts(make.measurement("l", error_a=error_a, error_b=error_b))).outcome

    measurement = make.measurement("l", error_a=error_a)
    assert LIMITS.precision(measurement) == pytest.approx(limit, rel=1e-12)
    assert LIMITS.float32(measurement) == 2 * LIMITS.precision(measurement)
    exact = LIMITS.precision(measurement)
    assert outcome(exact) == SAME
    assert outcome(math.nextafter(exact, 1)) == DIFFERS
    assert outcome(math.nan) == DIFFERS


def test_the_check_shows_the_tensor_that_came_closest_to_its_own_limit(make: Any) -> None:
    far = make.measurement("far", relative=5e-11, error_a=1e-3, error_b=1e-3)  # half of its limit
    near = make.measurement("near", relative=9e-13, error_a=1e-7, error_b=3e-7)  # nine tenths of its own
    check = make.by_name(make.facts(far, near))["function-layers"]
    assert (check.where, check.value, check.limit, check.count) == ("near", "9.0e-13", "1.0e-12", 2)
    # 3e-7 is a third of the floor, 1e-3 a sixteenth of its limit.
    assert make.by_name(make.facts(far, near))["precision-layers"].where == "near"
    assert make.by_name(make.facts(far, near))["precision-layers"].value == "3.0e-07 (original 1.0e-07)"


# --- Policy -----------------------------------------------------------------------------------------------------------


def test_a_policy_from_a_file_keeps_what_it_does_not_name() -> None:
    assert Policy.from_mapping({}, "p.toml") == Policy()
    assert Policy.from_mapping({"float64": 1, "dead": 1e-6}, "p.toml") == Policy(float64=1.0, dead=1e-6)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1e-3", None, [1.0]])
def test_a_policy_takes_positive_numbers_only(value: Any) -> None:
    with pytest.raises(InputError, match=r"^p\.toml: precision needs to be a positive number"):
        Policy.from_mapping({"precision": value}, "p.toml")


def test_a_policy_names_all_unknown_limits() -> None:
    with pytest.raises(InputError, match=r"no such limit: atol, rtol\. Known: conditioning, dead, float32, float64,"):
        Policy.from_mapping({"rtol": 1, "atol": 1, "float64": 1e-9}, "p.toml")


@given(relative=st.floats(1e-14, 1e-6), limit=st.floats(1e-14, 1e-6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the builders keep no state
def test_a_policy_decides_on_its_own_limit(make: Any, relative: float, limit: float) -> None:
    facts = make.facts(make.measurement("l", relative=relative))
    assert (judge(facts, Policy(float64=limit)).outcome == SAME) == (relative <= limit)


def test_another_policy_turns_the_verdict_on_the_same_facts(make: Any) -> None:
    facts = make.changed(make.complete(), "outputs", "float64.eval", relative=1e-10)
    assert judge(facts).outcome == DIFFERS
    assert judge(facts, Policy(float64=1e-9)).outcome == SAME
    assert judge(make.complete(), Policy(float64=1e-16, conditioning=1e-9)).outcome == DIFFERS
    assert judge(make.complete(), Policy(precision=1.0, precision_floor=1e-12)).outcome == DIFFERS
    assert judge(facts, Policy(float64=1e-9)).policy == Policy(float64=1e-9)


# --- Stored facts -----------------------------------------------------------------------------------------------------


def test_stored_facts_give_the_same_verdict(make: Any) -> None:
    facts = make.changed(make.complete(), "gradients", "float64.train", relative=math.inf)
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
    body = json.loads(json.dumps(make.complete().to_json()))
    del body[key]
    with pytest.raises((KeyError, TypeError, ValueError)):
        Facts.from_json(body)
