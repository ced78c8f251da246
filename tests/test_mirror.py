"""Tests of mirrors: inputs as text, factories as text, and the registry of entry points."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof import mirror as mirror_module
from portproof.errors import MirrorError
from portproof.mirror import DTYPES, InputSpec, Mirror, check_factory, get, names

# --- Inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("2,100,40", InputSpec("x", (2, 100, 40))),
        ("3", InputSpec("x", (3,))),
        ("1,", InputSpec("x", (1,))),
        ("2, 3", InputSpec("x", (2, 3))),
        ("image=1,3,8,8", InputSpec("image", (1, 3, 8, 8))),
        ("mask_1=2,16:bool", InputSpec("mask_1", (2, 16), "bool")),
        ("ids=2,16:int64<1000", InputSpec("ids", (2, 16), "int64", 1000)),
        ("2,16:int32", InputSpec("x", (2, 16), "int32", 2)),
        ("ids = 2,16 : int64 < 7", InputSpec("ids", (2, 16), "int64", 7)),
    ],
)
def test_inputs_are_read(text: str, spec: InputSpec) -> None:
    assert InputSpec.parse(text) == spec


@given(
    st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=5).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(1, 10**6),
)
def test_what_is_written_out_is_read_back(name: str, shape: tuple[int, ...], dtype: str, high: int) -> None:
    text = f"{name}={','.join(map(str, shape))}:{dtype}<{high}"
    assert InputSpec.parse(text, layout="same") == InputSpec(name, shape, dtype, high, "same")


def test_the_default_name_is_used_where_none_is_given() -> None:
    assert InputSpec.parse("2,3", default_name="x1").name == "x1"
    assert InputSpec.parse("y=2,3", default_name="x1").name == "y"


@pytest.mark.parametrize(
    "text", ["", "x=", "2,,3", ",2", "2x3", "(2,3)", "-1,3", "2.0,3", "a=b=2", "1a=2", "2:", "2:int64<", "2:int64<-3",
             "2<5", "2,3;4", "2,3:int64:bool"],
)  # fmt: skip
def test_text_of_another_form_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(MirrorError, match=r"is not \[NAME=\]SHAPE\[:DTYPE\[<HIGH\]\]\[~VALUES\], for example 2,100,40"):
        InputSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ids=0,3", r"'ids': every dimension needs to be at least 1, not \(0, 3\)"),
        ("2,0", r"'x': every dimension needs to be at least 1, not \(2, 0\)"),
        ("2:float64", r"dtype 'float64' is not one of float32, int32, int64, bool"),
        ("2:int64<0", "HIGH needs to be at least 1"),
    ],
)
def test_values_that_make_no_input_are_refused(text: str, message: str) -> None:
    with pytest.raises(MirrorError, match=message):
        InputSpec.parse(text)


def test_an_input_needs_a_shape_and_a_known_layout() -> None:
    with pytest.raises(MirrorError, match="at least 1"):
        InputSpec("x", ())
    with pytest.raises(MirrorError, match="layout 'last' is not one of auto, same"):
        InputSpec("x", (2,), layout="last")


# --- Factories --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pkg.mod:build", ("pkg.mod", "build", {})),
        ("mod:Cls.method", ("mod", "Cls.method", {})),
        ("_m1:_f", ("_m1", "_f", {})),
        ("mod:build()", ("mod", "build", {})),
        ("mod:build(depth=3, names=('a:b(c)', None))", ("mod", "build", {"depth": 3, "names": ("a:b(c)", None)})),
    ],
)
def test_factories_in_modules(text: str, parts: tuple[str, str, dict[str, Any]]) -> None:
    assert check_factory(text) == parts


def test_factories_in_files(tmp_path: Path) -> None:
    file = tmp_path / "with space, and:colon.py"
    file.write_text("")
    assert check_factory(f"{file}:build") == (str(file), "build", {})
    assert check_factory(f"{file}:build(width=2)") == (str(file), "build", {"width": 2})
    with pytest.raises(MirrorError, match=r"There is no file .*absent\.py \(from "):
        check_factory(f"{tmp_path / 'absent.py'}:build")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(MirrorError, match="There is no file"):
        check_factory(f"{tmp_path / 'folder.py'}:build")


NAMELESS = ["", "pkg.mod", ":build", "mod:", "mod:1f", "mod:a b", "mod:a..b", "mod:.a", "mod:a.", "mod:f)"]


@pytest.mark.parametrize("text", NAMELESS)
def test_text_that_names_no_attribute_is_refused(text: str) -> None:
    with pytest.raises(MirrorError, match=r"does not name a factory: write package\.module:function"):
        check_factory(text)


@pytest.mark.parametrize("arguments", ["3", "*a", "**{}", "n=3.x", "n=open('f')", "n=", "n=1)(", "__import__('os')"])
def test_arguments_are_named_literals(arguments: str) -> None:
    with pytest.raises(MirrorError, match="a factory takes arguments as name=literal"):
        check_factory(f"mod:build({arguments})")


@pytest.mark.parametrize("text", ["a-b:f", "pkg..mod:f", ".mod:f", "dir/mod:f", "1a:f", "dir/file.pyc:f"])
def test_text_that_names_no_module_is_refused(text: str) -> None:
    with pytest.raises(MirrorError, match="is neither a Python file nor a module name"):
        check_factory(text)


# --- Mirrors ----------------------------------------------------------------------------------------------------------


def build(**changes: Any) -> Mirror:
    return Mirror(**{"name": "m", "torch": "a:f", "tensorflow": "b:g", "inputs": (InputSpec("x", (2, 3)),), **changes})


def test_a_mirror_is_its_names_and_inputs() -> None:
    assert build() == build(samples=dict, audio=lambda wave, rate: wave)
    assert build() != build(batches=(1,))
    assert build().batches == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "Mirror 'm' has no inputs"),
        ({"inputs": (InputSpec("x", (2,)), InputSpec("x", (3,)))}, "two inputs of one name: x, x"),
        ({"torch": "nothing"}, "'nothing' does not name a factory"),
        ({"tensorflow": "no/such.py:f"}, "There is no file no/such.py"),
    ],
)
def test_a_mirror_that_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MirrorError, match=message):
        build(**changes)


# --- The registry -----------------------------------------------------------------------------------------------------

REGISTERED = build(name="ready")


def registered() -> Mirror:
    return build(name="made")


def broken() -> Mirror:
    raise RuntimeError("no licence")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of a few mirrors, good and bad, as installed packages would bring them."""
    targets = {"made": "registered", "ready": "REGISTERED", "broken": "broken", "number": "NUMBER", "gone": "nowhere"}

    class Entry(importlib.metadata.EntryPoint):
        def load(self) -> Any:
            return globals()[self.value.partition(":")[2]]

    entries = [Entry(name, f"somewhere:{target}", mirror_module.GROUP) for name, target in targets.items()]

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "portproof.mirrors"
        return [*reversed(entries), entries[0]]  # a package found twice on the path is one mirror

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


NUMBER = 3


@pytest.mark.usefixtures("registry")
def test_mirrors_are_found_by_name() -> None:
    assert names() == ["broken", "gone", "made", "number", "ready"]
    assert get("made") == registered()  # a function gives the mirror
    assert get("ready") is REGISTERED


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"There is no mirror 'absent'\. Known: broken, gone, made, number, ready \(portproof list\)"),
        ("broken", r"Mirror 'broken' \(somewhere:broken\) cannot be loaded: RuntimeError\('no licence'\)"),
        ("gone", r"Mirror 'gone' \(somewhere:nowhere\) cannot be loaded: KeyError"),
        ("number", r"Mirror 'number' \(somewhere:NUMBER\) is a int, not a portproof.Mirror"),
    ],
)
def test_mirrors_that_cannot_be_had_are_explained(name: str, message: str) -> None:
    with pytest.raises(MirrorError, match=message):
        get(name)


def test_an_empty_registry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert names() == []
    with pytest.raises(MirrorError, match="Known: none"):
        get("any")
