"""Alignment: which tensor and which layer of one side stands for which of the other, without a hand-written table.

By name where names correspond (exactly, then without regard to separators and case, then as the only one that ends
so); otherwise by order, with the shapes of the parameters and outputs as evidence. What stays alone is named, never
dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from portproof.trace import ParameterRecord

# Buffers that only one framework keeps and that no output depends on; they are counted, and left out of the pairing.
BOOKKEEPING = frozenset({"num_batches_tracked"})


@dataclass(frozen=True)
class Pairing:
    """Names of side a to names of side b; ``by_order`` are the pairs that names alone did not give."""

    pairs: dict[str, str]
    by_order: frozenset[str]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def normalised(name: str) -> str:
    """A name without the differences between frameworks' habits: separators and case."""
    return re.sub(r"[^a-z0-9]+", ".", name.lower()).strip(".")


def pair_names(a: Sequence[str], b: Sequence[str]) -> dict[str, str]:
    """The pairs that names alone give, in the order of ``a``."""
    names_b = set(b)
    pairs = {name: name for name in a if name in names_b}
    for key in (normalised, lambda name: normalised(name).replace(".", "")):
        rest_a = [name for name in a if name not in pairs]
        taken = set(pairs.values())
        pairs |= _unique_matches(rest_a, [name for name in b if name not in taken], key)
    taken = set(pairs.values())
    rest_a, rest_b = [name for name in a if name not in pairs], [name for name in b if name not in taken]
    pairs |= _suffix_matches(rest_a, rest_b)
    return {name: pairs[name] for name in a if name in pairs}


def pair_parameters(a: Sequence[ParameterRecord], b: Sequence[ParameterRecord]) -> Pairing:
    """Pair two sides' parameters and buffers. Both sequences are in order of definition or, better, of execution.

    Paired tensors may differ in shape: that is for the caller to judge.
    """
    a = [record for record in a if record.role not in BOOKKEEPING]
    b = [record for record in b if record.role not in BOOKKEEPING]
    pairs = pair_names([record.name for record in a], [record.name for record in b])
    taken = set(pairs.values())
    layers_a = _by_layer(record for record in a if record.name not in pairs)
    layers_b = _by_layer(record for record in b if record.name not in taken)
    by_order: dict[str, str] = {}

    context_a, context_b = _contexts(a), _contexts(b)
    # With the layer before it as evidence first (a BatchNorm belongs to its convolution), then without. In one order as
    # far as that goes, then what is left of a kind of layer that both sides have equally often: one side may run a
    # branch, such as the projection beside a residual block, earlier than the other.
    for in_context in (True, False):
        for step in (_in_order, _alike):
            evidence_a, evidence_b = (
                {name: (_signature(rows), context[name] if in_context else ()) for name, rows in layers.items()}
                for layers, context in ((layers_a, context_a), (layers_b, context_b))
            )
            for layer_a, layer_b in step(
                list(layers_a), list(layers_b), evidence_a.__getitem__, evidence_b.__getitem__
            ):
                # The signatures are equal, so this pairs equal roles and shapes; a layer may hold several of one role.
                rows = (sorted(rows, key=_evidence) for rows in (layers_a[layer_a], layers_b[layer_b]))
                by_order |= {first.name: second.name for first, second in zip(*rows, strict=True)}
            layers_a, layers_b = _without(layers_a, by_order), _without(layers_b, by_order.values())
    # Layers that are alone with their weights' shape: a bias may be missing on one side.
    for layer_a, layer_b in _alike(
        list(layers_a),
        list(layers_b),
        lambda name: _weight(layers_a[name]),
        lambda name: _weight(layers_b[name]),
        most=1,
    ):
        roles = {record.role: record.name for record in layers_b[layer_b]}
        by_order |= {record.name: roles[record.role] for record in layers_a[layer_a] if record.role in roles}
    pairs |= by_order
    taken = set(pairs.values())
    return Pairing(
        {record.name: pairs[record.name] for record in a if record.name in pairs},
        frozenset(by_order),
        tuple(record.name for record in a if record.name not in pairs),
        tuple(record.name for record in b if record.name not in taken),
    )


def pair_layers(
    a: Sequence[str],
    b: Sequence[str],
    known: Mapping[str, str],
    signature_a: Callable[[str], Hashable],
    signature_b: Callable[[str], Hashable],
) -> Pairing:
    """Pair layers given in execution order. ``known`` are pairs that the parameters have settled already.

    ``signature_*`` give what two layers need to share to be paired by order (kind and output shape), or ``None`` for
    layers that only a name may pair (containers).
    """
    names_a, names_b = set(a), set(b)
    pairs = {first: second for first, second in known.items() if first in names_a and second in names_b}
    taken = set(pairs.values())
    pairs |= pair_names([name for name in a if name not in pairs], [name for name in b if name not in taken])
    anchor_b = {second: first for first, second in pairs.items()}

    def token_a(name: str) -> Hashable:
        return ("anchor", name) if name in pairs else ("free", signature_a(name))

    def token_b(name: str) -> Hashable:
        return ("anchor", anchor_b[name]) if name in anchor_b else ("free", signature_b(name))

    candidates_a = [name for name in a if name in pairs or signature_a(name) is not None]
    candidates_b = [name for name in b if name in anchor_b or signature_b(name) is not None]
    by_order = {
        first: second for first, second in _in_order(candidates_a, candidates_b, token_a, token_b) if first not in pairs
    }
    pairs |= by_order
    taken = set(pairs.values())
    return Pairing(
        {name: pairs[name] for name in a if name in pairs},
        frozenset(by_order),
        tuple(name for name in a if name not in pairs),
        tuple(name for name in b if name not in taken),
    )


def _unique_matches(a: Sequence[str], b: Sequence[str], key: Callable[[str], str]) -> dict[str, str]:
    counts_a, counts_b = Counter(map(key, a)), Counter(map(key, b))
    index_b = {key(name): name for name in b}
    return {name: index_b[key(name)] for name in a if counts_a[key(name)] == 1 and counts_b.get(key(name)) == 1}


def _suffix_matches(a: Sequence[str], b: Sequence[str]) -> dict[str, str]:
    """Pairs in which one name is the other with a prefix, such as ``features.0`` and ``backbone.features.0``.

    A shared last word alone (``conv.weight`` and ``head.conv.weight``) could pair strangers, so the prefix has to be
    the same one for all that are paired by it, and fit more than half of the names.
    """
    by_name_a = {normalised(name): name for name in a}
    by_name_b = {normalised(name): name for name in b}
    for short, long in ((by_name_a, by_name_b), (by_name_b, by_name_a)):
        found = Counter(name[: -len(end)] for end in short for name in long if name.endswith("." + end))
        (prefix, count), (_, second) = (*found.most_common(2), ("", 0), ("", 0))[:2]
        if 2 * count > len(short) and count > second:
            pairs = {short[end]: long[prefix + end] for end in short if prefix + end in long}
            return pairs if short is by_name_a else {first: second for second, first in pairs.items()}
    return {}


def _in_order(
    a: Sequence[str],
    b: Sequence[str],
    token_a: Callable[[str], Hashable],
    token_b: Callable[[str], Hashable],
) -> list[tuple[str, str]]:
    """Pairs of equal tokens in one common order."""
    matcher = SequenceMatcher(None, [token_a(name) for name in a], [token_b(name) for name in b], autojunk=False)
    return [(a[block.a + i], b[block.b + i]) for block in matcher.get_matching_blocks() for i in range(block.size)]


def _alike(
    a: Sequence[str],
    b: Sequence[str],
    token_a: Callable[[str], Hashable],
    token_b: Callable[[str], Hashable],
    most: int | None = None,
) -> list[tuple[str, str]]:
    """Pairs of equal tokens that both sides have equally often (and not more than ``most`` times), in order."""
    groups: dict[Hashable, tuple[list[str], list[str]]] = {}
    for side, names, token in ((0, a, token_a), (1, b, token_b)):
        for name in names:
            groups.setdefault(token(name), ([], []))[side].append(name)
    return [
        pair
        for token, (first, second) in groups.items()
        if token is not None and len(first) == len(second) and (most is None or len(first) <= most)
        for pair in zip(first, second, strict=True)
    ]


def _by_layer(records: Iterable[ParameterRecord]) -> dict[str, list[ParameterRecord]]:
    layers: dict[str, list[ParameterRecord]] = {}
    for record in records:
        layers.setdefault(record.layer, []).append(record)
    return layers


def _signature(records: Sequence[ParameterRecord]) -> Hashable:
    return tuple(sorted(map(_evidence, records)))


def _evidence(record: ParameterRecord) -> tuple[str, tuple[int, ...]]:
    return record.role, record.shape


def _without(layers: dict[str, list[ParameterRecord]], names: Iterable[str]) -> dict[str, list[ParameterRecord]]:
    """The layers of which no tensor is among ``names``."""
    gone = set(names)
    return {layer: rows for layer, rows in layers.items() if not any(record.name in gone for record in rows)}


def _weight(records: Sequence[ParameterRecord]) -> Hashable:
    """The shape of the layer's main tensor; ``None``, which pairs nothing, for a layer without one."""
    return next((record.shape for record in records if record.role == "weight" and len(record.shape) > 1), None)


def _contexts(records: Sequence[ParameterRecord]) -> dict[str, Hashable]:
    """For every layer, what the layer before it looks like."""
    layers = _by_layer(records)
    before: list[Hashable] = [None, *(_signature(rows) for rows in layers.values())]
    return dict(zip(layers, before, strict=False))
