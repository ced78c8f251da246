"""`portproof doctor`: what this environment is, what is wrong with it, and the line that repairs it.

Gathering, judging and rendering are apart: ``gather`` looks at the machine and asks each framework in a process of its
own, ``portproof.diagnosis.judge`` is a pure function of what was found, ``portproof.report.doctor`` prints it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof import cpu
from portproof.diagnosis import Diagnosis, Machine, Probe, groups, judge
from portproof.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console


def run(
    *,
    torch_python: str = sys.executable,
    tensorflow_python: str = sys.executable,
    as_json: bool = False,
    quiet: bool = False,
    console: Console | None = None,
) -> int:
    """Diagnose, print to ``console`` (or as JSON to standard output), and return the exit code."""
    if as_json:
        diagnosis = diagnose(torch_python=torch_python, tensorflow_python=tensorflow_python)
        sys.stdout.write(json.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False) + "\n")
        return diagnosis.exit_code
    from portproof.report.doctor import render, waiting

    with waiting(console, quiet=quiet):
        diagnosis = diagnose(torch_python=torch_python, tensorflow_python=tensorflow_python)
    render(diagnosis, console, quiet=quiet)
    return diagnosis.exit_code


def diagnose(*, torch_python: str = sys.executable, tensorflow_python: str = sys.executable) -> Diagnosis:
    """Look at the machine and at both frameworks, each in its interpreter, and judge what was found."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        pending = [
            pool.submit(probe, "torch", torch_python),
            pool.submit(probe, "tensorflow", tensorflow_python),
        ]
        machine = gather()
        probes = tuple(one.result() for one in pending)
    return Diagnosis(groups(machine, probes), judge(machine, probes))


def gather(*, environ: Mapping[str, str] = os.environ) -> Machine:
    """What can be found out about this machine without a framework."""
    temporary, free = _temporary()
    return Machine(
        environment=cpu.describe_environment(environ=environ),
        variables=dict(environ),
        memory=_available_memory(),
        temporary=temporary,
        temporary_free=free,
        keras_config=_keras_config(environ),
    )


def probe(framework: str, interpreter: str, *, timeout: float = 180.0) -> Probe:
    """Import ``framework`` in ``interpreter``, isolated as a worker is, and take down what it says of itself.

    ``timeout`` is in seconds; a first import from a cold disk has been seen to take a minute.
    """
    script = resources.files("portproof").joinpath("probe.py").read_bytes()
    try:
        done = subprocess.run(
            [interpreter, "-", framework],
            input=script,
            capture_output=True,
            env=cpu.worker_environment(),
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise SetupError(f"There is no interpreter {interpreter}: give the path of a Python executable.") from error
    except OSError as error:
        raise SetupError(
            f"{interpreter} cannot be run: {error.strerror}. Give the path of a Python executable."
        ) from error
    except subprocess.TimeoutExpired:
        return Probe(framework, interpreter, error=f"no answer within {timeout:g} s")
    lines = done.stdout.decode(errors="replace").splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        return Probe(framework, interpreter, error=_how_it_ended(done))
    answer["accelerators"] = tuple(answer.get("accelerators", ()))
    return Probe(framework, interpreter, **answer)


def _how_it_ended(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"the process was killed by {signal.Signals(-done.returncode).name}"
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"the process ended with code {done.returncode}{''.join(f': {line}' for line in last)}"


def _temporary() -> tuple[str | None, int]:
    try:
        folder = tempfile.gettempdir()  # it has tried to write there
        return folder, shutil.disk_usage(folder).free
    except OSError:
        return None, 0


def _available_memory(*, root: Path = Path("/")) -> int | None:
    """Bytes available to a new process: the system's, or what the container's limit leaves if that is less."""
    try:
        meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    system = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    candidates = [int(system[1]) * 1024] if system else []
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            candidates.append(int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(0, min(candidates)) if candidates else None


def _keras_config(environ: Mapping[str, str]) -> dict[str, Any]:
    """keras.json, where Keras itself looks for it."""
    home = Path(environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        config = json.loads((home / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
