"""The proven causes on the terminal: what to change, in which layers, and what remains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.panel import Panel

from portproof.report.terminal import grid, text

if TYPE_CHECKING:
    from portproof.compare.proof import Diagnosis, Proven

_WIDTH = 110  # columns, as the panel of the first divergence
_NAMED = 4  # layers of one cause that are named


def render_diagnosis(console: Console, found: Diagnosis) -> None:
    """Print what a diagnosis found, in a panel."""
    plural = "s" if len(found.proven) > 1 else ""
    title = f"proven cause{plural}" if found.proven else "no proven cause"
    blocks: list[object] = []
    for cause in found.proven:
        rows = grid()
        rows.add_row(text("because"), text(cause.text))
        rows.add_row(text("layers"), text(_layers(cause.others)))
        rows.add_row(text("measured"), text(_measured(cause)))
        blocks += [text(cause.line, "bold yellow"), rows, ""]
    tried = f"{found.tried} capture{'' if found.tried == 1 else 's'} of the port, {found.seconds:.1f} s"
    if found.remaining:
        what = "remains with these repairs" if found.proven else "not proven: no repair that was tried made it vanish"
        blocks += [text(what, "bold"), *(text(f"  {line}") for line in found.remaining)]
    else:
        count = len(found.phases)
        phases = f"{count} phases" if count > 1 else found.phases[0]
        blocks.append(text(f"with {'these repairs' if plural else 'this repair'}: {found.summary} ({phases})", "green"))
    blocks.append(text(tried, "dim"))
    style = "yellow" if found.remaining else "green"
    panel = Panel(Group(*blocks), title=title, title_align="left", border_style=style, width=min(console.width, _WIDTH))  # type: ignore[arg-type]
    console.print(panel)
    console.print()


def _layers(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _measured(cause: Proven) -> str:
    if cause.relative == float("inf"):
        return f"{cause.what}: wrong before, {cause.residual:.1e} with the repair"
    return f"{cause.what}, {cause.phase}: {cause.relative:.3g} before, {cause.residual:.1e} with the repair"
