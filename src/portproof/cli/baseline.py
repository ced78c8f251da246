"""Commands on a stored baseline: baseline save, baseline check."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portproof.cli import common

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portproof.trace import Trace

_traces = click.option(
    "--traces",
    type=common.FILE,
    metavar="DIR",
    help="Take the traces of this folder (a cell, or --traces of parity) instead of running the mirror.",
)


@click.group()
@common.debug
def baseline() -> None:
    """Keep what both sides compute, and find out later or elsewhere whether they still do."""


@baseline.command()
@click.argument("folder", type=common.FILE)
@click.option("--mirror", "name", default="", metavar="NAME", help="The mirror to run.")
@_traces
@common.running
@common.debug
def save(folder: Path, name: str, traces: Path | None, **running: Any) -> int:
    """Write the baseline to FOLDER: of every tensor of parity at most 512 values, of both sides, both precisions."""
    from portproof.matrix import baseline as store

    with _captured(name, traces, running) as (subject, found):
        size = store.save(found, folder, subject=subject)
    click.echo(f"{folder}: {subject}, {', '.join(found)}, {size / 1e6:.1f} MB")
    return 0


@baseline.command()
@click.argument("folder", type=common.FILE)
@_traces
@click.option("--policy", "policy_file", type=common.FILE, metavar="FILE", help="Limits, as TOML (README: Limits).")
@click.option("-v", "--verbose", is_flag=True, help="Print also what did not drift.")
@common.running
@common.debug
def check(folder: Path, traces: Path | None, policy_file: Path | None, verbose: bool, **running: Any) -> int:
    """Run the mirror of the baseline in FOLDER again, and compare: exit code 1 if a side drifted above its limit."""
    import tempfile

    from portproof.matrix import baseline as store
    from portproof.report.baseline import render_baseline

    policy = common.read_policy(policy_file)
    subject, kept = store.load(folder)
    running["seed"] = next(iter(kept.values())).manifest.facts["seed"]  # another one means other weights
    with _captured(subject, traces, running) as (_, found), tempfile.TemporaryDirectory(prefix="portproof-") as scratch:
        sides = [
            store.check_side(trace, store.thin(found[side], Path(scratch) / side), policy)
            for side, trace in kept.items()
        ]
    render_baseline(subject, sides, verbose=verbose)
    return common.EXIT_CODES["differs" if any(side.drifted for side in sides) else "same"]


@contextmanager
def _captured(name: str, traces: Path | None, running: dict[str, Any]) -> Iterator[tuple[str, dict[str, Trace]]]:
    """The traces of both sides: those of a folder, or of a run of the mirror, which are gone afterwards."""
    import tempfile

    from portproof.check import SIDES
    from portproof.check import check as run_check
    from portproof.report.progress import Progress
    from portproof.trace import Trace

    if traces is not None:
        found = {side: Trace.open(traces / side) for side in SIDES}
        yield next(iter(found.values())).manifest.subject, found
        return
    mirror = common.mirror_named(name)
    with tempfile.TemporaryDirectory(prefix="portproof-") as scratch:
        settings = common.make_settings(weights="shared", traces=Path(scratch) / "traces", **running)
        with Progress() as progress:
            run_check(mirror, settings=settings, progress=progress)
        yield mirror.name, {side: Trace.open(Path(scratch) / "traces" / side, verify=False) for side in SIDES}


COMMANDS = (baseline,)
