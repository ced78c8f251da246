"""Comparing two large traces: memory, and speed against `cmp` on the same files; part of `nox -s bench`.

The traces are synthetic, of float32 activations of 9.6 MB each, once equal and once different by rounding in every
value, as two frameworks are. `cmp` stops at the first difference, so it is timed on the equal pair in both cases.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from portproof.trace import CallRecord, LayerRecord, Manifest, TraceWriter

PHASE = "float32.eval"
SHAPE = (4, 48, 112, 112)


def write(target: Path, gigabytes: float, noise: float) -> None:
    """One trace of about ``gigabytes`` (10^9 bytes); ``noise`` is relative."""
    base = np.random.default_rng(0).standard_normal(int(np.prod(SHAPE)), dtype=np.float32)
    calls, layers = [], [LayerRecord("(model)", "model", "Model", None, False, False)]
    with TraceWriter(target) as writer:
        for index in range(max(int(gigabytes * 1e9 / base.nbytes), 1)):
            value = np.roll(base, index) * np.float32(1 + noise)
            writer.add(f"{PHASE}/output/l{index}", value.reshape(SHAPE))
            layers.append(LayerRecord(f"l{index}", "conv2d", "Conv2d", "(model)", True, False))
            calls.append(CallRecord(f"l{index}", 0, (f"output/l{index - 1}",) if index else (), (f"output/l{index}",)))
        side = {"framework": "torch", "version": "0", "accelerators": []}
        plan = [{"name": PHASE, "training": False, "optimizer": ""}]
        facts = {"phases": {PHASE: {}}, "seed": 0, "weights": "own", "factory": "synthetic"}
        writer.finish(Manifest("torch", "large", side, plan, (), tuple(layers), {PHASE: tuple(calls)}, {}, facts=facts))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MB of one command that has to succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def measure(folder: Path, gigabytes: float, runs: int) -> bool:
    """Print memory and speed; returns whether both goals were met."""
    met = True
    write(folder / "a", gigabytes, 0.0)
    reading: list[float] = []
    for title, noise in (("equal", 0.0), ("by rounding", 2.0**-22)):
        write(folder / "b", gigabytes, noise)
        command = [sys.executable, "-m", "portproof", "compare", str(folder / "a"), str(folder / "b"), "--quiet"]
        compared, peaks = [], []
        for run in range(runs + 1):
            seconds, peak = timed(command)
            if run:  # the first fills the page cache
                compared.append(seconds)
                peaks.append(peak)
            if run and not noise:
                shards = sorted(path.name for path in (folder / "a").glob("*.safetensors"))
                script = " && ".join(f"cmp {folder / 'a' / name} {folder / 'b' / name}" for name in shards)
                reading.append(timed(["sh", "-c", script])[0])
        speed = statistics.median(reading) / statistics.median(compared)
        met &= speed >= 0.5 and max(peaks) < 400
        print(
            f"{f'compare {gigabytes:g} GB, {title}':36}{statistics.median(compared):6.2f}s, "
            f"{speed:.2f} of cmp's speed ({statistics.median(reading):.2f}s; goal 0.50), "
            f"{max(peaks):.0f} MB resident (goal 400)"
        )
    return met
