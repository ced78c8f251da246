"""The command `selftest`: plants defects in a port that is right, and shows which are caught."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from portproof.cli import common


@click.command()
@click.argument("name", default="", metavar="[MIRROR]")
@common.pair
@click.option(
    "--only", multiple=True, metavar="NAME", help="These defects or groups alone (may be repeated); see --list."
)
@click.option("--list", "listing", is_flag=True, help="List the defects with their stories, and run nothing.")
@click.option(
    "--places", type=click.IntRange(1), default=1, show_default=True, help="Random places to try each defect at."
)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Ports that run at once.")
@click.option("--methods/--no-methods", default=True, show_default=True, help="Also ask simpler methods.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights, inputs and places.")
@click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Seconds for one capture.")
@click.option("--torch-python", metavar="PYTHON", help="Interpreter that runs the PyTorch side.")
@click.option("--tensorflow-python", metavar="PYTHON", help="Interpreter that runs the TensorFlow side.")
@click.option("--policy", "policy_file", type=common.FILE, metavar="FILE", help="Limits, as TOML (README: Limits).")
@click.option("--json", "json_file", type=common.FILE, metavar="FILE", help="Write everything as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the last line alone.")
@click.option("-v", "--verbose", is_flag=True, help="Print every place.")
@common.debug
def selftest(
    name: str,
    only: tuple[str, ...],
    listing: bool,
    places: int,
    jobs: int,
    methods: bool,
    policy_file: Path | None,
    json_file: Path | None,
    quiet: bool,
    verbose: bool,
    torch_factory: str | None,
    tensorflow_factory: str | None,
    inputs: tuple[str, ...],
    same_layout: bool,
    batches: str,
    **running: Any,
) -> int:
    """Can the check fail? Plant porting defects, one at a time, and see which are caught.

    A registered mirror, or a pair of your own that `portproof check` finds to be the same. Exit codes: 0 every defect
    that has an effect was caught, 1 one was not, 2 it could not be tried.
    """
    from portproof.defects import chosen
    from portproof.report.selftest import SelfTestProgress, render_catalogue, render_result

    defects = chosen(only)
    if listing:
        render_catalogue(defects)
        return 0
    from portproof.selftest import run

    own = bool(torch_factory or tensorflow_factory or inputs)
    mirror = (
        common.mirror_of(name, torch_factory, tensorflow_factory, inputs, same_layout, batches)
        if own
        else common.mirror_named(name)
    )
    settings = common.make_settings(weights="shared", traces=None, threads=1, lanes=1, **running)
    with SelfTestProgress(sys.stderr, quiet=quiet) as progress:
        result = run(
            mirror,
            defects=defects,
            places=places,
            jobs=jobs,
            methods=methods,
            settings=settings,
            policy=common.read_policy(policy_file),
            progress=progress,
        )
    if json_file:
        from portproof.files import write_text

        write_text(json_file, json.dumps(result.to_json(), indent=1) + "\n")
    render_result(result, quiet=quiet, verbose=verbose)
    return 0 if result.passed else 1


COMMANDS = (selftest,)
