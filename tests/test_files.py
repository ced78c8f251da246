"""Tests of the files that are complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from portproof.files import atomic_path, write_text


def test_text_is_written_as_utf8_into_folders_that_are_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "text"
    write_text(target, "é ± 漢\n")
    assert target.read_bytes() == "é ± 漢\n".encode()
    write_text(target, "shorter")
    assert target.read_text() == "shorter"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def failing() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            assert target.read_text() == "old"
            raise error

    with pytest.raises(error):
        failing()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_appears_before_the_block_ends(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path  # in the same file system, so that renaming is one step
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_file_gets_the_mode_of_an_ordinary_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "x")
        (tmp_path / "ordinary").write_text("x")
        modes = {(tmp_path / name).stat().st_mode for name in ("file", "ordinary")}
        assert len(modes) == 1
        assert os.umask(umask) == umask  # put back
    finally:
        os.umask(before)


def test_a_folder_in_the_way_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "there", "x")
    assert caught.value.filename == str(tmp_path / "there")  # what was asked for, not the temporary file
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_text_that_cannot_be_encoded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\ud800")
    assert list(tmp_path.iterdir()) == []
