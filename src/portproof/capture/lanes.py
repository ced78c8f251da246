"""Lanes: phases of one side that run at the same time, in processes forked after the framework was imported.

Phases are independent experiments, and a Keras model in eager mode keeps one core busy with Python. Forking shares the
import, which is most of a short capture's time. It is safe only while the framework has started no thread of its own,
which holds until the first operation: so the fork comes right after the import.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from portproof import errors

_ERROR = "error.json"


def can_fork() -> bool:
    """Whether this process may be forked: on Linux, as long as it has no other thread (OpenMP starts some for itself
    when it is given more than one)."""
    return sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1


@contextmanager
def forked(
    lanes: Sequence[Sequence[Any]], work: Callable[[Sequence[Any], Path], None], trace: Path
) -> Iterator[Callable[[], Iterator[Path]]]:
    """Run ``work(phases, folder)`` for each lane in a process of its own; yields a function that waits for them.

    That function gives each lane's folder when the lane has ended well, and raises its error if not. Leaving the block
    ends what still runs and removes what is left.
    """
    running: dict[int, Path] = {}
    folders = [trace.with_name(f".{trace.name}.lane{index + 1}") for index in range(len(lanes))]
    try:
        for phases, folder in zip(lanes, folders, strict=True):
            running[_fork(phases, folder, work)] = folder

        def finished() -> Iterator[Path]:
            for pid, folder in list(running.items()):
                _, status = os.waitpid(pid, 0)
                del running[pid]
                if status != 0:
                    raise _failure(folder, status)
                yield folder

        yield finished
    finally:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            _error_file(folder).unlink(missing_ok=True)


def _fork(phases: Sequence[Any], folder: Path, work: Callable[[Sequence[Any], Path], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    # The child must not outlive its parent, however that ends. 1 is PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    code = 0
    try:
        work(phases, folder)
    except BaseException as error:
        code = 2
        known = isinstance(error, errors.PortproofError)
        report = {
            "kind": type(error).__name__ if known else "WorkerError",
            "message": str(error) if known else f"{type(error).__name__}: {error}",
            "details": getattr(error, "details", "") or traceback.format_exc(),
            "os_error": error.errno if isinstance(error, OSError) else None,
        }
        with suppress(OSError):  # a full disk may be what went wrong
            _error_file(folder).write_text(json.dumps(report), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _error_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{_ERROR}")


def _failure(folder: Path, status: int) -> Exception:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return errors.WorkerError(f"A lane of the worker was killed by {signal.Signals(-code).name}.")
    try:
        report = json.loads(_error_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return errors.WorkerError("A lane of the worker failed and could not say why: is the disk full?")
    if report["os_error"]:
        return OSError(report["os_error"], os.strerror(report["os_error"]))
    failure: errors.PortproofError = getattr(errors, report["kind"])(report["message"])
    failure.details = report["details"]
    return failure
