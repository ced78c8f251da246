"""Determinism: the same check twice gives the same bytes, however the phases are dealt to processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from portproof.check import Settings, check
from portproof.mirror import InputSpec, Mirror
from portproof.trace import Trace

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]


@pytest.fixture(scope="module")
def runs(ports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All phases of one pair with BatchNorm and pooling: twice alike, once in one lane."""
    mirror = Mirror(
        "pair",
        f"{ports / 'pairs_torch.py'}:classifier",
        f"{ports / 'pairs_keras.py'}:classifier",
        (InputSpec("x", (2, 3, 17, 13)),),
    )
    folder = tmp_path_factory.mktemp("runs")
    for name, lanes in (("first", 2), ("second", 2), ("one lane", 1)):
        check(mirror, settings=Settings(traces=folder / name, lanes=lanes))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("side", ["torch", "tensorflow"])
def test_two_runs_are_byte_identical_but_for_one_field(runs: dict[str, Path], side: str) -> None:
    first, second = runs["first"] / side, runs["second"] / side
    files = sorted(path.name for path in first.iterdir())
    assert "trace.json" in files
    assert len(files) > 1
    assert sorted(path.name for path in second.iterdir()) == files
    for name in files:
        if name != "trace.json":
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    a, b = ((path / "trace.json").read_bytes() for path in (first, second))
    recorded = [json.loads(content)["recorded"] for content in (a, b)]
    assert recorded[0].keys() == recorded[1].keys()
    assert "at" in recorded[0]

    def without(content: bytes, index: int) -> bytes:
        text = json.dumps({"recorded": recorded[index]}, indent=1)[2:-2].encode()
        assert content.count(text) == 1
        return content.replace(text, b"")

    assert without(a, 0) == without(b, 1)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core, one lane")
@pytest.mark.parametrize("side", ["torch", "tensorflow"])
def test_lanes_change_no_tensor(runs: dict[str, Path], side: str) -> None:
    two, one = Trace.open(runs["first"] / side), Trace.open(runs["one lane"] / side)
    assert list(two.manifest.tensors) == list(one.manifest.tensors)
    different = [
        key for key in two.manifest.tensors if not np.array_equal(two.tensor(key), one.tensor(key), equal_nan=True)
    ]
    assert different == []
    assert two.manifest.calls == one.manifest.calls
    assert two.manifest.notes == one.manifest.notes
    assert two.manifest.facts == one.manifest.facts
    assert two.manifest.parameters == one.manifest.parameters
    assert two.manifest.layers == one.manifest.layers
