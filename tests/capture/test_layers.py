"""Walking a Keras model: every layer and variable once, under torch's names, in Keras 2 and 3 alike."""

from __future__ import annotations

from typing import Any

import pytest

tf = pytest.importorskip("tensorflow")

from portproof.capture import keras_model as capture  # noqa: E402 - after TensorFlow is known to be there
from portproof.transfer import tensorflow as weights  # noqa: E402

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers


class Block(layers.Layer):
    """Dense layers kept in the given way; every way is one that people use."""

    def __init__(self, way: str) -> None:
        super().__init__()
        a, b = layers.Dense(2), layers.Dense(2)
        if way == "attributes":
            self.first, self.second = a, b
        elif way == "list":
            self.parts = [a, b]
        elif way == "tuple":
            self.parts = (a, b)
        elif way == "dict":
            self.parts = {"first": a, "second": b}
        elif way == "private":
            self._first, self._second = a, b
        elif way == "nested":
            self.parts = [[a], {"second": b}]
        elif way == "private list":
            self._parts = [a, b]
        self.chain = lambda x: b(a(x))

    def call(self, inputs: Any) -> Any:
        return self.chain(inputs)


WAYS = {
    "attributes": ["first", "second"],
    "list": ["parts.0", "parts.1"],
    "tuple": ["parts.0", "parts.1"],
    "dict": ["parts.first", "parts.second"],
    "private": ["first", "second"],
    "nested": ["parts.0.0", "parts.1.second"],
    "private list": ["parts.0", "parts.1"],
}


class Model(tf.keras.Model):
    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.order = tuple(parts)

    def call(self, inputs: Any) -> Any:
        for name in self.order:
            inputs = getattr(self, name)(inputs)
        return inputs


def built(model: Any, width: int = 3) -> Any:
    model(tf.zeros((1, width)))
    return model


def names(model: Any) -> list[str]:
    return [each.record.name for each in weights.variables(model)]


@pytest.mark.parametrize("way", WAYS)
def test_layers_are_found_however_they_are_kept(way: str) -> None:
    model = built(Model(block=Block(way)))
    paths = [f"block.{name}" for name in WAYS[way]]
    assert list(weights.layers(model)) == ["", "block", *paths]
    assert names(model) == [f"{path}.{role}" for path in paths for role in ("weight", "bias")]
    assert {parent for path, (_, parent) in weights.layers(model).items() if path in paths} == {"block"}


def test_a_shared_layer_keeps_its_first_path() -> None:
    dense = layers.Dense(3)
    model = built(Model(first=dense, second=dense))
    assert list(weights.layers(model)) == ["", "first"]
    assert names(model) == ["first.weight", "first.bias"]


def test_functional_and_sequential_models_go_by_layer_names() -> None:
    inner_input = tf.keras.Input((2,))
    inner = tf.keras.Model(inner_input, layers.Dense(2, name="deep")(inner_input), name="inner")
    inputs = tf.keras.Input((3,), name="x")
    outputs = inner(layers.Dense(2, name="flat")(inputs))
    model = tf.keras.Model(inputs, tf.keras.Sequential([layers.Dense(1, name="last")], name="chain")(outputs))
    assert names(model) == [
        f"{path}.{role}" for path in ("flat", "inner.deep", "chain.last") for role in ("weight", "bias")
    ]
    found = weights.layers(model)
    assert found["inner.deep"][1] == "inner"
    assert found["chain.last"][1] == "chain"


def test_a_functional_model_inside_of_a_subclassed_one() -> None:
    inputs = tf.keras.Input((3,))
    model = built(Model(backbone=tf.keras.Model(inputs, layers.Dense(2, name="flat")(inputs)), head=layers.Dense(1)))
    assert names(model) == ["backbone.flat.weight", "backbone.flat.bias", "head.weight", "head.bias"]


class Bare(layers.Layer):
    """Weights of its own, beside a child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = layers.Dense(3)

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        self.table = self.add_weight(name="some_table", shape=(2, 3), initializer="ones", trainable=False)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs) * self.scale + self.table[0]


def test_a_layers_own_weights_go_by_their_attributes() -> None:
    model = built(Model(bare=Bare()))
    records = {each.record.name: each.record for each in weights.variables(model)}
    assert set(records) == {"bare.scale", "bare.table", "bare.inner.weight", "bare.inner.bias"}
    assert records["bare.scale"].shape == ()
    assert not records["bare.table"].trainable
    assert records["bare.inner.weight"].trainable


def test_batchnorm_and_freezing() -> None:
    model = built(Model(norm=layers.BatchNormalization(), head=layers.Dense(2)))
    model.head.trainable = False
    assert {each.record.name: each.record.trainable for each in weights.variables(model)} == {
        "norm.weight": True,
        "norm.bias": True,
        "norm.running_mean": False,
        "norm.running_var": False,
        "head.weight": False,
        "head.bias": False,
    }


def test_random_states_are_no_parameters() -> None:
    model = built(Model(drop=layers.Dropout(0.5), head=layers.Dense(2)))
    assert names(model) == ["head.weight", "head.bias"]


def test_a_separable_convolution_is_two_of_torchs_layers() -> None:
    model = tf.keras.Sequential(
        [tf.keras.Input((5, 5, 3)), layers.SeparableConv2D(4, 3, depth_multiplier=2, name="sep")]
    )
    records = [each.record for each in weights.variables(model)]
    assert [(record.name, record.layer, record.shape) for record in records] == [
        ("sep.depthwise.weight", "sep.depthwise", (6, 1, 3, 3)),
        ("sep.pointwise.weight", "sep.pointwise", (4, 6, 1, 1)),
        ("sep.pointwise.bias", "sep.pointwise", (4,)),
    ]


def test_two_layers_of_one_name_stay_two() -> None:
    class Twins(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.part = [layers.Dense(2)]
            setattr(self, "part.0", layers.Dense(2))  # what a hand-written registry of layers may do

        def call(self, inputs: Any) -> Any:
            return getattr(self, "part.0")(self.part[0](inputs))

    model = built(Model(twins=Twins()))
    assert len(names(model)) == len(set(names(model))) == 4


@pytest.mark.parametrize(
    ("layer", "fused"),
    [
        (layers.Dense(2, activation="relu"), True),
        (layers.Conv2D(2, 3, activation=tf.tanh), True),
        (layers.SeparableConv2D(2, 3, activation="relu"), True),
        (layers.Dense(2), False),
        (layers.Dense(2, activation="linear"), False),
        (layers.Activation("relu"), False),
        (layers.LSTM(2), False),
    ],
)
def test_activations_inside_of_layers_are_known(layer: Any, fused: bool) -> None:
    assert capture.has_fused_activation(layer) == fused
