"""The right ports of planted_torch.py, for Keras 2 and 3."""

from __future__ import annotations

import math

import tensorflow as tf

layers = tf.keras.layers


class GELU(layers.Layer):
    def call(self, x):
        return 0.5 * x * (1.0 + tf.math.erf(math.sqrt(0.5) * x))


class Padded(layers.Conv2D):
    def __init__(self, filters, size, *, pad=0, **options):
        super().__init__(filters, size, **options)
        self.pad = pad

    def call(self, x):
        pad = [(0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)]
        y = tf.nn.conv2d(tf.pad(x, pad), tf.convert_to_tensor(self.kernel), self.strides, "VALID")
        return y + tf.convert_to_tensor(self.bias) if self.use_bias else y


def batchnorm():
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)


class Gate(layers.Layer):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = Padded(4, 1)
        self.act = layers.ReLU()
        self.fc2 = Padded(channels, 1)
        self.gate = layers.Activation("sigmoid")

    def call(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(tf.reduce_mean(x, (1, 2), keepdims=True)))))


class Block(layers.Layer):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
        self.pointwise = Padded(channels, 1)
        self.bn = batchnorm()
        self.act = GELU()

    def call(self, x, training=None):
        return self.act(self.bn(self.depthwise(x) + self.pointwise(x) + x, training=training))


class Image(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.stem = Padded(8, 3, pad=1, strides=2, use_bias=False)
        self.stem_bn = batchnorm()
        self.stem_act = layers.ReLU()
        self.down = Padded(8, 3, pad=1, strides=2)
        self.block1 = Block(8)
        self.gate = Gate(8)
        self.block2 = Block(8)
        self.flatten = layers.Flatten()
        self.dropout = layers.Dropout(0.3)
        self.classifier = layers.Dense(5)

    def call(self, x, training=None):
        x = self.down(self.stem_act(self.stem_bn(self.stem(x), training=training)))
        x = self.block2(self.gate(self.block1(x, training=training)), training=training)
        return self.classifier(self.dropout(self.flatten(x), training=training))


def image():
    return Image()


class Attention(layers.Layer):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.q_proj = layers.Dense(width)
        self.k_proj = layers.Dense(width)
        self.v_proj = layers.Dense(width)
        self.softmax = layers.Softmax(-1)
        self.out_proj = layers.Dense(width)

    def call(self, x, mask):
        batch, time, width = x.shape
        split = (batch, time, self.num_heads, width // self.num_heads)
        q, k, v = (tf.transpose(tf.reshape(p(x), split), (0, 2, 1, 3)) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = tf.matmul(q * split[-1] ** -0.5, k, transpose_b=True) + mask
        joined = tf.transpose(tf.matmul(self.softmax(scores), v), (0, 2, 1, 3))
        return self.out_proj(tf.reshape(joined, x.shape))


class Layer(layers.Layer):
    def __init__(self, width, heads):
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = layers.LayerNormalization(epsilon=1e-5)
        self.fc1 = layers.Dense(2 * width)
        self.act = GELU()
        self.fc2 = layers.Dense(width)
        self.final_layer_norm = layers.LayerNormalization(epsilon=1e-5)

    def call(self, x, additive):
        x = self.self_attn_layer_norm(x + self.self_attn(x, additive))
        return self.final_layer_norm(x + self.fc2(self.act(self.fc1(x))))


class Sequence(tf.keras.Model):
    def __init__(self, width=12, heads=3, time=7):
        super().__init__()
        self.proj = layers.Dense(width)
        self.embed_positions = layers.Embedding(time + 2, width)
        self.layer1 = Layer(width, heads)
        self.layer2 = Layer(width, heads)
        self.dropout = layers.Dropout(0.2)
        self.classifier = layers.Dense(4)

    def call(self, x, mask, training=None):
        additive = tf.where(mask, tf.zeros((), x.dtype), -30 * tf.ones((), x.dtype))[:, None, None]
        x = self.proj(x) + self.embed_positions(tf.range(x.shape[1]) + 2)
        x = self.layer2(self.layer1(x, additive), additive)
        last = tf.maximum(tf.reduce_sum(tf.cast(mask, tf.int32), 1) - 1, 0)
        return self.classifier(self.dropout(tf.gather(x, last, batch_dims=1), training=training))


def sequence():
    return Sequence()
