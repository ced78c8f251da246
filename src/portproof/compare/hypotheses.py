"""Hypotheses: what may be wrong inside of one layer of the port, each with the values that it predicts and its repairs.

The predictions are computed from the layer's input, the original's weights and settings, and standard.py. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import standard
from portproof.compare.convolutions import LINEAR, linear, linear_function
from portproof.compare.measure import relative_error
from portproof.compare.normalizations import batchnorm, batchnorm_function, layernorm, sampled
from portproof.compare.subject import (
    KERAS,
    Hypothesis,
    Subject,
    Ways,
    changed,
    keras_value,
    plain_ways,
    scaled,
    set_way,
)
from portproof.edits import Edit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def hypotheses(subject: Subject) -> Iterator[Hypothesis]:
    """Everything that has a prediction, the likelier first."""
    s = subject
    plain = plain_ways(s)
    yield Hypothesis(
        "the layer does nothing in the port: its output is its input", f"{s.type}: let it compute {s.kind}", "nothing",
        plain, s.x, s.y,
    )  # fmt: skip
    if s.kind == "batchnorm" and {"running_mean", "running_var"} <= set(s.weights):
        yield from batchnorm(s)
    elif s.kind == "layernorm":
        yield from layernorm(s)
    elif s.kind in LINEAR and "weight" in s.weights:
        yield from linear(s)
    elif s.kind == "flatten" and s.x.ndim > 2:
        channels_last = np.moveaxis(s.x, 1, -1).reshape(len(s.x), -1)
        text = "the port flattens with the channels last, the original with the channels first"
        change = f"Permute({(s.x.ndim - 1, *range(1, s.x.ndim - 1))}) in front of {s.type}"
        yield Hypothesis(text, change, "flatten", plain, channels_last, s.y)
    else:
        yield from _activation(s)


def standard_result(subject: Subject) -> tuple[Array, Array] | None:
    """What the layer should have returned, and what the port did, at the same places; ``None`` where unknown."""
    s = subject
    if s.kind == "batchnorm" and {"running_mean", "running_var"} <= set(s.weights):
        x, y, statistics = sampled(s)
        return batchnorm_function(s, x, statistics)(s.weights), y
    if s.kind in LINEAR and "weight" in s.weights:
        made = linear_function(s, s.settings)
        return None if made is None else (made[0](s.weights), made[1])
    name = standard.activation_name(s.kind, s.settings)
    function = standard.activation(name)
    return None if function is None else (function(s.x), s.y)


def setting_hypotheses(subject: Subject, rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, Ways]]:
    """Settings that differ, as (text, change, key, ways): possible causes without a prediction."""
    plain = plain_ways(subject)
    for row in rows:
        name, a, b = row["setting"], row["a"], row["b"]
        if name in KERAS:
            text = f"{name} is {a} in the original and {b} in the port"
            ways = (*set_way(subject, name, a), *plain)
            yield text, changed(subject, name, a, b), f"{name} {b} {a}", ways
    if len(rows) > 1:
        values = {
            KERAS[row["setting"]]: keras_value(row["setting"], row["a"]) for row in rows if row["setting"] in KERAS
        }
        texts = [f"{row['setting']} is {row['a']} in the original and {row['b']} in the port" for row in rows]
        changes = [changed(subject, row["setting"], row["a"], row["b"]) for row in rows]
        yield "; ".join(texts), "; ".join(changes), "settings", ((Edit("set", (subject.other,), values),),)


def _activation(s: Subject) -> Iterator[Hypothesis]:
    own = standard.activation_name(s.kind, s.settings)
    candidates = dict(standard.ACTIVATIONS)
    slope = s.settings_b.get("negative_slope")
    if isinstance(slope, (int, float)):
        name = f"leaky relu ({slope:g})"
        candidates.setdefault(name, standard.activation(name) or np.asarray)
    ways: Ways = ((Edit("activation", (s.other,), {"function": own}),),) if own else ()
    for name, function in candidates.items():
        if name not in (own, s.kind):
            text = f"the port computes {name} where the original computes {own or s.kind}"
            yield Hypothesis(
                text, f"{s.type}: {name} -> {own or s.kind}", f"{name} for {own}", ways, function(s.x), s.y
            )
    reference = standard.activation(own)
    if reference is not None:
        text = f"the port computes {own} twice"
        yield Hypothesis(text, f"{s.type}: apply {own} once", "twice", ways, reference(reference(s.x)), s.y)
        yield from scaled(s, reference(s.x), s.y)


def finite_and_close(hypothesis: Hypothesis, own: float, least: float) -> bool:
    """Whether a prediction fits: NaN in the same places, and far closer than the defect is large."""
    predicted, observed = hypothesis.predicted, hypothesis.observed
    if predicted.shape != observed.shape:
        return False
    finite = np.isfinite(observed)
    if not finite.any() or not np.array_equal(np.isfinite(predicted), finite):
        return False
    error = relative_error(predicted[finite], observed[finite])
    return not math.isnan(error) and error < min(least, own / 100)
