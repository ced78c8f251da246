"""The table of cells: which environments are promised to work, from cells.toml, and the lock of each."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from portproof.errors import InputError

_PACKAGE = Path(__file__).parents[1]
_TENSORFLOW = ("tensorflow-cpu", "tensorflow", "tensorflow-intel", "tensorflow-macos")
_PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)")
_MACHINE = re.compile(r"platform_machine == '(\w+)'")


@dataclass(frozen=True)
class Cell:
    """One Python x TensorFlow x torch environment. ``pins`` are the versions that the table names, by package."""

    python: str
    tensorflow: str
    pins: dict[str, str]

    @property
    def id(self) -> str:
        """Its name in folders, reports and on the command line, such as ``3.12-tf2.19.1``."""
        return cell_id(self.python, self.tensorflow)


def cell_id(python: str, tensorflow: str) -> str:
    """The name of a cell, which is also that of its lock."""
    return f"{python}-tf{tensorflow}"


@cache
def cells() -> tuple[Cell, ...]:
    """Every cell of the table, by Python, then by TensorFlow."""
    rows = tomllib.loads((_PACKAGE / "cells.toml").read_text(encoding="utf-8"))["cells"]
    found = (Cell(row["python"], row["tensorflow"], {k: v for k, v in row.items() if k != "python"}) for row in rows)
    return tuple(sorted(found, key=lambda cell: (release(cell.python), release(cell.tensorflow))))


def chosen(names: str) -> tuple[Cell, ...]:
    """The cells of a comma-separated list, in the order of the table; all of them for none.

    Raises:
        InputError: the table has no cell of that name.
    """
    wanted = [name for name in re.split(r"[,\s]+", names) if name]
    known = {cell.id: cell for cell in cells()}
    for name in wanted:
        if name not in known:
            raise InputError(f"There is no cell {name!r}. Known: {', '.join(known)}.")
    return tuple(cell for cell in cells() if not wanted or cell.id in wanted)


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to sort by: ``2.9.0`` comes before ``2.19.1``."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def this_cell() -> Cell:
    """The cell that this very environment is, whether the table has it or not.

    Raises:
        InputError: TensorFlow or torch is not installed.
    """
    installed = installed_versions()
    tensorflow = next((installed[name] for name in _TENSORFLOW if name in installed), None)
    if tensorflow is None or "torch" not in installed:
        raise InputError(
            "A cell holds both frameworks, and one of them is not installed here: run `nox -s parity-3.12`, or install "
            "a lock of docker/locks."
        )
    python = ".".join(platform.python_version_tuple()[:2])
    known = {(cell.python, cell.tensorflow): cell for cell in cells()}
    return known.get((python, tensorflow), Cell(python, tensorflow, {}))


def installed_versions() -> dict[str, str]:
    """Every installed distribution, by its normalised name."""
    found = {}
    for each in importlib.metadata.distributions():
        name = each.metadata["Name"]
        if name:
            found.setdefault(normalised(name), each.version)
    return dict(sorted(found.items()))


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locks_folder() -> Path | None:
    """Where the locks of this checkout are; ``None`` for an installed package that has no checkout around it."""
    for root in (_PACKAGE.parents[1], Path.cwd()):
        folder = root / "docker" / "locks"
        if folder.is_dir() and (root / "src" / "portproof").is_dir():
            return folder
    return None


def pins_of(lock: str, machine: str) -> dict[str, str]:
    """Package -> version of the text of a lock, those of other machines left out."""
    found: dict[str, str] = {}
    for line in lock.splitlines():
        machines = _MACHINE.findall(line)
        if (match := _PIN.match(line)) and (not machines or machine in machines):
            found[normalised(match[1])] = match[2]
    return found


def not_as_locked(lock: str, installed: dict[str, str], machine: str) -> list[str]:
    """What is installed otherwise than a lock says, in words. Another build of the same torch is no difference."""
    wrong = []
    for name, version in pins_of(lock, machine).items():
        have = installed.get(name, "none")
        same = have == version or (name == "torch" and have.partition("+")[0] == version.partition("+")[0])
        if not same:
            wrong.append(f"{name} {have} instead of {version}")
    return wrong
