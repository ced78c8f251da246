"""The diagnosis of `portproof doctor` on the terminal: facts in groups, then each problem with its fix."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from portproof.diagnosis import Severity

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from portproof.diagnosis import Diagnosis

_MARKS = {Severity.ERROR: ("✗", "bold red"), Severity.WARNING: ("!", "bold yellow")}


def waiting(console: Console | None, *, quiet: bool = False) -> AbstractContextManager[object]:
    """A spinner while the frameworks are imported; nothing where nobody watches."""
    console = console or _console()
    if quiet or not console.is_terminal:
        return nullcontext()
    return console.status("importing torch and TensorFlow, each in a process of its own …")


def render(diagnosis: Diagnosis, console: Console | None, *, quiet: bool = False) -> None:
    """Print facts (not when quiet), problems with their fixes, and one last line with the outcome."""
    from rich.table import Table
    from rich.text import Text

    console = console or _console()
    if not quiet:
        for group in diagnosis.groups:
            table = Table(
                title=group.title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
            )
            table.add_column(no_wrap=True, style="dim")
            table.add_column(overflow="fold")
            for name, value in group.facts.items():
                table.add_row(name, Text(value))
            console.print(table)
            console.print()
    for problem in diagnosis.problems:
        mark, style = _MARKS[problem.severity]
        console.print(Text.assemble((f"{mark} {problem.severity}: ", style), problem.summary), soft_wrap=True)
        console.print(Text.assemble(("  fix: ", "bold"), problem.fix), soft_wrap=True)  # soft: a fix is copied
    console.print(_outcome(diagnosis))


def _outcome(diagnosis: Diagnosis) -> str:
    errors = sum(problem.severity is Severity.ERROR for problem in diagnosis.problems)
    warnings = len(diagnosis.problems) - errors
    counted = " and ".join(
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in ((errors, "error"), (warnings, "warning"))
        if count
    )
    if errors:
        return f"[bold red]Nothing can be judged here yet[/]: {counted}"
    return f"[bold green]Ready to judge[/]{f': {counted}' if counted else ''}"


def _console() -> Console:
    from rich.console import Console

    return Console()
