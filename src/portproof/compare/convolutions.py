"""Hypotheses about a convolution or a linear layer: padding, stride, dilation, what is applied behind it, weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import standard
from portproof.compare.standard import Convolution
from portproof.compare.subject import Hypothesis, Subject, Ways, altered, changed, plain_ways, scaled, set_way
from portproof.edits import Edit
from portproof.rearrange import described, rearranged, rearrangements

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Pads = tuple[tuple[int, int], ...]

LINEAR = ("conv1d", "conv2d", "conv3d", "linear")


def linear_function(
    s: Subject, settings: Mapping[str, Any], convolution: Convolution | None = None, mode: str = "constant"
) -> tuple[Callable[[Mapping[str, Array]], Array], Array] | None:
    """The layer as a function of its weights, at some places, and the port's values there; ``None`` if sizes differ."""
    weight = s.weights["weight"]
    if min(s.x.ndim, s.y.ndim) < 2 or 0 in (s.x.size, s.y.size):
        return None
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
    convolution = convolution or Convolution.of(settings, s.x.shape[2:], kernel)
    if (weight.shape[0], *convolution.output_sizes(s.x.shape[2:], kernel)) != s.y.shape[1:]:
        return None
    found = convolution.patches(s.x, kernel, mode)
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


def linear(s: Subject) -> Iterator[Hypothesis]:
    """What may be wrong in a convolution or a linear layer."""
    base = linear_function(s, s.settings)
    plain = plain_ways(s)
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
        yield from scaled(s, function(s.weights), y)
    if s.weights["weight"].ndim > 2 and s.x.ndim > 2:
        yield from _geometry(s, plain)
    if base is not None:
        yield from altered(s, *base, (), list(s.weights))
        yield from _reordered(s, base[0](s.weights), base[1])


def _reordered(s: Subject, result: Array, y: Array) -> Iterator[Hypothesis]:
    """The right channels in another order; ``result`` and ``y`` are (places, channels)."""
    for step in rearrangements(result.shape[1:]):
        made = rearranged(result.T, step).T
        text = described(step, "the output's order of channels", 1)
        yield Hypothesis(text, f"{s.type}: leave its output in order", f"output {step}", plain_ways(s), made, y)


def _geometry(s: Subject, plain: Ways) -> Iterator[Hypothesis]:
    """Padding, stride and dilation."""
    kernel, sizes = s.weights["weight"].shape[2:], s.x.shape[2:]
    own = Convolution.of(s.settings, sizes, kernel)
    symmetric = own.pads[0][0] if len({each for pair in own.pads for each in pair}) == 1 else None
    by_hand: Ways = ((Edit("set", (s.other,), {"pad": symmetric}),),) if symmetric is not None else ()
    shown = own.pads[0] if len(set(own.pads)) == 1 else own.pads
    change = f"{s.type}: pad {shown} by hand, padding='valid'"
    same = standard.same_pads(sizes, kernel, own.stride, own.dilation)
    for pads in _other_pads(own, same, kernel):
        made = linear_function(s, s.settings, replace(own, pads=pads))
        if made is not None:
            what = "padding='same'" if pads == same else "the port"
            text = f"{what} pads {_sides(pads, own.pads)}"
            key = f"padding {'same' if pads == same else pads} {own.pads}"
            yield Hypothesis(text, change, key, (*by_hand, *plain), made[0](s.weights), made[1])
    for mode in ("reflect", "edge"):
        made = linear_function(s, s.settings, own, mode) if any(map(any, own.pads)) else None
        if made is not None:
            values = {"reflect": "reflected values", "edge": "the values of the edge"}[mode]
            text = f"the port pads with {values}, not zeros"
            yield Hypothesis(text, f"{s.type}: pad with zeros", f"padding {mode}", plain, made[0](s.weights), made[1])
    for name, used in _other_steps(s, own):
        wider = _wider(own, used, kernel)
        kept = tuple((first + more, last + more) for (first, last), more in zip(own.pads, wider, strict=True))
        for padded in dict.fromkeys((own.pads, kept)):
            made = linear_function(s, s.settings, replace(used, pads=padded))
            if made is not None:
                a, b = s.settings.get(name, 1), _plain(getattr(used, name))
                text = f"{name} is {a} in the original and {b} in the port"
                ways = (*set_way(s, name, a), *plain)
                yield Hypothesis(text, changed(s, name, a, b), f"{name} {b} {a}", ways, made[0](s.weights), made[1])


def _other_pads(own: Convolution, same: Pads, kernel: tuple[int, ...]) -> Iterator[Pads]:
    """Paddings that are taken for each other, the likelier first."""
    causal = ((sum(own.pads[0]), 0), *own.pads[1:])
    every = itertools.product(*(((first, last), (first + last, 0), (0, first + last)) for first, last in own.pads))
    half = tuple((k // 2, k // 2) for k in kernel)
    none = ((0, 0),) * len(kernel)
    shifted = [tuple((max(first + shift, 0), max(last - shift, 0)) for first, last in own.pads) for shift in (-1, 1)]
    more = [tuple((first + 1, last) for first, last in own.pads), tuple((first, last + 1) for first, last in own.pads)]
    found = dict.fromkeys((same, causal, *every, none, half, own.pads[::-1], *shifted, *more))
    yield from (pads for pads in found if pads != own.pads)


def _other_steps(s: Subject, own: Convolution) -> Iterator[tuple[str, Convolution]]:
    """Other strides and dilations."""
    for name in ("stride", "dilation"):
        mine: tuple[int, ...] = getattr(own, name)
        given = s.settings_b.get(name)
        values = [] if given is None else [given if isinstance(given, list) else [given] * len(mine)]
        values += [list(mine[::-1]), [1] * len(mine), [2] * len(mine), *([[2, 1], [1, 2]] if len(mine) == 2 else [])]
        for value in dict.fromkeys(tuple(int(each) for each in value) for value in values):
            if value != mine and len(value) == len(mine):
                yield name, replace(own, stride=value) if name == "stride" else replace(own, dilation=value)


def _wider(own: Convolution, used: Convolution, kernel: tuple[int, ...]) -> list[int]:
    """How much more padding on each side another dilation takes to keep the size."""
    return [(k - 1) * (new - old) // 2 for k, new, old in zip(kernel, used.dilation, own.dilation, strict=True)]


def _plain(values: tuple[int, ...]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)


def _sides(pads: tuple[tuple[int, int], ...], own: tuple[tuple[int, int], ...]) -> str:
    if len(pads) == 2:
        return f"{pads[0]} rows and {pads[1]} columns, the original {own[0]} and {own[1]}"
    return f"{', '.join(map(str, pads))}, the original {', '.join(map(str, own))}"
