"""The subject of a hypothesis: one layer on both sides; and what the hypotheses about it have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import standard
from portproof.compare.altered import Altered, altered_weights
from portproof.compare.measure import dot
from portproof.edits import Edit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Ways = tuple[tuple[Edit, ...], ...]

# Settings in the words of traces -> Keras' own, where setting them changes what a layer computes.
KERAS = {
    "eps": "epsilon", "stride": "strides", "dilation": "dilation_rate", "p": "rate", "momentum": "momentum",
    "padding": "pad", "negative_slope": "negative_slope", "approximate": "approximate", "kernel_size": "pool_size",
}  # fmt: skip


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


def standard_edit(subject: Subject) -> Edit | None:
    """The edit that lets the port's layer compute what a standard layer with the original's settings does."""
    s = subject
    name = standard.activation_name(s.kind, s.settings)
    if name:
        return Edit("activation", (s.other,), {"function": name})
    wanted = {
        "batchnorm": ("eps", "momentum"), "layernorm": ("eps",), "linear": (), "dropout": (), "flatten": (),
        "conv1d": ("stride", "padding", "dilation"), "conv2d": ("stride", "padding", "dilation"),
    }.get(s.kind)  # fmt: skip
    if wanted is None:
        return None
    options = {key: s.settings[key] for key in wanted if key in s.settings}
    return Edit("standard", (s.other,), {"kind": s.kind, **options})


def keras_value(name: str, value: Any) -> Any:
    """A setting's value in Keras' terms."""
    return round(1.0 - value, 12) if name == "momentum" else value


def set_way(subject: Subject, name: str, value: Any) -> Ways:
    """The way of setting a setting, given in torch's terms; none where it has no counterpart."""
    if name == "padding" and not isinstance(value, int):
        return ()
    value = keras_value(name, value)
    if name in ("stride", "dilation") and isinstance(value, int):
        value = [value] * max(subject.x.ndim - 2, 1)
    return ((Edit("set", (subject.other,), {KERAS[name]: value}),),)


def changed(subject: Subject, name: str, a: Any, b: Any) -> str:
    """What a person would change for a setting to be the original's."""
    a, b = (keras_value(name, each) for each in (a, b))
    if name == "padding":
        return f"{subject.type}: padding {b!r} -> {a!r} on every side"
    return f"{subject.type}({KERAS[name]}={short(b)}) -> {short(a)}"


def short(value: Any) -> str:
    """A value as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain_ways(subject: Subject) -> Ways:
    """The way of a standard layer in the place of the port's code, where there is one."""
    edit = standard_edit(subject)
    return ((edit,),) if edit else ()


def scaled(s: Subject, result: Array, y: Array) -> Iterator[Hypothesis]:
    """The right result with another sign, or times a constant."""
    ways: Ways = ((Edit("after", (s.other,), {"function": "negative"}),),)
    yield Hypothesis("the sign is flipped", f"{s.type}: take the sign away", "sign", ways, -result, y)
    square = dot(result.reshape(-1), result.reshape(-1))
    if result.shape == y.shape and square and np.isfinite(y).all():
        factor = float(f"{dot(result.reshape(-1), y.reshape(-1)) / square:.6g}")
        if factor:
            text = f"the output is multiplied by {factor:g}"
            change = f"{s.type}: do not multiply its output by {factor:g}"
            yield Hypothesis(text, change, f"times {factor:g}", plain_ways(s), factor * result, y)


def altered(
    s: Subject, function: Callable[[Mapping[str, Array]], Array], y: Array, also: Ways, roles: list[str]
) -> Iterator[Hypothesis]:
    """The layer with other values in its weights."""
    plain = plain_ways(s)
    for each in altered_weights({role: s.weights[role] for role in roles}, s.initial, s.others, s.kind):
        weights = {role: value for role, value in {**s.weights, **each.weights}.items() if value is not None}
        ways = _weight_ways(s, each, plain)
        yield Hypothesis(each.text, each.change, each.key, with_also(also, ways), function(weights), y)


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


def with_also(also: Ways, ways: Ways) -> Ways:
    """Ways that take one more step each."""
    return tuple((*also[0], *way) for way in ways) if also else ways
