"""What a cell's result was made from: lock, source, mirror, policy, settings. Equal inputs: it is up to date."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from portproof import cpu
from portproof.compare.policy import Policy
from portproof.mirror import Mirror, check_factory

_PACKAGE = Path(__file__).parents[1]
# They show what was found, decide what is run, or use what is measured: no measurement of a cell depends on them.
_SHOWING = ("cli", "convert", "defects", "honest", "matrix", "repair", "report", "selftest")
_WORDS = {
    "lock": "its lock",
    "source": "portproof's source",
    "mirror": "the mirror",
    "policy": "the policy",
    "seed": "the seed",
    "threads": "the number of threads",
    "variables": "environment variables that change bits",
}


@dataclass(frozen=True)
class Inputs:
    """Digests of files and the settings themselves. ``lock`` is empty for an environment that no lock describes."""

    lock: str
    source: str
    mirror: str
    policy: dict[str, float]
    seed: int = 0
    threads: int = 1
    variables: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Inputs:
        """From plain data; raises `TypeError` for anything that `to_json` did not give."""
        return cls(**body)

    def changed(self, now: Inputs) -> list[str]:
        """What is another now, in words; nothing for a result that is up to date."""
        names = (each.name for each in fields(self) if getattr(self, each.name) != getattr(now, each.name))
        return [_WORDS[name] for name in names]


def gather_inputs(
    mirror: Mirror,
    *,
    lock: Path | None,
    policy: Policy | None = None,
    seed: int = 0,
    threads: int = 1,
    environ: Mapping[str, str] = os.environ,
) -> Inputs:
    """The inputs as they are now, for the lock of one cell."""
    numerics = {name: environ[name] for name in cpu.NUMERICS_VARIABLES if name in environ}
    return Inputs(
        lock=file_digest(lock) if lock else "",
        source=source_digest(),
        mirror=_mirror_digest(mirror),
        policy=asdict(policy or Policy()),
        seed=seed,
        threads=threads,
        variables={name: value for name, value in numerics.items() if name not in _OURS},
    )


def with_lock(inputs: Inputs, lock: Path | None) -> Inputs:
    """The same inputs for another cell, which differs in its lock alone."""
    return replace(inputs, lock=file_digest(lock) if lock else "")


# portproof sets these itself in every worker, whatever the user has.
_OURS = ("KERAS_BACKEND", "PYTHONHASHSEED")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def source_digest(package: Path = _PACKAGE) -> str:
    """A digest of everything in the package that a measurement or a verdict can depend on."""
    return _digest(
        (path.relative_to(package).as_posix(), path.read_bytes())
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.relative_to(package).parts[0] not in _SHOWING
    )


def _mirror_digest(mirror: Mirror) -> str:
    """What a mirror says, and the code of factories that lie outside of portproof."""
    said = repr((mirror.name, mirror.torch, mirror.tensorflow, mirror.inputs, mirror.batches)).encode()
    code = {path: path.read_bytes() for factory in (mirror.torch, mirror.tensorflow) for path in _code_of(factory)}
    return _digest([("mirror", said), *((path.name, code[path]) for path in sorted(code))])


def _code_of(factory: str) -> Iterator[Path]:
    """The file of a factory, or every module of the package that it is in; a package is not imported for that."""
    module, *_ = check_factory(factory)
    if module.endswith(".py"):
        yield Path(module)
        return
    top = module.partition(".")[0]
    found = None if top == "portproof" else importlib.util.find_spec(top)
    for folder in (found.submodule_search_locations or ()) if found else ():
        yield from Path(folder).rglob("*.py")
    if found and not found.submodule_search_locations and found.origin:
        yield Path(found.origin)


def _digest(parts: Iterator[tuple[str, bytes]] | list[tuple[str, bytes]]) -> str:
    whole = hashlib.sha256()
    for name, content in parts:
        whole.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return whole.hexdigest()
