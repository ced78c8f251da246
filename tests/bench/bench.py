"""Wall times and memory of portproof's commands against their goals, in one run: `nox -s bench`.

Every command runs alternately with the import it is compared to, so that a busy moment of the machine hits both; the
medians are compared. Prints a table and ends with exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import large

TENSORFLOW = "import tensorflow"
BOTH = "import torch, tensorflow"
# Command, what it may take: times an import, or seconds. CHECKPOINT and FOLDER stand for files of this run.
GOALS = {
    "portproof smoke": (["smoke", "--quiet"], 1.6, TENSORFLOW),
    "portproof parity": (["parity", "--quiet"], 3.0, TENSORFLOW),
    "portproof parity repvit-m0-9": (["parity", "repvit-m0-9", "--quiet"], 5.0, TENSORFLOW),
    "convert M0.9 .pth -> .keras": (["convert", "CHECKPOINT", "FOLDER/model.keras", "--quiet"], 2.5, BOTH),
    "portproof --help": (["--help"], 0.150, ""),
}
MEMORY_MB = 2.5 * 1000  # resident, per worker, for M2.3


def seconds(command: list[str]) -> float:
    """The wall time of one run; a failing command ends the benchmark."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def times(folder: Path, runs: int) -> bool:
    """Measure and print the commands' times; returns whether all goals were met."""
    make = "import torch; from portproof.models.repvit.torch_model import repvit_m0_9; "
    make += f"torch.save({{'model': repvit_m0_9(distillation=True).state_dict()}}, r'{folder / 'm0_9.pth'}')"
    subprocess.run([sys.executable, "-c", make], check=True)
    places = {"CHECKPOINT": str(folder / "m0_9.pth"), "FOLDER/model.keras": str(folder / "model.keras")}
    commands = {
        name: [sys.executable, "-m", "portproof", *(places.get(each, each) for each in arguments)]
        for name, (arguments, _, _) in GOALS.items()
    }
    imports = {text: [sys.executable, "-c", text] for text in (TENSORFLOW, BOTH)}
    for command in (*imports.values(), *commands.values()):
        seconds(command)  # the first run compiles bytecode and fills the page cache
    found: dict[str, list[float]] = {name: [] for name in (*imports, *commands)}
    for _ in range(runs):
        for name, command in commands.items():
            base = GOALS[name][2] or TENSORFLOW
            found[base].append(seconds(imports[base]))
            found[name].append(seconds(command))
    print(f"{'':30}{'median':>9}{'range':>16}{'measured':>11}{'goal':>9}")
    for name in imports:
        print(f"{name:30}{statistics.median(found[name]):8.2f}s{_range(found[name]):>16}")
    met = True
    for name, (_, goal, base) in GOALS.items():
        median = statistics.median(found[name])
        value, unit = (median / statistics.median(found[base]), "x") if base else (median, "s")
        met &= value <= goal
        verdict = "" if value <= goal else "  MISSED"
        print(f"{name:30}{median:8.2f}s{_range(found[name]):>16}{value:10.2f}{unit}{goal:8.2f}{unit}{verdict}")
    return met


def memory(folder: Path) -> bool:
    """Print what M2.3's workers need at most; returns whether the goal was met."""
    seconds([sys.executable, "-m", "portproof", "parity", "repvit-m2-3", "--quiet", "--traces", str(folder / "m2_3")])
    peaks = {}
    for side in ("torch", "tensorflow"):
        manifest = json.loads((folder / "m2_3" / side / "trace.json").read_text(encoding="utf-8"))
        peaks[side] = manifest["recorded"]["peak_mb"]
    print(f"{'parity repvit-m2-3, resident':36}{', '.join(f'{s} {p} MB' for s, p in peaks.items())} (goal 2500)")
    return max(peaks.values()) <= MEMORY_MB


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}s"


def main() -> int:
    """Measure, print, and say whether all goals were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command (default: 5)")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of each large trace, 0 for none (default: 4)")
    parser.add_argument("--only", choices=["times", "memory", "large"], help="measure this alone")
    options = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(prefix="portproof-bench-") as place:
        if options.only in (None, "times"):
            met &= times(Path(place), options.runs)
        if options.only in (None, "memory"):
            met &= memory(Path(place))
        if options.only in (None, "large") and options.gigabytes:
            met &= large.measure(Path(place), options.gigabytes, min(options.runs, 3))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
