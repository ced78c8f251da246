"""Commands on many environments: cell, matrix."""

from __future__ import annotations

from pathlib import Path

import click

from portproof.cli import common
from portproof.errors import InputError

_reports = click.Path(path_type=Path, file_okay=False)
_selecting = common.options(
    click.option("--mirror", "name", default="", metavar="NAME", help="The mirror (`portproof list`)."),
    click.option("--seed", default=0, show_default=True, help="Seed of weights and inputs."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per side."),
    click.option("--policy", "policy_file", type=common.FILE, metavar="FILE", help="Limits, as TOML."),
)


@click.command()
@click.option(
    "--reports",
    type=_reports,
    default=Path("reports"),
    show_default=True,
    envvar="PORTPROOF_REPORTS",
    help="Where cells are kept, one folder each. [env: PORTPROOF_REPORTS]",
)
@click.option("--lock", type=common.FILE, metavar="FILE", help="The lock of this environment, if not docker/locks/CELL.txt.")
@click.option("--unlocked", is_flag=True, help="Run although the environment is not as its lock says.")
@click.option("--force", is_flag=True, envvar="PORTPROOF_FORCE", help="Run also what is up to date. [env: PORTPROOF_FORCE]")
@_selecting
@click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Seconds for each suite.")
@click.option("-q", "--quiet", is_flag=True, help="Print one line.")
@click.option("-v", "--verbose", is_flag=True, help="Print every detail of every check.")
@common.debug
def cell(
    reports: Path,
    lock: Path | None,
    unlocked: bool,
    force: bool,
    name: str,
    seed: int,
    threads: int,
    policy_file: Path | None,
    timeout: float,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run smoke and parity in this environment, and keep both with their traces in REPORTS/CELL.

    The cell is what this environment is: its Python and its TensorFlow. A result that is up to date is not repeated.
    """
    from portproof.matrix.cell import new_record, run_cell
    from portproof.matrix.inputs import gather_inputs
    from portproof.matrix.table import this_cell
    from portproof.report import Report
    from portproof.report.console import render_report
    from portproof.report.progress import Progress

    found, mirror, policy = this_cell(), common.mirror_named(name), common.read_policy(policy_file)
    lock = None if unlocked else _checked_lock(lock, found.id)
    inputs = gather_inputs(mirror, lock=lock, policy=policy, seed=seed, threads=threads)
    record = new_record(found.id, found.python, found.tensorflow, mirror.name, inputs)
    with Progress(quiet=quiet) as progress:
        record, ran = run_cell(
            mirror, record, reports, policy=policy, timeout=timeout, force=force, progress=progress
        )
    if ran and not quiet:
        render_report(Report.load(reports / record.id / "parity.json"), verbose=verbose)
    said = ", ".join(f"{suite} {outcome}" for suite, outcome in record.outcomes.items())
    state = "kept in" if ran else "up to date in"
    click.echo(f"cell {record.id}: {said}; {state} {reports / record.id}")
    return max((common.EXIT_CODES[outcome] for outcome in record.outcomes.values()), key=(0, 2, 1).index)


def _checked_lock(lock: Path | None, cell_id: str) -> Path | None:
    """The lock of this environment, held against what is installed; ``None`` where there is none to hold it against."""
    import platform

    from portproof.matrix.table import installed_versions, locks_folder, not_as_locked

    folder = locks_folder()
    if lock is None and (folder is None or not (folder / f"{cell_id}.txt").is_file()):
        return None
    lock = lock or (folder or Path()) / f"{cell_id}.txt"
    try:
        text = lock.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The lock {lock} cannot be read: {error}.") from error
    wrong = not_as_locked(text, installed_versions(), platform.machine())
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise InputError(
            f"This environment is not what {lock} says: {', '.join(wrong[:4])}{more}. Install the lock, let nox do it "
            f"(nox -t parity), or run it as it is with --unlocked."
        )
    return lock


COMMANDS = (cell,)
