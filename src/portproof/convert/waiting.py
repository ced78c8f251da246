"""Waiting for the file that another worker writes; it appears complete, by renaming."""

from __future__ import annotations

import time
from pathlib import Path

from portproof.errors import WorkerError

_POLL_SECONDS = 0.01


def wait_for(path: Path) -> Path:
    """``path``, once it is there. Whoever started the workers stops this one when the time is up.

    Raises:
        WorkerError: the folder of the conversion is gone, so nobody will write it.
    """
    while not path.exists():
        if not path.parent.parent.is_dir():
            raise WorkerError(f"Waited in vain for {path}: did the conversion stop?")
        time.sleep(_POLL_SECONDS)
    return path
