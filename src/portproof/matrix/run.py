"""Running many cells: each by a command of its own, several at a time, within a budget of cores and memory.

The command is whatever prepares an environment and runs ``portproof cell`` in it: nox, a container, another machine.
What it leaves is a finished cell or nothing, so a run can be stopped at any point, and the next goes on from there.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from portproof.errors import InputError
from portproof.matrix.table import Cell

# Measured on cells of RepViT, with both frameworks at once, the second in two processes, and what compares them.
MEMORY_PER_CELL = 2.0  # GB; 1.4 at their peak, with the CUDA build of torch
CORES_PER_CELL = 1  # 30 s of processor time in 38 s, two cells at a time on two cores
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_LAST_LINES = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What cells may take together: cores, and memory in GB."""

    cores: int
    memory: float

    @property
    def cells(self) -> int:
        """How many cells run at a time: at least one, whatever the budget."""
        return max(1, min(self.cores // CORES_PER_CELL, int(self.memory / MEMORY_PER_CELL)))


def budget(cores: int | None = None, memory: float | None = None) -> Budget:
    """A budget; what is not given is what this machine, or this container of it, has free."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Budget(cores or usable, memory if memory is not None else available_memory())


def available_memory(root: Path = Path("/")) -> float:
    """Memory that can be had without swapping, in GB; one cell's worth where the system does not say."""
    amounts = []
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            amounts.append(int((root / name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not in a cgroup, or "max"
            continue
    return min(amounts) / 1e9 if amounts else MEMORY_PER_CELL


def run_cells(
    cells: Sequence[Cell],
    command: str,
    reports: Path,
    *,
    at_a_time: int,
    environ: Mapping[str, str],
    say: Say = print,
) -> dict[str, str]:
    """Run ``command`` once per cell, ``at_a_time`` at once; returns why cells failed, by their id.

    In the command ``{python}``, ``{tensorflow}`` and ``{cell}`` stand for those of the cell; the variables
    ``PYTHON_VERSION`` and ``TF_VERSION`` hold the same, for compose. An exit code of 1 is a model that differs, which
    is a result. What a command prints goes to ``reports/logs/CELL.log``.

    Raises:
        InputError: the command cannot be started.
    """
    words = _split(command)
    waiting, running, failed = list(cells), dict[str, tuple[subprocess.Popen[bytes], float]](), dict[str, str]()
    done = 0
    with _only_run(reports, say) as lock:
        try:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    cell = waiting.pop(0)
                    say(f"{cell.id}  running")
                    running[cell.id] = _start(words, cell, reports, environ, lock), time.monotonic()
                for name, (process, started) in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[name]
                    done += 1
                    if code not in (0, 1):
                        failed[name] = f"exit code {code}: {last_lines(log_of(reports, name))}"
                    word = "failed" if name in failed else "done"
                    say(f"{name}  {word}, {time.monotonic() - started:.0f} s ({done} of {len(cells)})")
                time.sleep(_POLL_SECONDS)
        finally:
            _stop([process for process, _ in running.values()])
    return failed


def log_of(reports: Path, name: str) -> Path:
    """Where what a cell's command prints goes."""
    return reports / "logs" / f"{name}.log"


def last_lines(log: Path, count: int = _LAST_LINES) -> str:
    """The end of a log, in one line."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return "it said nothing"
    return " | ".join([line for line in lines if line][-count:]) or "it said nothing"


def _split(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--run {command!r} is not a command: {error}.") from error
    if not words:
        raise InputError("--run needs a command that runs `portproof cell` in the environment of a cell.")
    return words


def _start(
    words: Sequence[str], cell: Cell, reports: Path, environ: Mapping[str, str], lock: int
) -> subprocess.Popen[bytes]:
    filled = []
    for word in words:
        for name, value in (("python", cell.python), ("tensorflow", cell.tensorflow), ("cell", cell.id)):
            word = word.replace(f"{{{name}}}", value)  # noqa: PLW2901 - not str.format: other braces are the command's own
        filled.append(word)
    log = log_of(reports, cell.id)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                filled,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **environ,
                    "PYTHON_VERSION": cell.python,
                    "TF_VERSION": cell.tensorflow,
                    "PORTPROOF_REPORTS": str(reports.resolve()),
                },
                start_new_session=True,  # so that it can be stopped with all that it started
                pass_fds=(lock,),
            )
        except OSError as error:
            raise InputError(f"{filled[0]} cannot be started: {error.strerror}.") from error


@contextmanager
def _only_run(reports: Path, say: Say) -> Iterator[int]:
    """Wait for other runs into the same folder. Commands inherit the lock: it outlives a runner that was killed."""
    reports.mkdir(parents=True, exist_ok=True)
    with (reports / ".matrix.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run, or what a killed one left behind, to finish its cells in {reports}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
