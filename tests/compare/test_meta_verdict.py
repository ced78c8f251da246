"""Meta-tests of the verdict: what has to hold for any measurements whatever, however they are ordered and named."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from portproof.compare import verdict as rules
from portproof.compare.facts import CallFacts, Distance, Facts, Measurement, Structure
from portproof.compare.policy import Limits, Policy
from portproof.compare.verdict import DIFFERS, SAME, UNDECIDED, judge

SEVERITY = {SAME: 0, UNDECIDED: 1, DIFFERS: 2}
PLACES = sorted({(group, phase) for group, phase, *_ in (*rules._FUNCTION, *rules._PRECISION)})

# Around every limit, and at the ends of the range.
RELATIVE = st.one_of(
    st.sampled_from(
        [0.0, 1e-16, 9.9e-13, 1e-12, 1.1e-12, 6.4e-11, 1e-9, 1.1e-9, 1e-7, 1e-3, 1.0, 2.0, math.inf, math.nan]
    ),
    st.floats(1e-17, 1e-6),
)
ERROR = st.one_of(
    st.none(),
    st.sampled_from([0.0, 1e-8, 1e-7, 9e-7, 2e-6, 2e-5, 1e-3, 0.01, 0.07, 0.2, 1.0, math.inf]),
    st.floats(1e-9, 1e-2),
)


def measurement(name: str, group: str, phase: str, relative: float, **changes: Any) -> Measurement:
    shape = (2, 3)
    distance = Distance(shape, shape, "float64", "float64", relative == 0, relative, relative, 1.0, 1.0, (1, 2))
    return replace(Measurement(phase, group, name, "", name, distance), **changes)


@st.composite
def measurements(draw: Any) -> list[Measurement]:
    """A few measurements of one or two groups, each with a name of its own."""
    places = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=2))
    found = []
    for number in range(draw(st.integers(1, 5))):
        group, phase = draw(st.sampled_from(places))
        errors = {"error_a": draw(ERROR), "error_b": draw(ERROR)} if phase[8:] in ("eval", "train", "forward") else {}
        found.append(measurement(f"l{number}", group, phase, draw(RELATIVE), **errors))
    return found


def facts_of(found: list[Measurement], **changes: Any) -> Facts:
    """Facts with these measurements and nothing else; the outputs are those of a chain of layers, l0 to l9."""
    calls: dict[str, list[CallFacts]] = {}
    for each in found:
        if each.group == "outputs":
            rows = calls.setdefault(each.phase, [])
            inputs = rows[-1].outputs if rows else (None,)
            rows.append(CallFacts(each.layer, each.layer, True, "linear", "linear", inputs, (each.key,)))
    calls["float64.count-eval"] = [  # which settles the order of layers that return nothing that was measured
        CallFacts(layer, layer, True, "linear", "linear", (None,), ())
        for layer in sorted({each.layer for each in found})
    ]
    side = {"weights": "take", "environment": {"accelerators": []}}
    counts = dict.fromkeys(("trainable", "trainable_tensors", "non_trainable", "non_trainable_tensors"), 0)
    listed = ("only_a", "only_b", "wrong_shape", "wrong_trainable", "by_order", "weights_differ")
    empty = dict.fromkeys((*listed, "stages", "layers_only_a", "layers_only_b", "layers_by_order"), ())
    plain = Facts(
        sides={"a": side, "b": side},
        structure=Structure(counts={key: {**counts, "bookkeeping_tensors": 0, "layers": 1} for key in "ab"}, **empty),
        measurements=tuple(found),
        calls={phase: tuple(rows) for phase, rows in calls.items()},
        gradient_maxima={},
        layers_of={},
        batchnorm=(),
        settings=(),
        unavailable={"a": {}, "b": {}},
        coarse={"a": (), "b": ()},
    )
    return replace(plain, **changes)


@given(measurements(), st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_matter(found: list[Measurement], random: Any) -> None:
    facts = facts_of(found)
    mixed = list(found)
    random.shuffle(mixed)
    first, second = judge(facts), judge(replace(facts, measurements=tuple(mixed)))
    assert first.outcome == second.outcome
    assert first.summary == second.summary
    assert first.divergence == second.divergence
    for one, other in zip(first.checks, second.checks, strict=True):
        shown = ("name", "status", "value", "limit", "where")
        assert [getattr(one, each) for each in shown] == [getattr(other, each) for each in shown]


@given(measurements(), st.data())
def test_what_gets_worse_is_never_judged_better(found: list[Measurement], data: Any) -> None:
    """Of the port's values, that is; a coarser original loosens limits, and is meant to."""
    index = data.draw(st.integers(0, len(found) - 1))
    each = found[index]
    worse = data.draw(st.floats(1, 1e12).map(lambda times: each.distance.relative * times) | st.just(math.nan))
    changed = replace(each, distance=replace(each.distance, relative=worse))
    if each.error_b is not None:
        changed = replace(changed, error_b=each.error_b * data.draw(st.floats(1, 1e6) | st.just(math.inf)))
        assume(not math.isnan(changed.error_b))
    before, after = judge(facts_of(found)), judge(facts_of([*found[:index], changed, *found[index + 1 :]]))
    assert SEVERITY[after.outcome] >= SEVERITY[before.outcome]


@given(measurements(), st.sampled_from(PLACES), st.sampled_from([math.nan, math.inf, 3e-3]))
def test_one_wrong_tensor_among_any_others_is_called_different(
    found: list[Measurement], place: tuple[str, str], relative: float
) -> None:
    assume(all(each.error_a is None or each.error_a < 1e-3 for each in found))
    wrong = measurement("wrong", *place, relative, error_a=1e-7, error_b=1e-7)
    if place[0] == "inputs":  # what reaches a layer counts where what it returns differs too
        return
    for order in ([wrong, *found], [*found, wrong]):
        verdict = judge(facts_of(order))
        assert verdict.outcome == DIFFERS


@given(measurements())
def test_names_do_not_matter(found: list[Measurement]) -> None:
    def renamed(each: Measurement) -> Measurement:
        return replace(each, name=f"net.{each.name}.x", layer=f"net.{each.layer}.x")

    first, second = judge(facts_of(found)), judge(facts_of([renamed(each) for each in found]))
    assert first.outcome == second.outcome
    assert [check.status for check in first.checks] == [check.status for check in second.checks]
    assert (first.divergence is None) == (second.divergence is None)
    if first.divergence and second.divergence:
        assert second.divergence.layer == f"net.{first.divergence.layer}.x"


@given(measurements())
def test_the_same_measurement_twice_is_the_same_measurement(found: list[Measurement]) -> None:
    once, twice = judge(facts_of(found)), judge(replace(facts_of(found), measurements=(*found, *found)))
    assert once.outcome == twice.outcome
    assert once.divergence == twice.divergence


@given(
    measurements(),
    st.sampled_from(["float64", "conditioning", "precision", "steps", "float64_most"]),
    st.floats(1, 1e6),
)
def test_a_looser_limit_finds_no_more(found: list[Measurement], name: str, times: float) -> None:
    plain = Policy()
    looser = replace(plain, **{name: getattr(plain, name) * times})
    failing = [{check.name for check in judge(facts_of(found), each).checks if check.status == "fail"}
               for each in (plain, looser)]  # fmt: skip
    assert failing[1] <= failing[0]


@given(measurements())
def test_a_limit_of_nothing_finds_whatever_is_not_equal(found: list[Measurement]) -> None:
    """The alarm can ring: a policy that allows nothing calls every honest rounding a difference."""
    strict = Policy(float64=1e-18, conditioning=1e-12, precision=1e-12, precision_floor=1e-18, steps=1.0)
    assume(all(each.error_a is None or each.error_a < 1e-3 for each in found))  # else it says that it cannot judge
    judged = [each for each in found if each.group != "inputs"]
    wrong = [each for each in judged if not each.distance.relative <= 1e-17]
    if wrong:
        assert judge(facts_of(found), strict).outcome == DIFFERS


@given(measurements())
def test_limits_are_positive_numbers_and_what_cannot_be_judged_lies_above_them(found: list[Measurement]) -> None:
    limits = Limits.of(facts_of(found, repeats=100.0), Policy())
    for each in found:
        assert 0 < limits.function(each) < 1e-6
        assert limits.beyond(each) >= limits.function(each)
        assert limits.precision(each) > 0
        assert limits.float32(each) > 0


@given(st.lists(st.sampled_from([1e-16, 1e-3]), min_size=2, max_size=6))
def test_the_first_divergence_is_the_first_wrong_link_of_a_chain(relatives: list[float]) -> None:
    found = [measurement(f"l{i}", "outputs", "float64.eval", relative) for i, relative in enumerate(relatives)]
    wrong = [i for i, relative in enumerate(relatives) if relative > 1e-12]
    divergence = judge(facts_of(found)).divergence
    assert (divergence.layer if divergence else None) == (f"l{wrong[0]}" if wrong else None)


@pytest.mark.parametrize(("a", "b"), itertools.product([0, 1], repeat=2))
def test_bad_values_on_one_side_are_a_difference_and_on_both_no_answer(a: int, b: int) -> None:
    relative = math.inf if a != b else 0.0
    bad = measurement("l", "outputs", "float64.eval", relative)
    bad = replace(bad, distance=replace(bad.distance, bad_a=a, bad_b=b))
    outcome = judge(facts_of([bad, measurement("m", "outputs", "float64.eval", 1e-16)])).outcome
    assert outcome == (DIFFERS if a != b else UNDECIDED if a else SAME)


def test_the_limits_stand_in_one_place() -> None:
    """No other module of the comparison that judges has a small number of its own, but for patterns of causes."""
    folder = Path(rules.__file__).parent
    for module in ("checks.py", "numeric.py", "verdict.py", "divergence.py"):
        text = (folder / module).read_text(encoding="utf-8")
        found = [word for word in text.replace("(", " ").replace(")", " ").replace(",", " ").split() if _is_small(word)]
        assert found == [], module


def _is_small(word: str) -> bool:
    try:
        return 0 < float(word) < 0.5 and "e" in word
    except ValueError:
        return False
