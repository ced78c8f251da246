"""The recorder, with fakes instead of a framework: which tensor came from where, and what is stored of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portproof.capture.recorder import Recorder, flatten
from portproof.trace import TraceWriter


class Fake:
    """A tensor with a version that an operation in place raises, as torch's have."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.version = 0

    def overwrite(self, value: float) -> Fake:
        self.value, self.version = value, self.version + 1
        return self


class Bench:
    """A recorder on a writer whose tensors can be looked at."""

    def __init__(self, folder: Path) -> None:
        self.stored: dict[str, float] = {}
        writer = TraceWriter(folder / "trace")
        add = writer.add

        def note(key: str, array: Any) -> None:
            if not key.startswith("p/source/"):
                self.stored[key] = float(array)
            add(key, array)

        writer.add = note  # type: ignore[method-assign]
        self.recorder = Recorder(
            writer, "p", lambda tensor: (id(tensor), tensor.version), lambda tensor: np.asarray(tensor.value)
        )

    def call(self, layer: str, given: list[Fake], output: Any) -> None:
        """A call that ends at once."""
        keys = [(tensor, self.recorder.key_of(tensor)) for tensor in given]
        self.recorder.call(layer, keys, output if isinstance(output, list) else [output])

    def rows(self) -> list[tuple[Any, ...]]:
        return [(call.layer, call.occurrence, call.inputs, call.outputs) for call in self.recorder.calls]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_chain_stores_each_output_once(bench: Bench) -> None:
    x, a, b = Fake(1), Fake(2), Fake(3)
    bench.recorder.add_source("x", x)
    bench.call("first", [x], a)
    bench.call("second", [a], b)
    assert bench.rows() == [
        ("first", 0, ("source/x",), ("output/first",)),
        ("second", 0, ("output/first",), ("output/second",)),
    ]
    assert bench.stored == {"p/output/first": 2, "p/output/second": 3}


def test_an_operation_in_place_makes_a_new_tensor(bench: Bench) -> None:
    x, a = Fake(1), Fake(-2)
    bench.recorder.add_source("x", x)
    bench.call("linear", [x], a)
    given = [(a, bench.recorder.key_of(a))]  # looked up before the call, as a hook does
    bench.recorder.call("relu", given, [a.overwrite(0)])
    bench.call("next", [a], Fake(5))
    assert [row[2:] for row in bench.rows()[1:]] == [
        (("output/linear",), ("output/relu",)),
        (("output/relu",), ("output/next",)),
    ]
    assert bench.stored["p/output/linear"] == -2
    assert bench.stored["p/output/relu"] == 0


def test_an_untracked_change_in_place_is_an_input_of_its_own(bench: Bench) -> None:
    x, a = Fake(1), Fake(2)
    bench.recorder.add_source("x", x)
    bench.call("linear", [x], a)
    a.overwrite(7)  # by code between the layers
    bench.call("next", [a], Fake(5))
    assert bench.rows()[1][2] == ("input/next:0",)
    assert bench.stored["p/input/next:0"] == 7


def test_repeated_calls_are_told_apart(bench: Bench) -> None:
    x, a, b = Fake(1), Fake(2), Fake(3)
    bench.recorder.add_source("x", x)
    bench.call("mix", [x], a)
    bench.call("mix", [a], b)
    assert bench.rows() == [
        ("mix", 0, ("source/x",), ("output/mix",)),
        ("mix", 1, ("output/mix",), ("output/mix#1",)),
    ]


def test_a_container_that_returns_its_childs_tensor_stores_nothing(bench: Bench) -> None:
    x, a = Fake(1), Fake(2)
    bench.recorder.add_source("x", x)
    bench.call("block.conv", [x], a)
    bench.call("block", [x], a)
    assert bench.rows()[1] == ("block", 0, ("source/x",), ("output/block.conv",))
    assert list(bench.stored) == ["p/output/block.conv"]


def test_inputs_from_between_the_layers_are_stored_once(bench: Bench) -> None:
    between = Fake(4)
    bench.call("a", [between], Fake(5))
    bench.call("b", [between], Fake(6))
    assert [row[2] for row in bench.rows()] == [("input/a:0",), ("input/a:0",)]
    assert list(bench.stored) == ["p/input/a:0", "p/output/a", "p/output/b"]


def test_several_outputs_and_an_input_returned_as_it_is(bench: Bench) -> None:
    x, a, b = Fake(1), Fake(2), Fake(3)
    bench.recorder.add_source("x", x)
    bench.call("split", [x], [a, b, x])
    assert bench.rows() == [("split", 0, ("source/x",), ("output/split", "output/split:1", "source/x"))]


def test_tensors_stay_alive_while_their_names_are_in_use(bench: Bench) -> None:
    for value in range(100):  # were they freed, ids would recur and a later tensor be taken for an earlier one
        bench.call(f"layer{value}", [], Fake(value))
    assert bench.stored == {f"p/output/layer{value}": value for value in range(100)}


def test_what_was_lowered_belongs_to_the_innermost_open_call(bench: Bench) -> None:
    x, a, b = Fake(1), Fake(2), Fake(3)
    bench.recorder.add_source("x", x)
    bench.recorder.begin("outer")
    bench.recorder.begin("inner")
    bench.call("inner", [x], a)
    bench.recorder.add_lowered(Fake(0.5))
    bench.recorder.add_lowered(Fake(0.25))  # one of a call is enough
    bench.call("outer", [x], b)
    assert bench.rows() == [
        ("inner", 0, ("source/x",), ("output/inner",)),
        ("outer", 0, ("source/x",), ("output/outer", "inner/outer")),
    ]
    assert bench.stored["p/inner/outer"] == 0.5
    bench.recorder.add_lowered(Fake(9))  # outside of every call: nobody's
    assert len(bench.stored) == 3


class Output:
    """As the output classes of Hugging Face models."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def to_tuple(self) -> tuple[Any, ...]:
        return self.parts


def test_flatten_finds_tensors_in_order() -> None:
    a, b, c, d, e = (Fake(i) for i in range(5))
    nested = {"z": a, "y": (b, [c, None, "text", 3]), "x": Output(d, {"k": e})}
    assert list(flatten(nested, lambda each: isinstance(each, Fake))) == [a, b, c, d, e]
    assert list(flatten(None, lambda each: isinstance(each, Fake))) == []
