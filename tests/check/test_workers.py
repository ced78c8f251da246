"""Real worker processes, through the command as a user starts it: what becomes of them when something goes wrong."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import portproof as package

pytestmark = [
    pytest.mark.torch,
    pytest.mark.tensorflow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """What the command takes for the system's folder of temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def start(ports: Path, tmp_path: Path, temporary: Path) -> Iterator[Start]:
    """Start `portproof check` for a pair of the ports, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(
        torch: str, keras: str, *options: object, check: str = "function", **popen: object
    ) -> subprocess.Popen[str]:
        alone = tmp_path / "package"  # where it is installed, the frameworks lie beside it
        alone.mkdir(exist_ok=True)
        if not (alone / "portproof").exists():
            (alone / "portproof").symlink_to(Path(package.__file__).parent)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(alone), os.environ.get("PYTHONPATH")])),
            "TMPDIR": str(temporary),
            "PORTPROOF_TEST_FOLDER": str(tmp_path),
        }
        sides = ["--torch", ports / torch, "--tensorflow", ports / keras, "--input", "3,6", "--only", check]
        process = subprocess.Popen(
            [sys.executable, "-m", "portproof", "check", *map(str, sides), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            **popen,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], code: int = 2) -> str:
    """Wait for the end; returns the one message, which stands alone."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, (out, err)
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    return err


def group(process: subprocess.Popen[str]) -> list[int]:
    """The living processes of the command's session: itself, its workers, and their forks."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue  # it ended meanwhile
            if int(session) == process.pid and state != "Z":
                found.append(int(entry.name))
    return found


def assert_nothing_left(process: subprocess.Popen[str], temporary: Path) -> None:
    deadline = time.monotonic() + 5
    while (alive := group(process)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive == []
    left = [path for path in temporary.iterdir() if not path.name.startswith("portproof-logs-")]
    assert left == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 100
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def test_the_whole_way_and_quiet_streams(start: Start, temporary: Path, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    process = start("failing.py:chatters", "pairs_keras.py:functional_perceptron", "--traces", traces)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, (out, err)
    assert err == ""  # no progress display where nobody watches, and no framework's chatter
    assert out.strip().splitlines()[-1].startswith("SAME")
    assert "loading" not in out
    log = (traces / "torch.log").read_text()
    assert "loading ..." in log
    assert "from C" in log
    assert sorted(each.name for each in traces.iterdir()) == ["tensorflow", "tensorflow.log", "torch", "torch.log"]
    assert_nothing_left(process, temporary)


def test_a_worker_that_is_killed(start: Start, temporary: Path, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    process = start("failing.py:killed", "pairs_keras.py:perceptron", "--traces", traces)
    message = finish(process)
    assert "The torch worker was killed by SIGKILL" in message
    assert "memory runs out" in message
    assert sorted(each.name for each in traces.iterdir()) == ["tensorflow.log", "torch.log"]
    assert_nothing_left(process, temporary)


def test_a_worker_that_leaves(start: Start, temporary: Path) -> None:
    process = start("failing.py:leaves", "pairs_keras.py:perceptron")
    assert "ended with exit code 7 in building the model: no licence for this model" in finish(process)
    assert_nothing_left(process, temporary)


def test_a_forked_lane_that_is_killed(start: Start, temporary: Path, tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core, one lane")
    process = start("pairs_torch.py:perceptron", "failing.py:killed_in_second_lane", "--traces", tmp_path / "traces")
    assert "A lane of the worker was killed by SIGKILL" in finish(process)
    assert not (tmp_path / "traces" / "tensorflow").exists()
    assert not [path for path in (tmp_path / "traces").iterdir() if path.name.startswith(".")]
    assert_nothing_left(process, temporary)


def test_a_worker_that_is_killed_from_outside_during_a_phase(start: Start, temporary: Path, tmp_path: Path) -> None:
    process = start("failing.py:sleeps", "pairs_keras.py:perceptron")
    os.kill(int(wait_for(tmp_path / "pid", process)), signal.SIGKILL)
    assert "The torch worker was killed by SIGKILL" in finish(process)
    assert_nothing_left(process, temporary)


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "command alone"])
def test_control_c_leaves_nothing_behind(start: Start, temporary: Path, tmp_path: Path, whole_group: bool) -> None:
    traces = tmp_path / "traces"
    process = start("failing.py:sleeps", "pairs_keras.py:perceptron", "--traces", traces)
    wait_for(tmp_path / "pid", process)
    os.killpg(process.pid, signal.SIGINT) if whole_group else os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert err.strip().endswith("Interrupted.")
    assert "Traceback" not in err
    assert sorted(each.name for each in traces.iterdir()) == ["tensorflow.log", "torch.log"]
    assert_nothing_left(process, temporary)


def test_too_slow_is_a_message(start: Start, temporary: Path) -> None:
    process = start("failing.py:sleeps", "failing.py:sleeps", "--timeout", "1")
    message = finish(process)
    assert "Not finished in time: torch (in " in message
    assert "--timeout SECONDS" in message
    assert_nothing_left(process, temporary)


def test_a_full_disk(start: Start, temporary: Path, tmp_path: Path) -> None:
    def fill() -> None:  # no file may grow beyond this many bytes: enough for the job, too little for a trace
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    traces = tmp_path / "traces"
    process = start("pairs_torch.py:perceptron", "pairs_keras.py:perceptron", "--traces", traces, preexec_fn=fill)
    message = finish(process)
    assert "could not be written: " in message
    assert "TMPDIR or --traces" in message
    assert not (traces / "torch").exists()
    assert not [path for path in traces.iterdir() if path.name.startswith(".")]
    assert_nothing_left(process, temporary)


def test_an_interpreter_that_does_not_exist(start: Start, temporary: Path) -> None:
    process = start("pairs_torch.py:perceptron", "pairs_keras.py:perceptron", "--torch-python", "/no/such/python")
    assert "The interpreter /no/such/python cannot be started: No such file or directory." in finish(process)
    assert_nothing_left(process, temporary)


def test_an_interpreter_without_the_framework(start: Start, temporary: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    process = start("pairs_torch.py:perceptron", "pairs_keras.py:perceptron", "--torch-python", python)
    message = finish(process)
    # NumPy is what a worker needs first; an environment without it has no framework either.
    assert f"numpy is not installed for {python}" in message
    assert f"{python} -m pip install numpy safetensors torch" in message
    assert "--torch-python" in message
    assert_nothing_left(process, temporary)


def test_an_older_interpreter(start: Start, temporary: Path, tmp_path: Path) -> None:
    # A Python that believes to be 3.9, as `python3.9 -c PROGRAM ARGUMENTS` would.
    old = tmp_path / "python3.9"
    program = (
        "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (made)'; "
        "sys.argv = sys.argv[1:]; exec(sys.argv.pop(1))"
    )
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n', encoding="utf-8")
    old.chmod(0o755)
    process = start("pairs_torch.py:perceptron", "pairs_keras.py:perceptron", "--torch-python", old)
    assert "portproof needs Python 3.11 or newer, this is 3.9.1" in finish(process)
    assert_nothing_left(process, temporary)


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
sys.argv = ["portproof", *sys.argv[1:]]
from portproof.cli import main
try:
    main()
finally:
    print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    for arguments in (["--help"], ["check", "--help"], ["--version"]):
        environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
        command = [sys.executable, "-c", program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        imported = result.stderr.rpartition("imported:")[2].split()
        assert "click" in imported
        assert not {"numpy", "rich", "safetensors", "torch", "tensorflow", "keras"} & set(imported)
        assert "portproof" in result.stdout
