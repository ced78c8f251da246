"""Large tensors are measured in a stream: the same answers as in memory, to rounding, whatever the values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portproof.compare import streaming
from portproof.compare.facts import Distance
from portproof.compare.measure import distance, equal_distance, relative_error, stored_distance, stored_error
from portproof.errors import TraceError
from portproof.trace import Manifest, StoredTensor, Trace, TraceWriter

SHAPE = (5, 3, 7)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and spans far smaller than the tensors, with ends that do not meet."""
    monkeypatch.setattr(streaming, "_SPAN", 25)
    monkeypatch.setattr(streaming, "_BLOCK", 10)


def stored(folder: Path, **tensors: np.ndarray) -> list[StoredTensor]:
    with TraceWriter(folder / "trace") as writer:
        for name, array in tensors.items():
            writer.add(name, array)
        trace = writer.finish(Manifest("torch", "t", {}, [], (), (), {}, {}))
    return [trace.stored(name) for name in tensors]


def assert_alike(ours: Distance, theirs: Distance) -> None:
    for name in Distance.__dataclass_fields__:
        a, b = getattr(ours, name), getattr(theirs, name)
        if isinstance(a, float) and math.isfinite(b):
            assert a == pytest.approx(b, rel=1e-12), name
        else:
            assert a == b or (math.isnan(a) and math.isnan(b)), name


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    dtypes=st.sampled_from([("f4", "f4"), ("f8", "f8"), ("f4", "f8"), ("i4", "i4"), ("?", "?"), ("i8", "f4")]),
    scale=st.sampled_from([0.0, 1e-7, 1.0, 1e200]),
    special=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    ulp=st.booleans(),
)
def test_the_same_answer_as_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    dtypes: tuple[str, str],
    scale: float,
    special: float | None,
    ulp: bool,
) -> None:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=SHAPE) * 4
    with np.errstate(over="ignore", invalid="ignore"):
        a, b = base.astype(dtypes[0]), (base * (1 + scale * rng.normal(size=SHAPE))).astype(dtypes[1])
    if special is not None and dtypes[1].startswith("f"):
        b[2, 1, 3] = special
    x, y = stored(tmp_path_factory.mktemp("t"), a=a, b=b)
    assert_alike(stored_distance(x, y, least_scale=0.5, ulp=ulp), distance(a, b, least_scale=0.5, ulp=ulp))
    ours, theirs = stored_error(x, y, 0.5), relative_error(a, b, 0.5)
    assert ours == pytest.approx(theirs, rel=1e-12) or (not math.isfinite(ours) and not math.isfinite(theirs))
    assert_alike(equal_distance(x, 0.5), distance(a, a.copy(), least_scale=0.5))


def test_one_wrong_value_is_found_wherever_it_is(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=SHAPE)
    for place in (0, 9, 10, 24, 25, base.size - 1):
        wrong = base.copy()
        wrong.reshape(-1)[place] += 1e-9
        x, y = stored(tmp_path / str(place), a=base, b=wrong)
        found = stored_distance(x, y)
        assert found.worst == np.unravel_index(place, SHAPE)
        assert not found.equal
        assert found.max_abs == pytest.approx(1e-9, rel=1e-6)
        assert found.worst_b - found.worst_a == pytest.approx(1e-9, rel=1e-6)


def test_the_sum_does_not_depend_on_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 1000))
    x, y = stored(tmp_path, a=a, b=b)
    first = streaming.sums(x, y, a.size)
    monkeypatch.setattr(streaming, "_pool", _InTurn)
    assert streaming.sums(x, y, a.size) == first


class _InTurn:
    map = staticmethod(map)


def test_a_block_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (x,) = stored(tmp_path, a=np.zeros(100))
    with pytest.raises(TraceError, match="is not complete"):
        x.block(90, 101)


def test_files_of_equal_content_are_told_by_their_digests(tmp_path: Path) -> None:
    traces = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        with TraceWriter(tmp_path / name) as writer:
            writer.add("x", np.full(3, value))
            traces.append(writer.finish(Manifest("torch", "t", {}, [], (), (), {}, {})))
    a, b, c = (Trace.open(trace.path) for trace in traces)
    assert a.same_shard(b, "x")
    assert not a.same_shard(c, "x")
    assert not a.same_shard(b, "y")
