"""Ports of conversion_torch.py that bring weights of their own, converted by hand: rightly, and with mistakes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

layers = tf.keras.layers
ROLES = ("weight", "bias", "running_mean", "running_var")


def _values():
    """What the torch side holds, in the order of its state dict, as a checkpoint would have it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = [("first", 2), ("norm", 4), ("second", 2), ("last", 2)]
    values = {}
    for layer, count in sizes:
        for role in ROLES[:count]:
            shape = (6, 6) if role == "weight" and layer != "norm" else (6,)
            values[layer, role] = (torch.rand(shape, generator=generator) + 0.1).numpy()
    return values


def _net(**wrong):
    """``wrong``: layer -> a function of what `set_weights` is given for it."""
    model = tf.keras.Sequential(
        [
            tf.keras.Input((6,)),
            layers.Dense(6, name="first"),
            layers.BatchNormalization(name="norm", epsilon=1e-5, momentum=0.9),
            layers.Activation("tanh", name="a"),
            layers.Dense(6, name="second"),
            layers.Activation("tanh", name="b"),
            layers.Dense(6, name="last"),
        ]
    )
    values = _values()
    for layer in model.layers:
        held = [value for (name, _), value in values.items() if name == layer.name]
        if held:
            held = [np.ascontiguousarray(value.T) for value in held]
            layer.set_weights(wrong.get(layer.name, lambda held: held)(held))
    return model


def net():
    return _net()


def transposed():
    """Both kernels behind the BatchNorm as torch has them: the conversion was written for one layer alone."""
    return _net(second=_as_in_torch, last=_as_in_torch)


def swapped():
    """Mean and variance of the BatchNorm in each other's place, and a transposed kernel behind it."""
    return _net(norm=lambda held: [held[0], held[1], held[3], held[2]], last=_as_in_torch)


def _as_in_torch(held):
    return [np.ascontiguousarray(held[0].T), held[1]]
