"""RepViT's configuration, what it refuses, and its public names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from repvit_sides import SMALL_CFGS, both, run_python

from portproof.models.repvit import KWS_TINY_CFGS
from portproof.models.repvit.config import RepViTConfig, make_divisible, squeeze_channels

# --- Configuration ---------------------------------------------------------------------------------------------------


def test_widths() -> None:
    assert [squeeze_channels(c) for c in (24, 48, 96)] == [8, 16, 24]
    assert [make_divisible(v, 8) for v in (3, 24, 35, 36, 41)] == [8, 24, 32, 40, 40]
    blocks = RepViTConfig.from_rows(KWS_TINY_CFGS, in_channels=1).blocks
    assert [b.use_se for b in blocks] == [
        True,
        False,
        False,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [i for i, b in enumerate(blocks) if b.downsamples] == [3, 10]


@both
@pytest.mark.parametrize(
    ("cfgs", "message"),
    [
        ((), "cfgs is empty"),
        (((3, 2, 24, 1, 0),), r"cfgs\[0\].*6 entries"),
        (((3, 2, 24, 0, 0, 1), (3, 4, 24, 1, 0, 1)), r"cfgs\[1\].*t must be 2.*4"),
        (((3, 2, 24, 2, 0, 1),), "use_se must be 0 or 1.*2"),
        (((3, 2, 24, 0, 3, 1),), "use_hs must be 0 or 1.*3"),
        (((4, 2, 24, 0, 0, 1),), "k must be a positive odd"),
        (((3, 2, 0, 0, 0, 1),), "c must be a positive"),
        (((3, 2, 24, 0, 0, 3),), "stride must be 1, 2 or a pair"),
        (((3, 2, 24, 0, 0, (2, 1, 1)),), "stride must be 1, 2 or a pair"),
        (((3, 2, 24, 0, 0, 1), (3, 2, 48, 0, 0, 1)), r"cfgs\[1\].*stride 1 keeps its channels.*from 24 to 48"),
    ],
)
def test_wrong_configuration(side: str, cfgs: Any, message: str, sides: Any) -> None:
    with pytest.raises(ValueError, match=message):
        sides(side).build(cfgs)


@both
def test_wrong_number_of_classes(side: str, sides: Any) -> None:
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        sides(side).build(SMALL_CFGS, 0)


@pytest.mark.tensorflow
def test_wrong_depthwise(sides: Any) -> None:
    with pytest.raises(ValueError, match="depthwise must be one of depthwise, grouped, got 'separable'"):
        sides("tensorflow").build(SMALL_CFGS, depthwise="separable")


@both
@pytest.mark.parametrize("shape", [(100, 40), (2, 100, 40, 3), (1, 2, 100, 40, 1)])
def test_wrong_input_rank(side: str, shape: tuple[int, ...], sides: Any, models: Any) -> None:
    with pytest.raises(ValueError, match=r"KWSRepViT takes \(batch, time, mel.*got an input of shape"):
        sides(side).forward(models(side), np.zeros(shape, "float32"))


# --- Imports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("KWS_TINY_CFGS", ["torch", "tensorflow", "keras"]),
        pytest.param("KWSRepViT_Torch", ["tensorflow", "keras"], marks=pytest.mark.torch),
        pytest.param("KWSRepViT_TF", ["torch"], marks=pytest.mark.tensorflow),
    ],
)
def test_each_name_imports_only_its_own_framework(name: str, absent: list[str]) -> None:
    code = f"import sys; from portproof.models.repvit import {name}; print([m for m in {absent} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_public_names() -> None:
    import portproof.models.repvit as package

    assert {"KWS_TINY_CFGS", "KWSRepViT_TF", "KWSRepViT_Torch"} <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'KWSRepViT_Jax'"):
        _ = package.KWSRepViT_Jax
