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
from portproof.compare.policy import Policy, limit32, limit64, precision_limit
from portproof.compare.verdict import DIFFERS, SAME, judge
from portproof.errors import InputError

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
    assert precision_limit(measurement, Policy()) == pytest.approx(limit, rel=1e-12)
    assert limit32(measurement, Policy()) == 2 * precision_limit(measurement, Policy())
    exact = precision_limit(measurement, Policy())
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
