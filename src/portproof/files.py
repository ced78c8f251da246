"""Files that are complete or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that becomes ``target`` if the block ends well, and vanishes if not.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:  # named is what the caller asked for, not the temporary file
        raise type(error)(error.errno, error.strerror, str(target)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; the result gets the mode that an ordinary file would have had.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text to ``target``, all of it or none."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
