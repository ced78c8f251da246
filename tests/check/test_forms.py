"""The harness proves re-parameterization: unfused torch = fused torch = unfused TF = fused TF, from one set of weights.

Each capture takes the weights of the first; the fused networks compute their own from them. Layers that both forms
have are compared one by one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portproof.check import capture
from portproof.check import check as run_check
from portproof.compare import compare
from portproof.compare.verdict import judge
from portproof.mirror import Mirror, get
from portproof.plan import phases_for

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]
EVAL = phases_for(["forward", "function"])


def relatives(facts: Any) -> list[float]:
    return [each.distance.relative for each in facts.measurements if each.phase.startswith("float64")]


@pytest.mark.parametrize(
    "name", ["repvit-kws", *(pytest.param(f"repvit-{n}", marks=pytest.mark.slow) for n in ("m0-9", "m2-3"))]
)
def test_four_forms_are_one_function(name: str, tmp_path: Path) -> None:
    first = capture(get(name), "torch", tmp_path / "first", phases=EVAL)
    for mirror, side in ((name, "tensorflow"), (f"{name}-fused", "torch"), (f"{name}-fused", "tensorflow")):
        other = capture(get(mirror), side, tmp_path / f"{mirror}-{side}", phases=EVAL, weights_from=first)
        facts = compare(first, other)
        assert judge(facts).outcome == "same", (mirror, side)
        assert facts.structure.another_form == mirror.endswith("fused")
        assert max(relatives(facts)) < 1e-12
        groups = {each.group for each in facts.measurements}
        assert {"outputs", "batches", "input-gradient"} <= groups


def wrongly_fused() -> Any:
    """A fused KWS network that forgets the identity beside the 3x3 and 1x1 kernels."""
    from portproof.models.repvit import KWSRepViT_Torch

    model = KWSRepViT_Torch(fused=True)
    fold = model.adopt_weights

    def forgetful(values: Any) -> Any:
        folded = fold(values)
        folded["features.2.token_mixer.0.weight"][:, :, 1, 1] -= 1.0
        return folded

    model.adopt_weights = forgetful
    return model


def test_a_wrong_fold_differs_and_is_located(tmp_path: Path) -> None:
    first = capture(get("repvit-kws"), "torch", tmp_path / "first", phases=EVAL)
    wrong = replace(get("repvit-kws-fused"), torch=f"{__file__}:wrongly_fused")
    verdict = judge(compare(first, capture(wrong, "torch", tmp_path / "wrong", phases=EVAL, weights_from=first)))
    assert verdict.outcome == "differs"
    assert verdict.divergence is not None
    assert verdict.divergence.layer == "features.2.token_mixer.0"


def test_a_check_across_forms_judges_eval_mode_alone() -> None:
    kws = get("repvit-kws")
    across = Mirror("across", kws.torch, f"{kws.tensorflow}(fused=True)", kws.inputs)
    report = run_check(across)
    assert report.verdict.outcome == "same"
    assert "training" not in {check.name.partition("-")[0] for check in report.verdict.checks}
    note = next(check for check in report.verdict.checks if check.name == "parameters")
    assert (note.status, note.value, note.limit) == ("note", "209,122", "214,222")
    assert json.loads(json.dumps(report.facts.to_json()))["structure"]["another_form"] is True
