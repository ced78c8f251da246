"""What a diagnosis found, as plain data: causes that were proven by a repair, and what remains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from portproof.edits import Edit


@dataclass(frozen=True, slots=True)
class Proven:
    """One cause that was proven: with ``edits`` in force, and nothing else changed, the divergence was gone.

    ``layers`` are the original's names of the layers that it touches, ``others`` the port's. ``change`` is what a
    person would change in each of them. ``what`` and ``phase`` say where it had shown; ``relative`` is how far the two
    were apart there, ``residual`` how far they are with the repairs.
    """

    text: str
    change: str
    layers: tuple[str, ...]
    others: tuple[str, ...]
    edits: tuple[Edit, ...]
    phase: str
    what: str
    relative: float
    residual: float

    @property
    def line(self) -> str:
        """The cause in one line: what to change, in how many layers, and what came of it."""
        count = len(self.others)
        where = f"in {count} layers" if count > 1 else f"in {self.others[0]}" if count else "in the port"
        return f"{self.change} {where}: divergence gone ({self.residual:.0e})"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The proven causes in the order in which they were found, and how the two compare with all the repairs in force.

    ``outcome`` and ``summary`` are that comparison's verdict, over ``phases``; ``remaining`` lists what still differs,
    and where, empty if nothing does. ``tried`` counts the captures of the port.
    """

    proven: tuple[Proven, ...]
    outcome: str
    summary: str
    phases: tuple[str, ...]
    remaining: tuple[str, ...]
    tried: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Diagnosis:
        """From plain data; raises `TypeError`, `KeyError` or `ValueError` for anything that `to_json` did not give."""
        proven = tuple(
            Proven(
                **{
                    **row,
                    "layers": tuple(row["layers"]),
                    "others": tuple(row["others"]),
                    "edits": tuple(Edit.from_json(edit) for edit in row["edits"]),
                }
            )
            for row in body["proven"]
        )
        return cls(
            **{
                **body,
                "proven": proven,
                "phases": tuple(body["phases"]),
                "remaining": tuple(body["remaining"]),
            }
        )
