"""Margins: how far the nearest honest value and the nearest planted defect lie from each limit of the policy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from portproof.errors import InputError
from portproof.honest.result import HonestResult, Nearest

LIMITS = {
    "float64": ("function-", "training-", "batchnorm"),
    "steps": ("sgd", "adamw"),
    "precision": ("precision-",),
    "dead": ("count-",),
    "float32": ("fallback-",),
}
"""Limit of the policy -> how the checks begin that it decides, with the measured rounding of the original."""


@dataclass(frozen=True)
class Margin:
    """One check. Shares are of the limit: an honest one below 1, a defect's above it.

    ``honest`` and ``defects`` are all shares that were measured, ``nearest`` and ``defect`` those closest to 1, with
    what was measured; ``defect_name`` is whose it is. A defect counts where this check caught it.
    """

    check: str
    limit: str
    honest: tuple[float, ...]
    nearest: Nearest | None
    defects: tuple[float, ...]
    defect: Nearest | None
    defect_name: str


def margins(results: Sequence[HonestResult], defects: Iterable[tuple[str, Mapping[str, Nearest]]] = ()) -> list[Margin]:
    """The margins of all checks that honest runs or defects have measured; runs that could not be judged count too.

    Args:
        results: honest runs, of any number of cells.
        defects: each planted defect's name, and what the checks that failed had measured.
    """
    honest: dict[str, list[Nearest]] = {}
    planted: dict[str, list[tuple[str, Nearest]]] = {}
    for result in results:
        for run in result.runs:
            for name, found in run.checks.items():
                if name not in run.failed:  # what could not be judged is not near a limit: it has none
                    honest.setdefault(name, []).append(found)
    for defect, checks in defects:
        for name, found in checks.items():
            planted.setdefault(name, []).append((defect, found))
    rows = []
    for limit, beginnings in LIMITS.items():
        for name in [name for name in {**honest, **planted} if name.startswith(beginnings)]:
            near, caught = honest.get(name, []), planted.get(name, [])
            closest = min(caught, key=lambda pair: pair[1].share, default=("", None))
            rows.append(
                Margin(
                    check=name,
                    limit=limit,
                    honest=tuple(each.share for each in near),
                    nearest=max(near, key=lambda each: each.share, default=None),
                    defects=tuple(each.share for _, each in caught),
                    defect=closest[1],
                    defect_name=closest[0],
                )
            )
    return rows


def by_limit(rows: Sequence[Margin]) -> list[Margin]:
    """One row for each limit of the policy: the nearest of its checks."""
    found = []
    for limit in LIMITS:
        own = [row for row in rows if row.limit == limit]
        if own:
            near = max(own, key=lambda row: row.nearest.share if row.nearest else -1.0)
            far = min(own, key=lambda row: row.defect.share if row.defect else math.inf)
            found.append(
                Margin(
                    check=near.check,
                    limit=limit,
                    honest=tuple(share for row in own for share in row.honest),
                    nearest=near.nearest,
                    defects=tuple(share for row in own for share in row.defects),
                    defect=far.defect,
                    defect_name=f"{far.defect_name} ({far.check})" if far.defect else "",
                )
            )
    return found


def to_json(rows: Sequence[Margin]) -> list[dict[str, Any]]:
    """As plain data, without the clouds."""
    kept = []
    for row in rows:
        body = asdict(row)
        body["honest"], body["defects"] = len(row.honest), len(row.defects)
        kept.append(body)
    return kept


def read_selftest(path: Path) -> list[tuple[str, dict[str, Nearest]]]:
    """The defects that a self-test caught (`portproof selftest --json`): names, and what the failed checks measured.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return [
            (
                row["name"],
                {
                    name: Nearest(float(measured), float(allowed), outcome["place"])
                    for name, (measured, allowed) in outcome["measured"].items()
                },
            )
            for row in body["defects"]
            for outcome in row["outcomes"]
            if outcome["status"] == "caught"
        ]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no self-test (`portproof selftest --json`).") from error
