"""Drift: bit-identical or how far apart, where it begins, and which known cause that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from portproof.matrix.causes import changed, known_causes
from portproof.matrix.drift import measure_drift, why_not_comparable
from portproof.matrix.facts import Beginning


def bump(layer, *, phase="float32.eval", by=1e-6):
    """One value of one layer's output, changed by a little."""

    def edit(at, name, value):
        if (at, name) == (phase, layer):
            value = value.copy()
            value.reshape(-1)[5] *= 1 + by
        return value

    return edit


def drift_of(make, tmp_path, *cells):
    traces = {
        f"cell {index}": make.trace(tmp_path / str(index), "tensorflow", **options)
        for index, options in enumerate(cells)
    }
    return measure_drift("tensorflow", traces)


def test_equal_traces_are_one_class_and_nothing_is_measured(make, tmp_path):
    drift = drift_of(make, tmp_path, {}, {"version": "2.18.1"}, {})
    assert drift.classes == (("cell 0", "cell 1", "cell 2"),)
    assert drift.pairs == ()
    assert drift.between("cell 0", "cell 2") is None


@pytest.mark.parametrize("layer", ["conv", "bn", "act", "head"])
def test_drift_begins_at_the_layer_that_was_altered(make, tmp_path, layer):
    drift = drift_of(make, tmp_path, {}, {"edit": bump(layer)}, {})
    assert drift.classes == (("cell 0", "cell 2"), ("cell 1",))
    (pair,) = drift.pairs
    assert pair.begins.keys() == {"float32"}
    begins = pair.begins["float32"]
    assert (begins.layer, begins.kind, begins.inputs_equal) == (layer, make.layers[layer], True)
    assert 0 < begins.relative < 1e-6
    before = drift.layers.index(layer)
    assert pair.float32[:before] == (0.0,) * before
    assert all(value > 0 for value in pair.float32[before:])
    assert set(pair.float64) == {0.0}


def test_the_size_of_the_drift_is_the_difference_over_the_norm(make, tmp_path):
    plain, altered = {}, {"edit": bump("head", by=0.5)}
    drift = drift_of(make, tmp_path, plain, altered)
    x, y = (make.trace(tmp_path / str(i), "tensorflow", **o).tensor("float32.eval/output/head").astype(float)
            for i, o in enumerate((plain, altered)))  # fmt: skip
    wanted = np.linalg.norm(x - y) / max(np.linalg.norm(x), np.linalg.norm(y))
    assert drift.pairs[0].largest("float32") == pytest.approx(wanted, rel=1e-6)


def test_each_precision_has_its_own_beginning(make, tmp_path):
    both = lambda phase, name, value: bump("bn", phase="float64.eval", by=1e-12)(  # noqa: E731
        phase, name, bump("act")(phase, name, value)
    )
    begins = drift_of(make, tmp_path, {}, {"edit": both}).pairs[0].begins
    assert (begins["float64"].layer, begins["float32"].layer) == ("bn", "act")


def test_gradients_alone_that_differ_are_named_as_such(make, tmp_path):
    a = make.trace(tmp_path / "a", "torch")
    b = make.trace(tmp_path / "b", "torch")
    original = b.tensor
    key = "float64.eval/gradient/act.weight"
    b.tensor = lambda wanted: original(wanted) * (1 + 1e-9 * (wanted == key))  # type: ignore[method-assign]
    (pair,) = measure_drift("torch", {"a": a, "b": replace_shards(b)}).pairs
    assert pair.begins.keys() == {"gradients"}
    assert pair.begins["gradients"].layer == "act"


def replace_shards(trace):
    """As if its files were others."""
    trace.manifest = replace(trace.manifest, shards=tuple(f"other {each}" for each in trace.manifest.shards))
    return trace


@pytest.mark.parametrize(("options", "reason"), [({"seed": 1}, "weights")])
def test_other_weights_are_never_compared(make, tmp_path, options, reason):
    drift = drift_of(make, tmp_path, {}, options)
    (pair,) = drift.pairs
    assert reason in pair.not_comparable
    assert (pair.float64, pair.float32, pair.groups) == ((), (), ())


def test_traces_with_equal_weights_are_comparable_whatever_came_out(make, tmp_path):
    a, b = make.trace(tmp_path / "a", "torch"), make.trace(tmp_path / "b", "torch", edit=bump("conv", by=1.0))
    assert why_not_comparable(a, b) == ""


def test_a_layer_that_one_cell_lacks_has_no_number(make, tmp_path):
    drift = drift_of(make, tmp_path, {}, {"skip": ("act",)})
    (pair,) = drift.pairs
    assert drift.layers == ("conv", "bn", "act", "head")
    assert pair.float32[2] is None


# Known causes.

GELU = {"float32": Beginning("float32.eval", "act", "gelu", 1e-7, 1e-7, 1.0)}
CONV = {"float32": Beginning("float32.eval", "conv", "conv2d", 1e-7, 1e-7, 1.0)}
NORM = {"float32": Beginning("float32.eval", "bn", "batchnorm", 1e-7, 1e-7, 1.0)}


def causes(make, begins, a, b, side="tensorflow"):
    classes = [[make.environment(side, version) for version in versions] for versions in (a, b)]
    return " ".join(known_causes(side, begins, *classes))


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (["2.18.1"], ["2.19.1"], ["2.19"]),
        (["2.19.1"], ["2.20.0"], ["2.20"]),
        (["2.20.0"], ["2.21.0"], ["2.21"]),
        (["2.17.1", "2.18.1"], ["2.20.0"], ["2.19", "2.20"]),
        (["2.17.1", "2.19.1"], ["2.20.0", "2.21.0"], ["2.20"]),  # 2.19 is in one class with 2.17: it changed nothing
        (["2.16.2"], ["2.18.1"], []),
    ],
)
def test_gelu_is_explained_by_releases_between_the_classes(make, a, b, named):
    for found in (causes(make, GELU, a, b), causes(make, GELU, b, a)):
        assert [version for version in ("2.17", "2.19", "2.20", "2.21") if f"TensorFlow {version}" in found] == named


def test_a_version_alone_names_no_cause(make):
    assert causes(make, NORM, ["2.19.1"], ["2.20.0"]) == ""
    assert causes(make, {"float32": replace(GELU["float32"], inputs_equal=False)}, ["2.19.1"], ["2.20.0"]) == ""
    assert causes(make, {}, ["2.19.1"], ["2.20.0"]) == ""


def test_another_onednn_explains_convolutions_only_where_it_is_on(make):
    assert "oneDNN" in causes(make, CONV, ["2.16.2"], ["2.17.1"])
    off = make.environment("tensorflow", "2.17.1")
    off["machine"] = {**off["machine"], "numerics": {"TF_ENABLE_ONEDNN_OPTS": "0"}}
    on = make.environment("tensorflow", "2.16.2")
    assert list(known_causes("tensorflow", CONV, [on], [off])) == []


def test_keras_2_and_3_explain_batchnorm(make):
    two = make.environment("tensorflow", "2.15.1", keras="2.15.0")
    three = make.environment("tensorflow", "2.16.2")
    (cause,) = known_causes("tensorflow", NORM, [two], [three])
    assert "Keras 2" in cause
    assert list(known_causes("tensorflow", GELU, [two], [three])) == []


def test_torch_is_explained_where_gradients_alone_differ(make):
    gradients = {"gradients": Beginning("float64.eval", "head", "linear", 1e-8, 1e-8, 1.0)}
    assert "gradients" in causes(make, gradients, ["2.6.0"], ["2.13.0"], side="torch")
    assert causes(make, CONV, ["2.6.0"], ["2.13.0"], side="torch") == ""


def test_one_release_on_two_machines_is_explained_by_what_differs(make):
    a, b = make.environment("torch"), make.environment("torch")
    assert list(known_causes("torch", CONV, [a], [b])) == []
    b["machine"] = {**b["machine"], "cpu": {"model": "another", "instruction_sets": ["avx2", "avx512f"]}}
    (cause,) = known_causes("torch", CONV, [a], [b])
    assert "avx512f" in cause
    assert list(changed(a, b)) == ["CPU a CPU and another"]
    b = {**a, "threads": 4}
    (cause,) = known_causes("torch", CONV, [a], [b])
    assert "threads" in cause
