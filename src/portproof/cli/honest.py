"""Commands for the harness itself: honest runs of equal models, and the margins of the limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from portproof.cli import common

if TYPE_CHECKING:
    from portproof.honest.result import HonestResult, Nearest, Run
    from portproof.report import Report


@click.command()
@click.argument("name", default="", metavar="[MIRROR]")
@common.pair
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
    torch_factory: str | None,
    tensorflow_factory: str | None,
    inputs: tuple[str, ...],
    same_layout: bool,
    batches: str,
) -> int:
    """Look for false alarms: equal models under many conditions.

    A registered mirror, or a pair of your own that `portproof check` finds to be the same. Other seeds, initial values,
    batch sizes, input sizes, extreme inputs, threads. Exit code 1 if any run was called different.
    """
    from portproof.check import Settings
    from portproof.honest.runner import run

    own = bool(torch_factory or tensorflow_factory or inputs)
    mirror = (
        common.mirror_of(name, torch_factory, tensorflow_factory, inputs, same_layout, batches)
        if own
        else common.mirror_named(name)
    )
    policy = common.read_policy(policy_file)
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
    click.echo(f"\n{_summary(result)}")
    return 1 if result.alarms else 0


def _summary(result: HonestResult) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result.kinds.items()))
    return (
        f"{len(result.runs)} honest runs of {result.mirror} ({result.cell}) in {result.seconds:.0f} s: "
        f"{result.count('same')} same, {result.count('undecided')} could not be judged, "
        f"{result.count('refused')} refused by a framework, {len(result.alarms)} false alarms (captured: {kinds})"
    )


@click.command()
@click.argument("files", nargs=-1, required=True, type=common.FILE, metavar="HONEST.json...")
@click.option("--selftest", type=common.FILE, metavar="FILE", help="What `portproof selftest --json` wrote.")
@click.option("--json", "json_file", type=common.FILE, metavar="FILE", help="Write the margins as JSON.")
@click.option("--html", "html_file", type=common.FILE, metavar="FILE", help="Write the margin plot.")
@common.debug
def margins(files: tuple[Path, ...], selftest: Path | None, json_file: Path | None, html_file: Path | None) -> int:
    """How far honest values and planted defects lie from the limits."""
    from portproof.files import write_text
    from portproof.honest.margins import by_limit, read_selftest, to_json
    from portproof.honest.margins import margins as measure
    from portproof.honest.plot import page
    from portproof.honest.result import HonestResult

    results = [HonestResult.load(path) for path in files]
    rows = measure(results, read_selftest(selftest) if selftest else ())
    lines = [_summary(result) for result in results]
    click.echo("\n".join(lines) + "\n")
    click.echo(f"{'':28}{'nearest honest':>30}   {'nearest defect':>30}")
    for row in [*by_limit(rows), *rows]:
        title = f"{row.limit} (all)" if row in by_limit(rows) else f"  {row.check}"
        click.echo(f"{title:28}{_share(row.nearest):>30}   {_share(row.defect):>30}  {row.defect_name}")
    if json_file:
        import json

        body = {"runs": lines, "limits": to_json(by_limit(rows)), "checks": to_json(rows)}
        write_text(json_file, json.dumps(body, indent=1) + "\n")
    if html_file:
        write_text(html_file, page(rows, lines))
    return 0


def _share(found: Nearest | None) -> str:
    if found is None:
        return "-"
    return f"{found.measured:.1e} of {found.allowed:.1e} = {found.share:.1e}"


COMMANDS = (honest, margins)
