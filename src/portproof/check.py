"""Check: run both sides of a mirror at once, compare their traces, reach the verdict."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof import processes
from portproof.edits import Edit
from portproof.errors import InputError, TraceError
from portproof.mirror import Mirror
from portproof.plan import PARITY, Phase
from portproof.values import Start

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from portproof.compare.policy import Policy
    from portproof.processes import Progress, Servers
    from portproof.report import Report
    from portproof.trace import Trace

SIDES = ("torch", "tensorflow")


@dataclass(frozen=True)
class Settings:
    """How to run a check.

    ``weights``: ``shared`` (the original's, excited, carried over), ``own`` (each side keeps what its factory gives),
    or a checkpoint file for the side that its name belongs to, carried over to the other. ``interpreters``: Python
    executables by side. ``traces``: a folder to keep both traces in. ``samples``: real examples instead of the
    mirror's own. ``lanes``: processes that the TensorFlow side's phases are dealt to. ``edits``: changes of the port in
    memory. ``servers``: processes that stay, for many checks of one mirror (then ``lanes`` is 1). ``logs``: a folder
    for the workers' logs, which has to outlast the servers. ``start``: what shared weights start from.
    """

    weights: str | Path = "shared"
    interpreters: Mapping[str, str] | None = None
    seed: int = 0
    threads: int = 1
    lanes: int = 2
    timeout: float = 600.0
    traces: Path | None = None
    samples: Mapping[str, NDArray[np.float32]] | None = None
    edits: tuple[Edit, ...] = ()
    servers: Servers | None = None
    logs: Path | None = None
    start: Start = field(default_factory=Start)


def check(
    mirror: Mirror,
    *,
    phases: Sequence[Phase] = PARITY,
    settings: Settings | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Capture both sides of ``mirror`` in two processes at once, and judge.

    Raises:
        PortproofError: a side could not be run; the message says why and what to do.
    """
    settings = settings or Settings()
    started = time.perf_counter()
    source = source_side(settings.weights)
    if settings.traces:
        for side in SIDES:
            _check_free(settings.traces / side)
    with _workspace(settings.logs or settings.traces) as (folder, logs), _traces(settings.traces or folder) as traces:
        jobs = {}
        for side in SIDES:
            role = "own" if settings.weights == "own" else "give" if side == source else "take"
            jobs[side] = _write_job(mirror, side, role, phases, settings, folder, traces / side)

        def give_inputs() -> None:
            _write_inputs(mirror, settings, folder)

        seconds = (settings.servers or processes).run(
            jobs,
            interpreters=settings.interpreters or {},
            logs=logs,
            threads=settings.threads,
            timeout=settings.timeout,
            progress=progress,
            while_running=give_inputs,
        )
        report = _judged(traces / SIDES[0], traces / SIDES[1], policy)
        if settings.traces:
            for side in SIDES:
                _put(traces / side, settings.traces / side)
    report.recorded.update(
        seconds=round(time.perf_counter() - started, 2),
        steps={side: dict(steps) for side, steps in seconds.items()},
        logs={side: str(logs / f"{side}.log") for side in SIDES},
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        samples=list(_samples(mirror, settings)),
    )
    return report


def capture(
    mirror: Mirror,
    side: str,
    target: Path | str,
    *,
    phases: Sequence[Phase] = PARITY,
    settings: Settings | None = None,
    weights_from: Trace | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Capture one side alone into the folder ``target``, with its own weights or with those of another trace.

    Raises:
        PortproofError: the side could not be run.
    """
    from portproof.capture.job import Weights
    from portproof.trace import Trace

    settings, target = settings or Settings(), Path(target)
    with _workspace(settings.logs) as (folder, logs), _traces(target.parent) as traces:
        _check_free(target)
        if weights_from is not None:
            _weights_of(weights_from, Weights).write(folder)
        own = "own" if settings.weights == "own" else "give"
        job = _write_job(mirror, side, "take" if weights_from else own, phases, settings, folder, traces / side)
        (settings.servers or processes).run(
            {side: job},
            interpreters=settings.interpreters or {},
            logs=logs,
            threads=settings.threads,
            timeout=settings.timeout,
            progress=progress,
            while_running=lambda: _write_inputs(mirror, settings, folder),
        )
        _put(traces / side, target)
    return Trace.open(target, verify=False)


def _judged(a: Path, b: Path, policy: Policy | None) -> Report:
    from portproof.compare import compare
    from portproof.compare.verdict import judge
    from portproof.report import Report
    from portproof.trace import Trace

    # Written a moment ago by processes of our own: no need to hash them again.
    facts = compare(Trace.open(a, verify=False), Trace.open(b, verify=False))
    return Report(facts, judge(facts, policy))


def _write_job(
    mirror: Mirror, side: str, role: str, phases: Sequence[Phase], settings: Settings, folder: Path, trace: Path
) -> Path:
    from portproof.capture.job import Job

    file = isinstance(settings.weights, Path) and side == source_side(settings.weights)
    job = Job(
        side=side,
        subject=mirror.name,
        factory=getattr(mirror, side),
        inputs=mirror.inputs,
        phases=tuple(phase for phase in phases if mirror.training or not phase.training),
        exchange=folder,
        trace=trace,
        weights=role,
        checkpoint=Path(settings.weights).resolve() if file else None,
        start=settings.start if settings.weights == "shared" else Start(excite=False),
        seed=settings.seed,
        threads=settings.threads,
        lanes=min(settings.lanes, os.cpu_count() or 1) if side == "tensorflow" and not settings.servers else 1,
        timeout=settings.timeout,
        edits=settings.edits if side == "tensorflow" else (),
    )
    path = folder / f"{side}.json"
    job.write(path)
    return path


def source_side(weights: str | Path) -> str:
    """The side that the weights come from."""
    if isinstance(weights, Path):
        from portproof.transfer.checkpoints import side_of

        return side_of(weights)
    return SIDES[0]


def _samples(mirror: Mirror, settings: Settings) -> Mapping[str, NDArray[np.float32]]:
    if settings.samples is not None:
        return settings.samples
    return mirror.samples() if mirror.samples else {}


def _write_inputs(mirror: Mirror, settings: Settings, folder: Path) -> None:
    from portproof.capture.job import make_inputs, write_inputs

    samples = _samples(mirror, settings)
    wanted = mirror.inputs[0].shape[1:]
    for name, sample in samples.items():
        if sample.shape != wanted:
            raise InputError(f"Sample {name!r} has shape {sample.shape}, the mirror {mirror.name} wants {wanted}.")
    write_inputs(folder, make_inputs(mirror, settings.seed, samples))


def _weights_of(trace: Trace, weights_type: Any) -> Any:
    sets = {which: dict(trace.items("weights", which)) for which in ("initial", "excited")}
    return weights_type(trace.manifest.parameters, sets["initial"], sets["excited"])


@contextmanager
def _workspace(kept: Path | None) -> Iterator[tuple[Path, Path]]:
    """A temporary folder for what the processes exchange, and a lasting one for their logs."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        logs = kept
    else:
        logs = processes.log_folder()
    with tempfile.TemporaryDirectory(prefix="portproof-", ignore_cleanup_errors=True) as folder:
        yield Path(folder), logs


@contextmanager
def _traces(parent: Path) -> Iterator[Path]:
    """A folder for the workers to write their traces in, on the disk of ``parent``; gone afterwards in any case."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".portproof-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _check_free(target: Path) -> None:
    if not target.exists():
        return
    from portproof.trace import is_trace  # imports NumPy, for which the workers need not wait

    if not is_trace(target):
        raise TraceError(f"{target} exists and is not a trace: name another folder.")


def _put(trace: Path, target: Path) -> None:
    """Move a complete trace to its place, instead of an older one there."""
    _check_free(target)
    if target.exists():
        shutil.rmtree(target)
    trace.rename(target)
