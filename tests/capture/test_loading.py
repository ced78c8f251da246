"""Loading a factory: every way in which it can fail is one error that says whose fault it is and what to do."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import pytest

from portproof.capture.loading import call_factory, describe, load_factory, takes_by_name
from portproof.errors import MirrorError, WorkerError
from portproof.mirror import check_factory


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading extends the path and the modules of the process, which is a worker's privilege."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def write(folder: Path, text: str, name: str = "port.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_factory_in_a_file_sees_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 3\n", "neighbour_of_port.py")
    path = write(tmp_path, "import neighbour_of_port\n\ndef build():\n    return neighbour_of_port.VALUE\n")
    assert load_factory(f"{path}:build")() == 3


def test_a_factory_gets_the_arguments_that_are_written_behind_it() -> None:
    assert load_factory("fractions:Fraction(numerator=2, denominator=3)")() == Fraction(2, 3)


def test_a_factory_in_a_module_and_below_a_class() -> None:
    assert load_factory("collections:OrderedDict.fromkeys")(["a"]) == {"a": None}


@pytest.mark.parametrize("text", ["port.py", ":build", "port:", "a b:build", "port:1x", "x-y.z:build"])
def test_text_that_names_no_factory_is_refused(text: str) -> None:
    with pytest.raises(MirrorError, match=r"factory|neither"):
        check_factory(text)


def test_missing_files_modules_and_attributes(tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match=r"There is no file .*nowhere\.py"):
        load_factory(f"{tmp_path / 'nowhere.py'}:build")
    with pytest.raises(MirrorError, match="There is no module 'no_such_package_at_all'"):
        load_factory("no_such_package_at_all.models:build")
    path = write(tmp_path, "def make():\n    pass\n\ndef also():\n    pass\n\nNUMBER = 3\n")
    with pytest.raises(MirrorError, match=r"has no 'build'\. It has: also, make"):
        load_factory(f"{path}:build")
    with pytest.raises(MirrorError, match="is a int, not a function"):
        load_factory(f"{path}:NUMBER")


def test_a_package_that_is_missing_inside_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "import no_such_package_at_all\n")
    with pytest.raises(MirrorError, match="needs the package 'no_such_package_at_all'") as caught:
        load_factory(f"{path}:build")
    assert "--tensorflow-python" in str(caught.value)


def test_a_module_that_raises_is_the_users_error(tmp_path: Path) -> None:
    path = write(tmp_path, "import math\n\nmath.sqrt(-1)\n")
    with pytest.raises(WorkerError, match=r"raised ValueError: .*\(port\.py:3\)") as caught:
        load_factory(f"{path}:build")
    assert "math.sqrt(-1)" in caught.value.details
    path = write(tmp_path, "def build(:\n")
    with pytest.raises(WorkerError, match="SyntaxError"):
        load_factory(f"{path}:build")


def test_a_factory_that_raises_is_shown_with_its_line(tmp_path: Path) -> None:
    text = "import json\n\ndef build():\n    return json.loads('{')\n"
    path = write(tmp_path, text)
    with pytest.raises(WorkerError) as caught:
        call_factory(load_factory(f"{path}:build"), "port.py:build")
    # The user's line, and not the one of the standard library that raised.
    assert str(caught.value).startswith("The factory port.py:build raised JSONDecodeError: ")
    assert str(caught.value).endswith("(port.py:4).")
    assert "Traceback" in caught.value.details


def test_a_factory_that_needs_arguments_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "def build(classes):\n    return classes\n")
    with pytest.raises(WorkerError, match="missing 1 required positional argument: 'classes'"):
        call_factory(load_factory(f"{path}:build"), "port.py:build")


def test_descriptions_are_one_short_line() -> None:
    error = describe(ValueError("\x1b[1mbold\x1b[0m\n  and " + "long " * 200))
    assert error.startswith("ValueError: bold and long long")
    assert error.endswith("…")
    assert "\n" not in error
    assert len(error) < 450


def test_inputs_by_name() -> None:
    def forward(ids: int, mask: int = 0, *rest: int) -> None: ...

    assert takes_by_name(forward, ["mask", "ids"])
    assert not takes_by_name(forward, ["ids", "features"])
    assert not takes_by_name(dict.update, ["a"])
