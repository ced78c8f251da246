"""Gathering: the folders of cells, wherever they were run, become a matrix; what is missing or stale stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from portproof.compare.policy import Limits, Policy
from portproof.errors import InputError, PortproofError
from portproof.files import write_text
from portproof.matrix.cell import RECORD, SUITES, CellRecord
from portproof.matrix.drift import measure_drift
from portproof.matrix.facts import (
    COMPLETE,
    FAILED,
    MISSING,
    SIDES,
    STALE,
    CellCheck,
    CellResult,
    Environment,
    LayerErrors,
    Matrix,
)
from portproof.matrix.inputs import Inputs, file_digest
from portproof.matrix.table import Cell, cells, not_as_locked, release
from portproof.report.report import Report, finite, restored
from portproof.trace import Trace

SCHEMA = "portproof-matrix/1"
# Beside each other, and in a folder each, as artifacts come from a CI system.
_PLACES = (f"*/{RECORD}", f"*/*/{RECORD}")


def gather(
    reports: Path,
    wanted: Sequence[Cell],
    inputs: Callable[[Cell], Inputs],
    *,
    locks: Path | None,
    subject: str,
    policy: Policy | None = None,
) -> Matrix:
    """Read every cell below ``reports``; ``inputs`` gives what a cell would be made from now.

    A stored run is judged again under ``policy``. Drift is measured between cells that are complete.
    """
    records, notes = _records(reports)
    wanted_ids = {cell.id for cell in wanted}
    table = {cell.id: cell for cell in cells()}
    asked = {cell.id: cell for cell in wanted}
    for name in records:
        python, _, tensorflow = name.partition("-tf")
        asked.setdefault(name, table.get(name) or Cell(python, tensorflow, {}))
    digest = _each_file_once()
    results, traces = [], {}
    for cell in sorted(asked.values(), key=lambda each: (release(each.python), release(each.tensorflow))):
        result, found = _result(cell, records.get(cell.id), inputs(cell), locks, subject, policy, digest)
        results.append(replace(result, expected=cell.id in wanted_ids))
        if result.state == COMPLETE and found:
            traces[cell.id] = found
    if any(cell.state == STALE for cell in results):
        notes.append("drift is measured between complete cells only")
    if locks is None:
        notes.append("no docker/locks here: whether cells were run from their locks was not looked at")
    return Matrix(
        subject=subject,
        cells=tuple(results),
        drift=tuple(measure_drift(side, {name: found[side] for name, found in traces.items()}) for side in SIDES),
        not_asked=tuple(name for name in table if name not in asked),
        policy=asdict(policy or Policy()),
        notes=tuple(notes),
    )


def why_run(folder: Path, now: Inputs) -> str:
    """Why a cell has to be run; empty if its folder is up to date."""
    try:
        record = CellRecord.load(folder)
    except InputError as error:
        return str(error)
    return record.why_not(now)


def save(matrix: Matrix, path: Path) -> None:
    """Write a matrix as JSON, complete or not at all."""
    body = {"schema": SCHEMA, "outcome": matrix.outcome, "matrix": matrix.to_json()}
    write_text(path, json.dumps(finite(body), allow_nan=False) + "\n")


def load(path: Path) -> Matrix:
    """Read a matrix that `save` wrote.

    Raises:
        InputError: the file is not one, or is truncated.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.get("schema") != SCHEMA:
            raise InputError(f"{path} has schema {body.get('schema')!r}, this version reads {SCHEMA!r}.")
        return Matrix.from_json(restored(body["matrix"]))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a portproof matrix (written by --json), or was truncated or edited."
        ) from error


def _records(reports: Path) -> tuple[dict[str, tuple[Path, CellRecord | InputError]], list[str]]:
    """By cell, the folder and its record, or why that cannot be read; and what has to be said about them."""
    found: dict[str, tuple[Path, CellRecord | InputError]] = {}
    notes = []
    paths = [path for place in _PLACES for path in sorted(reports.glob(place))]
    for path in paths:
        folder = path.parent
        if any(part.startswith(".") for part in folder.relative_to(reports).parts):
            continue  # on its way to its place
        try:
            record: CellRecord | InputError = CellRecord.load(folder)
        except InputError as error:
            record = error
        name = record.id if isinstance(record, CellRecord) else folder.name
        if name in found:
            notes.append(f"{name} is there twice: {found[name][0]} is shown, {folder} is not")
        elif isinstance(record, CellRecord) or name in {cell.id for cell in cells()}:
            found[name] = folder, record
        else:
            notes.append(f"{folder} is left out: {record}")
    return found, notes


def _result(
    cell: Cell,
    found: tuple[Path, CellRecord | InputError] | None,
    now: Inputs,
    locks: Path | None,
    subject: str,
    policy: Policy | None,
    digest: Callable[[Path], str],
) -> tuple[CellResult, dict[str, Trace]]:
    empty = CellResult(cell.id, cell.python, cell.tensorflow, MISSING, why="there is no result", pins=cell.pins)
    if found is None:
        return empty, {}
    folder, record = found
    if isinstance(record, InputError):
        return replace(empty, state=FAILED, why=str(record)), {}
    if record.subject != subject:
        return replace(empty, why=f"{folder} holds {record.subject}"), {}
    if record.error:
        return replace(empty, state=FAILED, why=record.error), {}
    try:
        reports = {suite: Report.load(folder / f"{suite}.json") for suite in SUITES}
        traces = {side: Trace.open(folder / side, digest=digest) for side in SIDES}
    except PortproofError as error:
        return replace(empty, state=FAILED, why=str(error)), {}
    reports = {suite: report.rejudged(policy or Policy()) for suite, report in reports.items()}
    stale = _why_stale(record, now, locks)
    outcomes = [report.verdict.outcome for report in reports.values()]
    parity = reports["parity"]
    worst = next((one for one in reports.values() if one.verdict.outcome != "same"), parity)
    divergence = worst.verdict.divergence
    result = replace(
        empty,
        state=STALE if stale else COMPLETE,
        why=stale,
        outcome=next((one for one in ("differs", "undecided") if one in outcomes), "same"),
        summary=worst.verdict.summary,
        environment=_environment(record, parity),
        checks=tuple(_checks(reports)),
        errors=_errors(parity),
        seconds=dict(record.recorded.get("seconds", {})),
        divergence=f"{divergence.layer}: {divergence.what}, {divergence.phase}" if divergence else "",
        size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )
    return result, traces


def _why_stale(record: CellRecord, now: Inputs, locks: Path | None) -> str:
    """Why a result is not what would be measured now; empty if it is. Policies do not matter: it is judged again."""
    reasons = record.inputs.changed(replace(now, policy=record.inputs.policy, lock=record.inputs.lock))
    said = f"{' and '.join(reasons)} changed since" if reasons else ""
    if locks is None:
        return said
    lock = locks / f"{record.id}.txt"
    if not lock.is_file():
        return said
    if record.inputs.lock:
        wrong = [] if record.inputs.lock == now.lock else ["its lock changed since"]
    else:  # a container, say, where the lock is not at hand: what was installed speaks for itself
        wrong = not_as_locked(lock.read_text(encoding="utf-8"), record.installed, record.machine)
        wrong = [f"not run from its lock: {', '.join(wrong[:3])}"] if wrong else []
    return "; ".join(part for part in (said, *wrong) if part)


def _environment(record: CellRecord, report: Report) -> Environment:
    torch, tensorflow = (report.facts.sides[name]["environment"] for name in ("a", "b"))
    machine = tensorflow.get("machine", {})
    packages = machine.get("distributions", {})
    return Environment(
        python=machine.get("python", {}).get("version", record.python),
        tensorflow=str(tensorflow.get("version", record.tensorflow)),
        keras=str(tensorflow.get("keras", packages.get("keras", ""))),
        torch=str(torch.get("version", "")),
        torch_build=str(torch.get("build", "")),
        numpy=str(packages.get("numpy", "")),
        protobuf=str(packages.get("protobuf", "")),
        cpu=str(machine.get("cpu", {}).get("model", "")),
        instruction_sets=tuple(machine.get("cpu", {}).get("instruction_sets", ())),
        system=" ".join(str(machine.get("platform", {}).get(name, "")) for name in ("system", "machine", "libc")),
        threads=int(tensorflow.get("threads", 1)),
    )


def _checks(reports: dict[str, Report]) -> Iterator[CellCheck]:
    for suite, report in reports.items():
        for check in report.verdict.checks:
            yield CellCheck(suite=suite, **asdict(check))


def _errors(report: Report) -> LayerErrors:
    found = [m for m in report.facts.measurements if (m.phase, m.group) == ("float64.eval", "outputs")]
    limits = Limits.of(report.facts, report.verdict.policy)
    return LayerErrors(
        layers=tuple(m.name for m in found),
        float64=tuple(m.distance.relative for m in found),
        original=tuple(m.error_a for m in found),
        port=tuple(m.error_b for m in found),
        limit=tuple(limits.function(m) for m in found),
        precision=tuple(None if m.error_a is None else limits.precision(m) for m in found),
    )


def _each_file_once() -> Callable[[Path], str]:
    """A SHA-256 of files that reads those with several names once; most cells share most of their tensors."""
    known: dict[tuple[int, int], str] = {}

    def digest(path: Path) -> str:
        about = path.stat()
        key = about.st_dev, about.st_ino
        if key not in known:
            known[key] = file_digest(path)
        return known[key]

    return digest
