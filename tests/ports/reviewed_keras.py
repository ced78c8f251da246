"""Ports of reviewed_torch.py: honest ones, and ones with the defect that their name tells."""

from __future__ import annotations

import tensorflow as tf

layers = tf.keras.layers


class Dropping(tf.keras.Model):
    def __init__(self, rate=0.1, always=False):
        super().__init__()
        self.a, self.drop, self.b = layers.Dense(8), layers.Dropout(rate), layers.Dense(4)
        self.always = always

    def call(self, x, training=None):
        return self.b(self.drop(tf.nn.relu(self.a(x)), training=True if self.always else training))


def dropping_more():
    return Dropping(0.6)


def dropping_always():
    return Dropping(always=True)


def projected(first=True):
    """Functional: the branches run side by side, and no layer is called as in the original."""
    image = tf.keras.Input((16, 16, 3))

    def normal(name):
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)

    def branch():
        return normal("s_n")(layers.Conv2D(8, 1, use_bias=False, name="s_c")(image))

    side = branch() if first else None
    padded = layers.ZeroPadding2D(1)(image)  # in front of the layer what the original does inside
    y = layers.ReLU()(normal("p_n")(layers.Conv2D(8, 3, name="p_c")(padded)))
    y = normal("q_n")(layers.Conv2D(8, 3, padding="same", use_bias=False, name="q_c")(y))
    y = layers.ReLU()(layers.Add()([y, branch() if side is None else side]))
    return tf.keras.Model(image, layers.Dense(5, name="out")(layers.GlobalAveragePooling2D()(y)))


def projected_last():
    return projected(first=False)


class Sequence(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(4)

    def call(self, x):
        return self.head(x)


class Turned(Sequence):
    def call(self, x):
        return tf.transpose(self.head(x), (0, 2, 1))


class WithoutClass(Sequence):
    pass


class Activated(tf.keras.Model):
    def __init__(self, approximate=True):
        super().__init__()
        self.a, self.b = layers.Dense(8), layers.Dense(4)
        self.approximate = approximate

    def call(self, x):
        return self.b(tf.nn.gelu(self.a(x), approximate=self.approximate))
