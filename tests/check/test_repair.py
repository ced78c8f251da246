"""Tests of proven causes: planted defects and ports as users write them are repaired, and nothing is proven wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portproof import mirrors
from portproof.check import Settings
from portproof.compare.candidates import Candidate, Candidates
from portproof.compare.facts import Cause
from portproof.compare.proof import Diagnosis
from portproof.edits import Edit
from portproof.mirror import InputSpec, Mirror
from portproof.plan import PARITY, phases_for
from portproof.repair import Bench, Search, diagnose

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]

PHASES = tuple(phase for phase in phases_for(["function", "batchnorm"]) if phase.precision == "float64")
BN = [f"features.{index}.channel_mixer.m.0.bn" for index in (1, 4, 7, 9, 12)]
GELU, KERNEL = "features.3.channel_mixer.m.1", "features.5.channel_mixer.m.0.c"


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench(mirrors.repvit_kws, PHASES, Settings(), None, None) as made:
        yield made


def searched(bench: Bench, *edits: Edit) -> tuple[Search, Diagnosis]:
    bench.planted = edits
    search = Search(bench)
    search.run()
    return search, search.diagnosis(0.0)


def test_an_honest_port_has_nothing_to_be_proven(bench: Bench) -> None:
    search, found = searched(bench)
    assert search.first is None
    assert (found.proven, found.outcome, found.remaining) == ((), "same", ())


def test_a_standard_layer_in_the_place_of_each_layer_changes_nothing(bench: Bench) -> None:
    """What repairs put in a layer's place computes what honest layers do: forward, backward, statistics."""
    bench.planted = ()
    kinds = {"conv2d": ("stride", "padding", "dilation"), "batchnorm": ("eps", "momentum"), "linear": ()}
    edits = []
    for record in bench.original(bench.looks[-1]).manifest.layers:
        if record.kind in kinds:
            options = {key: record.settings[key] for key in kinds[record.kind] if key in record.settings}
            edits.append(Edit("standard", (record.name,), {"kind": record.kind, **options}))
    assert sum(edit.options["kind"] == "batchnorm" for edit in edits) == 54
    state = bench.look(edits, bench.looks[-1])
    assert state.same, [check for check in state.verdict.checks if check.status == "fail"]


def test_one_cause_in_many_layers_is_one_cause(bench: Bench) -> None:
    search, found = searched(bench, Edit("set", tuple(BN), {"epsilon": 1e-3}))
    (cause,) = found.proven
    assert (cause.others, cause.change) == (tuple(BN), "BatchNormalization(epsilon=0.001) -> 1e-05")
    assert cause.edits == (Edit("set", tuple(BN), {"epsilon": 1e-5}),)
    assert cause.residual < 1e-13
    assert cause.relative > 1e-5
    assert cause.line.startswith("BatchNormalization(epsilon=0.001) -> 1e-05 in 5 layers: divergence gone (")
    assert found.outcome == "same"
    assert bench.captures > 0
    assert search.first is not None


@pytest.mark.slow
def test_an_activation_that_only_its_values_show_is_found_everywhere(bench: Bench) -> None:
    paths = tuple(f"features.{index}.channel_mixer.m.1" for index in (2, 3, 8))
    _, found = searched(bench, Edit("activation", paths, {"function": "tanh GELU"}))
    (cause,) = found.proven
    assert set(cause.others) == set(paths)
    assert found.outcome == "same"


def test_two_defects_are_found_one_after_the_other(bench: Bench) -> None:
    planted = Edit("set", (BN[3],), {"momentum": 0.99}), Edit("activation", (GELU,), {"function": "relu"})
    _, found = searched(bench, *planted)
    assert [cause.others for cause in found.proven] == [(GELU,), (BN[3],)]
    assert "relu where the original computes gelu" in found.proven[0].text
    assert "momentum" in found.proven[1].text
    assert found.outcome == "same"


@pytest.mark.slow
def test_wrong_values_and_a_wrong_layout_are_told_apart_by_their_gradients(bench: Bench) -> None:
    """The outputs of both are right after either repair; only one of them also gives the right gradients."""
    step = ["flip", [1]]
    for where in ("values", "layout"):
        edit = Edit("rearrange", (), {"name": f"{KERNEL}.weight", "step": step, "where": where})
        _, found = searched(bench, edit)
        (cause,) = found.proven
        assert cause.edits == (edit,)  # a flip is its own inverse
        assert found.outcome == "same"


@pytest.mark.slow
def test_values_that_never_arrived_are_proven_by_carrying_them_over(bench: Bench) -> None:
    """Not a pattern: the kernel is some other one, that nothing predicts."""
    _, found = searched(bench, Edit("load", (), {"parameters": [f"{KERNEL}.weight"], "how": "initial"}))
    (cause,) = found.proven
    assert cause.others == (KERNEL,)
    assert [edit.what for edit in cause.edits] == ["restore"]
    assert found.outcome == "same"


@pytest.mark.slow
def test_a_defect_without_a_repair_is_not_proven_and_said(bench: Bench) -> None:
    _, found = searched(bench, Edit("loss", (), {"how": "scaled"}), Edit("set", (BN[0],), {"epsilon": 1e-3}))
    assert [cause.others for cause in found.proven] == [(BN[0],)]
    assert found.outcome == "differs"
    assert any("loss" in line for line in found.remaining)


def test_no_wrong_hypothesis_is_proven(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypotheses that are wrong come first, among them repairs that do something and that do nothing."""
    path = (GELU,)
    wrong = [
        Edit("set", (BN[0],), {"epsilon": 1e-5}),
        Edit("activation", path, {"function": "relu"}),
        Edit("skip", path),
        Edit("rearrange", (), {"name": f"{KERNEL}.weight", "step": ["flip", [1]], "where": "values"}),
        Edit("restore", (), {"names": [f"{KERNEL}.weight"]}),
        Edit("no such edit"),
    ]
    real = Candidates.at

    def at(self: Candidates, target: Any) -> Iterator[Candidate]:
        yield from (Candidate(Cause(target.layer, "wrong", "nothing", "wrong", ((edit,),))) for edit in wrong)
        yield from real(self, target)

    monkeypatch.setattr(Candidates, "at", at)
    _, found = searched(bench, Edit("activation", path, {"function": "tanh GELU"}))
    assert [cause.text for cause in found.proven] == ["the port computes tanh GELU where the original computes gelu"]


@pytest.mark.slow
def test_what_cures_one_layer_and_harms_another_is_not_proven(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cure = Edit("activation", (GELU,), {"function": "gelu"}), Edit("set", (BN[0],), {"epsilon": 1e-3})

    def at(self: Candidates, target: Any) -> Iterator[Candidate]:
        yield Candidate(Cause(target.layer, "wrong", "nothing", "wrong", (cure,)))

    monkeypatch.setattr(Candidates, "at", at)
    _, found = searched(bench, Edit("skip", (GELU,)))
    assert found.proven == ()
    assert found.outcome == "differs"


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), (Edit("loss", (), {"how": "scaled"}),)])
def test_a_layer_that_only_looks_alike_is_left_alone_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, more: tuple[Edit, ...]
) -> None:
    """What is repaired behind the first divergence cannot be judged before that is gone; then it is."""
    right = Cause(
        "features.3.channel_mixer.m.1",
        "right",
        "gelu",
        "right",
        ((Edit("activation", (GELU,), {"function": "gelu"}),),),
    )
    alike = Cause(BN[4], "right", "gelu", "right", ((Edit("set", (BN[4],), {"epsilon": 1e-3}),),))

    def at(self: Candidates, target: Any) -> Iterator[Candidate]:
        yield Candidate(right, (alike,))

    monkeypatch.setattr(Candidates, "at", at)
    _, found = searched(bench, Edit("skip", (GELU,)), *more)
    (cause,) = found.proven
    assert (cause.others, cause.edits) == ((GELU,), right.ways[0])
    assert found.outcome == ("differs" if more else "same")


# --- Ports as users write them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "layer", "text"),
    [
        ("same_padding", "features.0.2.c", "padding='same' pads"),
        ("transposed_kernel", "features.5.channel_mixer.m.0.c", "reshaped where it has to be transposed"),
        ("swapped_statistics", "features.5.channel_mixer.m.0.bn", "running mean and running variance are swapped"),
    ],
)
def test_a_layer_whose_own_code_is_wrong(ports: Path, port: str, layer: str, text: str) -> None:
    mirror = replace(mirrors.repvit_kws, tensorflow=f"{ports / 'kws.py'}:{port}")
    report = diagnose(mirror, phases=PHASES)
    assert report.verdict.outcome == "differs"
    assert report.diagnosis is not None
    (cause,) = report.diagnosis.proven
    assert cause.others == (layer,)
    assert text in cause.text
    assert report.diagnosis.outcome == "same"


def test_a_flatten_in_keras_order_in_a_functional_model(ports: Path) -> None:
    sides = f"{ports / 'pairs_torch.py'}:classifier", f"{ports / 'pairs_keras.py'}:classifier_without_permute"
    report = diagnose(Mirror("classifier", *sides, (InputSpec("x", (2, 3, 17, 13)),)))
    assert report.diagnosis is not None
    (cause,) = report.diagnosis.proven
    assert cause.change == "Permute((3, 1, 2)) in front of Flatten"
    assert report.diagnosis.outcome == "same"
    assert "outputs" not in {check.name for check in report.verdict.checks}  # no phase is missing on either side


@pytest.fixture
def conversion(ports: Path) -> Mirror:
    return Mirror(
        "conversion",
        f"{ports / 'conversion_torch.py'}:net",
        f"{ports / 'conversion_keras.py'}:net",
        (InputSpec("x", (4, 6)),),
    )


def test_a_conversion_of_weights_that_is_right(conversion: Mirror) -> None:
    report = diagnose(conversion, phases=PARITY, settings=Settings(weights="own"))
    assert report.same
    assert report.diagnosis is None


@pytest.mark.parametrize(
    ("port", "causes"),
    [
        ("transposed", [("the weight is transposed (in and out exchanged)", ("second", "last"))]),
        (
            "swapped",
            [
                ("norm.running_mean and norm.running_var are swapped", ("norm",)),
                ("the weight is transposed (in and out exchanged)", ("last",)),
            ],
        ),
    ],
)
def test_a_conversion_of_weights_that_is_wrong(conversion: Mirror, port: str, causes: list[Any]) -> None:
    mirror = replace(conversion, tensorflow=conversion.tensorflow.replace(":net", f":{port}"))
    report = diagnose(mirror, phases=PARITY, settings=Settings(weights="own"))
    assert report.diagnosis is not None
    assert [(cause.text, cause.others) for cause in report.diagnosis.proven] == causes
    assert report.diagnosis.outcome == "same"
