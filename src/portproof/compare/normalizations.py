"""Hypotheses about a BatchNorm or a LayerNorm: epsilon, statistics, mode, axis, weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import standard
from portproof.compare.subject import Hypothesis, Subject, Ways, altered, plain_ways, scaled, set_way, short, with_also
from portproof.edits import Edit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_EPS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)  # those that frameworks have as a default


def sampled(s: Subject) -> tuple[Array, Array, tuple[Array, Array]]:
    """Some of the places of a BatchNorm's input and output, each (P, C), and the batch's mean and variance."""
    axes = (0, *range(2, s.x.ndim))
    x, y = (np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in (s.x, s.y))
    step = max(len(x) // 64, 1)
    return x[::step], y[::step], (s.x.mean(axes), s.x.var(axes))


def batchnorm_function(
    s: Subject, x: Array, batch: tuple[Array, Array], eps: float | None = None, *, flip: bool = False
) -> Callable[[Mapping[str, Array]], Array]:
    """A BatchNorm as a function of its weights; ``flip``: with the statistics of the other mode."""
    used = float(s.settings.get("eps", 1e-5)) if eps is None else eps

    def function(weights: Mapping[str, Array]) -> Array:
        mean, var = batch if s.training != flip else (weights["running_mean"], weights["running_var"])
        return standard.normalised(x, mean, var, *_affine(weights, mean), used)

    return function


def batchnorm(s: Subject) -> Iterator[Hypothesis]:
    """What may be wrong in a BatchNorm."""
    x, y, batch = sampled(s)
    plain = plain_ways(s)
    eps = float(s.settings.get("eps", 1e-5))
    for used in (eps, float(s.settings_b.get("eps", eps))):
        also = set_way(s, "eps", eps) if used != eps else ()
        function = batchnorm_function(s, x, batch, used)
        if used == eps:
            fitted = _fitted_eps(s, x, y, batch)
            if fitted is not None and fitted != eps:
                text = f"BatchNorm eps is {fitted:.6g} in the port, {eps:.6g} in the original"
                change = f"{s.type}(epsilon={short(fitted)}) -> {short(eps)}"
                prediction = batchnorm_function(s, x, batch, fitted)(s.weights)
                ways = (*set_way(s, "eps", eps), *plain)
                yield Hypothesis(text, change, f"eps {fitted:.6g} {eps:.6g}", ways, prediction, y)
        text = "BatchNorm uses the running statistics in training mode"
        if not s.training:
            text = "BatchNorm uses the batch's statistics in eval mode"
        mode: Ways = ((Edit("mode", (s.other,)),), (Edit("set", (s.other,), {"trainable": True}),))
        prediction = batchnorm_function(s, x, batch, used, flip=True)(s.weights)
        ways = with_also(also, (*reversed(mode), *plain) if s.training else (*mode, *plain))
        yield Hypothesis(text, f"{s.type}: pass `training` on to it, unfrozen", "mode", ways, prediction, y)
        if s.training:
            n = s.x.size / s.x.shape[1]
            prediction = batchnorm_function(s, x, (batch[0], batch[1] * n / max(n - 1, 1)), used)(s.weights)
            text = "BatchNorm divides by the unbiased variance of the batch in training mode"
            yield Hypothesis(text, f"{s.type}: normalize with the biased variance", "unbiased", plain, prediction, y)
        mean, var = batch if s.training else (s.weights["running_mean"], s.weights["running_var"])
        outside = standard.normalised(x, mean, (np.sqrt(var) + used) ** 2, *_affine(s.weights, mean), 0.0)
        text = "eps is added outside of the root"
        yield Hypothesis(text, f"{s.type}: sqrt(variance + eps)", "eps outside", plain, outside, y)
        yield from scaled(s, function(s.weights), y)
        roles = [role for role in s.weights if not s.training or not role.startswith("running")]
        yield from altered(s, function, y, also, roles)
        if used == float(s.settings_b.get("eps", eps)):
            return


def _affine(weights: Mapping[str, Array], like: Array) -> tuple[Array, Array]:
    return weights.get("weight", np.ones_like(like)), weights.get("bias", np.zeros_like(like))


def _fitted_eps(s: Subject, x: Array, y: Array, batch: tuple[Array, Array]) -> float | None:
    """The eps that explains the port best, from the channel in which it weighs most; ``None`` where none does."""
    mean, var = batch if s.training else (s.weights["running_mean"], s.weights["running_var"])
    gamma, beta = _affine(s.weights, mean)
    centred, out = x - mean, y - beta
    with np.errstate(all="ignore"):
        root = gamma * (centred * centred).sum(0) / (out * centred).sum(0)
    eps = root * root - var
    usable = np.isfinite(eps) & (root > 0)
    if not usable.any():
        return None
    channel = int(np.where(usable, var, np.inf).argmin())
    # Six digits: what a person wrote, not what was measured.
    fitted = float(f"{eps[channel]:.6g}")
    return fitted if 0 <= fitted < 1 else None


def layernorm(s: Subject) -> Iterator[Hypothesis]:
    """What may be wrong in a LayerNorm."""
    eps = float(s.settings.get("eps", 1e-5))
    gamma = s.weights.get("weight", np.ones(()))
    axes = tuple(range(s.x.ndim - max(gamma.ndim, 1), s.x.ndim))
    if s.x.shape[len(s.x.shape) - gamma.ndim :] != gamma.shape:
        return
    plain = plain_ways(s)

    def function(
        weights: Mapping[str, Array], eps: float = eps, axes: tuple[int, ...] = axes, scale: float = 1.0
    ) -> Array:
        used = weights.get("weight", np.ones(())), weights.get("bias", np.zeros(()))
        return standard.layer_normalised(s.x, axes, *used, eps, scale)

    for other in dict.fromkeys((s.settings_b.get("eps"), *_EPS)):
        if isinstance(other, float) and other != eps:
            text = f"LayerNorm eps is {other:.6g} in the port, {eps:.6g} in the original"
            change = f"{s.type}(epsilon={short(other)}) -> {short(eps)}"
            ways = (*set_way(s, "eps", eps), *plain)
            yield Hypothesis(text, change, f"eps {other:.6g} {eps:.6g}", ways, function(s.weights, eps=other), s.y)
    every = range(1, s.x.ndim)
    for count in range(1, s.x.ndim):
        for chosen in itertools.combinations(every, count):
            if chosen != axes:
                text = f"LayerNorm normalizes over axis {', '.join(map(str, chosen))} instead of the last"
                yield Hypothesis(text, f"{s.type}(axis=-1)", "axis", plain, function(s.weights, axes=chosen), s.y)
    count = math.prod(s.x.shape[axis] for axis in axes)
    unbiased = function(s.weights, scale=count / max(count - 1, 1))
    text = "LayerNorm divides by the unbiased standard deviation"
    yield Hypothesis(text, f"{s.type}: divide by the biased one", "unbiased", plain, unbiased, s.y)
    yield from scaled(s, function(s.weights), s.y)
    yield from altered(s, function, s.y, (), list(s.weights))
