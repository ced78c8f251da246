"""The forms in which a RepViT's weights come: official or timm names, with or without BatchNorm. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from portproof.models.repvit.config import RepViTConfig
from portproof.models.repvit.folding import fold, is_folded
from portproof.models.repvit.names import are_timm_names, from_timm

if TYPE_CHECKING:
    from numpy.typing import NDArray


def adopted(
    values: Mapping[str, NDArray[Any]], config: RepViTConfig, *, fused: bool, classifier: bool
) -> dict[str, NDArray[Any]]:
    """``values`` of any form in the form that a model of this ``config`` holds.

    timm's names become the official ones, the training form is folded for a ``fused`` model, and a model without
    ``classifier`` drops a classifier's weights. What fits as it is comes back as it is.

    Raises:
        ValueError: a fused network's weights cannot become those of the training form, or a name is unknown.
    """
    found = dict(values)
    if are_timm_names(found):
        found = from_timm(found, config)
    if not classifier:
        found = {name: value for name, value in found.items() if not name.startswith("classifier.")}
    if fused and not is_folded(found):
        return fold(found)
    if not fused and is_folded(found) and any(name.startswith("features.") for name in found):
        raise ValueError("these weights are re-parameterized: they fit a fused model, and cannot be unfused")
    return found
