"""The catalogue: every planted defect, group by group, and how some of them are asked for by name."""

from __future__ import annotations

from collections.abc import Sequence

from portproof.defects.activation import ACTIVATION
from portproof.defects.attention import ATTENTION
from portproof.defects.defect import Defect
from portproof.defects.gradient import GRADIENT
from portproof.defects.normalization import NORMALIZATION
from portproof.defects.padding import PADDING
from portproof.defects.precision import PRECISION
from portproof.defects.steps import STEPS
from portproof.defects.structure import STRUCTURE
from portproof.defects.weights import WEIGHTS
from portproof.errors import InputError

CATALOGUE: tuple[Defect, ...] = (
    *PADDING,
    *NORMALIZATION,
    *ACTIVATION,
    *WEIGHTS,
    *STRUCTURE,
    *ATTENTION,
    *GRADIENT,
    *STEPS,
    *PRECISION,
)


def chosen(names: Sequence[str]) -> tuple[Defect, ...]:
    """The defects of these names and groups, in the catalogue's order; all of them for none.

    Raises:
        InputError: there is no such defect and no such group.
    """
    known = {each.name for each in CATALOGUE} | {each.group for each in CATALOGUE}
    for name in names:
        if name not in known:
            groups = ", ".join(dict.fromkeys(each.group for each in CATALOGUE))
            raise InputError(f"There is no defect {name!r}, and no group: groups are {groups}; --list names all.")
    return tuple(each for each in CATALOGUE if not names or each.name in names or each.group in names)
