"""Short clips that ship with the package: "yes" and "no" in three synthetic voices, and noise.

Each is one second, 16 kHz, 16 bits, mono. ``make_clips.py`` beside them made them; no person was recorded.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def clips() -> list[tuple[str, Path]]:
    """Name and file of every clip, sorted by name: ``<what is said>_<voice>``, or ``noise``."""
    files = (Path(str(entry)) for entry in resources.files(__name__).iterdir() if entry.name.endswith(".wav"))
    return sorted((file.stem, file) for file in files)
