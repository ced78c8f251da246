"""Tests of the running variance's rule: found in the data of each side, and taken out exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.compare.batchnorm import measured_rules, without_rule
from portproof.compare.pairing import Pairs

N, CHANNELS = 12, 5
FACTORS = {"biased": 1.0, "unbiased": N / (N - 1)}


def after_steps(start: np.ndarray, batches: np.ndarray, momentum: float, factor: float) -> np.ndarray:
    """What the frameworks do: step by step, old and new variance mixed."""
    running = start
    for batch in batches:
        running = (1 - momentum) * running + momentum * factor * batch
    return running


def add_batchnorm(
    side: Any, name: str, factor: float, *, momentum: Any = 0.1, n: int = N, measured_momentum: float | None = None
) -> None:
    """A BatchNorm in a trace, as one step of training leaves it."""
    rng = np.random.default_rng(3)
    start, batch = rng.uniform(0.5, 2, CHANNELS), rng.uniform(0.5, 2, CHANNELS)
    used = measured_momentum if measured_momentum is not None else momentum
    side.layer(name, "batchnorm", **({} if momentum is None else {"momentum": momentum}))
    side.parameter(f"{name}.running_var", start, trainable=False)
    side.tensor("float64.train", f"batch-variance/{name}", batch)
    side.tensor("float64.train", f"batch-count/{name}", np.float64(n))
    after = after_steps(start, batch[None], used, factor) if used else start
    side.tensor("float64.train", f"buffer/{name}.running_var", after)


def rule_of(sides: Any) -> dict[str, Any]:
    (rule,) = measured_rules(Pairs(sides[0].finish(), sides[1].finish()))
    return rule


@pytest.mark.parametrize("a", FACTORS)
@pytest.mark.parametrize("b", FACTORS)
@pytest.mark.parametrize("momentum", [0.1, 0.875, 1.0, 1])
def test_the_rule_of_each_side_is_found(sides: Any, a: str, b: str, momentum: float) -> None:
    add_batchnorm(sides[0], "bn", FACTORS[a], momentum=momentum)
    add_batchnorm(sides[1], "bn", FACTORS[b], momentum=momentum)
    rule = rule_of(sides)
    assert (rule["layer"], rule["other"], rule["n"]) == ("bn", "bn", N)
    assert (rule["rule_a"], rule["rule_b"]) == (a, b)
    assert (rule["factor_a"], rule["factor_b"]) == (FACTORS[a], FACTORS[b])
    assert (rule["momentum_a"], rule["momentum_b"]) == (momentum, momentum)


def test_other_data_than_either_rule_gives_is_said_so_and_left_alone(sides: Any) -> None:
    add_batchnorm(sides[0], "bn", FACTORS["unbiased"])
    add_batchnorm(sides[1], "bn", 1.05)
    rule = rule_of(sides)
    assert rule["rule_b"] == "neither (factor 1.05 at n = 12)"
    assert rule["factor_b"] == 1.0
    assert rule["rule_a"] == "unbiased"


def test_a_wrong_momentum_is_no_rule(sides: Any) -> None:
    add_batchnorm(sides[0], "bn", 1.0)
    add_batchnorm(sides[1], "bn", 1.0, momentum=0.1, measured_momentum=0.9)
    assert rule_of(sides)["rule_b"].startswith("neither")


@pytest.mark.parametrize("momentum", [0.0, None])
def test_without_momentum_there_is_no_rule_to_find(sides: Any, momentum: float | None) -> None:
    # torch's momentum=None averages over all batches; 0 keeps the start.
    add_batchnorm(sides[0], "bn", 1.0, momentum=momentum)
    add_batchnorm(sides[1], "bn", FACTORS["unbiased"])
    rule = rule_of(sides)
    assert (rule["rule_a"], rule["momentum_a"], rule["factor_a"]) == ("none", None, 1.0)
    assert rule["rule_b"] == "unbiased"


def test_a_batch_of_one_value_has_no_unbiased_variance(sides: Any) -> None:
    add_batchnorm(sides[0], "bn", 1.0, n=1)
    add_batchnorm(sides[1], "bn", 2.0, n=1)
    rule = rule_of(sides)
    assert (rule["rule_a"], rule["rule_b"]) == ("biased", "neither (factor 2 at n = 1)")


def test_layers_are_paired_by_name_or_left_out(sides: Any) -> None:
    add_batchnorm(sides[0], "net.bn", 1.0)
    add_batchnorm(sides[0], "only", 1.0)
    add_batchnorm(sides[1], "net_bn", FACTORS["unbiased"])
    rules = list(measured_rules(Pairs(sides[0].finish(), sides[1].finish())))
    assert [(rule["layer"], rule["other"]) for rule in rules] == [("net.bn", "net_bn")]


@given(
    seed=st.integers(0, 99),
    momentum=st.floats(0.01, 1.0),
    steps=st.integers(1, 8),
    n=st.integers(2, 10_000),
)
def test_taking_the_rule_out_gives_what_the_biased_rule_would_have_left(
    seed: int, momentum: float, steps: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    start, batches = rng.uniform(0.1, 3, CHANNELS), rng.uniform(0.1, 3, (steps, CHANNELS))
    factor = n / (n - 1)
    biased, unbiased = (after_steps(start, batches, momentum, each) for each in (1.0, factor))
    np.testing.assert_allclose(without_rule(unbiased, start, momentum, steps, factor), biased, rtol=1e-13)
    np.testing.assert_allclose(without_rule(biased, start, momentum, steps, 1.0), biased, rtol=1e-14)


def test_the_number_of_steps_matters() -> None:
    rng = np.random.default_rng(0)
    start, batches = rng.uniform(1, 2, CHANNELS), rng.uniform(1, 2, (5, CHANNELS))
    biased, unbiased = (after_steps(start, batches, 0.1, each) for each in FACTORS.values())
    wrong = without_rule(unbiased, start, 0.1, 4, FACTORS["unbiased"])
    assert np.abs(wrong / biased - 1).max() > 1e-3


def rules_of(sides: Any, a: list[str], b: list[str]) -> list[dict[str, Any]]:
    for side, rules in zip(sides, (a, b), strict=True):
        for index, rule in enumerate(rules):
            add_batchnorm(side, f"bn{index}", FACTORS[rule])
    return list(measured_rules(Pairs(sides[0].finish(), sides[1].finish())))


def test_a_layer_unlike_its_sides_others_is_held_to_their_rule(sides: Any) -> None:
    # Keras 2 with one layer that forgot Bessel's correction: only the frameworks' own difference may be taken out.
    rules = rules_of(sides, ["unbiased"] * 3, ["unbiased", "biased", "unbiased"])
    assert [rule["factor_b"] for rule in rules] == [FACTORS["unbiased"]] * 3
    assert rules[1]["rule_b"] == "biased, unlike the unbiased one of most layers"


def test_a_layer_that_does_what_the_original_does_is_right_whatever_the_others_do(sides: Any) -> None:
    rules = rules_of(sides, ["unbiased"] * 3, ["biased", "unbiased", "biased"])
    assert [rule["factor_b"] for rule in rules] == [1.0, FACTORS["unbiased"], 1.0]
    assert rules[1]["rule_b"] == "unbiased"


def test_of_two_rules_that_are_equally_frequent_neither_is_the_usual_one(sides: Any) -> None:
    rules = rules_of(sides, ["unbiased"] * 2, ["biased", "unbiased"])
    assert [rule["rule_b"] for rule in rules] == ["biased", "unbiased"]
