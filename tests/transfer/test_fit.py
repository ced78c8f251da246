"""Tests of fitting one side's weights to the other's records: all of them, or one error that lists what is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from portproof.errors import TransferError
from portproof.trace import ParameterRecord
from portproof.transfer import fit, fit_shape
from portproof.transfer import raise_for as raise_listing


def record(name: str, shape: tuple[int, ...]) -> ParameterRecord:
    layer, _, role = name.rpartition(".")
    return ParameterRecord(name, layer, role, shape, True)


def side(**shapes: tuple[int, ...]) -> list[ParameterRecord]:
    """Records by name; ``__`` stands for the dot."""
    return [record(name.replace("__", "."), shape) for name, shape in shapes.items()]


def values(records: list[ParameterRecord]) -> dict[str, np.ndarray]:
    return {each.name: np.random.default_rng(i).standard_normal(each.shape) for i, each in enumerate(records)}


def test_values_arrive_under_the_targets_names_unchanged() -> None:
    source, target = side(c__weight=(4, 3), n__bias=(4,)), side(net__n__bias=(4,), net__c__weight=(4, 3))
    given = values(source)
    fitted = fit(source, given, target)
    assert set(fitted) == {"net.n.bias", "net.c.weight"}
    assert fitted["net.c.weight"] is given["c.weight"]
    assert fitted["net.n.bias"] is given["n.bias"]


def test_dimensions_of_size_one_may_differ() -> None:
    source, target = side(c__weight=(4, 3, 1, 1)), side(c__weight=(4, 3))
    given = values(source)
    fitted = fit(source, given, target)["c.weight"]
    assert fitted.shape == (4, 3)
    assert np.array_equal(fitted, given["c.weight"][:, :, 0, 0])


SHAPES = [
    ((2, 3), (2, 3), True), ((2, 3), (2, 1, 3, 1), True), ((1,), (), True), ((1, 1), (1,), True),
    ((2, 3), (3, 2), False), ((6,), (2, 3), False), ((0, 3), (3,), False),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "wanted", "fits"), SHAPES)
def test_which_shapes_fit(shape: tuple[int, ...], wanted: tuple[int, ...], fits: bool) -> None:
    fitted = fit_shape(np.zeros(shape), wanted)
    assert (fitted is not None) == fits
    assert fitted is None or fitted.shape == wanted


def test_one_error_lists_everything() -> None:
    source = side(c__weight=(4, 3), left__weight=(5, 5), also__bias=(7,), d__weight=(2, 3))
    target = side(c__weight=(3, 4), lacking__weight=(6,), d__weight=(2, 4))
    with pytest.raises(TransferError) as caught:
        fit(source, values(source), target)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The weights do not fit: 1 missing, 2 left over, 2 of the wrong shape."
    assert lines[1:] == [
        "  missing: lacking.weight",
        "  left over: left.weight",
        "  left over: also.bias",
        "  of the wrong shape: c.weight: (4, 3) given, (3, 4) wanted",
        "  of the wrong shape: d.weight: (2, 3) given, (2, 4) wanted",
    ]


@pytest.mark.parametrize("group", ["missing", "left over", "of the wrong shape"])
def test_a_single_misfit_is_enough(group: str) -> None:
    shapes = {"missing": ({}, {"x__w": (2,)}), "left over": ({"x__w": (2,)}, {}),
              "of the wrong shape": ({"x__w": (2,)}, {"x__w": (3,)})}[group]  # fmt: skip
    source, target = (side(c__weight=(4, 3), **extra) for extra in shapes)
    with pytest.raises(TransferError, match=rf"do not fit: 1 {group}\.\n  {group}: x\.w"):
        fit(source, values(source), target)


def test_counters_of_batches_are_neither_missing_nor_left_over() -> None:
    counted, plain = side(bn__weight=(3,), bn__num_batches_tracked=()), side(bn__weight=(3,))
    assert list(fit(counted, values(counted), plain)) == ["bn.weight"]
    assert list(fit(plain, values(plain), counted)) == ["bn.weight"]
    raise_listing(missing=["bn.num_batches_tracked"], left_over=["num_batches_tracked"])


def test_the_error_says_where() -> None:
    raise_listing()
    with pytest.raises(TransferError, match=re.escape("The weights in model.pth do not fit: 1 missing.\n  missing: a")):
        raise_listing(missing=["a"], where=" in model.pth")
