"""Tests of docker/strip_symbols.py: a library that was cut still loads and computes; what is none stays as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ELF is Linux's")


@pytest.fixture(scope="module")
def strip_symbols() -> ModuleType:
    spec = importlib.util.spec_from_file_location("portproof_strip_symbols", ROOT / "docker/strip_symbols.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of NumPy's generator of random bits: an extension module that needs no other one to load."""
    source = next(Path(np.__file__).parent.glob("random/_mt19937.*.so"))
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    return copy


def test_a_library_that_was_cut_still_loads(strip_symbols: ModuleType, library: Path) -> None:
    before = library.stat().st_size
    cut = strip_symbols.strip(library)
    assert 0 < cut == before - library.stat().st_size
    code = "import ctypes, sys; assert ctypes.PyDLL(sys.argv[1]).PyInit__mt19937"
    assert subprocess.run([sys.executable, "-c", code, str(library)], check=False).returncode == 0


def test_cutting_twice_cuts_nothing_more(strip_symbols: ModuleType, library: Path) -> None:
    strip_symbols.strip(library)
    once = library.read_bytes()
    assert strip_symbols.strip(library) == 0
    assert library.read_bytes() == once


@pytest.mark.parametrize("content", [b"", b"GROUP ( libx.so.1 )\n", b"\x7fELF\x01\x01" + bytes(200)])
def test_what_is_no_64_bit_library_is_left_alone(strip_symbols: ModuleType, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "libx.so"
    file.write_bytes(content)
    assert strip_symbols.strip(file) == 0
    assert file.read_bytes() == content
