"""A port's own weights against the original's: how a conversion went wrong, read off the tensors themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.facts import Cause
from portproof.compare.pairing import Pairs, same_shape
from portproof.edits import Edit
from portproof.rearrange import described, inverse, rearranged, rearrangements

if TYPE_CHECKING:
    from numpy.typing import NDArray


def weight_causes(pairs: Pairs) -> Iterator[Cause]:
    """What happened to each tensor whose values differ; equal keys say that it was the same."""
    values = dict(_values(pairs))
    wrong = {name: (a, b) for name, (a, b) in values.items() if not np.array_equal(a, b, equal_nan=True)}
    layers = {record.name: record.layer for record in pairs.a.manifest.parameters}
    named = pairs.parameters.pairs
    done: set[str] = set()
    for name, (a, b) in wrong.items():
        if name in done:
            continue
        twin = next((each for each, (c, d) in wrong.items() if each != name and _equal(a, d) and _equal(b, c)), None)
        step = next((step for step in rearrangements(a.shape) if _equal(rearranged(a, step), b)), None)
        if twin is not None:
            done.add(twin)
            key, text, change = "swapped", f"{name} and {twin} are swapped", f"exchange {name} and {twin}"
            edit = Edit("swap variables", (), {"names": [named[name], named[twin]], "where": "values"})
        elif step is not None:
            back = inverse(step, a.shape)
            key, text = str(step), described(step, f"the {name.rpartition('.')[2]}", a.ndim)
            change = f"convert {name.rpartition('.')[2]} with {back} (in PyTorch's layout)"
            edit = Edit("rearrange", (), {"name": named[name], "step": back, "where": "values"})
        else:
            key, text, change = "lost", "the values are not the original's, in no known order", "carry the values over"
            edit = Edit("restore", (), {"names": [named[name]], "tensors": [name], "trace": str(pairs.a.path)})
        yield Cause(layers[name], text, change, key, ((edit,),))


def _values(pairs: Pairs) -> Iterator[tuple[str, tuple[NDArray[Any], NDArray[Any]]]]:
    for first, second in pairs.parameters.pairs.items():
        keys = f"weights/excited/{first}", f"weights/excited/{second}"
        if keys[0] in pairs.a and keys[1] in pairs.b:
            a, b = pairs.a.tensor(keys[0]), pairs.b.tensor(keys[1])
            b, _ = same_shape(a, b)
            if a.shape == b.shape:
                yield first, (a, b)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and np.array_equal(a, b)
