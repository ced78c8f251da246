"""Baselines: small, measured rather than only compared for equality, and honest about what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.errors import InputError, TraceError
from portproof.matrix import baseline
from portproof.matrix.baseline import VALUES, check_side, sample, thin


@pytest.fixture
def kept(make, tmp_path):
    sides = {side: make.trace(tmp_path / side, side) for side in ("torch", "tensorflow")}
    baseline.save(sides, tmp_path / "base", subject="demo")
    return baseline.load(tmp_path / "base")[1]


def again(make, tmp_path, side="torch", **options):
    return thin(make.trace(tmp_path / "again", side, **options), tmp_path / "thin")


def scaled(layer, by, phase="float64.eval"):
    return lambda at, name, value: (value * value.dtype.type(1 + by)) if (at, name) == (phase, layer) else value


def test_the_same_run_is_equal_to_the_bit(make, tmp_path, kept):
    for side, trace in kept.items():
        found = check_side(trace, thin(make.trace(tmp_path / f"new {side}", side), tmp_path / f"thin {side}"))
        assert found.identical
        assert not found.drifted
        assert found.begins is None


@pytest.mark.parametrize(
    ("phase", "by", "drifted"),
    [
        ("float64.eval", 1e-14, False),  # rounding
        ("float64.eval", 1e-10, True),  # nothing in float32, far above rounding in float64
        ("float32.eval", 3e-7, False),  # a few units in the last place
        ("float32.eval", 1e-4, True),
    ],
)
def test_drift_is_measured_against_the_rounding_of_its_precision(make, tmp_path, kept, phase, by, drifted):
    found = check_side(kept["torch"], again(make, tmp_path, edit=scaled("bn", by, phase)))
    assert found.drifted is drifted
    assert not found.identical
    if drifted:
        assert (found.begins.layer, found.begins.phase) == ("bn", phase)
        outputs = next(check for check in found.checks if (check.phase, check.title[:7]) == (phase, "outputs"))
        assert outputs.measured > outputs.limit
        assert outputs.above == 3  # the layer and the two behind it


def test_other_weights_are_said_to_be_other_weights(make, tmp_path, kept):
    with pytest.raises(TraceError, match="did not start from the same weights"):
        check_side(kept["torch"], again(make, tmp_path, seed=1))


def test_a_layer_that_is_gone_is_drift(make, tmp_path, kept):
    found = check_side(kept["torch"], again(make, tmp_path, skip=("act",)))
    assert found.drifted
    assert any("act" in line for line in found.missing) or found.begins


@given(st.integers(0, 5000))
def test_a_sample_holds_the_ends_and_is_small(size):
    value = np.arange(size, dtype=np.float64)
    found = sample(value)
    assert found.size == min(size, VALUES)
    if size:
        assert (found.reshape(-1)[0], found.reshape(-1)[-1]) == (0, size - 1)
    assert len(set(found.tolist())) == found.size


def test_small_tensors_keep_their_shape():
    assert sample(np.zeros((2, 3, 4))).shape == (2, 3, 4)
    assert sample(np.zeros((64, 64))).shape == (VALUES,)


def test_saving_replaces_a_baseline_and_nothing_else(make, tmp_path, kept):
    sides = {side: make.trace(tmp_path / side, side) for side in kept}
    assert baseline.save(sides, tmp_path / "base", subject="demo") > 0
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is not a baseline"):
        baseline.save(sides, tmp_path / "work", subject="demo")
    assert (tmp_path / "work" / "thesis.txt").exists()
    assert not list(tmp_path.glob(".base*"))


@pytest.mark.parametrize("text", [None, "", "{}", '{"schema": "portproof-baseline/9", "subject": "x"}'])
def test_a_folder_that_is_no_baseline_is_a_message(tmp_path, text):
    if text is not None:
        (tmp_path / "baseline.json").write_text(text)
    with pytest.raises(InputError, match=r"baseline"):
        baseline.load(tmp_path)


def test_a_changed_baseline_is_noticed(tmp_path, kept):
    shard = tmp_path / "base" / "torch" / "tensors-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(TraceError):
        baseline.load(tmp_path / "base")


def test_a_baseline_that_cannot_be_replaced_stays(make, tmp_path, kept, monkeypatch):
    sides = {side: make.trace(tmp_path / side, side) for side in kept}
    real, target = Path.rename, tmp_path / "base"

    def rename(self, to):
        if Path(to) == target and self.name != "older":
            raise OSError("no")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        baseline.save(sides, target, subject="demo")
    assert baseline.load(target)[0] == "demo"
    assert not list(tmp_path.glob(".base*"))
