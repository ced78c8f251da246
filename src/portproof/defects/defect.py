"""What a planted defect is: a name, a story, the places where it can be planted, and the edits that plant it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from portproof.defects.port import Port
from portproof.edits import Edit

LAYER, LOSS, OPTIMIZER = "layer", "loss", "optimizer"

# The phases of plan.py in which a defect may show, cheapest first. A defect names the one to look into first.
EVAL, TRAIN, STEPS, PRECISION = "eval", "train", "steps", "precision"

Select = Callable[[Port], Iterable[str]]
Places = Callable[[Port], Iterable["Place"]]


@dataclass(frozen=True)
class Place:
    """One place of a port: the layers that are wrong there, and the edits that make them so.

    ``layers`` are paths of the port; a first divergence in one of them, or in an immediate consumer, is the right name.
    Empty where the defect is not about a layer.
    """

    layers: tuple[str, ...]
    edits: tuple[Edit, ...]

    def __str__(self) -> str:
        return " and ".join(self.layers) or "everywhere"


@dataclass(frozen=True)
class Defect:
    """One way to get a port wrong.

    ``story`` says in one sentence how it happens in real ports. ``places`` gives every place of a port where it could
    be planted. ``shows`` is where to look first: in eval mode, in training mode, after optimizer steps, or in float32.
    ``about`` says what a verdict has to name: a layer, the loss or the optimizer.
    """

    name: str
    story: str
    places: Places
    shows: str = EVAL
    about: str = LAYER
    group: str = ""


def group(name: str, *defects: Defect) -> tuple[Defect, ...]:
    """The defects as members of a group."""
    return tuple(replace(defect, group=name) for defect in defects)


def at(select: Select, what: str, **options: Any) -> Places:
    """The edit ``what`` at each of the selected layers."""
    return lambda port: (Place((layer,), (Edit(what, (layer,), options),)) for layer in select(port))


def anywhere(what: str, **options: Any) -> Places:
    """An edit that is not about layers."""
    return lambda _: [Place((), (Edit(what, (), options),))]


def loaded(select: Callable[[Port], Iterable[tuple[str, ...]]], how: str) -> Places:
    """Parameters loaded wrongly: each place is a tuple of parameter names, wrong in their layers."""
    return lambda port: (
        Place(tuple(dict.fromkeys(port.owner[name] for name in names)), (Edit("load", (), _load(names, how)),))
        for names in select(port)
    )


def _load(names: Iterable[str], how: str) -> dict[str, Any]:
    return {"parameters": list(names), "how": how}
