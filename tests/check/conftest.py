"""What the tests of `check` share: running both sides in the test's own process, where a process adds nothing."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portproof import processes


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`check` without worker processes: both sides one after the other, here; everything else is the real thing.

    Importing TensorFlow takes longer than ten of these checks.
    """
    torch, tf = pytest.importorskip("torch"), pytest.importorskip("tensorflow")
    from portproof.capture import exact

    for side in ("torch", "tensorflow"):
        module = importlib.import_module(f"portproof.capture.{side}")
        # Threads can be set once per process, and conftest.py has done so.
        found = {"framework": side, "version": "0", "build": "CPU", "accelerators": [], "threads": 1}
        monkeypatch.setattr(module, "prepare_framework", lambda threads, found=found: found)
    monkeypatch.setattr(processes, "run", _run_here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("hardsigmoid", "celu"):  # replaced by exact_torch.py, which a worker process never takes back
        monkeypatch.setattr(torch.nn.functional, name, getattr(torch.nn.functional, name))
    with ExitStack() as undo:
        undo.callback(tf.keras.mixed_precision.set_global_policy, "float32")
        undo.callback(tf.keras.backend.set_floatx, "float32")
        undo.callback(lambda: exact._active and exact._active.undo())
        yield


def _run_here(
    jobs: Mapping[str, Path], *, while_running: Callable[[], None] | None = None, **_: Any
) -> dict[str, Mapping[str, float]]:
    from portproof.capture.job import Job
    from portproof.capture.worker import Capture
    from portproof.trace import TraceWriter

    if while_running:
        while_running()
    seconds = {}
    read = {side: Job.read(path) for side, path in jobs.items()}
    for side in sorted(read, key=lambda side: read[side].weights == "take"):  # who gives weights goes first
        job = replace(read[side], lanes=1, timeout=1.0)
        module = importlib.import_module(f"portproof.capture.{side}")
        with TraceWriter(job.trace) as writer:
            capture = Capture(job, module, io.StringIO(), 0.0)
            found = capture.run_phases(job.phases, writer)
            capture.store_weights(writer)
            capture.finish(writer, found)
        seconds[side] = found["seconds"]
    return seconds
