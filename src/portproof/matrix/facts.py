"""What is known of a matrix: its cells, what each measured, and how far they drift apart. Plain data, judged elsewhere.

A cell is one Python x TensorFlow x torch environment. Drift is the difference between two cells on the same side, for
the same weights and inputs. Cells whose trace of a side is the same to the bit form a class; drift is measured between
the first cells of two classes, and holds for all cells in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SIDES = ("torch", "tensorflow")

# The state of a cell: what its folder says, before anybody judges.
COMPLETE = "complete"  # was run, and what it was made from is unchanged
STALE = "stale"  # was run, from other sources, another lock or another policy than these
FAILED = "failed"  # could not be run to its end; `why` is the message
MISSING = "missing"  # there is no result of it


@dataclass(frozen=True, slots=True)
class CellCheck:
    """One check of one cell. ``suite`` is `smoke` or `parity`; ``status`` is `pass`, `fail`, `note` or `unknown`.

    ``value`` and ``limit`` are those of the tensor that came closest to its limit, ``where``, as a person reads them.
    """

    suite: str
    name: str
    title: str
    status: str
    value: str = ""
    limit: str = ""
    where: str = ""
    count: int = 0
    details: tuple[str, ...] = ()
    measured: float | None = None
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """What a cell ran on. ``torch`` carries the local version of its build, such as ``2.13.0+cpu``."""

    python: str = ""
    tensorflow: str = ""
    keras: str = ""
    torch: str = ""
    torch_build: str = ""
    numpy: str = ""
    protobuf: str = ""
    cpu: str = ""
    instruction_sets: tuple[str, ...] = ()
    system: str = ""
    threads: int = 1


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """The port's error in every layer's output (eval mode), in order of execution; relative to the tensor's norm.

    ``float64``: port against original. ``original`` and ``port``: each side's float32 run against its own float64 run,
    ``None`` where there is none. ``limit`` and ``precision``: what the first and the last of them may be. All are
    equally long.
    """

    layers: tuple[str, ...] = ()
    float64: tuple[float, ...] = ()
    original: tuple[float | None, ...] = ()
    port: tuple[float | None, ...] = ()
    limit: tuple[float, ...] = ()
    precision: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class CellResult:
    """One cell. ``id`` reads ``3.12-tf2.19.1``; ``state`` is one of the constants of this module.

    ``outcome`` is the verdict of its suites taken together: `same`, `differs` or `undecided`, and empty where there is
    none. ``why`` says why a cell is not complete. ``seconds`` are by suite. ``expected``: it is one of the cells asked
    for. ``pins`` are the versions of the table, by package.
    """

    id: str
    python: str
    tensorflow: str
    state: str
    outcome: str = ""
    summary: str = ""
    why: str = ""
    expected: bool = True
    pins: dict[str, str] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    checks: tuple[CellCheck, ...] = ()
    errors: LayerErrors = field(default_factory=LayerErrors)
    seconds: dict[str, float] = field(default_factory=dict)
    divergence: str = ""
    size: int = 0

    @property
    def green(self) -> bool:
        """Whether it was run from what is here now, and is the same model."""
        return self.state == COMPLETE and self.outcome == "same"

    def check(self, suite: str, name: str) -> CellCheck | None:
        """Its check of that name, if it has one."""
        return next((each for each in self.checks if (each.suite, each.name) == (suite, name)), None)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first layer, in order of execution, whose output differs although everything that reached it is equal.

    ``inputs_equal`` is false if there is no such layer; then it is the first whose output differs.
    """

    phase: str
    layer: str
    kind: str
    relative: float
    max_abs: float
    scale: float
    inputs_equal: bool = True


@dataclass(frozen=True, slots=True)
class DriftGroup:
    """All tensors of one kind in one phase. ``relative`` is the largest, and ``where`` the tensor it stands for."""

    name: str
    title: str
    phase: str
    tensors: int
    equal: int
    relative: float
    where: str


@dataclass(frozen=True)
class DriftPair:
    """How far class ``b`` is from class ``a`` (indices into `Drift.classes`).

    ``float64`` and ``float32`` are the relative differences of the outputs of `Drift.layers`, eval mode, ``0.0`` where
    equal to the bit, ``None`` where one of the two has no such layer. ``begins`` holds the beginning by precision.
    ``causes`` are known causes whose pattern holds here; ``changed`` says what differs between the two environments.
    ``not_comparable`` is empty, or says why the two must not be compared, such as other inputs: nothing was measured.
    """

    a: int
    b: int
    float64: tuple[float | None, ...] = ()
    float32: tuple[float | None, ...] = ()
    begins: dict[str, Beginning] = field(default_factory=dict)
    groups: tuple[DriftGroup, ...] = ()
    causes: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    not_comparable: str = ""

    def largest(self, precision: str) -> float:
        """The largest relative difference of any layer's output, ``precision`` being `float64` or `float32`."""
        values = self.float64 if precision == "float64" else self.float32
        return max((value for value in values if value is not None), default=0.0)


@dataclass(frozen=True)
class Drift:
    """One side across the cells. ``layers`` are in order of execution; ``classes`` are cells whose bits are equal."""

    side: str
    layers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    pairs: tuple[DriftPair, ...] = ()

    def class_of(self, cell: str) -> int | None:
        """The index of the class that a cell is in; ``None`` for one without a trace of this side."""
        return next((index for index, cells in enumerate(self.classes) if cell in cells), None)

    def between(self, a: str, b: str) -> DriftPair | None:
        """How far two cells are apart; ``None`` if their bits are equal. Raises `KeyError` for a cell without trace."""
        first, second = self.class_of(a), self.class_of(b)
        if first is None or second is None:
            raise KeyError(a if first is None else b)
        if first == second:
            return None
        wanted = {first, second}
        return next(pair for pair in self.pairs if {pair.a, pair.b} == wanted)

    def cells(self) -> Iterator[str]:
        """Every cell that has a trace of this side, class by class."""
        for each in self.classes:
            yield from each


@dataclass(frozen=True)
class Matrix:
    """All cells, those asked for and those found besides, and the drift of both sides.

    ``subject`` is the mirror's name. ``not_asked`` are cells of the table that were not asked for.
    """

    subject: str
    cells: tuple[CellResult, ...]
    drift: tuple[Drift, ...] = ()
    not_asked: tuple[str, ...] = ()
    policy: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """`same` if every expected cell is green, `differs` if one is known to differ, otherwise `undecided`."""
        expected = [cell for cell in self.cells if cell.expected]
        if any(cell.outcome == "differs" and cell.state == COMPLETE for cell in expected):
            return "differs"
        return "same" if expected and all(cell.green for cell in expected) else "undecided"

    def cell(self, name: str) -> CellResult:
        """The cell of that id; raises `KeyError`."""
        for each in self.cells:
            if each.id == name:
                return each
        raise KeyError(name)

    def drift_of(self, side: str) -> Drift:
        """The drift of one side; without cells if there is none."""
        return next((each for each in self.drift if each.side == side), Drift(side))

    def to_json(self) -> dict[str, Any]:
        """As plain data; infinities are for whoever writes it to a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Matrix:
        """From plain data; raises `TypeError`, `KeyError` or `ValueError` for anything that `to_json` did not give."""
        return cls(
            **{
                **_known(cls, body),
                "cells": tuple(_cell(row) for row in body["cells"]),
                "drift": tuple(_drift(row) for row in body["drift"]),
            }
        )


def _cell(row: dict[str, Any]) -> CellResult:
    return CellResult(
        **{
            **_known(CellResult, row),
            "environment": Environment(**_known(Environment, row["environment"])),
            "checks": tuple(CellCheck(**_known(CellCheck, each)) for each in row["checks"]),
            "errors": LayerErrors(**_known(LayerErrors, row["errors"])),
        }
    )


def _drift(row: dict[str, Any]) -> Drift:
    pairs = tuple(
        DriftPair(
            **{
                **_known(DriftPair, each),
                "begins": {name: Beginning(**found) for name, found in each["begins"].items()},
                "groups": tuple(DriftGroup(**group) for group in each["groups"]),
            }
        )
        for each in row["pairs"]
    )
    return Drift(**{**_known(Drift, row), "classes": tuple(tuple(cells) for cells in row["classes"]), "pairs": pairs})


def _known(kind: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The row with lists as tuples; raises `TypeError` for a field that ``kind`` does not have."""
    unknown = sorted(set(row) - {each.name for each in fields(kind)})
    if unknown:
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
