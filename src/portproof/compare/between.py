"""Causes between layers: what a model's own code computes in front of a layer, or a container around its parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare import standard
from portproof.compare.facts import Cause
from portproof.compare.measure import relative_error
from portproof.compare.pairing import Pairs, same_layout
from portproof.edits import Edit
from portproof.rearrange import described, inverse, rearranged, rearrangements
from portproof.trace import CallRecord, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_FITS = 1e-9
_TERMS, _ROWS = 4, 512  # terms of a sum at most; values that are enough to tell one sum from another
_EARLIER = 6  # how many earlier outputs may have been what a layer's input is made of


def causes_between(
    pairs: Pairs, phase: str, call: CallRecord, other: CallRecord, agreeing: Sequence[str]
) -> Iterator[Cause]:
    """What may have been computed in front of a layer, outside of any.

    ``agreeing`` are the outputs of earlier layers, as keys of side a, on which both sides agree.
    """
    for place, (key, key_b) in enumerate(zip(call.inputs, other.inputs, strict=False)):
        x_a, x_b = _tensor(pairs.a, phase, key), _tensor(pairs.b, phase, key_b)
        if x_a is None or x_b is None or x_a.ndim == 0:
            continue
        x_b, _ = same_layout(x_a, x_b)
        if x_a.shape != x_b.shape or relative_error(x_a, x_b) < _FITS:
            continue
        recent = _recent(pairs, phase, agreeing)
        yield from _another_activation(call, other, x_a, x_b, recent, place)
        yield from _another_sum(
            call, x_a, x_b, [*recent, *_given(pairs, phase, call, around=True)], other.layer, "before", place
        )
        yield from _another_order(call, other, x_a, x_b, place)


def causes_in_container(pairs: Pairs, phase: str, call: CallRecord, other: CallRecord) -> Iterator[Cause]:
    """What a container may compute around its parts, all of which agree: a residual missing, a branch left out."""
    y_a, y_b = _tensor(pairs.a, phase, call.outputs[0]), _tensor(pairs.b, phase, other.outputs[0])
    if y_a is None or y_b is None:
        return
    y_b, _ = same_layout(y_a, y_b)
    if y_a.shape != y_b.shape:
        return
    parts = _parts(pairs, phase, call)
    yield from _another_sum(call, y_a, y_b, [*parts, *_given(pairs, phase, call)], other.layer, "after", 0)


class _Term:
    """A tensor that a sum may be made of: the output of a layer, or the input of the call in question."""

    def __init__(self, layer: str, layer_b: str, which: str, value: Array) -> None:
        self.layer, self.layer_b, self.which, self.value = layer, layer_b, which, value

    @property
    def name(self) -> str:
        return f"the output of {self.layer}" if self.which == "output" else f"the input of {self.layer}"


def _recent(pairs: Pairs, phase: str, agreeing: Sequence[str]) -> list[_Term]:
    terms = []
    for key in agreeing[: -_EARLIER - 1 : -1]:
        layer, _, more = key.removeprefix("output/").partition("#")
        value = _tensor(pairs.a, phase, key)
        if key.startswith("output/") and not more and value is not None and layer in pairs.layers.pairs:
            terms.append(_Term(layer, pairs.layers.pairs[layer], "output", value))
    return terms


def _parts(pairs: Pairs, phase: str, call: CallRecord) -> list[_Term]:
    """The outputs of what a container calls directly."""
    children = {record.name for record in pairs.a.manifest.layers if record.parent == call.layer}
    keys = [each.outputs[0] for each in pairs.a.manifest.calls[phase] if each.layer in children and each.outputs]
    return _recent(pairs, phase, keys)


def _given(pairs: Pairs, phase: str, call: CallRecord, *, around: bool = False) -> list[_Term]:
    """The inputs of a call and of the containers ``around`` it, the nearest first."""
    parents = {record.name: record.parent for record in pairs.a.manifest.layers}
    name = parents.get(call.layer) if around else call.layer
    terms = []
    calls = {each.layer: each for each in pairs.a.manifest.calls[phase]}
    while name is not None:
        each = calls.get(name)
        value = _tensor(pairs.a, phase, each.inputs[0]) if each and each.inputs else None
        if value is not None and name in pairs.layers.pairs:
            terms.append(_Term(name, pairs.layers.pairs[name], "input", value))
        name = parents.get(name)
    return terms[:3]


def _another_activation(
    call: CallRecord, other: CallRecord, x_a: Array, x_b: Array, recent: Sequence[_Term], place: int
) -> Iterator[Cause]:
    known = {"nothing": lambda x: x, **standard.ACTIVATIONS}
    for term in recent:
        if term.value.shape != x_a.shape:
            continue
        with np.errstate(all="ignore"):
            results = {name: function(term.value) for name, function in known.items()}
        named = [
            next((name for name, made in results.items() if relative_error(made, x) < 1e-6), "") for x in (x_a, x_b)
        ]
        if all(named) and named[0] != named[1]:
            original, port = named
            text = f"in front of it the port computes {port} where the original computes {original}"
            function = "identity" if original == "nothing" else original
            feed = Edit("feed", (other.layer,), {"source": term.layer_b, "function": function, "place": place})
            apply = Edit("before", (other.layer,), {"function": function, "place": place})
            ways = ((apply,), (feed,)) if port == "nothing" else ((feed,),)
            change = f"in front of {other.layer}: {port} -> {original}"
            yield Cause(call.layer, text, change, f"between {port} {original}", ways)
            return


def _another_sum(
    call: CallRecord, x_a: Array, x_b: Array, terms: Sequence[_Term], layer_b: str, where: str, place: int
) -> Iterator[Cause]:
    """Both sides are sums of the same few tensors, with other coefficients: a residual left out, or added twice."""
    usable: list[_Term] = []
    for term in terms:
        if term.value.shape == x_a.shape and all(not np.array_equal(term.value, each.value) for each in usable):
            usable.append(term)
    found = _as_sums(x_a, x_b, usable)
    if found is None:
        return
    usable, sides = found
    difference = sides[0] - sides[1]
    changed = [(term, a, b) for term, a, b, d in zip(usable, *sides, difference, strict=True) if d]
    if not changed:
        return
    text = "; ".join(
        f"{term.name} counts {b:g} times in the port, {a:g} times in the original" for term, a, b in changed
    )
    rows = [[term.layer_b, term.which, float(a - b)] for term, a, b in changed]
    edit = Edit("add terms", (layer_b,), {"terms": rows, "where": where, "place": place})
    change = "; ".join(f"{'add' if a > b else 'take away'} {term.name}" for term, a, b in changed)
    yield Cause(call.layer, text, f"{layer_b}: {change}", "sum", ((edit,),))


def _as_sums(x_a: Array, x_b: Array, terms: Sequence[_Term]) -> tuple[list[_Term], list[Array]] | None:
    """The fewest terms that both sides are sums of, and each side's coefficients."""
    terms = [term for term in terms if np.isfinite(term.value).all()]
    if not np.isfinite(x_a).all() or not np.isfinite(x_b).all():
        return None
    targets = [x.reshape(-1) for x in (x_a, x_b)]
    some = np.linspace(0, len(targets[0]) - 1, min(len(targets[0]), _ROWS)).astype(int)
    for count in range(1, _TERMS + 1):
        for chosen in itertools.combinations(terms, count):
            matrix = np.stack([term.value.reshape(-1)[some] for term in chosen], 1)
            sides = [np.linalg.lstsq(matrix, x[some], rcond=None)[0].round(6) for x in targets]
            if all(relative_error(matrix @ made, x[some]) < _FITS for made, x in zip(sides, targets, strict=True)):
                whole = [sum(c * t.value.reshape(-1) for c, t in zip(made, chosen, strict=True)) for made in sides]
                if all(relative_error(np.asarray(w), x) < _FITS for w, x in zip(whole, targets, strict=True)):
                    return list(chosen), sides
    return None


def _another_order(call: CallRecord, other: CallRecord, x_a: Array, x_b: Array, place: int) -> Iterator[Cause]:
    """The same values in another order: flattened otherwise, axes exchanged, channels shuffled."""
    if not np.array_equal(_order(x_a), _order(x_b)) and relative_error(_order(x_a), _order(x_b)) > _FITS:
        return
    batch = len(x_a)
    for step in rearrangements(x_a.shape[1:]):
        made = np.stack([rearranged(x_a[index], step) for index in range(batch)])
        if relative_error(made, x_b) < _FITS:
            text = described(step, "what reaches it", x_a.ndim)
            edit = Edit("reorder", (other.layer,), {"step": inverse(step, x_a.shape[1:]), "place": place})
            yield Cause(call.layer, text, f"in front of {other.layer}: reorder its input", f"order {step}", ((edit,),))
            return


def _order(x: Array) -> Array:
    """The values of each example, sorted."""
    return np.sort(x.reshape(len(x), -1), axis=1)


def _tensor(trace: Trace, phase: str, key: str) -> Array | None:
    full = f"{phase}/{key}"
    if full not in trace:
        return None
    array = trace.tensor(full)
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else None
