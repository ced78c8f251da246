"""The command `convert`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from portproof.cli import common


@click.command()
@click.argument("source", type=common.FILE)
@click.argument("target", type=common.FILE)
@click.option("--mirror", metavar="NAME", default="", help="Whose weights these are; else told by the tensors.")
@click.option(
    "--names",
    type=click.Choice(["official", "timm"]),
    default="official",
    show_default=True,
    help="Of the tensors in a torch file.",
)
@click.option("--fused", is_flag=True, help="Write the re-parameterized form.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per process.")
@click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Seconds.")
@click.option("-q", "--quiet", is_flag=True, help="Print the proof's line alone.")
@common.debug
def convert(
    source: Path, target: Path, mirror: str, names: str, fused: bool, threads: int, timeout: float, quiet: bool
) -> int:
    """Convert the checkpoint SOURCE to TARGET, and prove that it is the same model.

    By their endings: .pth, .pt, .safetensors, .keras, .weights.h5; a TARGET without ending is a SavedModel folder.
    """
    from portproof.convert import convert as run
    from portproof.report.progress import Progress

    started = time.perf_counter()
    with Progress(quiet=quiet) as progress:
        done = run(
            source,
            target,
            mirror=mirror,
            names=names,
            fused=fused,
            threads=threads,
            timeout=timeout,
            progress=progress,
        )
    if not quiet and done.recognised.guessed:
        click.echo(f"recognised: {done.recognised.mirror}, by its {done.recognised.tensors} tensors")
    rounded = "" if done.rounding is None else f"; {done.rounding:.1g} after rounding to float32"
    where = f"{done.blocks} blocks" if done.blocks else f"{done.layers} layers"
    click.echo(f"verified: {where}, max relative difference {done.relative:.1g}{rounded}")
    if not quiet:
        seconds = time.perf_counter() - started
        click.echo(
            f"written: {target}, {done.size / 1e6:,.1f} MB, {done.mirror}, "
            f"read back by {done.reader} in a process of its own ({seconds:.1f} s)"
        )
    return 0


COMMANDS = (convert,)
