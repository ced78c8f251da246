"""What honest runs found: one `Run` each, together a `HonestResult`, which is stored as JSON and read again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from portproof.errors import InputError
from portproof.files import write_text

SCHEMA = "portproof-honest/1"
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a check measured for the tensor that came closest to its limit."""

    measured: float
    allowed: float
    where: str

    @property
    def share(self) -> float:
        """Of the limit: above 1 it is exceeded."""
        return self.measured / self.allowed


@dataclass(frozen=True)
class Run:
    """One run of equal models.

    ``conditions``: as plain data (conditions.py). ``outcome``: the verdict's, or ``refused`` where a side raised; what
    is not ``same`` is said in ``why``, and ``failed`` names the checks. ``checks``: by name, what came closest.
    """

    conditions: Mapping[str, Any]
    outcome: str
    why: str
    failed: tuple[str, ...]
    checks: Mapping[str, Nearest]
    seconds: float


@dataclass(frozen=True)
class HonestResult:
    """All runs in one environment. ``sizes``: the input sizes that both sides took. ``seconds``: wall time."""

    mirror: str
    seed: int
    sizes: tuple[Any, ...]
    environment: Mapping[str, Any]
    runs: tuple[Run, ...]
    seconds: float = 0.0

    def count(self, outcome: str) -> int:
        """How many runs ended so."""
        return sum(run.outcome == outcome for run in self.runs)

    @property
    def alarms(self) -> tuple[Run, ...]:
        """Runs of equal models that were called different."""
        return tuple(run for run in self.runs if run.outcome == "differs")

    @property
    def kinds(self) -> dict[str, int]:
        """How many runs captured what (conditions.py)."""
        return dict(Counter(run.conditions["kind"] for run in self.runs))

    @property
    def cell(self) -> str:
        """Python and both frameworks, in a few words."""
        a, b = (self.environment.get(name, {}) for name in ("a", "b"))
        python = b.get("machine", {}).get("python", {}).get("version", "?")
        return f"Python {python}, torch {a.get('version', '?')}, TensorFlow {b.get('version', '?')}"

    def save(self, path: Path) -> None:
        """Write the result as JSON, complete or not at all."""
        write_text(path, json.dumps({"schema": SCHEMA, **_plain(asdict(self))}, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> HonestResult:
        """Read a result that `save` wrote.

        Raises:
            InputError: the file cannot be read, or is something else.
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.pop("schema", None) != SCHEMA:
                raise InputError(f"{path} holds no honest runs (`portproof honest --json`).")
            runs = tuple(
                Run(
                    **{
                        **row,
                        "failed": tuple(row["failed"]),
                        "checks": {
                            name: Nearest(float(each["measured"]), float(each["allowed"]), each["where"])
                            for name, each in row["checks"].items()
                        },
                    }
                )
                for row in body.pop("runs")
            )
            return cls(**{**body, "sizes": tuple(body["sizes"]), "runs": runs})
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no honest runs, or was truncated or edited.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity; float() reads it
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
