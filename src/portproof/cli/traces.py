"""Commands on what is stored, or to be stored: compare, judge, capture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from portproof.cli import common
from portproof.errors import InputError


@click.command()
@click.argument("a", type=common.FILE)
@click.argument("b", type=common.FILE)
@common.output
def compare(a: Path, b: Path, policy_file: Path | None, **output: Any) -> int:
    """Judge two stored traces: torch with TensorFlow, or any two of one side."""
    from portproof.compare import compare as compare_traces
    from portproof.compare.verdict import judge
    from portproof.report import Report
    from portproof.trace import Trace

    policy = common.read_policy(policy_file)
    facts = compare_traces(Trace.open(a), Trace.open(b))
    return common.finish(Report(facts, judge(facts, policy)), **output)


@click.command(name="judge")
@click.argument("report", type=common.FILE)
@common.output
def judge_report(report: Path, policy_file: Path | None, **output: Any) -> int:
    """Judge the measurements of a stored report again, under another policy; nothing is run."""
    from portproof.report import Report

    loaded = Report.load(report)
    policy = common.read_policy(policy_file)
    return common.finish(loaded.rejudged(policy) if policy else loaded, **output)


@click.command()
@click.argument("side", type=click.Choice(["torch", "tensorflow"]))
@click.argument("target", type=common.FILE)
@click.option("--mirror", "name", default="", metavar="NAME", help="The mirror whose side it is.")
@click.option("--factory", metavar="WHERE:FACTORY", help="A factory of your own instead.")
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]SHAPE[:DTYPE]", help="Inputs for --factory.")
@click.option("--weights-from", type=common.FILE, metavar="TRACE", help="Take the weights of this trace.")
@click.option("--python", metavar="PYTHON", help="Interpreter to run it in.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights and inputs.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@common.only
@common.debug
def capture(
    side: str,
    target: Path,
    name: str,
    factory: str | None,
    inputs: tuple[str, ...],
    weights_from: Path | None,
    python: str | None,
    seed: int,
    threads: int,
    only: tuple[str, ...],
) -> int:
    """Capture one SIDE alone into the folder TARGET, to be compared elsewhere or later."""
    from portproof.check import Settings
    from portproof.check import capture as capture_side
    from portproof.mirror import InputSpec, Mirror
    from portproof.plan import phases_for
    from portproof.report.progress import Progress
    from portproof.trace import Trace

    if factory:
        if not inputs:
            raise InputError("--factory needs at least one --input SHAPE.")
        specs = tuple(InputSpec.parse(text, default_name="x" if i == 0 else f"x{i}") for i, text in enumerate(inputs))
        mirror = Mirror(Path(factory.rpartition(":")[0]).stem, factory, factory, specs)
    else:
        mirror = common.mirror_named(name)
    settings = Settings(seed=seed, threads=threads, interpreters={side: python} if python else None)
    source = Trace.open(weights_from) if weights_from else None
    with Progress() as progress:
        trace = capture_side(
            mirror, side, target, phases=phases_for(only), settings=settings, weights_from=source, progress=progress
        )
    click.echo(f"{trace.path}: {len(trace.manifest.tensors)} tensors")
    return 0


COMMANDS = (compare, judge_report, capture)
