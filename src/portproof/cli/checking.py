"""Commands that run both sides and judge: check, smoke, parity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portproof.cli import common
from portproof.errors import InputError, MirrorError

if TYPE_CHECKING:
    from portproof.mirror import Mirror
    from portproof.plan import Phase


@click.command()
@common.pair
@click.option("--mirror", "name", metavar="NAME", help="A registered mirror instead of two factories.")
@click.option("--diagnose", is_flag=True, help="If it differs, look for the proven cause, as `diagnose` does.")
@common.only
@common.comparing
@common.running
@common.output
def check(
    torch_factory: str | None,
    tensorflow_factory: str | None,
    inputs: tuple[str, ...],
    same_layout: bool,
    batches: str,
    name: str | None,
    only: tuple[str, ...],
    **options: Any,
) -> int:
    """Judge a pair of models of your own."""
    from portproof.plan import phases_for

    mirror = common.mirror_of(name, torch_factory, tensorflow_factory, inputs, same_layout, batches)
    return _run_check(mirror, phases_for(only), **options)


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME]")
@click.option(
    "--audio",
    multiple=True,
    type=common.FILE,
    metavar="FILE...",
    help="WAV files to try instead of the mirror's clips.",
)
@common.comparing
@common.running
@common.output
def smoke(words: tuple[str, ...], audio: tuple[Path, ...], **options: Any) -> int:
    """Quick look at a registered mirror: counts, shapes, finite outputs, gradients, and the float64 proof."""
    from portproof import mirror as registry
    from portproof.plan import SMOKE

    # click's options take one value each; after --audio *.wav the other files arrive here.
    names = [word for word in words if not audio or word in registry.names()]
    if len(names) > 1:
        raise InputError(f"smoke takes one mirror, not {len(names)}: {', '.join(names)}.")
    audio += tuple(Path(word) for word in words if word not in names)
    mirror = common.mirror_named(names[0] if names else "")
    return _run_check(mirror, SMOKE, samples=_read_audio(mirror, audio) if audio else None, **options)


@click.command()
@click.argument("name", default="", metavar="[NAME]")
@common.only
@common.comparing
@common.running
@common.output
def parity(name: str, only: tuple[str, ...], **options: Any) -> int:
    """All checks on a registered mirror: function, gradients, training, optimizers, precision."""
    from portproof.plan import phases_for

    return _run_check(common.mirror_named(name), phases_for(only), **options)


def _read_audio(mirror: Mirror, files: tuple[Path, ...]) -> dict[str, Any]:
    from portproof.data.wav import read_wav

    if mirror.audio is None:
        raise MirrorError(f"The mirror {mirror.name} does not take audio: leave out --audio.")
    return {str(file): mirror.audio(*read_wav(file)) for file in files}


def _run_check(
    mirror: Mirror,
    phases: tuple[Phase, ...],
    *,
    json_file: Path | None,
    junit_file: Path | None,
    html_file: Path | None,
    policy_file: Path | None,
    quiet: bool,
    verbose: bool,
    diagnose: bool = False,
    **running: Any,
) -> int:
    from dataclasses import replace

    from portproof.check import check as run_check
    from portproof.cli.diagnose import command as diagnose_command
    from portproof.cli.diagnose import run as run_diagnosis
    from portproof.report.progress import Progress

    settings, policy = common.make_settings(**running), common.read_policy(policy_file)
    with Progress(quiet=quiet) as progress:
        report = run_check(mirror, phases=phases, settings=settings, policy=policy, progress=progress)
    if diagnose and report.verdict.outcome == "differs":
        found = run_diagnosis(mirror, phases, policy, quiet=quiet, **running)
        report = replace(report, diagnosis=found.diagnosis)
    elif report.verdict.outcome == "differs":
        report.recorded["diagnose"] = diagnose_command(mirror, running["weights"])
    return common.finish(
        report, json_file=json_file, junit_file=junit_file, html_file=html_file, quiet=quiet, verbose=verbose
    )


COMMANDS = (check, smoke, parity)
