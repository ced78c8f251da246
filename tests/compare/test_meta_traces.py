"""Meta-tests of the whole comparison: random traces, held against themselves and against copies with known changes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portproof.compare import compare
from portproof.compare.facts import Facts
from portproof.compare.verdict import DIFFERS, SAME, UNDECIDED, judge
from portproof.trace import Trace

EVAL, TRAIN, SINGLE = "float64.eval", "float64.train", "float32.eval"
SHAPES = st.sampled_from([(2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 1), (2, 0), (2, 3, 0, 2), ()])
VALUES = st.sampled_from(["normal", "zeros", "constant", "denormal", "range", "huge", "whole", "truth", "nan", "inf"])
ORDINARY = st.sampled_from(["normal", "constant", "range", "whole"])


def tensor(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of one kind; the same for the same seed."""
    rng = np.random.default_rng(seed)
    normal = np.asarray(rng.standard_normal(shape))
    if kind in ("nan", "inf"):
        return np.where(normal > 0.5, {"nan": np.nan, "inf": np.copysign(np.inf, normal - 1)}[kind], normal)
    return {
        "normal": lambda: normal,
        "zeros": lambda: normal * 0.0,
        "constant": lambda: normal * 0.0 + 0.75,
        "denormal": lambda: normal * 1e-310,
        "range": lambda: np.sign(normal) * 10.0 ** (30 * np.tanh(normal)),
        "huge": lambda: np.sign(normal) * 1.7e308,
        "whole": lambda: (10 * normal).astype(np.int64),
        "truth": lambda: normal > 0,
    }[kind]()


@st.composite
def networks(draw: Any, values: Any = VALUES, shapes: Any = SHAPES) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Layers in order of execution: name, kind of values, shape, seed."""
    count = draw(st.integers(1, 5))
    return [(f"l{i}", draw(values), draw(shapes), draw(st.integers(0, 99))) for i in range(count)]


Change = Callable[[str, np.ndarray], np.ndarray]


def build(
    builder: Any,
    layers: Any,
    change: Change = lambda _, value: value,
    name: Callable[[str], str] = str,
    chained: bool = True,
) -> Trace:
    """Layers with a parameter each, in two precisions and with gradients; ``change`` maps every tensor.

    Each layer is given what the one before it returned, or, if not ``chained``, the input of the model.
    """
    key = "source/x"
    for layer, kind, shape, seed in layers:
        value = tensor(kind, shape, seed)
        builder.parameter(f"{name(layer)}.weight", tensor("normal", (3, 2), seed))
        returned = builder.call(EVAL, name(layer), (key,), change(f"output {layer}", value))
        key = returned if chained else key
        single = value.astype(np.float32) if value.dtype == np.float64 else value
        builder.call(SINGLE, name(layer), ("source/x",), change(f"single {layer}", single))
        gradient = change(f"gradient {layer}", tensor("normal", (3, 2), seed + 1))
        builder.tensor(EVAL, f"gradient/{name(layer)}.weight", gradient)
        builder.tensor(SINGLE, f"gradient/{name(layer)}.weight", gradient.astype(np.float32))
    builder.tensor(EVAL, "loss/loss", change("loss", np.asarray(0.5)))
    return builder.finish()


@contextmanager
def two(make: Callable[[Path, str], Any]) -> Iterator[tuple[Any, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        yield make(Path(folder) / "a", "torch"), make(Path(folder) / "b", "tensorflow")


@pytest.fixture
def compared(sides: Any) -> Callable[..., Facts]:
    """Compares the traces of two descriptions of a network; each is (layers, change, name)."""
    builder = type(sides[0])

    def run(first: tuple[Any, ...], second: tuple[Any, ...]) -> Facts:
        with two(builder) as (a, b), np.errstate(over="ignore"):
            return compare(build(a, *first), build(b, *second))

    return run


pytestmark = pytest.mark.filterwarnings("error")
fixtures = settings(max_examples=40, suppress_health_check=list(HealthCheck))


@fixtures
@given(layers=networks())
def test_a_trace_is_the_same_as_itself(compared: Any, layers: Any) -> None:
    """Whatever it holds; where it holds only zeros, NaN or Inf, that is no answer, and never a difference."""
    facts = compared((layers,), (layers,))
    verdict = judge(facts)
    kinds = {kind for _, kind, shape, _ in layers if 0 not in shape}
    assert verdict.outcome in (SAME, UNDECIDED)
    assert verdict.divergence is None
    assert all(each.distance.relative == 0 and each.distance.equal for each in facts.measurements)
    if kinds & {"normal", "constant", "range", "huge"} and not kinds & {"nan", "inf", "huge"}:
        assert verdict.outcome == SAME
    if kinds <= {"zeros"}:
        assert verdict.outcome == UNDECIDED


@fixtures
@given(layers=networks(ORDINARY), place=st.integers(0, 4), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_nan_or_inf_on_one_side_is_a_difference_there(compared: Any, layers: Any, place: int, bad: float) -> None:
    layer, kind, shape, _ = layers[place % len(layers)]
    if 0 in shape or kind == "whole":
        return

    def spoil(key: str, value: np.ndarray) -> np.ndarray:
        if key != f"output {layer}":
            return value
        spoilt = np.array(value)
        spoilt.reshape(-1)[-1] = bad
        return spoilt

    for sides in (((layers,), (layers, spoil)), ((layers, spoil), (layers,))):
        verdict = judge(compared(*sides))
        assert verdict.outcome == DIFFERS
        assert verdict.divergence is not None
        assert verdict.divergence.layer == layer


@fixtures
@given(
    layers=networks(ORDINARY),
    what=st.sampled_from(["output", "gradient"]),
    place=st.integers(0, 4),
    size=st.sampled_from([1e-15, 1e-11, 1e-6, 1e-3, 1.0]),
)
def test_a_change_shows_in_its_own_check_and_layer(
    compared: Any, layers: Any, what: str, place: int, size: float
) -> None:
    layer, kind, shape, _ = layers[place % len(layers)]
    if what == "output" and (0 in shape or kind == "whole"):
        return

    def change(key: str, value: np.ndarray) -> np.ndarray:
        return value * (1 + size) if key == f"{what} {layer}" else value

    verdict = judge(compared((layers,), (layers, change)))
    if size < 1e-12:
        anything = any(0 not in shape for _, _, shape, _ in layers)
        assert verdict.outcome == (SAME if anything else UNDECIDED)
        return
    assert verdict.outcome == DIFFERS
    assert verdict.divergence is not None
    assert verdict.divergence.layer == layer
    failed = [check.name for check in verdict.checks if check.status == "fail"]
    assert failed[0] == {"output": "function-layers", "gradient": "function-gradients"}[what]


@fixtures
@given(layers=networks(ORDINARY), exponent=st.integers(-20, 20), size=st.sampled_from([0.0, 1e-9, 0.3]))
def test_the_unit_of_both_sides_does_not_matter(compared: Any, layers: Any, exponent: int, size: float) -> None:
    """All tensors of both sides times a power of two: the same relative measures, the same verdict."""

    def scaled(unit: float, error: float) -> Change:
        def change(key: str, value: np.ndarray) -> np.ndarray:
            if value.dtype.kind != "f":
                return value
            if key.startswith("single"):
                return value * np.float32(unit)
            return value * unit * (1 + error) if key.startswith("output") else value * unit

        return change

    plain = compared((layers, scaled(1.0, 0.0)), (layers, scaled(1.0, size)))
    other = compared((layers, scaled(2.0**exponent, 0.0)), (layers, scaled(2.0**exponent, size)))
    for first, second in zip(plain.measurements, other.measurements, strict=True):
        if first.phase == EVAL:
            assert second.distance.relative == pytest.approx(first.distance.relative, rel=1e-9)
    assert judge(plain).outcome == judge(other).outcome


@fixtures
@given(layers=networks(ORDINARY), size=st.sampled_from([0.0, 1e-6]), place=st.integers(0, 4))
def test_other_names_find_the_same(compared: Any, layers: Any, size: float, place: int) -> None:
    """Names with a prefix, with other separators and case, on one side or on both."""
    layer = layers[place % len(layers)][0]

    def change(key: str, value: np.ndarray) -> np.ndarray:
        return value * (1 + size) if key == f"output {layer}" and value.dtype.kind == "f" else value

    def prefixed(name: str) -> str:
        return f"backbone.{name}"

    plain = judge(compared((layers,), (layers, change)))
    both = judge(compared((layers, lambda _, value: value, prefixed), (layers, change, prefixed)))
    one = judge(compared((layers,), (layers, change, str.upper)))
    assert plain.outcome == both.outcome == one.outcome
    found = [verdict.divergence and verdict.divergence.layer for verdict in (plain, both, one)]
    assert found[1] == (prefixed(found[0]) if found[0] else None)
    assert found[2] == found[0]


@fixtures
@given(layers=networks(ORDINARY), random=st.randoms(use_true_random=False))
def test_the_order_of_definition_does_not_matter(compared: Any, layers: Any, random: Any) -> None:
    """Equal layers that are defined, and whose tensors are stored, in another order are the same model."""
    mixed = list(layers)
    random.shuffle(mixed)
    alone = (lambda _, value: value, str, False)
    facts = compared((layers, *alone), (mixed, *alone))
    assert judge(facts).outcome == judge(compared((layers,), (layers,))).outcome
    assert all(each.distance.relative == 0 for each in facts.measurements)
    assert facts.structure.only_a == facts.structure.only_b == ()


@fixtures
@given(
    layers=networks(st.sampled_from(["normal", "range"]), shapes=st.just((2, 3))),
    random=st.randoms(use_true_random=False),
)
def test_layers_that_exchanged_their_values_are_not_the_same(compared: Any, layers: Any, random: Any) -> None:
    contents = [layer[1:] for layer in layers]
    random.shuffle(contents)
    mixed = [(layer[0], *content) for layer, content in zip(layers, contents, strict=True)]
    assert (judge(compared((layers,), (mixed,))).outcome == SAME) == (layers == mixed)
