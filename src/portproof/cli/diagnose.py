"""The command that looks for proven causes: diagnose."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portproof.cli import common

if TYPE_CHECKING:
    from portproof.compare.policy import Policy
    from portproof.mirror import Mirror
    from portproof.plan import Phase
    from portproof.report import Report


@click.command()
@click.argument("name", default="", metavar="[NAME]")
@common.pair
@common.only
@common.weights
@common.running
@common.output
def diagnose(
    name: str,
    torch_factory: str | None,
    tensorflow_factory: str | None,
    inputs: tuple[str, ...],
    same_layout: bool,
    batches: str,
    only: tuple[str, ...],
    policy_file: Path | None,
    quiet: bool,
    verbose: bool,
    json_file: Path | None,
    junit_file: Path | None,
    html_file: Path | None,
    **running: Any,
) -> int:
    """Prove why a port differs: repair it in memory until it does not.

    For a registered mirror by NAME, or for a pair of your own, named as for `check`. Likely causes are tried as
    repairs, one after the other, and the port is captured again: what makes the divergence vanish is proven.
    """
    from portproof.plan import phases_for

    mirror = common.mirror_of(name, torch_factory, tensorflow_factory, inputs, same_layout, batches)
    policy = common.read_policy(policy_file)
    report = run(mirror, phases_for(only), policy, quiet=quiet, **running)
    return common.finish(
        report, json_file=json_file, junit_file=junit_file, html_file=html_file, quiet=quiet, verbose=verbose
    )


def command(mirror: Mirror, weights: str) -> str:
    """The command line that would diagnose a mirror."""
    from portproof.mirror import names

    words = ["portproof", "diagnose"]
    if mirror.name in names():
        words.append(mirror.name)
    else:
        words += ["--torch", mirror.torch, "--tensorflow", mirror.tensorflow]
        for spec in mirror.inputs:
            kind = "" if spec.dtype == "float32" else f":{spec.dtype}" + (f"<{spec.high}" if spec.high != 2 else "")
            words += ["--input", f"{spec.name}={','.join(map(str, spec.shape))}{kind}"]
        words += ["--same-layout"] if any(spec.layout == "same" for spec in mirror.inputs) else []
    return shlex.join([*words, *(["--weights", weights] if weights != "shared" else [])])


def run(mirror: Mirror, phases: tuple[Phase, ...], policy: Policy | None, *, quiet: bool, **running: Any) -> Report:
    """Diagnose a mirror, and show what is being tried."""
    from portproof.repair import diagnose as run_diagnosis
    from portproof.report.progress import Progress

    settings = common.make_settings(**{"traces": None, **running})
    with Progress(quiet=quiet) as progress:
        return run_diagnosis(mirror, phases=phases, settings=settings, policy=policy, progress=progress)


COMMANDS = (diagnose,)
