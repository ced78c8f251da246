"""The worker process: reads a job, runs one side, writes its trace, and reports progress as JSON lines.

Started by `portproof.processes` with the environment of `portproof.cpu`, so that accelerators are hidden and threads
pinned before a framework is imported. What the framework or the model prints goes to the log, also from C++: the lines
of the protocol have a file descriptor of their own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from portproof import cpu
from portproof.capture.lanes import can_fork, forked
from portproof.errors import PortproofError, SetupError, WorkerError
from portproof.plan import Phase, deal
from portproof.trace import CallRecord, Manifest, TraceWriter

if TYPE_CHECKING:
    from portproof.capture.job import Job

_MODULES = {"torch": "portproof.capture.torch", "tensorflow": "portproof.capture.tensorflow"}


def main(job_file: str, mode: str = "once") -> None:
    """Run a job and leave the process without the frameworks' slow and noisy shutdown.

    With ``serve`` in place of ``once``, ``job_file`` is a side's name, and the jobs are the lines of stdin: the
    framework is imported once, and a model is made once for all the jobs that want the same one.
    """
    events = _take_over_stdout()
    work = (lambda: _serve(job_file, events)) if mode == "serve" else lambda: _run(Path(job_file), events)
    code = _reported(work, events)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _reported(work: Callable[[], None], events: IO[str]) -> int:
    """Do some work; an error is sent as an event. Returns the exit code."""
    try:
        work()
    except PortproofError as error:
        _send(events, event="error", kind=type(error).__name__, message=str(error), details=_details(error))
    except OSError as error:
        _send(events, event="error", kind="WorkerError", message=_disk_message(error), details=traceback.format_exc())
    except MemoryError:
        message = "The worker ran out of memory: use smaller inputs, or a machine with more."
        _send(events, event="error", kind="WorkerError", message=message, details=traceback.format_exc())
    except Exception as error:  # a defect of portproof: said as such, with the traceback in reach
        message = (
            f"portproof itself failed: {type(error).__name__}: {error}. Please report it, with the output of --debug."
        )
        _send(events, event="error", kind="WorkerError", message=message, details=traceback.format_exc())
    else:
        return 0
    return 2


def _serve(side: str, events: IO[str]) -> None:
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a model that reads its input finds nothing, as it does otherwise
    module = _loaded(side)
    kept: dict[Any, Any] = {}
    for line in jobs:
        _reported(partial(_run_again, Path(line.rstrip("\n")), module, events, kept), events)


def _run_again(job_file: Path, module: Any, events: IO[str], kept: dict[Any, Any]) -> None:
    from portproof.capture.job import Job

    job = Job.read(job_file)
    capture = Capture(job, module, events, 0.0, kept)
    with TraceWriter(job.trace) as writer:
        found = capture.run_phases(job.phases, writer)
        capture.store_weights(writer)
        capture.finish(writer, found)
    _send(events, event="done", seconds=found["seconds"])


def _loaded(side: str) -> Any:
    # Importing a framework makes millions of objects that stay: looking for garbage among them takes a third of the
    # time of `import tensorflow`.
    gc.disable()
    module = _import_side(side)
    gc.freeze()
    gc.enable()
    return module


def _run(job_file: Path, events: IO[str]) -> None:
    started = time.perf_counter()
    from portproof.capture.job import Job

    job = Job.read(job_file)
    _send(events, event="step", name=f"importing {job.side}", done=0, total=len(job.phases) + 2)
    module = _loaded(job.side)
    capture = Capture(job, module, events, time.perf_counter() - started)
    lanes = deal(job.phases, job.lanes if can_fork() else 1)
    with TraceWriter(job.trace) as writer, forked(lanes[1:], capture.run_lane, job.trace) as others:
        found = capture.run_phases(lanes[0], writer)
        capture.store_weights(writer)  # while the other lane is still busy
        for part in others():
            extra = writer.absorb(part)
            found = {key: {**found[key], **extra[key]} for key in found}
        capture.finish(writer, found)
    _send(events, event="done", seconds=found["seconds"])


class Capture:
    """One side's capture: the phases that one process runs, and what goes into the manifest at the end."""

    def __init__(
        self, job: Job, module: Any, events: IO[str], import_seconds: float, kept: dict[Any, Any] | None = None
    ) -> None:
        self.job = job
        self._kept = kept
        self._module = module
        self._events = events
        self._seconds = {"import": import_seconds}
        self._done = 0

    def run_phases(self, phases: Sequence[Phase], writer: TraceWriter) -> dict[str, dict[str, Any]]:
        """Build the model and run phases; returns calls, facts, notes and seconds, each as a mapping."""
        clock = time.perf_counter()
        self._progress("building the model")
        self.side = side = self._module.Side(self.job, writer, self._kept)
        side.prepare()
        if self.job.save:
            self._progress(f"writing {self.job.save.name}")
            side.save(self.job.save)
        calls: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        seconds = {**self._seconds, "build": time.perf_counter() - clock}
        for phase in phases:
            clock = time.perf_counter()
            self._progress(phase.name)
            found = side.run(phase)
            calls[phase.name] = [asdict(call) for call in found.pop("calls", ())]
            facts[phase.name] = found
            seconds[phase.name] = time.perf_counter() - clock
        if side.weights.computed:
            side.notes.append(
                "its weights were computed from the given ones, by adopt_weights: eval mode alone compares"
            )
        notes = [*side.notes, *(f"evaluated exactly in float64: {name}" for name in side.replaced())]
        return {"calls": calls, "facts": facts, "notes": dict.fromkeys(notes), "seconds": seconds}

    def run_lane(self, phases: Sequence[Phase], folder: Path) -> None:
        """Run phases in a forked process and leave the result in ``folder``."""
        # The first lane gives the weights; the others take what it gave.
        role = "take" if self.job.weights == "give" else self.job.weights
        self.job = replace(self.job, phases=tuple(phases), weights=role)
        with TraceWriter(folder) as writer:
            found = self.run_phases(phases, writer)
            del found["seconds"]["import"], found["seconds"]["build"]
            writer.seal(folder, found)

    def store_weights(self, writer: TraceWriter) -> None:
        """Store the values that the phases started from."""
        self._machine = cpu.describe_environment()
        for which in ("initial", "excited"):
            values = getattr(self.side.weights, which)
            for record in self.side.parameters():
                if self.side.source.get(record.name) in values:
                    writer.add(f"weights/{which}/{record.name}", values[self.side.source[record.name]])

    def finish(self, writer: TraceWriter, found: dict[str, dict[str, Any]]) -> None:
        """Write the manifest."""
        side, job = self.side, self.job
        parameters = side.parameters()
        names = [phase.name for phase in job.phases]
        writer.finish(
            Manifest(
                side=job.side,
                subject=job.subject,
                environment={**side.environment, "machine": self._machine},
                plan=[phase.to_json() for phase in job.phases],
                parameters=tuple(parameters),
                layers=tuple(side.layers()),
                calls={name: tuple(CallRecord(**row) for row in found["calls"][name]) for name in names},
                tensors={},
                notes=tuple(sorted(found["notes"])),
                facts={
                    "phases": {name: found["facts"][name] for name in names},
                    "seed": job.seed,
                    "weights": job.weights,
                    "computed_weights": side.weights.computed,
                    "factory": job.factory,
                },
                recorded={
                    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seconds": {name: round(value, 4) for name, value in found["seconds"].items()},
                    "peak_mb": _peak_mb(),
                },
            )
        )

    def _progress(self, name: str) -> None:
        self._done += 1
        _send(self._events, event="step", name=name, done=self._done, total=len(self.job.phases) + 2)


def _peak_mb() -> int:
    """The largest resident memory of this process, or of a lane if that had more; MB of 1024 * 1024 bytes."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 2**10 if sys.platform == "linux" else 1  # macOS counts bytes
    return max(peaks) * unit // 2**20


def _import_side(side: str) -> Any:
    try:
        return importlib.import_module(_MODULES[side])
    except ModuleNotFoundError as error:
        if error.name in ("torch", "tensorflow", "numpy", "safetensors"):
            package = {"tensorflow": "tensorflow-cpu"}.get(error.name, error.name)
            raise SetupError(
                f"{error.name} is not installed for {sys.executable}: run `{sys.executable} -m pip install {package}`, "
                f"or name an interpreter that has it with --{side}-python."
            ) from error
        raise
    except ImportError as error:
        raise WorkerError(
            f"Importing {side} failed for {sys.executable}: {error}. `portproof doctor` looks into it.",
            details=traceback.format_exc(),
        ) from error


def _take_over_stdout() -> IO[str]:
    sys.stdout.flush()
    protocol = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # stderr is the log file
    return protocol


def _send(events: IO[str], **fields: Any) -> None:
    events.write(json.dumps(fields) + "\n")


def _details(error: PortproofError) -> str:
    return getattr(error, "details", "") or traceback.format_exc()


def _disk_message(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"The trace could not be written: {error.strerror or error}{where}. Free some space, or set TMPDIR or --traces."
    )
