"""What a self-test found: one outcome per planted defect and place, rows per defect, and how they sum up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from portproof.defects import Defect

SCHEMA = "portproof-selftest/1"

CAUGHT, MISSED, NO_EFFECT, RAISES = "caught", "missed", "no effect", "raises"

METHODS = {
    "parameters": "parameter count",
    "shapes": "output shapes of the stages and of every batch",
    "gradients": "count of parameters with a gradient (mean of the output, training mode, float32)",
    "argmax": "the largest output is the same for every entry of every batch, at the initial weights",
    "1e-3": "allclose(rtol=1e-3, atol=1e-3) of float32 outputs at the initial weights",
    "1e-4": "allclose(rtol=1e-4, atol=1e-4), the same",
    "1e-5": "allclose(rtol=1e-5, atol=1e-5), the same",
}
"""Simpler methods, and what each looks at."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One defect at one place.

    ``status``: caught, missed, no effect (every trace is bit-identical to that of the unedited port), or raises (the
    edited port does not run). ``check`` is the first check that failed, ``named`` the layer that the verdict names, and
    ``located`` whether that is right. ``seen`` are the simpler methods that notice something.
    ``measured``: what each check that failed measured, where that is finite, and its limit.
    """

    place: str
    status: str
    check: str = ""
    named: str = ""
    located: bool = False
    seen: tuple[str, ...] = ()
    note: str = ""
    measured: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One defect of the catalogue: at how many places of this port it applies, and what came of those tried."""

    defect: Defect
    places: int
    outcomes: tuple[Outcome, ...]

    def count(self, status: str) -> int:
        """How many outcomes have a status."""
        return sum(each.status == status for each in self.outcomes)

    @property
    def effective(self) -> tuple[Outcome, ...]:
        """The outcomes that count."""
        return tuple(each for each in self.outcomes if each.status in (CAUGHT, MISSED))

    @property
    def located(self) -> int:
        """How many were caught and named rightly."""
        return sum(each.located for each in self.outcomes if each.status == CAUGHT)

    @property
    def checks(self) -> list[str]:
        """The checks that caught it, the most frequent first."""
        return [name for name, _ in Counter(each.check for each in self.effective if each.check).most_common()]

    def seen_by(self, method: str) -> int:
        """How often a simpler method notices something."""
        return sum(method in each.seen for each in self.effective)


@dataclass(frozen=True)
class Result:
    """A whole self-test. ``methods`` says whether simpler methods were tried; ``alarms`` are those of them that object
    to the unedited port already, and were left out."""

    subject: str
    seed: int
    rows: tuple[Row, ...]
    methods: bool
    alarms: tuple[str, ...] = ()
    recorded: dict[str, Any] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[tuple[Row, Outcome]]:
        """Every effective outcome with its row."""
        return [(row, outcome) for row in self.rows for outcome in row.effective]

    @property
    def missed(self) -> list[tuple[Row, Outcome]]:
        """The effective defects that no check caught."""
        return [pair for pair in self.outcomes if pair[1].status == MISSED]

    @property
    def misnamed(self) -> list[tuple[Row, Outcome]]:
        """Those that were caught, but in another layer."""
        return [pair for pair in self.outcomes if pair[1].status == CAUGHT and not pair[1].located]

    @property
    def passed(self) -> bool:
        """Whether there was an effective defect, and every one was caught."""
        return bool(self.outcomes) and not self.missed

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "seed": self.seed,
            "passed": self.passed,
            "effective": len(self.outcomes),
            "caught": len(self.outcomes) - len(self.missed),
            "located": len(self.outcomes) - len(self.missed) - len(self.misnamed),
            "methods": dict(METHODS) if self.methods else {},
            "false_alarms_of_methods": list(self.alarms),
            "defects": [
                {
                    "name": row.defect.name,
                    "group": row.defect.group,
                    "story": row.defect.story,
                    "about": row.defect.about,
                    "places": row.places,
                    "outcomes": [asdict(outcome) for outcome in row.outcomes],
                }
                for row in self.rows
            ],
            "recorded": self.recorded,
        }
