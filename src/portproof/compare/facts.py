"""Facts: everything that a comparison found, as plain data that a verdict can be reached from, now or years later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from portproof.edits import Edit

MODEL = "(model)"  # what a model as a whole is called among its layers, as in a trace


@dataclass(frozen=True, slots=True)
class Distance:
    """How far ``b`` is from ``a``.

    ``relative`` is the L2 norm of the difference over ``scale``; near-zero values cannot blow it up as they do with
    element-wise relative errors or ULPs. ``scale`` is the larger of the two norms unless the caller knows a better
    one. Where the shapes differ, or NaN or Inf stand in different places, ``relative`` is infinite, and ``worst`` is
    the first of those places; ``max_abs`` speaks of the finite values.
    """

    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    equal: bool
    relative: float
    max_abs: float
    scale: float
    cosine: float
    worst: tuple[int, ...] = ()
    worst_a: float = 0.0
    worst_b: float = 0.0
    bad_a: int = 0
    bad_b: int = 0
    ulp: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One pair of tensors.

    ``group`` says what was compared (`outputs`, `gradients`, ...), ``name`` the tensor on side a, ``other`` on side b
    (empty if it is called the same). ``error_a`` and ``error_b`` are the errors of each side's float32 value against
    its own float64 value, where both are there. ``note`` says what was done to the pair before it was measured.
    """

    phase: str
    group: str
    name: str
    other: str
    layer: str
    distance: Distance
    error_a: float | None = None
    error_b: float | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """What identifies the measurement in a comparison."""
        return f"{self.phase}/{self.group}/{self.name}|{self.other or self.name}"


@dataclass(frozen=True, slots=True)
class CallFacts:
    """One pair of layer calls: the measurements of its inputs and outputs by key; ``None`` for what both were given."""

    layer: str
    other: str
    leaf: bool
    kind_a: str
    kind_b: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Structure:
    """Parameters, layers and stages of both sides, and what has no counterpart."""

    counts: dict[str, dict[str, int]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    wrong_shape: tuple[str, ...]
    wrong_trainable: tuple[str, ...]
    by_order: tuple[str, ...]
    weights_differ: tuple[str, ...]
    stages: tuple[dict[str, Any], ...]
    layers_only_a: tuple[str, ...]
    layers_only_b: tuple[str, ...]
    layers_by_order: tuple[str, ...]
    another_form: bool = False  # one side's weights were computed from the other's


@dataclass(frozen=True, slots=True)
class Cause:
    """What may explain a layer's divergence, and how that can be tested.

    ``change`` is what a person would change in the port. ``ways`` are edits that make the change in memory, each a
    complete repair; which of them is right depends on how the port came by the defect. ``key`` is the same for the same
    cause in another layer. ``fits`` says that the pattern predicts the port's values; without, it is only possible.
    """

    layer: str
    text: str
    change: str = ""
    key: str = ""
    ways: tuple[tuple[Edit, ...], ...] = ()
    fits: bool = True

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Cause:
        """From the plain data that `dataclasses.asdict` gives."""
        ways = tuple(tuple(Edit.from_json(edit) for edit in way) for way in body.get("ways", ()))
        return cls(**{**body, "ways": ways})


@dataclass(frozen=True)
class Facts:
    """The whole comparison of two traces; `to_json` and `from_json` are exact inverses.

    ``alone`` names phases and model outputs that only one side has. ``samples`` holds each side's float32 output for
    the real examples, one row each, where outputs are short. ``repeats``: how many equal values a sum over a layer's
    positions may meet. ``flat``: BatchNorms that in training mode divide rounding noise, by phase, as their channels do
    not vary.
    """

    sides: dict[str, dict[str, Any]]
    structure: Structure
    measurements: tuple[Measurement, ...]
    calls: dict[str, tuple[CallFacts, ...]]
    gradient_maxima: dict[str, dict[str, dict[str, float]]]
    layers_of: dict[str, str]
    batchnorm: tuple[dict[str, Any], ...]
    settings: tuple[dict[str, Any], ...]
    unavailable: dict[str, dict[str, str]]
    coarse: dict[str, tuple[str, ...]]
    causes: tuple[Cause, ...] = field(default=())
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    alone: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"a": (), "b": ()})
    repeats: float = 0.0
    flat: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Facts:
        """From plain data; raises `TypeError`, `KeyError` or `ValueError` for anything that `to_json` did not give."""
        measurements = tuple(
            Measurement(**{**row, "distance": Distance(**_tuples(row["distance"]))}) for row in body["measurements"]
        )
        calls = {phase: tuple(CallFacts(**_tuples(row)) for row in rows) for phase, rows in body["calls"].items()}
        return cls(
            **{
                **body,
                "structure": Structure(**_tuples(body["structure"])),
                "measurements": measurements,
                "calls": calls,
                "batchnorm": tuple(body["batchnorm"]),
                "settings": tuple(body["settings"]),
                "coarse": _tuples(body["coarse"]),
                "alone": _tuples(body["alone"]),
                "flat": _tuples(body.get("flat", {})),
                "causes": tuple(Cause.from_json(row) for row in body["causes"]),
            }
        )


def provable(coarse: Mapping[str, Sequence[str]], unavailable: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether both sides really ran in float64: no layer computed in less, and neither raised."""
    return not any(coarse.values()) and not any("float64.eval" in phases for phases in unavailable.values())


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
