"""Commands that show what is there: list, show, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from portproof.cli import common


@click.command(name="list")
@common.debug
def list_mirrors() -> int:
    """The registered mirrors."""
    from portproof import mirror
    from portproof.report.listing import render_list

    render_list([mirror.get(name) for name in mirror.names()])
    return 0


@click.command()
@click.argument("name", default="", metavar="[NAME]")
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]SHAPE[:DTYPE]", help="Instead of the mirror's own.")
@common.running
@common.debug
def show(name: str, inputs: tuple[str, ...], **running: Any) -> int:
    """Layers, shapes, parameters and multiply-adds of both sides, side by side."""
    import tempfile
    from dataclasses import replace

    from portproof.check import check as run_check
    from portproof.mirror import InputSpec
    from portproof.plan import Phase
    from portproof.report.listing import render_show
    from portproof.report.progress import Progress
    from portproof.trace import Trace

    mirror = common.mirror_named(name)
    if inputs:
        names = [spec.name for spec in mirror.inputs] + [f"x{index}" for index in range(len(inputs))]
        specs = (InputSpec.parse(each, default_name=default) for each, default in zip(inputs, names, strict=False))
        mirror = replace(mirror, inputs=tuple(specs), samples=None)
    with tempfile.TemporaryDirectory(prefix="portproof-") as folder:
        traces = Path(folder) / "traces"
        settings = common.make_settings(weights="shared", traces=traces, **running)
        with Progress() as progress:
            phases = (Phase("float64.eval", "float64", layers=True),)
            run_check(mirror, phases=phases, settings=settings, progress=progress)
        render_show(Trace.open(traces / "torch", verify=False), Trace.open(traces / "tensorflow", verify=False))
    return 0


@click.command()
@click.option("--torch-python", metavar="PYTHON", default=sys.executable, help="Interpreter of the PyTorch side.")
@click.option(
    "--tensorflow-python", metavar="PYTHON", default=sys.executable, help="Interpreter of the TensorFlow side."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print what is wrong, and nothing else.")
@common.debug
def doctor(torch_python: str, tensorflow_python: str, as_json: bool, quiet: bool) -> int:
    """Versions, builds, CPU, threads, hidden GPUs; what is wrong with it, and the fix."""
    from portproof import doctor as examination

    return examination.run(torch_python=torch_python, tensorflow_python=tensorflow_python, as_json=as_json, quiet=quiet)


COMMANDS = (list_mirrors, show, doctor)
