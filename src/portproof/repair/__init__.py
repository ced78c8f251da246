"""Repair: proves the causes of a divergence, by repairing the port in memory and capturing it again.

A cause is proven if its repair makes the divergence vanish, and nothing that agreed before differs now. Repairs that
were proven stay in force while the next divergence is looked into, cheap phases first, until both sides are the same or
nothing more can be proven. No repair takes anything from what the original returned.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from portproof.check import Settings
from portproof.plan import PARITY, Phase
from portproof.repair.bench import Bench
from portproof.repair.search import Search

if TYPE_CHECKING:
    from portproof.compare.policy import Policy
    from portproof.mirror import Mirror
    from portproof.processes import Progress
    from portproof.report import Report

__all__ = ["Bench", "Search", "diagnose"]


def diagnose(
    mirror: Mirror,
    *,
    phases: Sequence[Phase] = PARITY,
    settings: Settings | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare both sides of ``mirror`` and prove what makes them differ.

    Returns the report of the port as it is, over the first phases in which it differs, with a ``diagnosis``; or that
    over all phases, without one, if it does not.

    Raises:
        PortproofError: a side could not be run at all. A repair with which it cannot is no proof, and no error.
    """
    from portproof.report import Report

    started = time.perf_counter()
    with Bench(mirror, phases, settings or Settings(), policy, progress) as bench:
        search = Search(bench)
        search.run()
        differing = search.first
        diagnosis = search.diagnosis(time.perf_counter() - started) if differing else None
        state = differing or search.state
        recorded = {
            "seconds": round(time.perf_counter() - started, 2),
            "logs": bench.logs(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    return Report(state.facts, state.verdict, recorded, diagnosis)
