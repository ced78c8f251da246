"""Wall times of portproof's commands against that of importing TensorFlow, in one run: `nox -s bench`.

Every command runs alternately with the import it is compared to, so that a busy moment of the machine hits both; the
medians are compared. Prints a table and ends with exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

IMPORT = [sys.executable, "-c", "import tensorflow"]
# Command, what it may take: times the import of TensorFlow, or seconds.
GOALS = {
    "portproof smoke": (["smoke", "--quiet"], 1.6, "x"),
    "portproof parity": (["parity", "--quiet"], 3.0, "x"),
    "portproof --help": (["--help"], 0.150, "s"),
}


def seconds(command: list[str]) -> float:
    """The wall time of one run; a failing command ends the benchmark."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def main() -> int:
    """Measure, print, and say whether all goals were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command (default: 5)")
    runs = parser.parse_args().runs
    commands = {name: [sys.executable, "-m", "portproof", *arguments] for name, (arguments, _, _) in GOALS.items()}
    for command in (IMPORT, *commands.values()):
        seconds(command)  # the first run compiles bytecode and fills the page cache
    times: dict[str, list[float]] = {name: [] for name in ("import tensorflow", *commands)}
    for _ in range(runs):
        for name, command in commands.items():
            times["import tensorflow"].append(seconds(IMPORT))
            times[name].append(seconds(command))
    base = statistics.median(times["import tensorflow"])
    print(f"{'':22}{'median':>9}{'range':>16}{'measured':>11}{'goal':>9}")
    print(f"{'import tensorflow':22}{base:8.2f}s{_range(times['import tensorflow']):>16}")
    missed = False
    for name, (_, goal, unit) in GOALS.items():
        median = statistics.median(times[name])
        value = median / base if unit == "x" else median
        missed |= value > goal
        verdict = "" if value <= goal else "  MISSED"
        print(f"{name:22}{median:8.2f}s{_range(times[name]):>16}{value:10.2f}{unit}{goal:8.2f}{unit}{verdict}")
    return int(missed)


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}s"


if __name__ == "__main__":
    sys.exit(main())
