"""Running many cells: within the budget, each by its command, and stopped or killed without losing one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.errors import InputError
from portproof.matrix import run
from portproof.matrix.run import Budget, available_memory, budget, run_cells
from portproof.matrix.table import Cell

CELLS = [Cell("3.12", f"2.{minor}.0", {}) for minor in range(16, 22)]
PYTHON = sys.executable
# Writes when it began and ended; a finished "cell" appears at once, by a rename.
WORK = """
import os, sys, time, pathlib
reports = pathlib.Path(os.environ["PORTPROOF_REPORTS"])
name = sys.argv[1]
(reports / f"{name}.begin").write_text(str(time.monotonic()))
time.sleep(float(os.environ.get("WORK", "0.2")))
part = reports / f"{name}.part"
part.write_text(str(time.monotonic()))
part.rename(reports / f"{name}.done")
print("worked on", os.environ["PYTHON_VERSION"], os.environ["TF_VERSION"])
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    return f"{PYTHON} {script} {{cell}}"


@given(st.integers(1, 512), st.floats(0, 4096))
def test_a_budget_is_kept_and_lets_at_least_one_cell_run(cores, memory):
    cells = Budget(cores, memory).cells
    assert cells >= 1
    if cells > 1:
        assert cells * run.CORES_PER_CELL <= cores
        assert cells * run.MEMORY_PER_CELL <= memory


def test_the_budget_is_the_machines_unless_given():
    found = budget()
    assert found.cores >= 1
    assert found.memory > 0
    assert budget(3, 9.0) == Budget(3, 9.0)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8000000 kB\n"}, 8.192),
        ({"proc/meminfo": "MemAvailable: 8000000 kB\n", "sys/fs/cgroup/memory.max": "3000000000\n"}, 3.0),
        ({"proc/meminfo": "MemAvailable: 8000000 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 8.192),
        ({}, run.MEMORY_PER_CELL),
    ],
)
def test_a_containers_limit_counts(tmp_path, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == pytest.approx(wanted)


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_no_more_cells_run_at_a_time_than_allowed(tmp_path, command, at_a_time):
    said: list[str] = []
    failed = run_cells(CELLS, command, tmp_path, at_a_time=at_a_time, environ=os.environ, say=said.append)
    assert failed == {}
    events = sorted(
        (float((tmp_path / f"{cell.id}.{what}").read_text()), step)
        for cell in CELLS
        for what, step in (("begin", 1), ("done", -1))
    )
    running = most = 0
    for _, step in events:
        running += step
        most = max(most, running)
    assert 1 <= most <= at_a_time
    assert f"({len(CELLS)} of {len(CELLS)})" in said[-1]
    assert "worked on 3.12 2.16.0" in run.log_of(tmp_path, CELLS[0].id).read_text()


def test_a_model_that_differs_is_a_result_and_anything_else_a_failure(tmp_path):
    script = tmp_path / "s.py"
    script.write_text("import sys\nprint('no wheel for this Python')\nsys.exit(int(sys.argv[1].split('.')[1]) - 16)")
    failed = run_cells(
        CELLS[:3], f"{PYTHON} {script} {{tensorflow}}", tmp_path, at_a_time=2, environ=os.environ, say=lambda _: None
    )
    assert list(failed) == [CELLS[2].id]
    assert "exit code 2" in failed[CELLS[2].id]
    assert "no wheel for this Python" in failed[CELLS[2].id]


@pytest.mark.parametrize(
    ("command", "said"), [("", "needs a command"), ("a 'b", "is not a command"), ("/no/such", "start")]
)
def test_a_command_that_is_none_is_a_message(tmp_path, command, said):
    with pytest.raises(InputError, match=said):
        run_cells(CELLS, command, tmp_path, at_a_time=1, environ=os.environ, say=lambda _: None)


def _runner(tmp_path: Path, command: str) -> subprocess.Popen[bytes]:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(run.__file__).parents[2])!r})
        from pathlib import Path
        from portproof.matrix.run import run_cells
        from portproof.matrix.table import Cell
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        reports = Path({str(tmp_path)!r})
        cells = [Cell("3.12", f"2.{{minor}}.0", {{}}) for minor in range(16, 22)]
        todo = [cell for cell in cells if not (reports / f"{{cell.id}}.done").exists()]
        run_cells(todo, {command!r}, reports, at_a_time=2, environ=os.environ)
    """
    return subprocess.Popen([PYTHON, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)


def _finished(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in tmp_path.glob("*.done")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_keeps_what_is_finished_and_the_next_goes_on(tmp_path, command, number):
    first = _runner(tmp_path, command)
    deadline = time.monotonic() + 30
    while len(_finished(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(number)
    first.wait()
    before = _finished(tmp_path)
    assert 2 <= len(before) < len(CELLS)
    second = _runner(tmp_path, command)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0, out
    after = _finished(tmp_path)
    assert len(after) == len(CELLS)
    assert {name: after[name] for name in before} == before  # none was run again


def test_commands_are_stopped_with_the_run(tmp_path, command, monkeypatch):
    monkeypatch.setenv("WORK", "60")
    runner = _runner(tmp_path, command)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("*.begin"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    runner.terminate()
    started = time.monotonic()
    assert runner.wait(timeout=30) == 143
    assert time.monotonic() - started < 20
    assert _finished(tmp_path) == {}


def test_a_run_waits_for_what_a_killed_one_left_at_work(tmp_path, command, monkeypatch):
    monkeypatch.setenv("WORK", "2")
    first = _runner(tmp_path, command)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("*.begin"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.wait()
    said: list[str] = []
    run_cells([], command, tmp_path, at_a_time=1, environ=os.environ, say=said.append)
    assert "waiting for another run" in said[0]
    assert len(_finished(tmp_path)) == 2  # they came to their end meanwhile
