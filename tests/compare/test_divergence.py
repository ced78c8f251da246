"""Tests of the first divergence: the earliest layer that is wrong by itself, not one that was handed wrong values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from portproof.compare.divergence import Divergence, first_divergence
from portproof.compare.facts import Cause, Facts, Measurement


def find(facts: Facts) -> Divergence | None:
    return first_divergence(
        facts,
        differs=lambda each: each.distance.relative > 0.5,
        imprecise=lambda each: each.error_b is not None and each.error_b > 0.5,
    )


def chain(make: Any, *relatives: float, phase: str = "float64.eval", **changes: Any) -> Facts:
    """Layers l0, l1, ... each fed by the one before; the first by the model's input."""
    outputs = [make.measurement(f"l{i}", phase=phase, relative=relative) for i, relative in enumerate(relatives)]
    calls = [
        make.call(each.name, [before], [each]) for before, each in zip([None, *outputs[:-1]], outputs, strict=True)
    ]
    return make.facts(*outputs, **{"calls": {phase: tuple(calls)}, **changes})


def test_nothing_differs(make: Any) -> None:
    assert find(chain(make, 0, 0, 0)) is None
    assert find(make.facts()) is None


@pytest.mark.parametrize(
    ("relatives", "layer"), [((1, 1, 1), "l0"), ((0, 1, 1), "l1"), ((0, 0, 1), "l2"), ((0, 1, 0), "l1")]
)
def test_a_chain_parts_at_its_first_wrong_link(make: Any, relatives: tuple[float, ...], layer: str) -> None:
    found = find(chain(make, *relatives))
    assert found is not None
    assert (found.layer, found.what, found.phase, found.inputs_agree) == (layer, "output", "float64.eval", True)


def test_what_finished_earlier_on_wrong_input_is_not_to_blame(make: Any) -> None:
    # The consumer was called with something that no layer returned, and came back before the culprit did.
    handed = make.measurement("consumer:0", "inputs", relative=1)
    consumer, culprit = (make.measurement(name, relative=1) for name in ("consumer", "culprit"))
    calls = (make.call("consumer", [handed], [consumer]), make.call("culprit", [None], [culprit]))
    found = find(make.facts(handed, consumer, culprit, calls={"float64.eval": calls}))
    assert found is not None
    assert (found.layer, found.inputs_agree) == ("culprit", True)


def test_one_wrong_input_of_several_is_enough(make: Any) -> None:
    a, b, total, last = (make.measurement(name, relative=relative) for name, relative in
                         (("a", 0), ("b", 1), ("sum", 1), ("last", 1)))  # fmt: skip
    calls = (make.call("sum", [a, b], [total]), make.call("b", [None], [b]), make.call("last", [total], [last]))
    found = find(make.facts(a, b, total, last, calls={"float64.eval": calls}))
    assert found is not None
    assert found.layer == "b"


def test_a_wrong_leaf_is_named_before_its_container(make: Any) -> None:
    x, y = make.measurement("x", relative=0), make.measurement("block.conv", relative=1)
    block = make.measurement("block", relative=1)
    # The container finishes after the leaf inside it, and is given what the leaf is given.
    calls = (
        make.call("x", [None], [x]),
        make.call("block.conv", [x], [y]),
        make.call("block", [x], [block], leaf=False),
    )
    found = find(make.facts(x, y, block, calls={"float64.eval": calls}))
    assert found is not None
    assert found.layer == "block.conv"
    # What a container does by itself, such as adding the residual, is blamed on the container.
    good = replace(y, distance=make.distance(0.0))
    found = find(make.facts(x, good, block, calls={"float64.eval": calls}))
    assert found is not None
    assert found.layer == "block"


def test_a_second_output_counts(make: Any) -> None:
    first, second = make.measurement("lstm", relative=0), make.measurement("lstm:1", relative=1)
    found = find(make.facts(first, second, calls={"float64.eval": (make.call("lstm", [None], [first, second]),)}))
    assert found is not None
    assert (found.layer, found.name) == ("lstm", "lstm:1")


def test_if_every_wrong_layer_was_handed_wrong_values_the_first_is_named_as_such(make: Any) -> None:
    handed = make.measurement("between", "inputs", relative=1)
    a, b = (make.measurement(name, relative=1) for name in ("a", "b"))
    calls = (make.call("a", [handed], [a]), make.call("b", [a], [b]))
    found = find(make.facts(handed, a, b, calls={"float64.eval": calls}))
    assert found is not None
    assert (found.layer, found.inputs_agree) == ("a", False)


def test_the_forward_pass_in_eval_mode_comes_first(make: Any) -> None:
    evaluation, training = chain(make, 0, 1), chain(make, 1, 1, phase="float64.train")
    measurements, calls = training.measurements + evaluation.measurements, {**training.calls, **evaluation.calls}
    both = replace(training, measurements=measurements, calls=calls)
    found = find(both)
    assert found is not None
    assert (found.phase, found.layer) == ("float64.eval", "l1")
    found = find(training)
    assert found is not None
    assert (found.phase, found.layer) == ("float64.train", "l0")


def test_float32_locates_only_where_float64_cannot(make: Any) -> None:
    single = chain(make, 0, 1, phase="float32.eval")
    assert find(single) is None
    for changes in ({"coarse": {"a": (), "b": ("l0",)}}, {"unavailable": {"a": {"float64.eval": "no"}, "b": {}}}):
        found = find(replace(single, **changes))
        assert found is not None
        assert (found.phase, found.layer) == ("float32.eval", "l1")
        assert find(replace(chain(make, 1, 1), **changes)) is None


def test_values_settings_and_causes_are_those_of_the_layer(make: Any) -> None:
    wrong = make.measurement("l", relative=2.0, worst=(1, 0), worst_a=3.0, worst_b=-3.0)
    facts = make.facts(
        wrong,
        calls={"float64.eval": (make.call("l", [None], [wrong], other="L"),)},
        settings=(
            {"layer": "l", "setting": "eps", "a": 1e-5, "b": 1e-3},
            {"layer": "k", "setting": "eps", "a": 1e-5, "b": 1e-3},
        ),
        causes=(Cause("k", "of another"), Cause("l", "its own")),
    )
    found = find(facts)
    assert found is not None
    assert (found.other, found.name, found.relative, found.index) == ("L", "l", 2.0, (1, 0))
    assert (found.value_a, found.value_b) == (3.0, -3.0)
    assert found.settings == ("eps is 1e-05 in the original and 0.001 in the port",)
    assert found.causes == ("its own",)


def test_a_larger_float32_error_is_located_if_the_function_is_the_same(make: Any) -> None:
    facts = chain(make, 0, 0, 0)
    first, *rest = facts.measurements
    rest = [replace(each, error_a=1e-7, error_b=0.75) for each in rest]
    found = find(replace(facts, measurements=(first, *rest)))
    assert found is not None
    assert (found.layer, found.what, found.phase) == ("l1", "float32 error", "float32.eval")
    assert (found.relative, found.value_a, found.value_b, found.inputs_agree) == (0.75, 1e-7, 0.75, True)
    # A wrong function explains a wrong precision, not the other way round.
    rest[-1] = replace(rest[-1], distance=make.distance(1.0))
    found = find(replace(facts, measurements=(first, *rest)))
    assert found is not None
    assert (found.layer, found.what) == ("l2", "output")


def wrong(make: Any, group: str, phase: str) -> list[Measurement]:
    return [make.measurement(f"l{i}.weight", group, phase, relative=i > 0) for i in (2, 0, 3, 1)]


@pytest.mark.parametrize(
    ("group", "phase", "layer"),
    [
        ("buffers", "float64.train", "l1"),
        ("gradients", "float64.eval", "l3"),  # backwards: the last layer's is computed first
        ("gradients", "float64.train", "l3"),
        ("parameters", "float64.sgd", "l1"),
        ("parameters", "float64.adamw", "l1"),
        ("buffers", "float64.sgd", "l1"),
    ],
)
def test_values_that_are_no_outputs_go_wrong_in_an_order_of_their_own(
    make: Any, group: str, phase: str, layer: str
) -> None:
    facts = chain(make, 0, 0, 0, 0)
    found = find(replace(facts, measurements=(*facts.measurements, *wrong(make, group, phase))))
    assert found is not None
    assert (found.layer, found.name, found.phase) == (layer, f"{layer}.weight", phase)
    assert found.what not in ("output", "float32 error")


def test_gradients_come_before_what_the_optimizers_made_of_them(make: Any) -> None:
    facts = chain(make, 0, 0, 0, 0)
    order = [("parameters", "float64.sgd"), ("gradients", "float64.train"), ("gradients", "float64.eval"),
             ("buffers", "float64.train")]  # fmt: skip
    found_in = []
    measurements = list(facts.measurements)
    for group, phase in order:
        measurements += wrong(make, group, phase)
        found = find(replace(facts, measurements=tuple(measurements)))
        assert found is not None
        found_in.append(found.phase)
    assert found_in == [phase for _, phase in order]
