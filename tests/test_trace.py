"""Tests of the trace format: what goes in comes out, and nothing broken, edited or half-written passes for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portproof import trace as trace_module
from portproof.errors import TraceError
from portproof.trace import (
    MANIFEST,
    SCHEMA,
    CallRecord,
    LayerRecord,
    Manifest,
    ParameterRecord,
    Trace,
    TraceWriter,
    is_trace,
    shard_name,
)

MINIMAL = Manifest("torch", "demo", {}, [], (), (), {}, {})
FULL = Manifest(
    side="torch",
    subject="demo",
    environment={"version": "2.6", "flags": {"threads": 1}, "é": None},
    plan=[{"name": "float64.eval"}, {"name": "float32.eval"}],
    parameters=(ParameterRecord("l.weight", "l", "weight", (2, 3), True, "net/l/kernel"),),
    layers=(LayerRecord("l", "linear", "Dense", None, True, False, {"eps": 1e-5, "stride": [1, 2]}),),
    calls={"float64.eval": (CallRecord("l", 0, ("source/x",), ("output/l", "output/l:1")),), "float32.eval": ()},
    tensors={},
    notes=("a note",),
    facts={"maxima": {"l.weight": float("nan"), "m": float("inf"), "n": 0.1}},
    recorded={"seconds": 1.5},
)
TENSORS = {f"{phase}/output/l{i}": np.full((i + 1, 3), i, np.float64) for phase in ("float64.eval", "float32.eval")
           for i in range(4)}  # fmt: skip


def write(target: Path, tensors: Mapping[str, Any] = TENSORS, manifest: Manifest = FULL) -> Trace:
    with TraceWriter(target) as writer:
        for key, array in tensors.items():
            writer.add(key, np.asarray(array))
        return writer.finish(manifest)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write(tmp_path / "trace").path


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "SHARD_BYTES", 100)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# --- What goes in comes out -------------------------------------------------------------------------------------------

ARRAYS = {
    **{f"of {dtype}": np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
       for dtype in ("float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool")},
    "without dimensions": np.array(2.5),
    "boolean without dimensions": np.array(True),
    "empty": np.zeros((0, 3), np.float32),
    "special": np.array([np.nan, -np.inf, -0.0, 5e-324]),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "every other": np.arange(10, dtype=np.int32)[::2],
    "repeated": np.broadcast_to(np.float32(3), (2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    array = ARRAYS[name]
    for found in (write(tmp_path / "t", {"p/output/x": array}), Trace.open(tmp_path / "t")):
        back = found.tensor("p/output/x")
        assert (back.shape, back.dtype) == (array.shape, array.dtype)
        assert back.tobytes() == array.tobytes()
        info = found.manifest.tensors["p/output/x"]
        assert (info.shape, info.dtype) == (array.shape, array.dtype.name)


def test_the_manifest_comes_back_equal(tmp_path: Path) -> None:
    written = write(tmp_path / "t").manifest
    read = Trace.open(tmp_path / "t").manifest
    assert repr(read) == repr(written)  # NaN is not equal to itself
    assert read.parameters[0].size == 6
    assert (read.calls, read.layers, read.notes) == (FULL.calls, FULL.layers, FULL.notes)


def test_names_keep_the_order_of_capture_and_phases_that_of_the_plan(tmp_path: Path) -> None:
    keys = ["float32.eval/output/z", "float64.eval/output/b", "float64.eval/loss/loss", "float64.eval/output/a",
            "float32.eval/output/y", "weights/excited/w"]  # fmt: skip
    found = write(tmp_path / "t", {key: np.zeros(1) for key in keys})
    for each in (found, Trace.open(tmp_path / "t")):
        assert each.names("float64.eval", "output") == ["b", "a"]
        assert each.names("float32.eval", "output") == ["z", "y"]
        assert each.names("float64", "output") == each.names("float64.eval", "out") == []
        assert each.phases() == ["float64.eval", "float32.eval"]
        assert [key.partition("/")[0] for key in each.manifest.tensors] == [
            "weights", *["float64.eval"] * 3, *["float32.eval"] * 2
        ]  # fmt: skip
        assert [name for name, _ in each.items("float64.eval", "output")] == ["b", "a"]


def test_a_key_is_stored_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t") as writer:
        writer.add("p/output/x", np.zeros(2))
        assert "p/output/x" in writer
        with pytest.raises(ValueError, match="captured twice"):
            writer.add("p/output/x", np.zeros(2))


def test_what_is_not_there_is_said_so(stored: Path) -> None:
    found = Trace.open(stored)
    assert "float64.eval/output/l0" in found
    assert "float64.eval/output/no" not in found
    with pytest.raises(TraceError, match=r"holds no tensor 'float64\.eval/output/no'"):
        found.tensor("float64.eval/output/no")


# --- Shards and lanes -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
def test_a_large_trace_is_written_in_shards(tmp_path: Path) -> None:
    found = write(tmp_path / "t")
    # 24, 48, 72 and 96 bytes per phase: a shard is closed by the tensor that brings it to 100.
    assert [info.shard for info in found.manifest.tensors.values()] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert [path.name for path in shards(found.path)] == [shard_name(i) for i in range(4)]
    for key, array in TENSORS.items():
        assert np.array_equal(Trace.open(found.path).tensor(key), array)


@pytest.mark.usefixtures("small_shards")
def test_what_another_process_sealed_is_taken_over(tmp_path: Path) -> None:
    alone = write(tmp_path / "alone")
    own = [key for key in TENSORS if key.startswith("float32")]
    with TraceWriter(tmp_path / "t") as writer, TraceWriter(tmp_path / "lane") as lane:
        for key, array in TENSORS.items():
            (writer if key in own else lane).add(key, array)
        lane.seal(tmp_path / "sealed", {"facts": {"float64.eval": 1}})
        assert writer.absorb(tmp_path / "sealed") == {"facts": {"float64.eval": 1}}
        found = writer.finish(FULL)
    read = Trace.open(found.path)  # verifies every shard
    assert list(read.manifest.tensors) == list(alone.manifest.tensors)
    for key in TENSORS:
        assert np.array_equal(read.tensor(key), alone.tensor(key))
        assert read.manifest.tensors[key].shape == alone.manifest.tensors[key].shape
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "t"]


def test_the_same_capture_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, later = (
        write(tmp_path / name, TENSORS, replace(FULL, recorded={"seconds": seconds}))
        for name, seconds in (("a", 1.5), ("b", 1.5), ("c", 99.0))
    )
    for other in (again, later):
        assert [path.read_bytes() for path in shards(first.path)] == [path.read_bytes() for path in shards(other.path)]
    texts = [(each.path / MANIFEST).read_text() for each in (first, again, later)]
    assert texts[0] == texts[1] != texts[2]
    bodies = [json.loads(text, parse_constant=str) for text in texts]
    assert bodies[0].pop("recorded") != bodies[2].pop("recorded")
    assert bodies[0] == bodies[2]


# --- Broken traces ----------------------------------------------------------------------------------------------------


def test_a_truncated_shard_is_refused(stored: Path) -> None:
    shard = shards(stored)[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TraceError, match="not the file that was written"):
        Trace.open(stored)
    # Without hashing, as for a trace written a moment ago, reading still notices.
    unverified = Trace.open(stored, verify=False)
    with pytest.raises(TraceError, match=r"cannot be read.*Capture it again"):
        unverified.tensor("float64.eval/output/l0")


def test_a_flipped_byte_is_noticed(stored: Path) -> None:
    shard = shards(stored)[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TraceError, match=r"tensors-00000.safetensors is not the file that was written"):
        Trace.open(stored)


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_shard_is_named(stored: Path, verify: bool) -> None:
    shards(stored)[0].unlink()
    with pytest.raises(TraceError, match=r"tensors-00000.safetensors is missing"):
        Trace.open(stored, verify=verify)


@pytest.mark.parametrize(("old", "new"), [('"torch"', '"tensorflow"'), ("0.1", "0.2"), ('"output/l"', '"output/k"')])
def test_an_edited_manifest_is_refused(stored: Path, old: str, new: str) -> None:
    text = (stored / MANIFEST).read_text()
    assert old in text
    (stored / MANIFEST).write_text(text.replace(old, new, 1))
    with pytest.raises(TraceError, match="was changed after it was written"):
        Trace.open(stored)


def test_what_was_recorded_may_be_edited(stored: Path) -> None:
    text = (stored / MANIFEST).read_text()
    (stored / MANIFEST).write_text(text.replace("1.5", "2.5"))
    assert Trace.open(stored).manifest.recorded == {"seconds": 2.5}


def test_another_schema_is_named(stored: Path) -> None:
    text = (stored / MANIFEST).read_text()
    (stored / MANIFEST).write_text(text.replace(SCHEMA, "portproof-trace/99"))
    with pytest.raises(TraceError, match="has schema 'portproof-trace/99', this version reads 'portproof-trace/1'"):
        Trace.open(stored)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "3", "null", '{"schema": "portproof-trace/1"}', "cut"])
def test_a_manifest_that_is_none_is_refused(stored: Path, text: str) -> None:
    manifest = stored / MANIFEST
    manifest.write_text(manifest.read_text()[:-40] if text == "cut" else text)
    with pytest.raises(TraceError, match="is not a portproof trace"):
        Trace.open(stored)


def test_a_manifest_that_is_no_text_is_refused(stored: Path) -> None:
    (stored / MANIFEST).write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match="cannot be read"):
        Trace.open(stored)


def test_other_paths_are_no_traces(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        assert not is_trace(path)
        with pytest.raises(TraceError, match=r"is not a trace, a folder with a trace\.json"):
            Trace.open(path)


# --- Complete or absent -----------------------------------------------------------------------------------------------


def test_an_older_trace_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "t", {"p/output/old": np.zeros(3)})
    write(tmp_path / "t", {"p/output/new": np.ones(3)})
    assert list(Trace.open(tmp_path / "t").manifest.tensors) == ["p/output/new"]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_trace_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "mine"
    precious = target / "precious.txt" if kind == "folder" else target
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("data")
    with pytest.raises(TraceError, match="exists and is not a trace"):
        write(target)
    assert precious.read_text() == "data"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_leaving_without_finishing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TraceWriter(tmp_path / "new" / "t") as writer:
            writer.add("p/output/x", np.zeros(3))
            writer._flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "new").iterdir()) == []


def test_an_older_trace_survives_a_capture_that_fails(tmp_path: Path) -> None:
    write(tmp_path / "t")
    with pytest.raises(TypeError):  # facts that are no plain data
        write(tmp_path / "t", {"p/output/x": np.zeros(3)}, replace(FULL, facts={"no": object()}))
    assert "float64.eval/output/l0" in Trace.open(tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_trace_can_be_read_by_others(stored: Path) -> None:
    assert stored.stat().st_mode & 0o777 == 0o755
    umask = os.umask(0)
    os.umask(umask)
    assert (stored / MANIFEST).stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, where the operating system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "portproof", str(folder)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    if run.returncode:
        pytest.skip(f"cannot mount a small file system: {run.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(full_disk: Path) -> None:
    large = {f"p/output/{i}": np.random.default_rng(i).standard_normal(50_000) for i in range(3)}
    with pytest.raises(OSError, match=r"No space left.*tensors-00000\.safetensors"):
        write(full_disk / "t", large)
    assert list(full_disk.iterdir()) == []
    write(full_disk / "t", {"p/output/x": np.zeros(100)})  # and the room is free again


def test_a_manifest_that_does_not_fit_on_the_disk_leaves_nothing(full_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write(full_disk / "t", {}, replace(MINIMAL, facts={"long": "x" * 2**21}))
    assert list(full_disk.iterdir()) == []


def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    # The limit holds for the whole process, so the writing is done in one of its own.
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from portproof.trace import Manifest, TraceWriter

        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))
        try:
            with TraceWriter(Path(sys.argv[1]) / "t") as writer:
                writer.add("p/output/x", np.ones(2**15))
                writer.finish(Manifest("torch", "demo", {}, [], (), (), {}, {}))
        except OSError as error:
            print("OSError:", error)
    """)
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("OSError: [Errno 27]")
    assert "File too large" in run.stdout
    assert list(tmp_path.iterdir()) == []
