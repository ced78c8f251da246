"""Ports of RepViT KWS for the tests: honest ones, and ones with one planted defect each, as a user would write them."""

from __future__ import annotations

import tensorflow as tf

from portproof.models.repvit import KWS_TINY_CFGS, KWSRepViT_TF

layers = tf.keras.layers


def _below(layer):
    return [each for each in layer._flatten_layers(include_self=False) if isinstance(each, layers.Layer)]


def _of(model, kind):
    return [each for each in _below(model) if type(each).__name__.endswith(kind)]


def honest():
    return KWSRepViT_TF()


def grouped():
    return KWSRepViT_TF(depthwise="grouped")


class OwnGELU(layers.Layer):
    """What most ports write: TF's own GELU, which is 5e-9 off in float64."""

    def call(self, inputs):
        return tf.nn.gelu(inputs, approximate=False)


class TanhGELU(layers.Layer):
    def call(self, inputs):
        return tf.nn.gelu(inputs, approximate=True)


def _with_gelu(kind):
    model = KWSRepViT_TF()
    for layer in _of(model, "GELU"):
        layer.__class__ = kind  # the same layer, computing something else
    return model


def own_gelu():
    return _with_gelu(OwnGELU)


def tanh_gelu():
    return _with_gelu(TanhGELU)


def _with_eps(eps):
    model = KWSRepViT_TF()
    for layer in _of(model, "BatchNormalization"):
        layer.epsilon = eps
    return model


def eps_keras_default():
    return _with_eps(1e-3)


def eps_slightly_off():
    return _with_eps(1.001e-5)


def keras_momentum():
    """torch's 0.1 copied over: Keras' momentum is the share of the old average."""
    model = KWSRepViT_TF()
    for layer in _of(model, "BatchNormalization"):
        layer.momentum = 0.1
    return model


class SamePadding(layers.Conv2D):
    def call(self, inputs):
        return tf.nn.conv2d(inputs, tf.convert_to_tensor(self.kernel), self.strides, "SAME")


def same_padding():
    """The stem's second convolution with padding='same': one row further down and to the right on even sizes."""
    model = KWSRepViT_TF()
    model.features[0][2].c.__class__ = SamePadding
    return model


class Reshaped(layers.Conv2D):
    """Reads a torch kernel (O, I, 1, 1) into (1, 1, I, O) by reshape where it takes a transposition."""

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel)
        wrong = tf.reshape(tf.transpose(kernel, (0, 1, 3, 2)), kernel.shape)
        return tf.nn.conv2d(inputs, wrong, 1, "VALID")


def transposed_kernel():
    model = KWSRepViT_TF()
    model.features[5].channel_mixer.m[0].c.__class__ = Reshaped
    return model


def moved_squeeze_excite():
    """SE in another block of the same stage: the same number of parameters."""
    rows = [list(row) for row in KWS_TINY_CFGS]
    rows[0][3], rows[1][3] = 0, 1
    return KWSRepViT_TF(cfgs=[tuple(row) for row in rows])


class SwappedStatistics(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        if training:
            return super().call(inputs, training=training)
        mean, variance = (tf.convert_to_tensor(v) for v in (self.moving_variance, self.moving_mean))
        scale = tf.convert_to_tensor(self.gamma) / tf.sqrt(variance + self.epsilon)
        return (inputs - mean) * scale + tf.convert_to_tensor(self.beta)


def swapped_statistics():
    model = KWSRepViT_TF()
    model.features[5].channel_mixer.m[0].bn.__class__ = SwappedStatistics
    return model


class Rounded(layers.Layer):
    """GELU that rounds to bfloat16 in float32, as a fast path on some machine might."""

    def call(self, inputs):
        exact = 0.5 * inputs * (1.0 + tf.math.erf(inputs * 0.5**0.5))
        return exact if inputs.dtype == tf.float64 else tf.cast(tf.cast(exact, tf.bfloat16), inputs.dtype)


def half_precision_inside():
    model = KWSRepViT_TF()
    model.features[3].channel_mixer.m[1].__class__ = Rounded
    return model


class Frozen(layers.Layer):
    """GELU through which no gradient passes."""

    def call(self, inputs):
        return tf.stop_gradient(0.5 * inputs * (1.0 + tf.math.erf(inputs * 0.5**0.5)))


def stopped_gradient():
    model = KWSRepViT_TF()
    model.features[6].channel_mixer.m[1].__class__ = Frozen
    return model


def raises():
    raise KeyError("weights/stem")


def not_a_model():
    return "kws"


class Log(layers.Layer):
    def call(self, inputs):
        return tf.math.log(inputs)


def yields_nan():
    model = KWSRepViT_TF()

    model.features[2].channel_mixer.m[1].__class__ = Log
    return model


def wrong_input():
    inputs = tf.keras.Input((64, 40))
    return tf.keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))


def dies():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
