"""Hypotheses: what may be wrong inside of one layer of the port, each with the values that it predicts and its repairs.

The predictions are computed from the layer's input, the original's weights and settings, and standard.py. NumPy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import standard
from portproof.compare.altered import Altered, altered_weights
from portproof.compare.standard import Convolution
from portproof.edits import Edit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Ways = tuple[tuple[Edit, ...], ...]

LINEAR = ("conv1d", "conv2d", "conv3d", "linear")
# Settings in the words of traces -> Keras' own, where setting them changes what a layer computes.
_KERAS = {
    "eps": "epsilon", "stride": "strides", "dilation": "dilation_rate", "p": "rate", "momentum": "momentum",
    "padding": "pad", "negative_slope": "negative_slope", "approximate": "approximate", "kernel_size": "pool_size",
}  # fmt: skip
_EPS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)  # those that frameworks have as a default


@dataclass(frozen=True)
class Subject:
    """One layer on both sides. ``x`` is what it was given and ``y`` what the port made of it; ``names`` are the port's
    names of its variables by role, ``own`` says that the port brought its own values for them."""

    layer: str
    other: str
    kind: str
    type: str
    x: Array
    y: Array
    settings: Mapping[str, Any]
    settings_b: Mapping[str, Any]
    weights: Mapping[str, Array]
    initial: Mapping[str, Array] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    names_of: Callable[[str, str], str] = lambda layer, role: f"{layer}.{role}"
    training: bool = False
    own: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """One thing that may be wrong: ``predicted`` is what the port would then return where it returned ``observed``."""

    text: str
    change: str
    key: str
    ways: Ways
    predicted: Array
    observed: Array


def hypotheses(subject: Subject) -> Iterator[Hypothesis]:
    """Everything that has a prediction, the likelier first."""
    s = subject
    plain = _plain_ways(s)
    yield Hypothesis(
        "the layer does nothing in the port: its output is its input", f"{s.type}: let it compute {s.kind}", "nothing",
        plain, s.x, s.y,
    )  # fmt: skip
    if s.kind == "batchnorm" and {"running_mean", "running_var"} <= set(s.weights):
        yield from _batchnorm(s)
    elif s.kind == "layernorm":
        yield from _layernorm(s)
    elif s.kind in LINEAR and "weight" in s.weights:
        yield from _linear(s)
    else:
        yield from _activation(s)


def standard_result(subject: Subject) -> tuple[Array, Array] | None:
    """What the layer should have returned, and what the port did, at the same places; ``None`` where unknown."""
    s = subject
    if s.kind == "batchnorm" and {"running_mean", "running_var"} <= set(s.weights):
        x, y, statistics = _sampled(s)
        return _batchnorm_function(s, x, statistics)(s.weights), y
    if s.kind in LINEAR and "weight" in s.weights:
        made = _linear_function(s, s.settings)
        return None if made is None else (made[0](s.weights), made[1])
    name = standard.activation_name(s.kind, s.settings)
    function = standard.activation(name)
    return None if function is None else (function(s.x), s.y)


def standard_edit(subject: Subject) -> Edit | None:
    """The edit that lets the port's layer compute what a standard layer with the original's settings does."""
    s = subject
    name = standard.activation_name(s.kind, s.settings)
    if name:
        return Edit("activation", (s.other,), {"function": name})
    wanted = {
        "batchnorm": ("eps", "momentum"), "layernorm": ("eps",), "linear": (), "dropout": (),
        "conv1d": ("stride", "padding", "dilation"), "conv2d": ("stride", "padding", "dilation"),
    }.get(s.kind)  # fmt: skip
    if wanted is None:
        return None
    options = {key: s.settings[key] for key in wanted if key in s.settings}
    return Edit("standard", (s.other,), {"kind": s.kind, **options})


def setting_hypotheses(subject: Subject, rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, Ways]]:
    """Settings that differ, as (text, change, key, ways): possible causes without a prediction."""
    plain = _plain_ways(subject)
    for row in rows:
        name, a, b = row["setting"], row["a"], row["b"]
        if name in _KERAS:
            text = f"{name} is {a} in the original and {b} in the port"
            ways = (*_set(subject, name, a), *plain)
            yield text, _changed(subject, name, a, b), f"{name} {b} {a}", ways
    if len(rows) > 1:
        values = {
            _KERAS[row["setting"]]: _keras_value(row["setting"], row["a"]) for row in rows if row["setting"] in _KERAS
        }
        texts = [f"{row['setting']} is {row['a']} in the original and {row['b']} in the port" for row in rows]
        changes = [_changed(subject, row["setting"], row["a"], row["b"]) for row in rows]
        yield "; ".join(texts), "; ".join(changes), "settings", ((Edit("set", (subject.other,), values),),)


def _keras_value(name: str, value: Any) -> Any:
    return round(1.0 - value, 12) if name == "momentum" else value


def _set(subject: Subject, name: str, value: Any) -> Ways:
    if name == "padding" and not isinstance(value, int):
        return ()
    value = _keras_value(name, value)
    if name in ("stride", "dilation") and isinstance(value, int):
        value = [value] * max(subject.x.ndim - 2, 1)
    return ((Edit("set", (subject.other,), {_KERAS[name]: value}),),)


def _changed(subject: Subject, name: str, a: Any, b: Any) -> str:
    a, b = (_keras_value(name, each) for each in (a, b))
    if name == "padding":
        return f"{subject.type}: padding {b!r} -> {a!r} on every side"
    return f"{subject.type}({_KERAS[name]}={_short(b)}) -> {_short(a)}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain_ways(subject: Subject) -> Ways:
    edit = standard_edit(subject)
    return ((edit,),) if edit else ()


# --- Activations ------------------------------------------------------------------------------------------------------


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
        yield _sign(s, reference(s.x), s.y)


def _sign(s: Subject, result: Array, y: Array) -> Hypothesis:
    ways: Ways = ((Edit("after", (s.other,), {"function": "negative"}),),)
    return Hypothesis("the sign is flipped", f"{s.type}: take the sign away", "sign", ways, -result, y)


# --- Normalization ----------------------------------------------------------------------------------------------------


def _sampled(s: Subject) -> tuple[Array, Array, tuple[Array, Array]]:
    """Some of the places of a BatchNorm's input and output, each (P, C), and the batch's mean and variance."""
    axes = (0, *range(2, s.x.ndim))
    x, y = (np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in (s.x, s.y))
    step = max(len(x) // 64, 1)
    return x[::step], y[::step], (s.x.mean(axes), s.x.var(axes))


def _batchnorm_function(
    s: Subject, x: Array, batch: tuple[Array, Array], eps: float | None = None, *, flip: bool = False
) -> Callable[[Mapping[str, Array]], Array]:
    used = float(s.settings.get("eps", 1e-5)) if eps is None else eps

    def function(weights: Mapping[str, Array]) -> Array:
        ones = np.ones_like(weights["running_mean"])
        gamma, beta = weights.get("weight", ones), weights.get("bias", 0 * ones)
        mean, var = batch if s.training != flip else (weights["running_mean"], weights["running_var"])
        return standard.normalised(x, mean, var, gamma, beta, used)

    return function


def _batchnorm(s: Subject) -> Iterator[Hypothesis]:
    x, y, batch = _sampled(s)
    plain = _plain_ways(s)
    eps = float(s.settings.get("eps", 1e-5))
    for used in (eps, float(s.settings_b.get("eps", eps))):
        also = _set(s, "eps", eps) if used != eps else ()
        function = _batchnorm_function(s, x, batch, used)
        if used == eps:
            fitted = _fitted_eps(s, x, y, batch)
            if fitted is not None and fitted != eps:
                text = f"BatchNorm eps is {fitted:.6g} in the port, {eps:.6g} in the original"
                change = f"{s.type}(epsilon={_short(fitted)}) -> {_short(eps)}"
                prediction = _batchnorm_function(s, x, batch, fitted)(s.weights)
                ways = (*_set(s, "eps", eps), *plain)
                yield Hypothesis(text, change, f"eps {fitted:.6g} {eps:.6g}", ways, prediction, y)
        text = "BatchNorm uses the running statistics in training mode"
        if not s.training:
            text = "BatchNorm uses the batch's statistics in eval mode"
        mode: Ways = ((Edit("mode", (s.other,)),), (Edit("set", (s.other,), {"trainable": True}),))
        prediction = _batchnorm_function(s, x, batch, used, flip=True)(s.weights)
        ways = _with(also, (*reversed(mode), *plain) if s.training else (*mode, *plain))
        yield Hypothesis(text, f"{s.type}: pass `training` on to it, unfrozen", "mode", ways, prediction, y)
        if s.training:
            n = s.x.size / s.x.shape[1]
            prediction = _batchnorm_function(s, x, (batch[0], batch[1] * n / max(n - 1, 1)), used)(s.weights)
            text = "BatchNorm divides by the unbiased variance of the batch in training mode"
            yield Hypothesis(text, f"{s.type}: normalize with the biased variance", "unbiased", plain, prediction, y)
        yield _sign(s, function(s.weights), y)
        roles = [role for role in s.weights if not s.training or not role.startswith("running")]
        yield from _altered(s, function, y, also, roles)
        if used == float(s.settings_b.get("eps", eps)):
            return


def _fitted_eps(s: Subject, x: Array, y: Array, batch: tuple[Array, Array]) -> float | None:
    """The eps that explains the port best, from the channel in which it weighs most; ``None`` where none does."""
    mean, var = batch if s.training else (s.weights["running_mean"], s.weights["running_var"])
    gamma, beta = s.weights.get("weight", np.ones_like(mean)), s.weights.get("bias", np.zeros_like(mean))
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


def _layernorm(s: Subject) -> Iterator[Hypothesis]:
    eps = float(s.settings.get("eps", 1e-5))
    gamma = s.weights.get("weight", np.ones(()))
    axes = tuple(range(s.x.ndim - max(gamma.ndim, 1), s.x.ndim))
    if s.x.shape[len(s.x.shape) - gamma.ndim :] != gamma.shape:
        return
    plain = _plain_ways(s)

    def function(weights: Mapping[str, Array], eps: float = eps, axes: tuple[int, ...] = axes) -> Array:
        used = weights.get("weight", np.ones(())), weights.get("bias", np.zeros(()))
        return standard.layer_normalised(s.x, axes, *used, eps)

    for other in dict.fromkeys((s.settings_b.get("eps"), *_EPS)):
        if isinstance(other, float) and other != eps:
            text = f"LayerNorm eps is {other:.6g} in the port, {eps:.6g} in the original"
            change = f"{s.type}(epsilon={_short(other)}) -> {_short(eps)}"
            ways = (*_set(s, "eps", eps), *plain)
            yield Hypothesis(text, change, f"eps {other:.6g} {eps:.6g}", ways, function(s.weights, eps=other), s.y)
    every = range(1, s.x.ndim)
    for count in range(1, s.x.ndim):
        for chosen in itertools.combinations(every, count):
            if chosen != axes:
                text = f"LayerNorm normalizes over axis {', '.join(map(str, chosen))} instead of the last"
                yield Hypothesis(text, f"{s.type}(axis=-1)", "axis", plain, function(s.weights, axes=chosen), s.y)
    yield _sign(s, function(s.weights), s.y)
    yield from _altered(s, function, s.y, (), list(s.weights))


# --- Convolutions and linear layers -----------------------------------------------------------------------------------


def _linear_function(
    s: Subject, settings: Mapping[str, Any], pads: tuple[tuple[int, int], ...] | None = None
) -> tuple[Callable[[Mapping[str, Array]], Array], Array] | None:
    """The layer as a function of its weights, at some places, and the port's values there; ``None`` if sizes differ."""
    weight = s.weights["weight"]
    if weight.ndim == 2 or s.x.ndim == 2:
        matrix = weight.reshape(weight.shape[0], -1)
        if s.x.shape[-1] != matrix.shape[1] or s.y.shape[-1] != matrix.shape[0]:
            return None
        step = max(s.x[..., 0].size // 256, 1)
        x, y = (each.reshape(-1, each.shape[-1])[::step] for each in (s.x, s.y))

        def dense(weights: Mapping[str, Array]) -> Array:
            output = x @ weights["weight"].reshape(matrix.shape).T
            return output + weights["bias"] if "bias" in weights else output

        return dense, y
    if s.x.ndim != weight.ndim or s.x.shape[1] % weight.shape[1]:
        return None
    kernel = weight.shape[2:]
    convolution = Convolution.of(settings, s.x.shape[2:], kernel)
    if pads is not None:
        convolution = replace(convolution, pads=pads)
    if (weight.shape[0], *convolution.output_sizes(s.x.shape[2:], kernel)) != s.y.shape[1:]:
        return None
    found = convolution.patches(s.x, kernel)
    if found is None:
        return None
    patches, places = found
    observed = np.moveaxis(s.y, 1, -1)[places]
    groups = s.x.shape[1] // weight.shape[1]  # a depthwise layer of Keras has no setting of that name
    if weight.shape[0] % groups:
        return None

    def convolve(weights: Mapping[str, Array]) -> Array:
        return standard.convolved(patches, weights["weight"], weights.get("bias"), groups)

    return convolve, observed


def _linear(s: Subject) -> Iterator[Hypothesis]:
    base = _linear_function(s, s.settings)
    plain = _plain_ways(s)
    if base is not None:
        function, y = base
        if y.ndim == 2 and s.x.ndim == 2:
            softmax = standard.ACTIVATIONS["softmax"](function(s.weights))
            ways: Ways = ((Edit("activation", (f"{s.other}.activation",), {"function": "identity"}),), *plain)
            text = "the port applies a softmax that the original does not"
            yield Hypothesis(text, f"{s.type}: leave out the softmax", "softmax", ways, softmax, y)
        for name, activation in standard.ACTIVATIONS.items():
            text = f"the port applies {name} behind the layer where the original does not"
            ways = ((Edit("activation", (f"{s.other}.activation",), {"function": "identity"}),), *plain)
            key = f"fused {name}"
            yield Hypothesis(text, f"{s.type}: leave out {name}", key, ways, activation(function(s.weights)), y)
        yield _sign(s, function(s.weights), y)
    if s.weights["weight"].ndim > 2 and s.x.ndim > 2:
        yield from _geometry(s, plain)
    if base is not None:
        yield from _altered(s, *base, (), list(s.weights))


def _geometry(s: Subject, plain: Ways) -> Iterator[Hypothesis]:
    """Padding, stride and dilation."""
    kernel, sizes = s.weights["weight"].shape[2:], s.x.shape[2:]
    own = Convolution.of(s.settings, sizes, kernel)
    same = standard.same_pads(sizes, kernel, own.stride, own.dilation)
    half = tuple((k // 2, k // 2) for k in kernel)
    none = ((0, 0),) * len(kernel)
    more = tuple((first + 1, last) for first, last in own.pads), tuple((first, last + 1) for first, last in own.pads)
    moved = tuple(tuple((max(first + shift, 0), max(last - shift, 0)) for first, last in own.pads) for shift in (-1, 1))
    turned = own.pads[::-1]
    for pads in dict.fromkeys((same, none, half, turned, *moved, *more)):
        if pads == own.pads:
            continue
        made = _linear_function(s, s.settings, pads)
        if made is None:
            continue
        what = "padding='same'" if pads == same else "the port"
        text = f"{what} pads {_sides(pads, own.pads)}"
        change = f"{s.type}: pad {own.pads[0] if len(set(own.pads)) == 1 else own.pads} by hand, padding='valid'"
        symmetric = own.pads[0][0] if len({each for pair in own.pads for each in pair}) == 1 else None
        ways = (*(((Edit("set", (s.other,), {"pad": symmetric}),),) if symmetric is not None else ()), *plain)
        key = f"padding {'same' if pads == same else pads} {own.pads}"
        yield Hypothesis(text, change, key, ways, made[0](s.weights), made[1])
    variants = [("stride", value) for value in (s.settings_b.get("stride"), list(own.stride[::-1]), 1, 2)] + [
        ("dilation", value) for value in (s.settings_b.get("dilation"), list(own.dilation[::-1]), 1, 2)
    ]
    for name, value in variants:
        if value is None or value == s.settings.get(name, 1):
            continue
        made = _linear_function(s, {**s.settings, name: value})
        if made is not None:
            text = f"{name} is {s.settings.get(name, 1)} in the original and {value} in the port"
            ways = (*_set(s, name, s.settings.get(name, 1)), *plain)
            key = f"{name} {value} {s.settings.get(name, 1)}"
            yield Hypothesis(
                text, _changed(s, name, s.settings.get(name, 1), value), key, ways, made[0](s.weights), made[1]
            )


def _sides(pads: tuple[tuple[int, int], ...], own: tuple[tuple[int, int], ...]) -> str:
    if len(pads) == 2:
        return f"{pads[0]} rows and {pads[1]} columns, the original {own[0]} and {own[1]}"
    return f"{', '.join(map(str, pads))}, the original {', '.join(map(str, own))}"


# --- Weights ----------------------------------------------------------------------------------------------------------


def _altered(
    s: Subject, function: Callable[[Mapping[str, Array]], Array], y: Array, also: Ways, roles: list[str]
) -> Iterator[Hypothesis]:
    """The layer with other values in its weights."""
    plain = _plain_ways(s)
    for each in altered_weights({role: s.weights[role] for role in roles}, s.initial, s.others, s.kind):
        weights = {role: value for role, value in {**s.weights, **each.weights}.items() if value is not None}
        ways = _weight_ways(s, each, plain)
        yield Hypothesis(each.text, each.change, each.key, _with(also, ways), function(weights), y)


def _weight_ways(s: Subject, each: Altered, plain: Ways) -> Ways:
    """Repairs of altered weights: in the layer's code, in how its variables are laid out, in their values."""
    made: list[tuple[Edit, ...]] = []
    for where in ("layout", "values"):
        edits = tuple(edit for edit in each.repair(s.names, s.names_of, where))
        if edits:
            made.append(edits)
    last = [edits for edits in each.restore(s.names) if edits]
    # With weights of its own, what the port holds is the likelier mistake; else what it makes of them.
    return (*reversed(made), *last, *plain) if s.own else (*plain, *made, *last)


def _with(also: Ways, ways: Ways) -> Ways:
    return tuple((*also[0], *way) for way in ways) if also else ways


def finite_and_close(hypothesis: Hypothesis, own: float, least: float) -> bool:
    """Whether a prediction fits: NaN in the same places, and far closer than the defect is large."""
    from portproof.compare.measure import relative_error

    predicted, observed = hypothesis.predicted, hypothesis.observed
    if predicted.shape != observed.shape:
        return False
    finite = np.isfinite(observed)
    if not finite.any() or not np.array_equal(np.isfinite(predicted), finite):
        return False
    error = relative_error(predicted[finite], observed[finite])
    return not math.isnan(error) and error < min(least, own / 100)
