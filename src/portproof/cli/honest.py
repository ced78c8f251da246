"""Commands for the harness itself: honest runs of equal models, and the margins of the limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from portproof.cli import common

if TYPE_CHECKING:
    from portproof.honest.result import HonestResult, Run
    from portproof.report import Report


@click.command()
@click.argument("name", default="", metavar="[MIRROR]")
@click.option("--runs", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once, two processes each.")
@click.option("--seed", default=0, show_default=True, help="Seed of the conditions.")
@click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Seconds for one run.")
@click.option("--policy", "policy_file", type=common.FILE, metavar="FILE", help="Limits, as TOML (README: Limits).")
@click.option("--json", "json_file", type=common.FILE, metavar="FILE", help="Write all runs as JSON (see `margins`).")
@click.option(
    "--keep", type=common.FILE, metavar="DIR", help="Keep the report of every run that is not called the same."
)
@common.debug
def honest(
    name: str,
    runs: int,
    jobs: int,
    seed: int,
    timeout: float,
    policy_file: Path | None,
    json_file: Path | None,
    keep: Path | None,
) -> int:
    """Look for false alarms: a mirror's two sides, which are equal, under many conditions.

    Seeds, initial values, batch sizes, input sizes, extreme inputs, threads. Exit code 1 if any run was called
    different.
    """
    from portproof.check import Settings
    from portproof.honest.runner import run

    mirror, policy = common.mirror_named(name), common.read_policy(policy_file)
    done = 0

    def say(found: Run, report: Report | None) -> None:
        nonlocal done
        done += 1
        where = found.conditions
        text = f"{done:5d}/{runs}  {found.outcome:9}  {found.seconds:6.1f} s  {where['kind']:10}  {where['values']}"
        click.echo(text if found.outcome == "same" else f"{text}: run {where['index']}: {found.why}")
        if keep and report and not report.same:
            keep.mkdir(parents=True, exist_ok=True)
            report.save(keep / f"{where['index']}.json")

    result = run(mirror, runs, jobs=jobs, seed=seed, settings=Settings(timeout=timeout), policy=policy, progress=say)
    if json_file:
        result.save(json_file)
    _render(result)
    return 1 if result.alarms else 0


def _render(result: HonestResult) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.kinds.items())
    undecided, refused = result.count("undecided"), result.count("refused")
    click.echo(
        f"\n{len(result.runs)} honest runs of {result.mirror} ({result.cell}) in {result.seconds:.0f} s: "
        f"{result.count('same')} same, {undecided} could not be judged, {refused} refused by a framework, "
        f"{len(result.alarms)} false alarms\ncaptured: {kinds}"
    )


COMMANDS = (honest,)
