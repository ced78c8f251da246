"""Tests of the catalogue itself: names, stories, groups, and how defects are asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from portproof.defects import CATALOGUE, Defect, chosen
from portproof.defects.defect import EVAL, LAYER, LOSS, OPTIMIZER, PRECISION, STEPS, TRAIN
from portproof.errors import InputError

# The groups of issue 5, and the least number of defects that it asks for.
GROUPS = {
    "padding", "normalization", "activation", "weights", "structure", "attention", "gradient", "training step",
    "precision",
}  # fmt: skip
LEAST = 40


def test_there_are_enough_defects_in_every_group() -> None:
    sizes = Counter(defect.group for defect in CATALOGUE)
    assert sizes.keys() == GROUPS
    assert sum(sizes.values()) >= LEAST
    assert min(sizes.values()) >= 5


def test_names_are_unique_and_fit_a_command_line() -> None:
    names = [defect.name for defect in CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name for name in names)
    assert not set(names) & GROUPS  # --only takes either
    assert max(map(len, names)) <= 28  # what the table has room for


@pytest.mark.parametrize("defect", CATALOGUE, ids=lambda defect: defect.name)
def test_every_defect_has_a_story_of_one_sentence(defect: Defect) -> None:
    assert len(defect.story) >= 30
    assert defect.story.endswith(".")
    assert ". " not in defect.story
    assert len(defect.story) <= 200


@pytest.mark.parametrize("defect", CATALOGUE, ids=lambda defect: defect.name)
def test_every_defect_says_where_to_look_and_what_it_is_about(defect: Defect) -> None:
    assert defect.shows in (EVAL, TRAIN, STEPS, PRECISION)
    assert defect.about in (LAYER, LOSS, OPTIMIZER)


def test_defects_are_chosen_by_name_and_by_group_in_the_order_of_the_catalogue() -> None:
    found = chosen(["precision", "tanh-gelu"])
    assert found[0].name == "tanh-gelu"
    assert {defect.group for defect in found[1:]} == {"precision"}
    assert chosen([]) == CATALOGUE


def test_what_does_not_exist_is_said_with_what_does() -> None:
    with pytest.raises(InputError, match=r"no defect 'gelu'.*normalization"):
        chosen(["gelu"])
