"""One cell: smoke and parity of a mirror in this very environment, kept in a folder that is complete or absent.

    reports/3.12-tf2.19.1/
      cell.json                 what it was made from, what came out, where: written last
      smoke.json  parity.json   the reports, as `portproof judge` reads them
      torch/  tensorflow/       parity's traces; files that another cell has too are hard links
      torch.log  tensorflow.log

It is written beside its place and renamed. A run that is killed leaves a hidden folder at most, which the next removes.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof.check import SIDES, Settings, check
from portproof.compare.policy import Policy
from portproof.errors import InputError, PortproofError
from portproof.files import write_text
from portproof.matrix.inputs import Inputs, file_digest
from portproof.matrix.table import installed_versions
from portproof.plan import PLANS
from portproof.trace import Trace, shard_name

if TYPE_CHECKING:
    from portproof.mirror import Mirror
    from portproof.processes import Progress
    from portproof.report import Report

SCHEMA = "portproof-cell/1"
RECORD = "cell.json"
SUITES = ("smoke", "parity")


@dataclass(frozen=True)
class CellRecord:
    """What ``cell.json`` says. ``outcomes`` are by suite; ``error`` is the message of a run that failed.

    ``shards`` are the digests of each side's trace files. ``recorded`` is what no judgement depends on: when, how long.
    """

    id: str
    python: str
    tensorflow: str
    subject: str
    inputs: Inputs
    installed: dict[str, str]
    machine: str
    outcomes: dict[str, str] = field(default_factory=dict)
    error: str = ""
    shards: dict[str, list[str]] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def load(cls, folder: Path) -> CellRecord:
        """Read the record of a folder.

        Raises:
            InputError: there is none, or it is not one.
        """
        path = folder / RECORD
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.pop("schema") != SCHEMA:
                raise InputError(f"{path} has another schema than {SCHEMA!r}: run the cell again.")
            return cls(**{**body, "inputs": Inputs.from_json(body["inputs"])})
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} is not the record of a cell (truncated or edited?): run the cell again."
            ) from error

    def why_not(self, now: Inputs) -> str:
        """Why the result is not up to date; empty if it is."""
        if self.error:
            return f"the last run failed: {self.error}"
        changed = self.inputs.changed(now)
        return f"{' and '.join(changed)} changed" if changed else ""


def run_cell(
    mirror: Mirror,
    record: CellRecord,
    reports: Path,
    *,
    policy: Policy | None = None,
    timeout: float = 600.0,
    force: bool = False,
    progress: Progress | None = None,
    stage: Callable[[str], None] = lambda _: None,
) -> tuple[CellRecord, bool]:
    """Run the cell that ``record`` describes, unless its folder is up to date; returns its record, and whether it ran.

    Raises:
        PortproofError: a suite could not be run. The folder keeps the message, unless it holds an older result.
    """
    target = reports / record.id
    with _alone(reports, record.id):
        _tidy(reports, record.id)
        if not force:
            with suppress(InputError):
                before = CellRecord.load(target)
                if not before.why_not(record.inputs):
                    return before, False
        with _beside(target) as folder:
            try:
                done = _run_suites(mirror, record, reports, folder, policy, timeout, progress, stage)
            except PortproofError as error:
                if not target.exists():
                    _write_record(folder, CellRecord(**{**vars(record), "error": str(error)}))
                    _put(folder, target)
                raise
            _write_record(folder, done)
            _put(folder, target)
    return done, True


def new_record(cell_id: str, python: str, tensorflow: str, subject: str, inputs: Inputs) -> CellRecord:
    """The record of a run in this environment that has not begun."""
    return CellRecord(cell_id, python, tensorflow, subject, inputs, installed_versions(), platform.machine())


def _run_suites(
    mirror: Mirror,
    record: CellRecord,
    reports: Path,
    folder: Path,
    policy: Policy | None,
    timeout: float,
    progress: Progress | None,
    stage: Callable[[str], None],
) -> CellRecord:
    found: dict[str, Report] = {}
    for suite in SUITES:
        stage(suite)
        settings = Settings(
            seed=record.inputs.seed,
            threads=record.inputs.threads,
            timeout=timeout,
            traces=folder if suite == "parity" else None,
        )
        report = check(mirror, phases=PLANS[suite], settings=settings, policy=policy, progress=progress)
        report.recorded["logs"] = {side: f"{side}.log" for side in SIDES} if suite == "parity" else {}
        report.save(folder / f"{suite}.json")
        found[suite] = report
    shards = {side: list(Trace.open(folder / side, verify=False).manifest.shards) for side in SIDES}
    _share(folder, shards, reports, own=record.id)
    return CellRecord(
        **{
            **vars(record),
            "outcomes": {suite: report.verdict.outcome for suite, report in found.items()},
            "shards": shards,
            "recorded": {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": {suite: report.recorded["seconds"] for suite, report in found.items()},
            },
        }
    )


def _write_record(folder: Path, record: CellRecord) -> None:
    write_text(folder / RECORD, json.dumps(record.to_json(), indent=1) + "\n")


def _share(folder: Path, shards: dict[str, list[str]], reports: Path, own: str) -> None:
    """Replace files of tensors that another cell has bit for bit by links to them: most cells have most of them.

    What another record says of its files is not trusted: they are read before they replace anything. ``own`` is the
    cell itself, whose older result is about to go.
    """
    others: dict[str, list[Path]] = {}
    for path in sorted(reports.glob(f"*/{RECORD}")):
        if path.parent.name == own:
            continue
        with suppress(InputError):
            for side, digests in CellRecord.load(path.parent).shards.items():
                for index, digest in enumerate(digests):
                    others.setdefault(digest, []).append(path.parent / side / shard_name(index))
    for side, digests in shards.items():
        for index, digest in enumerate(digests):
            other = next((path for path in others.get(digest, ()) if file_digest(path) == digest), None)
            if other is not None:
                link = folder / side / f".{index}"
                with suppress(OSError):  # another file system, or gone meanwhile: then the copy stays
                    os.link(other, link)
                    link.replace(folder / side / shard_name(index))


@contextmanager
def _alone(reports: Path, name: str) -> Iterator[None]:
    """Wait for other runs of the same cell in the same folder; the lock goes with the process, however that ends."""
    reports.mkdir(parents=True, exist_ok=True)
    with (reports / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, target: Path) -> None:
    """Move a complete folder to its place. An older result steps aside first, to where `_tidy` would find it."""
    folder.chmod(0o755)
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        target.rename(aside / "older")
        folder.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        folder.rename(target)


def _tidy(reports: Path, name: str) -> None:
    """Remove what killed runs of this cell left; a result that was on its way to its place gets there.

    Only for whoever holds the cell's lock.
    """
    target = reports / name
    left = [path for path in reports.glob(f".{name}.*") if path.is_dir()]
    for complete in (*left, *(path / "older" for path in left)):  # the new one before the one that made place for it
        if not target.exists() and (complete / RECORD).is_file():
            complete.rename(target)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
