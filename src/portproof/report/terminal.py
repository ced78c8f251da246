"""What all terminal output is made of: consoles, marks, text that cannot harm a terminal, tables without frames."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from portproof.compare.checks import FAIL, NOTE, PASS, UNKNOWN

if TYPE_CHECKING:
    from portproof.errors import PortproofError

_UNWATCHED_WIDTH = 120  # columns of a pipe or a file, which have no width of their own
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# A sign, a colour and always a word: colours are off with NO_COLOR, and not everybody sees them.
_MARKS = {
    PASS: ("✓", "+", "pass", "green"),
    FAIL: ("✗", "x", "FAIL", "bold red"),
    NOTE: ("·", "-", "note", "cyan"),
    UNKNOWN: ("?", "?", "open", "bold yellow"),
}


def console_for(stream: TextIO) -> Console:
    """A console on ``stream``, as wide as the terminal; 120 columns where there is none."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")  # a name that the terminal cannot show must not end the report
    known = stream.isatty() or "COLUMNS" in os.environ
    return _Console(file=stream, width=None if known else _UNWATCHED_WIDTH, highlight=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, where rich would end the process with 1: the code for models that differ."""
        raise BrokenPipeError


def render_error(error: PortproofError, *, console: Console | None = None, debug: bool = False) -> None:
    """Print one message on stderr; what led to it only with ``debug``."""
    console = console or console_for(sys.stderr)
    console.print(text("error: ", "bold red") + text(str(error)), soft_wrap=True)
    if debug and error.details:
        console.print(text(error.details.rstrip(), "dim"), soft_wrap=True)


def text(content: str, style: str = "") -> Text:
    """Literal text: no markup in it is read, and no control character of it reaches the terminal."""
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", content), style)


def mark(console: Console, status: str, word: str | None = None) -> Text:
    """The mark of a check's status: sign, word and colour."""
    sign, ascii_sign, usual, style = _MARKS[status]
    return text(
        f"{ascii_sign if console.options.ascii_only else sign} {usual if word is None else word}".rstrip(), style
    )


def grid() -> Table:
    """Names and what belongs to them, without a heading."""
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True, style="dim")
    made.add_column(overflow="fold")
    return made


def table(*headings: str) -> Table:
    """Columns with headings and no frame."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def cut(name: str, width: int) -> str:
    """``name`` without its beginning where it is too long: the end says more about a tensor."""
    return name if len(name) <= width else "..." + name[len(name) - max(width - 3, 1) :]


def shape(sizes: Sequence[int]) -> str:
    """A shape as both frameworks write it."""
    return "(" + ", ".join(map(str, sizes)) + ("," if len(sizes) == 1 else "") + ")"
