"""Tests of the plan: which phases a check needs, and how they are dealt to processes."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.cli.common import CHECKS as OFFERED
from portproof.compare import verdict
from portproof.plan import _BUILD_COST, ADAMW, CHECKS, PARITY, PLANS, SGD, SMOKE, STEPS, Phase, deal, phases_for

PHASES = st.lists(
    st.builds(
        Phase,
        name=st.text("abc", min_size=1, max_size=4),
        precision=st.sampled_from(["float32", "float64"]),
        objective=st.sampled_from(["none", "loss"]),
        training=st.booleans(),
        batches=st.booleans(),
    ),
    max_size=7,
    unique_by=lambda phase: phase.name,
)


def seconds(lane: list[Phase]) -> float:
    """A lane's time in forward passes: its phases, and a model of its own for each precision.

    Phases with optimizers can share gradients besides; they are left out of the properties below.
    """
    return sum(phase.cost for phase in lane) + _BUILD_COST * len({phase.precision for phase in lane})


@given(PHASES, st.integers(1, 3))
def test_every_phase_is_dealt_once_and_in_order(phases: list[Phase], lanes: int) -> None:
    dealt = deal(phases, lanes)
    assert sorted(phase.name for lane in dealt for phase in lane) == sorted(phase.name for phase in phases)
    assert all(lane == sorted(lane, key=phases.index) for lane in dealt)
    assert len(dealt) <= max(lanes, 1)
    assert all(lane for lane in dealt[1:])
    assert dealt == deal(tuple(phases), lanes)
    if phases:
        assert dealt[0][0] == phases[0]  # the first lane is the process that also settles the weights


@given(PHASES)
def test_no_other_way_to_deal_ends_earlier(phases: list[Phase]) -> None:
    finish = max(map(seconds, deal(phases, 2)))
    for choice in product((0, 1), repeat=len(phases)):
        lanes = [[phase for phase, lane in zip(phases, choice, strict=True) if lane == each] for each in (0, 1)]
        assert finish <= max(map(seconds, lanes))


def test_one_process_gets_everything() -> None:
    assert deal(PARITY, 1) == [list(PARITY)]
    assert deal((), 2) == [[]]
    assert deal(PARITY[:1], 2) == [[PARITY[0]]]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_plans_are_worth_two_processes(plan: tuple[Phase, ...]) -> None:
    first, second = (sum(phase.cost for phase in lane) for lane in deal(plan, 2))
    # Neither is left with nearly everything.
    assert min(first, second) > 0.25 * (first + second)


def test_cost_grows_with_what_is_asked() -> None:
    plain, batches = Phase("p", "float64"), Phase("p", "float64", batches=True)
    loss, steps = Phase("p", "float64", objective="loss"), Phase("p", "float64", objective="loss", optimizer="sgd")
    assert plain.cost == 1.0  # the unit: one forward pass
    assert loss.cost == 3.0  # backward takes two forward passes
    assert steps.cost == STEPS * loss.cost
    assert batches.cost > plain.cost


# --- Which phases -----------------------------------------------------------------------------------------------------


def test_no_checks_are_all_checks() -> None:
    assert phases_for(()) == PARITY
    assert phases_for(tuple(CHECKS)) == PARITY


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_gets_its_phases_in_the_order_of_the_plan(check: str) -> None:
    phases = phases_for([check])
    assert {phase.name for phase in phases} == set(CHECKS[check])
    assert list(phases) == sorted(phases, key=PARITY.index)
    assert set(phases_for([check, "batchnorm"])) == set(phases) | set(phases_for(["batchnorm"]))


def test_an_unknown_check_is_no_empty_plan() -> None:
    with pytest.raises(KeyError):
        phases_for(["nothing"])


def test_the_command_line_offers_exactly_these_checks() -> None:
    assert set(OFFERED) == set(CHECKS)
    assert len(OFFERED) == len(CHECKS)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_phase_says_what_it_is(plan: tuple[Phase, ...]) -> None:
    names = [phase.name for phase in plan]
    assert len(set(names)) == len(names)
    for phase in plan:
        assert phase.name.startswith(f"{phase.precision}.")
        assert not phase.optimizer or (phase.training and phase.objective == "loss")
        assert phase == Phase(**phase.to_json())


def test_the_verdict_judges_phases_of_the_plan() -> None:
    names = {phase.name for phase in PARITY}
    for group, phase, *_ in (*verdict._FUNCTION, *verdict._PRECISION):
        assert phase in names, f"nothing measures {group} of {phase}"
    assert {phase.name for phase in SMOKE} <= names


def test_the_optimizers_numbers_are_the_same_in_every_precision() -> None:
    # Dyadic fractions of few digits: float16 has 11 bits, and these do not need more.
    for value in (*SGD.values(), *ADAMW.values()):
        numerator, denominator = value.as_integer_ratio()
        assert denominator & (denominator - 1) == 0
        assert numerator.bit_length() <= 11
