"""The self-test in the terminal: which planted defects were caught, where, and what simpler methods see of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.padding import Padding

from portproof.defects import Defect
from portproof.report.terminal import console_for, cut, grid, table, text
from portproof.selftest.result import CAUGHT, METHODS, MISSED, NO_EFFECT, RAISES, Result, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

_HEADINGS = {"parameters": "params", "shapes": "shapes", "gradients": "grads"}
_NOTHING = "·"


def render_catalogue(defects: Sequence[Defect], *, console: Console | None = None) -> None:
    """Print the catalogue: names and stories by group."""
    console = console or console_for(sys.stdout)
    for group, members in groupby(defects, key=lambda defect: defect.group):
        console.print(text(group, "bold"))
        rows = grid()
        for defect in members:
            rows.add_row(text(defect.name), text(defect.story))
        console.print(Padding(rows, (0, 0, 1, 0)))


def render_result(
    result: Result, *, console: Console | None = None, quiet: bool = False, verbose: bool = False
) -> None:
    """Print a self-test; the last line sums up.

    ``caught`` counts the places of those tried at which a check failed, ``named`` those at which the verdict also names
    the right layer; the numbers under a simpler method count the places at which it notices anything.
    """
    console = console or console_for(sys.stdout)
    if not quiet:
        _table(console, result)
        _remarks(console, result)
        if verbose:
            _places(console, result)
    _last_line(console, result)


def _table(console: Console, result: Result) -> None:
    methods = [name for name in METHODS if result.methods and name not in result.alarms]
    rows = table("defect", "caught", "by", "named", *(_HEADINGS.get(name, name) for name in methods))
    for column in (1, 3, *range(4, 4 + len(methods))):
        rows.columns[column].justify = "right"
    for column in rows.columns:
        column.no_wrap = True
    shown = [row for row in result.rows if row.effective]
    for group, members in groupby(shown, key=lambda row: row.defect.group):
        rows.add_row(text(group, "bold"))
        for row in members:
            rows.add_row(*(text(cell, style) for cell, style in _cells(row, methods)))
    if shown:
        rows.add_section()
        total = len(result.outcomes)
        caught = total - len(result.missed)
        seen = [str(sum(row.seen_by(method) for row in shown)) for method in methods]
        cells = ("all", f"{caught}/{total}", "", str(caught - len(result.misnamed)), *seen)
        rows.add_row(*(text(cell, "bold") for cell in cells))
        console.print(rows)
        console.print()


def _cells(row: Row, methods: Sequence[str]) -> list[tuple[str, str]]:
    tried, caught = len(row.effective), row.count(CAUGHT)
    by = row.checks[0] + (f" +{len(row.checks) - 1}" if len(row.checks) > 1 else "") if row.checks else _NOTHING
    seen = [row.seen_by(method) for method in methods]
    return [
        (f" {row.defect.name}", ""),
        (f"{caught}/{tried}", "green" if caught == tried else "bold red"),
        (by, "dim"),
        (str(row.located), "green" if row.located == caught else "bold yellow"),
        *((str(count) if count else _NOTHING, "" if count else "dim") for count in seen),
    ]


def _remarks(console: Console, result: Result) -> None:
    rows = grid()
    for row, outcome in result.missed:
        rows.add_row(text("MISSED", "bold red"), text(f"{row.defect.name} in {outcome.place}: {row.defect.story}"))
    for row, outcome in result.misnamed:
        named = f"{row.defect.name} in {outcome.place}: named {outcome.named or 'nothing'} ({outcome.check})"
        rows.add_row(text("named otherwise", "bold yellow"), text(named))
    for status, title in ((RAISES, "does not run"), (NO_EFFECT, "without effect here")):
        for row in result.rows:
            places = [outcome.place for outcome in row.outcomes if outcome.status == status]
            if places:
                more = f" and {len(places) - 1} more" if len(places) > 1 else ""
                rows.add_row(text(title), text(f"{row.defect.name} in {places[0]}{more}"))
    if absent := [row.defect.name for row in result.rows if not row.places]:
        rows.add_row(text("no such layers here"), text(", ".join(absent)))
    for method in result.alarms:
        rows.add_row(text("false alarm"), text(f"{METHODS[method]}: objects to the port as it is, so it was left out"))
    if rows.row_count:
        console.print(rows)
        console.print()


def _places(console: Console, result: Result) -> None:
    rows = table("defect", "place", "", "by", "named", "seconds")
    for row in result.rows:
        for outcome in row.outcomes:
            cells = (row.defect.name, outcome.place, outcome.status, outcome.check, outcome.named)
            rows.add_row(*(text(cut(cell, 60)) for cell in cells), text(f"{outcome.seconds:.1f}", "dim"))
    console.print(rows)
    console.print()


def _last_line(console: Console, result: Result) -> None:
    total, missed = len(result.outcomes), len(result.missed)
    caught, seconds = total - missed, result.recorded.get("seconds")
    took = f", {seconds:.0f} s" if isinstance(seconds, (int, float)) else ""
    if not total:
        console.print(
            text("NOTHING TRIED", "bold yellow") + text(f"  {result.subject}: no defect has an effect here{took}")
        )
        return
    located = caught - len(result.misnamed)
    named = f"; the right layer named in {located} of {caught}" if caught else ""
    word, style = (CAUGHT, "bold green") if not missed else (MISSED, "bold red")
    line = f"  {result.subject}: {caught} of {total} planted defects caught{named} (seed {result.seed}{took})"
    console.print(text(word.upper(), style) + text(line), soft_wrap=True)


class SelfTestProgress:
    """The ``progress`` callback of `portproof.selftest.run`, as a context manager: one live line on a terminal."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream, quiet
        self._display: Display | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> SelfTestProgress:
        console = console_for(self._stream)
        if not self._quiet and console.is_interactive and not console.is_dumb_terminal and self._stream.isatty():
            from portproof.report.progress import make_display

            self._display = make_display(console)
            self._task = self._display.add_task("self-test", total=None, step="")
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def __call__(self, done: int, total: int, last: str) -> None:
        """Take note of ``done`` cases of ``total``; ``last`` is what was done last."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=done, total=total or None, step=f"{done}/{total}  {last}")
