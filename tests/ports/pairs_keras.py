"""Ports of the models of pairs_torch.py as users write them in Keras: honest ones, and ones with a mistake each."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

layers = tf.keras.layers


def _classifier(*, permute):
    inputs = tf.keras.Input((17, 13, 3))
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(6, 3, strides=2, name="conv_in")(x)
    x = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name="bn_in")(x)
    x = layers.MaxPooling2D(2)(layers.ReLU()(x))
    x = layers.Conv2D(8, 3, activation="relu", name="conv_out")(x)
    if permute:
        x = layers.Permute((3, 1, 2))(x)  # to torch's order of channels, height, width
    return tf.keras.Model(inputs, layers.Dense(5, name="logits")(layers.Flatten()(x)))


def classifier():
    return _classifier(permute=True)


def classifier_without_permute():
    return _classifier(permute=False)


def two_inputs():
    """Functional, inputs by name, in another order than the original's."""
    features = tf.keras.Input((7, 3), name="features")
    ids = tf.keras.Input((7,), dtype="int64", name="ids")
    states = layers.Add()([layers.Embedding(50, 6, name="embedding")(ids), layers.Dense(6, name="project")(features)])
    logits = layers.Dense(4, name="head")(layers.GlobalAveragePooling1D()(states))
    return tf.keras.Model({"features": features, "ids": ids}, [logits, states, ids])


class TwoInputs(tf.keras.Model):
    """Arguments by name."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(50, 6)
        self.project = layers.Dense(6)
        self.head = layers.Dense(4)

    def call(self, ids, features):
        states = self.embedding(ids) + self.project(features)
        return {"logits": self.head(tf.reduce_mean(states, 1)), "states": states, "ids": ids}


class TwoInputsAsList(TwoInputs):
    """One argument that holds both, as Keras has it."""

    def call(self, inputs):
        return super().call(*inputs)


two_inputs_by_name = TwoInputs
two_inputs_as_list = TwoInputsAsList


def reordered():
    return tf.keras.Sequential(
        [tf.keras.Input((6,)), layers.Dense(6, activation="tanh"), layers.Dense(6, activation="tanh"), layers.Dense(6)]
    )


class Perceptron(tf.keras.Model):
    def __init__(self, *, bias=True):
        super().__init__()
        self.hidden = layers.Dense(5, use_bias=bias)
        self.head = layers.Dense(4)

    def call(self, inputs):
        return self.head(tf.nn.relu(self.hidden(inputs)))


perceptron = Perceptron


def missing_bias():
    return Perceptron(bias=False)


class ExtraParameter(Perceptron):
    def __init__(self):
        super().__init__()
        self.temperature = layers.Dense(4, use_bias=False)

    def call(self, inputs):
        return self.temperature(super().call(inputs)) * 0.0 + super().call(inputs)


extra_parameter = ExtraParameter


def frozen_layer():
    model = Perceptron()
    model.hidden.trainable = False
    return model


def seeded():
    """The weights of pairs_torch.seeded, written down by hand."""
    model = Perceptron()
    model(tf.zeros((1, 6)))
    shapes = [(5, 6), (5,), (4, 5), (4,)]
    values = [(np.arange(np.prod(shape)).reshape(shape) * 7 % 11 - index) / 8 for index, shape in enumerate(shapes)]
    model.hidden.set_weights([values[0].T, values[1]])
    model.head.set_weights([values[2].T, values[3]])
    return model


def seeded_but_one():
    """One of 54 values is the next float32."""
    model = seeded()
    kernel, bias = model.head.get_weights()
    kernel[1, 2] = np.nextafter(np.float32(kernel[1, 2]), np.float32(9))
    model.head.set_weights([kernel, bias])
    return model


def functional_perceptron():
    """The perceptron with other names than the original's."""
    inputs = tf.keras.Input((6,))
    x = layers.Dense(5, activation="relu", name="encode")(inputs)
    return tf.keras.Model(inputs, layers.Dense(4, name="decode")(x))


def with_dropout():
    return tf.keras.Sequential(
        [tf.keras.Input((6,)), layers.Dense(8), layers.Dropout(0.4), layers.ReLU(), layers.Dense(4)]
    )


class Casting(Perceptron):
    def call(self, inputs):
        kernel, bias = (
            tf.cast(tf.convert_to_tensor(each), tf.float32) for each in (self.hidden.kernel, self.hidden.bias)
        )
        hidden = tf.nn.relu(tf.cast(inputs, tf.float32) @ kernel + bias)
        return self.head(tf.cast(hidden, inputs.dtype))

    def build(self, shape):
        self.hidden.build(shape)
        self.head.build((shape[0], 5))


casting = Casting


class Stubborn(Perceptron):
    """Raises in float64."""

    def call(self, inputs):
        return super().call(inputs) + tf.zeros((4,), tf.float32)


stubborn = Stubborn


class Shared(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.mix = layers.Dense(6)
        self.head = layers.Dense(4)

    def call(self, inputs):
        return self.head(tf.tanh(self.mix(tf.tanh(self.mix(inputs)))))


shared = Shared


def shared_functional():
    mix = layers.Dense(6, name="mix")
    inputs = tf.keras.Input((6,))
    x = layers.Activation("tanh")(mix(layers.Activation("tanh")(mix(inputs))))
    return tf.keras.Model(inputs, layers.Dense(4, name="head")(x))


class SharedOnce(Shared):
    """Forgets the second call."""

    def call(self, inputs):
        return self.head(tf.tanh(self.mix(inputs)))


shared_once = SharedOnce


def in_place():
    return tf.keras.Sequential(
        [
            tf.keras.Input((3, 9)),
            layers.Permute((2, 1)),  # an input of three dimensions reaches Keras as it is
            layers.Conv1D(4, 3),
            layers.BatchNormalization(epsilon=1e-5, momentum=0.9),
            layers.ReLU(),
            layers.Conv1D(4, 1),
            layers.ReLU(),
        ]
    )


class Compiled(Perceptron):
    @tf.function
    def call(self, inputs):
        return self.head(tf.nn.relu(self.hidden(inputs)))


compiled = Compiled


class CompiledLayer(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(5)

    @tf.function(reduce_retracing=True)
    def call(self, inputs):
        return tf.nn.relu(self.inner(inputs))


class CompiledPart(tf.keras.Model):
    """tf.function on one layer of several."""

    def __init__(self):
        super().__init__()
        self.hidden = CompiledLayer()
        self.head = layers.Dense(4)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


compiled_part = CompiledPart


def compiled_wrong():
    """tf.function around a wrong activation."""

    class Wrong(Perceptron):
        @tf.function
        def call(self, inputs):
            return self.head(tf.nn.leaky_relu(self.hidden(inputs), 0.01))

    return Wrong()


class CenterRows(layers.Layer):
    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, 1, keepdims=True)


def gated():
    """Functional, with activations inside of layers and arithmetic on symbolic tensors between them."""
    inputs = tf.keras.Input((6,))
    value = layers.Dense(5, name="value")(inputs)
    gate = layers.Dense(5, name="gate", activation="sigmoid")(inputs)
    return tf.keras.Model(inputs, layers.Dense(4, name="head")(CenterRows()(value * gate)))


def gated_wrong():
    """The wrong activation inside of a layer."""
    inputs = tf.keras.Input((6,))
    value = layers.Dense(5, name="value")(inputs)
    gate = layers.Dense(5, name="gate", activation="hard_sigmoid")(inputs)
    return tf.keras.Model(inputs, layers.Dense(4, name="head")(CenterRows()(value * gate)))


def separable():
    return tf.keras.Sequential(
        [
            tf.keras.Input((None, None, 3)),
            layers.SeparableConv2D(4, 3, depth_multiplier=2),
            layers.BatchNormalization(epsilon=1e-5, momentum=0.9),
        ]
    )


class NaNs(Perceptron):
    def call(self, inputs):
        return self.head(tf.math.log(self.hidden(inputs) - 1e6))


nans = NaNs


class LeakyReLU(layers.Layer):
    """The slope's keyword is another one in Keras 2 than in 3."""

    def call(self, inputs):
        return tf.nn.leaky_relu(inputs, 0.1)


def pooled():
    inputs = tf.keras.Input((15, 11, 2))
    x = LeakyReLU()(layers.Conv2D(4, (3, 2), strides=(2, 3))(inputs))
    x = layers.Conv2D(3, 1)(layers.AveragePooling2D(2)(x))
    return tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
