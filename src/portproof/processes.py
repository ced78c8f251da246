"""Worker processes: starts one per side, relays their progress, and turns every way to fail into one clear error."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portproof import cpu, errors

# Makes this very package importable in any interpreter, and nothing else of this environment.
_BOOT = """
import sys
if sys.version_info < (3, 11): sys.exit("portproof needs Python 3.11 or newer, this is " + sys.version.split()[0])
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("portproof", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["portproof"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
try:
    from portproof.capture.worker import main
except ModuleNotFoundError as error:
    import json, pathlib, traceback
    side = pathlib.Path(sys.argv[2]).stem.rpartition("-")[2]
    packages = "numpy safetensors " + {"tensorflow": "tensorflow-cpu"}.get(side, side)
    message = (
        f"{error.name} is not installed for {sys.executable}: run `{sys.executable} -m pip install {packages}`, "
        f"or name an interpreter that has them with --{side}-python."
    )
    report = {"event": "error", "kind": "SetupError", "message": message, "details": traceback.format_exc()}
    sys.exit(print(json.dumps(report)))
main(*sys.argv[2:])
"""
_GRACE_SECONDS = 3.0
_KEPT_LOGS = 20

Progress = Callable[[str, dict[str, Any]], None]


@dataclass
class Worker:
    """One running worker and what is known of it."""

    side: str
    process: subprocess.Popen[bytes]
    log: Path
    step: str = "starting"
    done: bool = False
    error: dict[str, Any] | None = None
    buffer: bytes = b""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether it has answered, and lives on for another job."""
        return (self.done or self.error is not None) and self.process.poll() is None

    def take_job(self, job: Path) -> None:
        """Give a serving worker its next job."""
        self.done, self.error, self.step = False, None, "starting"
        assert self.process.stdin is not None  # a pipe was asked for
        with suppress(BrokenPipeError):  # it has died; how, the pump finds out
            self.process.stdin.write(f"{job}\n".encode())
            self.process.stdin.flush()


def run(
    jobs: Mapping[str, Path],
    *,
    interpreters: Mapping[str, str],
    logs: Path,
    threads: int,
    timeout: float,
    progress: Progress | None = None,
    while_running: Callable[[], None] | None = None,
) -> dict[str, Mapping[str, float]]:
    """Run every side's job file at once and wait for all; returns the seconds that each side's steps took.

    ``while_running`` is called once after the workers have been started, for work that they wait for. If one side
    fails, the others are stopped.

    Raises:
        PortproofError: what went wrong, from the worker's own report or from the way it ended.
    """
    with _started(jobs, interpreters, logs, threads) as workers:
        if while_running:
            while_running()
        _pump(workers, time.monotonic() + timeout, progress)
        return {worker.side: worker.seconds for worker in workers}


class Servers:
    """Workers that stay: each side's framework is imported once, and its process takes one job after the other.

    ``run`` has the form of `run` above and may stand in its place. A worker that fails otherwise than by an error of
    its own is started anew for the next job. Not for several threads at once: use one `Servers` per thread.
    """

    def __init__(self) -> None:
        self._workers: dict[tuple[str, str, int], Worker] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        _stop(list(self._workers.values()))

    def run(
        self,
        jobs: Mapping[str, Path],
        *,
        interpreters: Mapping[str, str],
        logs: Path,
        threads: int,
        timeout: float,
        progress: Progress | None = None,
        while_running: Callable[[], None] | None = None,
    ) -> dict[str, Mapping[str, float]]:
        """Run every side's job file at once and wait for all; returns the seconds that each side's steps took.

        Raises:
            PortproofError: what went wrong.
        """
        keys = {side: (side, interpreters.get(side, sys.executable), threads) for side in jobs}
        try:
            for side, job in jobs.items():
                if keys[side] not in self._workers:
                    log = logs / f"{side}.log"
                    process = _spawn(keys[side][1], (side, "serve"), log, threads, stdin=subprocess.PIPE)
                    self._workers[keys[side]] = Worker(side, process, log)
                self._workers[keys[side]].take_job(job)
            if while_running:
                while_running()
            workers = [self._workers[key] for key in keys.values()]
            _pump(workers, time.monotonic() + timeout, progress, once=False)
        except BaseException:
            # The other side may still be at work, or in the middle of an answer.
            idle = {key for key in keys.values() if key in self._workers and self._workers[key].is_idle}
            _stop([self._workers.pop(key) for key in keys.values() if key in self._workers and key not in idle])
            raise
        return {worker.side: worker.seconds for worker in workers}


def log_folder() -> Path:
    """A new folder for this run's logs; the oldest of `_KEPT_LOGS` others goes."""
    base = Path(tempfile.gettempdir()) / f"portproof-logs-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    older = sorted(base.iterdir())
    for folder in older[: max(len(older) - _KEPT_LOGS + 1, 0)]:
        shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=base))


@contextmanager
def _started(
    jobs: Mapping[str, Path], interpreters: Mapping[str, str], logs: Path, threads: int
) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for side, job in jobs.items():
            log = logs / f"{side}.log"
            process = _spawn(interpreters.get(side, sys.executable), (str(job),), log, threads)
            workers.append(Worker(side, process, log))
        yield workers
    finally:
        _stop(workers)


def _spawn(
    interpreter: str, arguments: Sequence[str], log: Path, threads: int, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    environment = cpu.worker_environment(threads)
    with log.open("wb") as stderr:
        try:
            return subprocess.Popen(
                [interpreter, "-c", _BOOT, str(Path(__file__).parent), *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        except OSError as error:
            raise errors.SetupError(f"The interpreter {interpreter} cannot be started: {error.strerror}.") from error


def _pump(workers: Sequence[Worker], deadline: float, progress: Progress | None, *, once: bool = True) -> None:
    """Relay what workers say until they end, or, where they take more than one job, have answered."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            assert worker.process.stdout is not None  # a pipe was asked for
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        while selector.get_map():
            remaining = deadline - time.monotonic()
            ready = selector.select(max(remaining, 0)) if remaining > 0 else []
            if not ready and time.monotonic() >= deadline:
                slow = ", ".join(f"{worker.side} (in {worker.step})" for worker in workers if not worker.done)
                raise errors.WorkerError(f"Not finished in time: {slow}. Give more with --timeout SECONDS.")
            for key, _ in ready:
                worker = key.data
                chunk = os.read(key.fd, 65536)
                if chunk:
                    _take(worker, chunk, progress)
                else:
                    worker.process.wait()
                if not chunk or (not once and worker.is_idle):
                    selector.unregister(key.fileobj)
                    _judge_exit(worker)


def _take(worker: Worker, chunk: bytes, progress: Progress | None) -> None:
    *lines, worker.buffer = (worker.buffer + chunk).split(b"\n")
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # something wrote to the pipe before the worker took it over
        if event["event"] == "step":
            worker.step = event["name"]
        elif event["event"] == "done":
            worker.done, worker.seconds = True, event["seconds"]
        elif event["event"] == "error":
            worker.error = event
        if progress:
            progress(worker.side, event)


def _judge_exit(worker: Worker) -> None:
    if worker.done:
        return
    if worker.error:
        kind = getattr(errors, worker.error["kind"], errors.WorkerError)
        details = f"{worker.error['details']}\n(log of the {worker.side} worker: {worker.log})"
        failure: errors.PortproofError = kind(worker.error["message"])
        failure.details = details
        raise failure
    code = worker.process.returncode
    if code < 0:
        name = signal.Signals(-code).name
        why = {
            "SIGKILL": " The system does that when memory runs out: use smaller inputs, or free some.",
            "SIGILL": " This CPU lacks an instruction that the framework's build needs: `portproof doctor` shows it.",
        }.get(name, "")
        raise errors.WorkerError(
            f"The {worker.side} worker was killed by {name} in {worker.step}.{why} Log: {worker.log}"
        )
    raise errors.WorkerError(
        f"The {worker.side} worker ended with exit code {code} in {worker.step}: {_last_line(worker.log)} "
        f"Log: {worker.log}"
    )


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        last = deque((line for line in file if line.strip()), maxlen=1)
    return last[0].decode(errors="replace").strip()[:400] if last else "it said nothing."


def _stop(workers: Sequence[Worker]) -> None:
    alive = [worker.process for worker in workers if worker.process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in alive:
        try:
            process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for worker in workers:
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()
