"""Drift from a baseline on the terminal: measured, limit, where it begins, and one line of verdict a side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from portproof.compare.checks import FAIL, PASS
from portproof.report.terminal import console_for, cut, mark, table, text

if TYPE_CHECKING:
    from portproof.matrix.baseline import SideDrift

_NAME = 30  # columns for the name of a tensor


def render_baseline(
    subject: str, sides: Sequence[SideDrift], *, console: Console | None = None, verbose: bool = False
) -> None:
    """Print how far each side is from its baseline; with ``verbose`` also what is equal to the bit."""
    console = console or console_for(sys.stdout)
    for side in sides:
        versions = " and now ".join(dict.fromkeys([side.baseline_version, side.version]))
        console.print(text(side.side, "bold") + text(f"  {versions}"))
        made = table("", "phase", "what", "drift", "limit", "tensors", "equal", "closest to the limit")
        for column in made.columns[3:7]:
            column.justify = "right"
        for check in side.checks:
            if check.equal == check.tensors and not verbose:
                continue
            made.add_row(
                mark(console, FAIL if check.above else PASS, "" if not check.above else f"{check.above} above"),
                *map(text, (check.phase, check.title, f"{check.measured:.1e}", f"{check.limit:.1e}")),
                *map(text, (str(check.tensors), str(check.equal), cut(check.where, _NAME))),
            )
        if made.row_count:
            console.print(made)
        for line in side.missing:
            console.print(mark(console, FAIL, line))
        console.print()
    for side in sides:
        tensors = sum(check.tensors for check in side.checks)
        if side.identical:
            said = f"  {subject}, {side.side}: {tensors} tensors equal to the bit"
            console.print(text("SAME", "bold green") + text(said))
        elif not side.drifted:
            equal = sum(check.equal for check in side.checks)
            said = f"  {subject}, {side.side}: within the limits; {equal} of {tensors} tensors equal to the bit"
            console.print(text("SAME", "bold green") + text(said))
        else:
            where = f", first in {side.begins.layer} ({side.begins.phase})" if side.begins else ""
            above = sum(check.above for check in side.checks)
            said = f"  {subject}, {side.side}: {above} tensors above their limit{where}"
            console.print(text("DRIFTED", "bold red") + text(said))
