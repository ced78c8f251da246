"""Commands on many environments: cell, matrix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from portproof.cli import common
from portproof.errors import InputError

if TYPE_CHECKING:
    from portproof.matrix.run import Budget

# What also stands in variables reaches `portproof cell` through any command that `matrix --run` is given.
_reports = click.Path(path_type=Path, file_okay=False)
_selecting = common.options(
    click.option(
        "--mirror", "name", envvar="PORTPROOF_MIRROR", default="", metavar="NAME", help="The mirror (`portproof list`)."
    ),
    click.option("--seed", envvar="PORTPROOF_SEED", default=0, show_default=True, help="Seed of weights and inputs."),
    click.option(
        "--threads",
        envvar="PORTPROOF_THREADS",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Threads per side.",
    ),
    click.option(
        "--policy", "policy_file", envvar="PORTPROOF_POLICY", type=common.FILE, metavar="FILE", help="Limits, as TOML."
    ),
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
@click.option(
    "--lock", type=common.FILE, metavar="FILE", help="The lock of this environment, if not docker/locks/CELL.txt."
)
@click.option("--unlocked", is_flag=True, help="Run although the environment is not as its lock says.")
@click.option(
    "--force", is_flag=True, envvar="PORTPROOF_FORCE", help="Run also what is up to date. [env: PORTPROOF_FORCE]"
)
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
        record, ran = run_cell(mirror, record, reports, policy=policy, timeout=timeout, force=force, progress=progress)
    if ran and not quiet:
        render_report(Report.load(reports / record.id / "parity.json"), verbose=verbose)
    said = ", ".join(f"{suite} {outcome}" for suite, outcome in record.outcomes.items())
    state = "kept in" if ran else "up to date in"
    click.echo(f"cell {record.id}: {said}; {state} {reports / record.id}")
    return max((common.EXIT_CODES[outcome] for outcome in record.outcomes.values()), key=(0, 2, 1).index)


@click.command()
@click.argument("reports", type=_reports, default=Path("reports"), envvar="PORTPROOF_REPORTS")
@click.option(
    "--cells", "names", default="", metavar="ID,...", help="The cells asked for, instead of all of the table."
)
@click.option(
    "--run",
    "command",
    metavar="COMMAND",
    help="First run the cells that are missing or stale, each by this command, which prepares its environment and runs "
    "`portproof cell`. {python}, {tensorflow} and {cell} in it are filled in.",
)
@click.option("--cores", type=click.IntRange(1), help="Cores that --run may take.  [default: all]")
@click.option("--memory", type=click.FloatRange(0), metavar="GB", help="Memory for --run.  [default: what is free]")
@click.option("--force", is_flag=True, help="With --run: run also what is up to date.")
@click.option("--json", "json_file", type=common.FILE, metavar="FILE", help="Write the matrix as JSON.")
@click.option(
    "--junit", "junit_file", type=common.FILE, metavar="FILE", help="Write it as JUnit XML, a suite per cell."
)
@click.option("--html", "html_file", type=common.FILE, metavar="FILE", help="Write it as one self-contained page.")
@_selecting
@click.option("-q", "--quiet", is_flag=True, help="Print the verdict's line alone.")
@click.option("-v", "--verbose", is_flag=True, help="Print every check of every cell.")
@common.debug
def matrix(
    reports: Path,
    names: str,
    command: str | None,
    cores: int | None,
    memory: float | None,
    force: bool,
    json_file: Path | None,
    junit_file: Path | None,
    html_file: Path | None,
    name: str,
    seed: int,
    threads: int,
    policy_file: Path | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Gather the cells below REPORTS, wherever they were run: cells x checks, and the drift between cells.

    A cell that is missing, or was made from other sources, another lock or other settings than these, is not green.
    """
    from functools import cache

    from portproof.matrix import gather, run
    from portproof.matrix.inputs import Inputs, gather_inputs, with_lock
    from portproof.matrix.table import Cell, chosen, locks_folder
    from portproof.report.matrix import render_matrix, write_matrix_junit

    mirror, policy, wanted, locks = (
        common.mirror_named(name),
        common.read_policy(policy_file),
        chosen(names),
        locks_folder(),
    )

    @cache
    def without_lock() -> Inputs:
        return gather_inputs(mirror, lock=None, policy=policy, seed=seed, threads=threads)

    def inputs(cell: Cell) -> Inputs:
        return with_lock(without_lock(), locks / f"{cell.id}.txt" if locks else None)

    if command:
        todo = [cell for cell in wanted if force or gather.why_run(reports / cell.id, inputs(cell))]
        allowed = run.budget(cores, memory)
        if not quiet:
            click.echo(_plan(len(todo), len(wanted), allowed))
        environ = {**os.environ, **({"PORTPROOF_FORCE": "1"} if force else {})}
        environ |= {"PORTPROOF_SEED": str(seed), "PORTPROOF_THREADS": str(threads), "PORTPROOF_MIRROR": mirror.name}
        environ |= {"PORTPROOF_POLICY": str(policy_file.resolve())} if policy_file else {}
        say = (lambda _: None) if quiet else click.echo
        failed = run.run_cells(todo, command, reports, at_a_time=allowed.cells, environ=environ, say=say)
        for cell_id, why in failed.items():
            click.echo(f"{cell_id} failed, {why} (log: {run.log_of(reports, cell_id)})", err=True)
    elif not reports.is_dir():
        raise InputError(f"There is no folder {reports}: `nox -s matrix` or `portproof cell` make it.")
    found = gather.gather(reports, wanted, inputs, locks=locks, subject=mirror.name, policy=policy)
    if json_file:
        gather.save(found, json_file)
    if junit_file:
        write_matrix_junit(found, junit_file)
    if html_file:
        from portproof.report.html import write_matrix_page  # type: ignore[import-not-found,unused-ignore]

        write_matrix_page(found, html_file)
    render_matrix(found, quiet=quiet, verbose=verbose)
    return common.EXIT_CODES[found.outcome]


def _plan(todo: int, wanted: int, allowed: Budget) -> str:
    if not todo:
        return f"all {wanted} cells are up to date\n"
    return (
        f"{todo} of {wanted} cells to run, {min(allowed.cells, todo)} at a time "
        f"({allowed.cores} cores, {allowed.memory:.1f} GB)"
    )


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


COMMANDS = (cell, matrix)
