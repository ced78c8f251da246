"""The progress display: one live line per worker on stderr, and nothing at all where nobody watches."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

_NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}


class Progress:
    """The ``progress`` callback of `portproof.processes.run`, as a context manager.

    It writes to stderr, so that stdout stays clean for pipes, and clears its lines when it ends, however it ends.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._display: Display | None = None
        self._tasks: dict[str, TaskID] = {}
        self._seen: dict[str, set[str]] = {}

    def __enter__(self) -> Progress:
        if self._quiet:
            return self
        import sys

        from portproof.report.terminal import console_for

        console = self._console or console_for(sys.stderr)
        # FORCE_COLOR makes rich take a log file for a terminal; moving the cursor in one leaves garbage.
        if console.is_interactive and not console.is_dumb_terminal and console.file.isatty():
            self._display = make_display(console)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def __call__(self, side: str, event: Mapping[str, Any]) -> None:
        """Take one event of a worker: ``step`` with ``name`` and ``total``, ``done``, or ``error``."""
        if self._display is None:
            return
        if side not in self._tasks:
            self._tasks[side] = self._display.add_task(_NAMES.get(side, side), total=None, step="")
        task = self._tasks[side]
        if event["event"] == "step":
            # Two processes may share one side's phases, and count on their own: what counts is the different steps.
            seen = self._seen.setdefault(side, set())
            seen.add(event["name"])
            done, total = len(seen) - 1, event.get("total")
            self._display.update(task, total=total, completed=min(done, total or done), step=event["name"])
        elif event["event"] == "done":
            total = len(self._seen.get(side, ())) or 1
            self._display.update(task, total=total, completed=total, step="done")
            self._display.stop_task(task)
        elif event["event"] == "error":
            self._display.update(task, step="failed")
            self._display.stop_task(task)


def make_display(console: Console) -> Display:
    """A live line per task: spinner, name, bar, time and ``step``."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display
    from rich.table import Column

    return Display(
        SpinnerColumn(finished_text="✓" if not console.options.ascii_only else "+"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn(
            "{task.fields[step]}", style="dim", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        transient=True,
        refresh_per_second=8,
        redirect_stdout=False,  # it would send to stderr what was meant for a pipe
    )
