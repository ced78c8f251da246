"""Wrong verdicts that a review once found, in both directions: each a pair, and what has to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portproof.check import Settings, check
from portproof.compare.verdict import DIFFERS, SAME
from portproof.mirror import InputSpec, Mirror
from portproof.plan import PARITY, phases_for
from portproof.report import Report

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow, pytest.mark.usefixtures("in_process")]

Check = Callable[..., Report]


@pytest.fixture
def run(ports: Path) -> Check:
    def run(torch: str, keras: str, shape: str, phases: Any = PARITY, **settings: Any) -> Report:
        files = f"{ports / 'reviewed_torch.py'}:{torch}", f"{ports / 'reviewed_keras.py'}:{keras}"
        return check(Mirror("pair", *files, (InputSpec.parse(shape),)), phases=phases, settings=Settings(**settings))

    return run


def failed(report: Report) -> set[str]:
    return {each.name for each in report.verdict.checks if each.status == "fail"}


@pytest.mark.parametrize(
    ("torch", "keras", "shape"),
    [
        ("Dropping", "Dropping", "3,6"),
        ("FunctionalDropping", "Dropping", "3,6"),
        ("Projected", "projected", "2,3,16,16"),
        ("Projected", "projected_last", "2,3,16,16"),
        ("Projected", "projected", "1,3,16,16"),
        ("Sequence", "Sequence", "2,7,6"),
    ],
)
@pytest.mark.parametrize("seed", [0, 6])
def test_honest_pairs(run: Check, torch: str, keras: str, shape: str, seed: int) -> None:
    report = run(torch, keras, shape, seed=seed)
    assert report.verdict.outcome == SAME, failed(report)


def test_the_steps_alone_know_the_variance_rule(run: Check) -> None:
    report = run("Projected", "projected", "2,3,16,16", phases_for(["steps"]))
    assert report.verdict.outcome == SAME, failed(report)


@pytest.mark.parametrize(
    ("torch", "keras", "shape", "check_name"),
    [
        ("Dropping", "dropping_more", "3,6", "dropout"),
        ("Dropping", "dropping_always", "3,6", "function-layers"),
        ("Sequence", "Turned", "2,7,6", "function-layers"),
        ("Sequence", "Turned", "2,4,6", "function-layers"),  # the shapes are equal
        ("WithClass", "WithoutClass", "2,6", "outputs"),
        ("Activated", "Activated", "2,6", "function-layers"),
    ],
)
def test_defects(run: Check, torch: str, keras: str, shape: str, check_name: str) -> None:
    report = run(torch, keras, shape)
    assert report.verdict.outcome == DIFFERS
    assert check_name in failed(report)


def test_an_activation_between_layers_is_named_at_the_layer_behind_it(run: Check) -> None:
    divergence = run("Activated", "Activated", "2,6").verdict.divergence
    assert divergence is not None
    assert (divergence.layer, divergence.inputs_agree) == ("b", False)
    assert "the port computes tanh GELU where the original computes gelu" in divergence.causes[0]
