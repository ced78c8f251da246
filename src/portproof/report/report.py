"""The Report: facts, verdict and how they came about, as one object that can be stored, read and judged again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from portproof.compare.facts import Facts
from portproof.compare.policy import Policy
from portproof.compare.proof import Diagnosis
from portproof.compare.verdict import Verdict, judge
from portproof.errors import InputError
from portproof.files import write_text

SCHEMA = "portproof-report/1"


@dataclass(frozen=True)
class Report:
    """What a check or a comparison found.

    ``recorded`` holds times, log files and the like: nothing that is judged. ``diagnosis`` holds the proven causes,
    where they were looked for.
    """

    facts: Facts
    verdict: Verdict
    recorded: dict[str, Any] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None

    @property
    def same(self) -> bool:
        """Whether the two sides are the same model."""
        return self.verdict.outcome == "same"

    def rejudged(self, policy: Policy) -> Report:
        """The same measurements under another policy; nothing is run again."""
        return replace(self, verdict=judge(self.facts, policy))

    def save(self, path: Path | str) -> None:
        """Write the report as JSON, complete or not at all."""
        body = {
            "schema": SCHEMA,
            "verdict": self.verdict.to_json(),
            "facts": self.facts.to_json(),
            "recorded": self.recorded,
            "diagnosis": self.diagnosis.to_json() if self.diagnosis else None,
        }
        write_text(Path(path), json.dumps(finite(body), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Report:
        """Read a report that `save` wrote; its verdict is reached anew under its own policy.

        Raises:
            InputError: the file is not a report, or is truncated.
        """
        path = Path(path)
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.get("schema") != SCHEMA:
                raise InputError(f"{path} has schema {body.get('schema')!r}, this version reads {SCHEMA!r}.")
            facts = Facts.from_json(restored(body["facts"]))
            policy = Policy.from_mapping(body["verdict"]["policy"], str(path))
            found = body.get("diagnosis")
            diagnosis = Diagnosis.from_json(restored(found)) if found else None
            return cls(facts, judge(facts, policy), dict(body.get("recorded", {})), diagnosis)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            text = f"{path} is not a portproof report (written by --json), or was truncated or edited."
            raise InputError(text) from error


# JSON has no infinity and no NaN; a relative difference of two different shapes is infinite.
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def finite(value: Any) -> Any:
    """Plain data that JSON can hold: infinities and NaN as ``{"float": "inf"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value


def restored(value: Any) -> Any:
    """What `finite` was given."""
    if isinstance(value, dict):
        if set(value) == {"float"}:
            return _SPECIAL[value["float"]]
        return {key: restored(each) for key, each in value.items()}
    if isinstance(value, list):
        return [restored(each) for each in value]
    return value
