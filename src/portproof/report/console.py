"""The report on the terminal: who ran, stages side by side, checks, the first divergence, and one line of verdict."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from portproof.compare.checks import FAIL, NOTE, PASS, UNKNOWN, Check, same_shape
from portproof.compare.verdict import DIFFERS, SAME, UNDECIDED
from portproof.report import words
from portproof.report.listing import render_list, render_show
from portproof.report.progress import Progress
from portproof.report.terminal import console_for, cut, grid, mark, render_error, shape, table, text

if TYPE_CHECKING:
    from portproof.compare.divergence import Divergence
    from portproof.compare.facts import Measurement
    from portproof.report import Report

__all__ = ["Progress", "console_for", "render_error", "render_list", "render_report", "render_show"]

_STACKED_BELOW = 112  # columns; narrower, the tensor that came closest stands with the check's title
_MARK, _NUMBER = 8, 10  # columns that a mark and a number take, with the space behind them
_FOUND = 32  # columns for what is no number of its own, such as "214,222 in 195 + 6,888 in 108"
_OUTCOME = {SAME: "bold green", DIFFERS: "bold red", UNDECIDED: "bold yellow"}
_SHOWN = {PASS: 2, NOTE: 6, FAIL: 3, UNKNOWN: 6}  # details of one check, unless all are asked for


def render_report(
    report: Report, *, console: Console | None = None, quiet: bool = False, stages: bool = True, verbose: bool = False
) -> None:
    """Print a report; the last line is the verdict.

    Args:
        report: what was found. Of ``recorded``, ``seconds`` (float), ``logs`` (side to path) and ``samples`` (names)
            are shown where they are there.
        console: where to; stdout if not given.
        quiet: print the verdict's line alone.
        stages: show the stages' shapes side by side.
        verbose: show every detail of every check.
    """
    page = _Page(console or console_for(sys.stdout), report, verbose)
    if not quiet:
        page.header()
        if stages:
            page.stages()
        page.samples()
        page.checks()
        page.details()
        page.divergence()
        page.notes()
    page.last_line()


def _outputs(row: Sequence[float]) -> str:
    few = "  ".join(f"{value:+.6f}" for value in row[:4])
    return few if len(row) <= 4 else f"{few} …"


class _Page:
    """One report on one console."""

    def __init__(self, console: Console, report: Report, verbose: bool) -> None:
        self.console, self.report, self.verbose = console, report, verbose
        self.facts, self.verdict = report.facts, report.verdict
        self.a, self.b = words.side_names(report.facts)
        self.stacked = console.width < _STACKED_BELOW

    def header(self) -> None:
        """What was compared with what, and on which machine."""
        a, b = self.facts.sides["a"], self.facts.sides["b"]
        rows = grid()
        rows.add_row(text("comparing"), text(words.subject(self.facts), "bold"))
        for name, side in ((self.a, a), (self.b, b)):
            rows.add_row(text(name), text(f"{words.built(side)}\n{side['factory']}"))
        machines = dict.fromkeys([words.machine(a), words.machine(b)])
        rows.add_row(text("machine"), text("\n".join(machines)))
        rows.add_row(text("weights"), text(words.weights(a, b)))
        samples = self.report.recorded.get("samples")
        if samples and not self.facts.samples:
            rows.add_row(text("samples"), text(", ".join(samples)))
        if (self.a, self.b) != ("original", "port"):
            rows.add_row(text("words"), text('below, "original" is a and "port" is b'))
        self._block(None, rows)

    def samples(self) -> None:
        """What both sides make of the real examples, in float32."""
        found, names = self.facts.samples, self.report.recorded.get("samples", [])
        if not found or len(names) != len(found["a"]):
            return
        rows = table("sample", f"{self.a}: output", f"{self.b}: output", "class")
        for name, x, y in zip(names, found["a"], found["b"], strict=True):
            classes = [row.index(max(row)) for row in (x, y)]
            shown = str(classes[0]) if classes[0] == classes[1] else f"{classes[0]} and {classes[1]}"
            rows.add_row(text(str(name)), text(_outputs(x)), text(_outputs(y)), text(shown))
        self._block("samples, float32", rows)

    def stages(self) -> None:
        """The output shape of every stage on both sides."""
        found = self.facts.structure.stages
        if not found:
            return
        rows = table("stage", "kind", self.a, self.b, "")
        for row in found:
            if row["b"] is None:
                missing = "no counterpart" if row["other"] is None else "not recorded"
                cells = text(missing, "yellow"), self._mark(NOTE)
            else:
                cells = text(shape(row["b"])), self._mark(PASS if same_shape(row["a"], row["b"]) else FAIL)
            rows.add_row(text(row["name"]), text(row["kind"], "dim"), text(shape(row["a"])), *cells)
        self._block("stages", rows)

    def checks(self) -> None:
        """All checks, in sections."""
        for section, found in words.in_sections(self.verdict.checks):
            self._block(None, self._structure(found) if section is words.STRUCTURE else self._numbers(section, found))
        if self.stacked:
            self._block(None, text("After a title stands the tensor that came closest to its limit.", "dim"))

    def _structure(self, checks: Sequence[Check]) -> Table:
        rows = table("", words.STRUCTURE.heading, "")
        rows.columns[0].width = _MARK - 2
        rows.columns[1].width = min(self._title_width(), self.console.width - _MARK - _FOUND)
        for check in checks:
            found = text(check.value)
            if check.status in (FAIL, UNKNOWN) and check.limit not in ("", check.value):
                found += text(f"\nexpected {check.limit}")
            rows.add_row(self._mark(check.status), text(check.title), found)
        return rows

    def _numbers(self, section: words.Section, checks: Sequence[Check]) -> Table:
        columns = [*section.columns, "tensors"]
        # The columns of numbers stand below each other in all sections.
        width = self._title_width() - _NUMBER * (len(columns) - 3)
        rest = self.console.width - _MARK - self._title_width() - 3 * _NUMBER - 2  # of the last padding
        rows = table("", section.heading, *(self._heading(column) for column in columns))
        rows.columns[0].width, rows.columns[1].width = _MARK - 2, width
        for column in rows.columns[2:]:
            column.justify, column.width, column.no_wrap = "right", _NUMBER - 2, True
        if not self.stacked:
            rows.add_column("closest to the limit", overflow="fold")
        for check in checks:
            title = text(section.title(check))
            closest = check.where if check.count > 1 else ""  # of one tensor, none came closer than others
            closest = closest if self.verbose else cut(closest, width if self.stacked else rest)
            if self.stacked and closest:
                fits = len(title) + len(closest) + 3 <= width
                title += text(f" ({closest})" if fits else f"\n{closest}", "dim")
            value, _, own = check.value.partition(" (original ")
            values = [value, own.rstrip(")"), check.limit] if section.own_error else [check.value, check.limit]
            cells = [*map(text, values), text(f"{check.count:,}"), *([] if self.stacked else [text(closest, "dim")])]
            rows.add_row(self._mark(check.status), title, *cells)
        return rows

    def _heading(self, column: str) -> str:
        name = {"original": self.a, "port": self.b}.get(column, column)
        return name if len(name) <= _NUMBER - 2 else name.partition(":")[0]

    def _title_width(self) -> int:
        if self.stacked:
            return min(self.console.width - _MARK - 3 * _NUMBER, 64)
        return 36 if self.console.width < 120 else 46

    def details(self) -> None:
        """What stands behind the checks: everything that failed, and whatever was left out or taken out."""
        rows = grid()
        for check in self.verdict.checks:
            lines = list(check.details)
            if self.verbose and check.where:
                lines.insert(0, f"closest to the limit: {check.where}")
            if lines:
                most = len(lines) if self.verbose else _SHOWN[check.status]
                lines = lines if len(lines) <= most else [*lines[:most], "more with --verbose"]
                body = text(check.title) + text("".join(f"\n{line}" for line in lines), "dim")
                rows.add_row(self._mark(check.status), body)
        if rows.row_count:
            self._block("details", rows)

    def divergence(self) -> None:
        """Where the two first part."""
        found = self.verdict.divergence
        if found is None:
            return
        measured = words.measured_at(self.facts, found)
        other = f"   ({self.b}: {found.other})" if found.other and found.other != found.layer else ""
        lines = [
            text(found.layer, "bold") + text(other),
            text(f"{words.diverged(found)}: relative difference {found.relative:.3g}"),
        ]
        if found.name not in ("", found.layer):
            lines.append(text(f"tensor {found.name}", "dim"))
        if reached := words.reached(found):
            lines.append(text(reached, "bold"))
        rows = grid()
        for name, value in self._values(found, measured):
            rows.add_row(text(name), text(value))
        for name, texts in (("settings", found.settings), ("likely", found.causes)):
            if texts:
                rows.add_row(text(name), text("\n".join(texts), "bold yellow" if name == "likely" else ""))
        panel = Panel(Group(*lines, "", rows), title="first divergence", title_align="left", border_style="red",
                      width=min(self.console.width, 110))  # fmt: skip
        self.console.print(panel)
        self.console.print()

    def _values(self, found: Divergence, measured: Measurement | None) -> Iterator[tuple[str, str]]:
        if measured is not None and measured.distance.shape_a != measured.distance.shape_b:
            yield self.a, f"shape {shape(measured.distance.shape_a)}"
            yield self.b, f"shape {shape(measured.distance.shape_b)}"
            return
        values = [f"{found.value_a:.9g}", f"{found.value_b:.9g}"]
        if values[0] == values[1]:
            values = [repr(found.value_a), repr(found.value_b)]
        width = max(map(len, values))
        at = f"   worst value, at {list(found.index)}" if found.index else ""
        bad = (measured.distance.bad_a, measured.distance.bad_b) if measured else (0, 0)
        for name, value, count in zip((self.a, self.b), values, bad, strict=True):
            nan = f"   and {count:,} values NaN or Inf" if count else ""
            yield name, f"{value:>{width}}{at}{nan}"
            at = ""
        if measured is not None:
            yield "overall", f"max abs {measured.distance.max_abs:.3g}, cosine {measured.distance.cosine:.9g}"

    def notes(self) -> None:
        """What was done to the models and the tensors, and where the logs are."""
        rows = grid()
        for name, side in ((self.a, self.facts.sides["a"]), (self.b, self.facts.sides["b"])):
            if side["notes"]:
                rows.add_row(text(name), text("\n".join(side["notes"])))
        done = Counter(each.note for each in self.facts.measurements if each.note)
        if done:
            lines = (f"{note} ({count:,} tensors)" for note, count in done.items())
            rows.add_row(text("measured"), text("\n".join(lines)))
        if self.verbose and self.facts.settings:
            lines = (f"{row['layer']}: {row['setting']} is {row['a']} and {row['b']}" for row in self.facts.settings)
            rows.add_row(text("settings"), text("\n".join(lines)))
        if logs := self.report.recorded.get("logs"):
            rows.add_row(text("logs"), text("\n".join(logs.values())))
        if rows.row_count:
            self._block("notes", rows)

    def last_line(self) -> None:
        """The verdict."""
        verdict, seconds = self.verdict, self.report.recorded.get("seconds")
        took = f", {seconds:.1f} s" if isinstance(seconds, (int, float)) else ""
        summary, count = verdict.summary.removeprefix("the same model: "), len(verdict.checks)
        line = f"  {words.subject(self.facts)}: {summary} ({count} checks{took})"
        self.console.print(text(verdict.outcome.upper(), _OUTCOME[verdict.outcome]) + text(line), soft_wrap=True)

    def _mark(self, status: str) -> Text:
        return mark(self.console, status)

    def _block(self, heading: str | None, body: Table | Text) -> None:
        if heading:
            self.console.print(text(heading, "bold"))
        self.console.print(body)
        self.console.print()
