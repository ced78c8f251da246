"""Tests of the conditions: they follow the seed, every kind of input comes up, and every check is exercised."""

from __future__ import annotations

import json

import pytest

from portproof.compare import verdict
from portproof.honest.conditions import (
    INPUTS,
    KINDS,
    SHARES,
    STARTS,
    THREADS,
    Conditions,
    draw_conditions,
    other_sizes,
)
from portproof.honest.runner import _PER_WORKER, _chunks
from portproof.mirror import InputSpec, Mirror
from portproof.values import Start, check_values

MIRROR = Mirror("m", "a:f", "b:g", (InputSpec("x", (2, 9, 6)), InputSpec("ids", (2, 9), "int64", 7)), samples=dict)
OWN = ((9, 6), (9,))
SIZES = [OWN, *other_sizes(MIRROR)]


def test_conditions_follow_the_seed() -> None:
    first, again, other = (draw_conditions(MIRROR, 50, seed, SIZES) for seed in (1, 1, 2))
    assert first == again != other
    assert [each.index for each in first] == list(range(50))
    # The first runs are the same however many follow.
    assert draw_conditions(MIRROR, 20, 1, SIZES) == first[:20]
    json.dumps([each.to_json() for each in first])


def test_a_thousand_runs_meet_every_kind_of_everything() -> None:
    found = draw_conditions(MIRROR, 1000, 0, SIZES)
    for key, known in (("kind", SHARES), ("values", INPUTS), ("start", STARTS), ("threads", THREADS)):
        counts = {each: sum(getattr(run, key) == each for run in found) for each in known}
        assert min(counts.values()) > 20, key
        assert sum(known.values()) == pytest.approx(1)
    assert {run.sizes for run in found} == set(SIZES)
    assert {run.batches[0] for run in found} == {1, 2, 3, 5, 8}
    assert len({run.seed for run in found}) == 1000


def test_every_check_of_the_verdict_is_exercised_by_every_share() -> None:
    """ "everything" has all phases that the checks look at; each of the others is a part of it."""
    needed = {phase for _, phase, *_ in (*verdict._FUNCTION, *verdict._PRECISION)}
    assert needed <= {phase.name for phase in KINDS["everything"]}
    together = {phase.name for kind, phases in KINDS.items() if kind != "everything" for phase in phases}
    assert needed - together == {"float64.sgd", "float64.adamw"}  # which cost as much as all the rest


def test_all_values_are_known() -> None:
    for text in INPUTS:
        check_values(text)


def test_a_mirror_under_conditions() -> None:
    each = Conditions(0, "outputs", 5, "padded*1e4", Start(), ((4, 3), (4,)), (3, 1, 7), 1)
    mirror = each.of(MIRROR)
    assert [spec.shape for spec in mirror.inputs] == [(3, 4, 3), (3, 4)]
    assert [spec.values for spec in mirror.inputs] == ["padded*1e4", "normal"]  # whole numbers have no such values
    assert (mirror.batches, mirror.samples) == ((1, 7), None)  # real samples have the mirror's own sizes
    own = Conditions(0, "outputs", 5, "normal", Start(), OWN, (3, 1, 7), 1).of(MIRROR)
    assert own.samples is MIRROR.samples


def test_other_sizes_keep_the_channels_of_images() -> None:
    image = Mirror("m", "a:f", "b:g", (InputSpec("x", (2, 3, 32, 20)),))
    found = [sizes[0] for sizes in other_sizes(image)]
    assert {size[0] for size in found} == {3}
    assert (3, 17, 11) in found
    assert any(size[1] % 2 for size in found)
    assert all(min(size) >= 1 for size in found)
    assert list(other_sizes(Mirror("m", "a:f", "b:g", (InputSpec("x", (2,)),)))) == []


def test_runs_that_share_workers_have_one_number_of_threads() -> None:
    found = draw_conditions(MIRROR, 300, 0, SIZES)
    chunks = _chunks(found)
    assert sorted(each.index for chunk in chunks for each in chunk) == list(range(300))
    assert max(len(chunk) for chunk in chunks) == _PER_WORKER
    for chunk in chunks:
        assert len({each.threads for each in chunk}) == 1
        assert [each.sizes for each in chunk] == sorted(each.sizes for each in chunk)
