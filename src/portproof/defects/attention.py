"""Defects of transformers: projections, heads, masks, positions, the last frame. They apply where such layers exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from portproof.defects.defect import Defect, Place, Places, at, group, loaded
from portproof.defects.port import Port
from portproof.edits import Edit

_LINEAR = ("linear", "einsumdense")
_NAMES = {
    "query": r"(to_)?(w_?)?q(uery)?([._].*)?$",
    "key": r"(to_)?(w_?)?k(ey)?([._].*)?$",
    "value": r"(to_)?(w_?)?v(alue)?([._].*)?$",
    "output": r"(to_)?(w_?)?o(ut(put)?)?([._].*)?$",
}


@dataclass(frozen=True)
class Attention:
    """An attention layer by its parts; ``heads`` is 0 where its settings do not tell."""

    layer: str
    query: str
    key: str
    value: str
    output: str
    heads: int


def attentions(port: Port) -> Iterator[Attention]:
    """Composites with projections that are called after what they project to."""
    for layer in port.composites():
        parts: dict[str, str] = {}
        for child in port.children(layer):
            last = child.rpartition(".")[2].lstrip("_")
            if port.layers[child].kind in _LINEAR:
                parts |= {part: child for part, pattern in _NAMES.items() if re.match(pattern, last)}
        if parts.keys() >= {"query", "key", "value"}:
            heads = port.setting(layer, "num_heads", 0)
            output = parts.get("output", "")
            yield Attention(layer, parts["query"], parts["key"], parts["value"], output, heads)


def _swapped(first: str, second: str) -> Callable[[Port], Iterator[tuple[str, ...]]]:
    def select(port: Port) -> Iterator[tuple[str, ...]]:
        for each in attentions(port):
            names: list[str] = []
            for role in ("weight", "bias"):
                found = [port.parameter(getattr(each, part), role) for part in (first, second)]
                if all(found) and len({record.shape for record in found if record}) == 1:
                    names += [record.name for record in found if record]
            if names:
                yield tuple(names)

    return select


def _unscaled(port: Port) -> Iterator[Place]:
    for each in attentions(port):
        width = port.output_shape(each.query)[2:]
        size = width[-1] if len(width) == 2 else width[0] // each.heads if each.heads and width else 0
        if size > 1:
            yield Place((each.query, each.layer), (Edit("scale", (each.query,), {"factor": size**0.5}),))


def _heads_split_otherwise(port: Port) -> Iterator[Place]:
    for each in attentions(port):
        width = port.output_shape(each.query)[2:]
        heads = width[0] if len(width) == 2 else each.heads
        if heads > 1:
            projections = (each.query, each.key, each.value)
            edits = [Edit("split heads otherwise", projections, {"heads": heads})]
            yield Place((*projections, each.layer), tuple(edits))


def _masked(port: Port) -> Iterator[Place]:
    """Attention layers that are given a mask: an input that is not like the first, and ends with the keys' time."""
    for each in attentions(port):
        keys = port.input_shape(each.key)
        for index in range(1, len(port.inputs(each.layer))):
            shape = port.input_shape(each.layer, index)
            if len(keys) == 3 and len(shape) in (2, 3, 4) and shape[-1] == keys[1] and shape != keys:
                options = {"input": index}
                yield Place((each.layer, *port.below(each.layer)), (Edit("shift mask", (each.layer,), options),))


def _scaled(port: Port) -> Iterator[Place]:
    for layer in port.of_kind("embedding"):
        factor = port.output_shape(layer)[-1] ** 0.5
        yield Place((layer,), (Edit("scale", (layer,), {"factor": factor}),))


def _embedding_names(port: Port) -> Iterator[tuple[str, ...]]:
    return ((each.name,) for each in port.parameters("embedding") if each.shape[0] > 2)


def _last_frames(shift: int) -> Places:
    """Layers that are given one frame, (B, d), of a sequence (B, T, d) that a layer gave before."""

    def places(port: Port) -> Iterator[Place]:
        for layer in dict.fromkeys(call.layer for call in port.calls):
            keys, shape = port.inputs(layer), port.input_shape(layer)
            if not port.layers[layer].leaf or len(shape) != 2 or not keys[0].startswith("input/"):
                continue
            if source := port.sequence_of(layer):
                options = {"source": source, "shift": shift}
                yield Place((layer,), (Edit("other frame", (layer,), options),))

    return places


def _softmaxes(port: Port) -> list[str]:
    return [layer for layer in port.of_kind("softmax") if len(port.output_shape(layer)) > 2]


ATTENTION = group(
    "attention",
    Defect(
        "query-and-key-swapped",
        "Query and key projections in each other's place: all projections have one shape.",
        loaded(_swapped("query", "key"), "swap"),
    ),
    Defect(
        "key-and-value-swapped",
        "Key and value projections in each other's place: a fused in_proj that is split in another order.",
        loaded(_swapped("key", "value"), "swap"),
    ),
    Defect(
        "query-scaling-missing",
        "No division by the root of the head's size: one side scales the query, the other expects the scores scaled.",
        _unscaled,
    ),
    Defect(
        "head-split-order",
        "Features split into (head size, heads) where the original has (heads, head size).",
        _heads_split_otherwise,
    ),
    Defect(
        "mask-off-by-one",
        "The attention mask moved by one position: lengths counted from one, or a causal mask with the other diagonal.",
        _masked,
    ),
    Defect(
        "softmax-wrong-axis",
        "Softmax over the queries in place of the keys: axis=-2, right only where both are equally many.",
        at(_softmaxes, "softmax axis", axis=-2),
    ),
    Defect(
        "position-offset-missing",
        "Positions looked up at t where the original's table begins with two rows of padding, as BART's does.",
        loaded(_embedding_names, "roll 2"),
    ),
    Defect(
        "position-off-by-one",
        "Tokens or positions looked up one row too early: a special token was not counted.",
        loaded(_embedding_names, "roll 1"),
    ),
    Defect(
        "embedding-scaled",
        "Embeddings multiplied by the root of their size, which is a switch of its own in most configurations.",
        _scaled,
    ),
    Defect(
        "last-frame-early",
        "The frame before the last valid one: a length that was taken for an index, less one too many.",
        _last_frames(-1),
    ),
    Defect(
        "first-frame-for-last",
        "The first frame in place of the last valid one.",
        _last_frames(-(10**6)),
    ),
)
