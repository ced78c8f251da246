"""Tests of the services of compose.yaml in a real engine: hardened for real, and readable, and ended by a signal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.images import Image

    from conftest import Compose

PORTS = Path(__file__).parents[1] / "ports"

PROBE = """
import ctypes, errno, json, os, socket
def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def write(where):
    with open(where, "w") as file:
        file.write("x")
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "uid": os.getuid(),
    "root": attempt(lambda: write("/x")),
    "package": attempt(lambda: write("/opt/portproof/x")),
    "src": attempt(lambda: write("/src/x")),
    "tmp": attempt(lambda: write("/tmp/x")),
    "network": attempt(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
    "no new privileges": status["NoNewPrivs"].strip(),
    "init": open("/proc/1/cmdline").read().split("\\0")[0],
}))
"""


@pytest.mark.parametrize("service", ["smoke", "parity", "report", "test", "shell"])
def test_every_service_is_hardened(compose: Compose, service: str) -> None:
    config = compose.config()["services"][service]
    assert config["read_only"] is True
    assert config["init"] is True
    assert config["cap_drop"] == ["ALL"]
    assert config["security_opt"] == ["no-new-privileges:true"]
    assert config["network_mode"] == "none"
    assert int(config["mem_limit"]) == int(config["memswap_limit"]) <= 8 * 2**30
    assert 0 < config["pids_limit"] <= 1024
    assert not config.get("privileged")


def test_the_limits_are_real(compose: Compose, image: Image) -> None:
    run = compose.run("run", "--rm", "-T", "--entrypoint", "python", "smoke", "-c", PROBE)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["uid"] >= 1
    assert found["root"] == found["package"] == found["src"] == "EROFS"
    assert found["tmp"] == "done"
    assert found["network"] == "ENETUNREACH"
    assert found["interfaces"] == ["lo"]
    assert found["capabilities"] == 0
    assert found["no new privileges"] == "1"
    assert found["init"].endswith("docker-init")


def test_smoke_passes_and_reads_well(compose: Compose, image: Image) -> None:
    run = compose.run("run", "--rm", "-T", "smoke")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.rstrip().splitlines()
    assert lines[0].startswith("comparing  repvit-kws")
    assert lines[-1].startswith("SAME  repvit-kws: ")
    assert "\x1b" not in run.stdout  # no colours where nobody looks
    assert "Traceback" not in run.stdout + run.stderr
    assert "cuda" not in run.stderr.lower()


def test_parity_passes(compose: Compose, image: Image) -> None:
    run = compose.run("run", "--rm", "-T", "parity", "parity", "--quiet")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("SAME")


def test_the_tests_run_against_the_image(compose: Compose, image: Image) -> None:
    program = "tests/check/test_workers.py::test_an_older_interpreter"  # is one that the test writes and runs
    run = compose.run("run", "--rm", "-T", "test", "tests/compare", "tests/transfer", program, "-q")
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_the_shell_has_the_command_and_the_checkout(compose: Compose, image: Image) -> None:
    run = compose.run("run", "--rm", "-T", "shell", "-c", "portproof --version && ls pyproject.toml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("portproof, version ")


def test_a_failing_check_gives_exit_code_1(compose: Compose, image: Image) -> None:
    factories = ["--torch", "portproof.models.repvit:KWSRepViT_Torch", "--tensorflow", "ports/kws.py:tanh_gelu"]
    run = compose.run(
        "run", "--rm", "-T", "--volume", f"{PORTS}:/src/ports:ro", "smoke",
        "check", *factories, "--input", "2,100,40", "--only", "function",
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "first divergence" in run.stdout
    assert run.stdout.rstrip().splitlines()[-1].startswith("DIFFERS")


def test_what_cannot_be_judged_gives_exit_code_2(compose: Compose, image: Image) -> None:
    run = compose.run("run", "--rm", "-T", "smoke", "check", "--torch", "nowhere.py:f", "--tensorflow", "nowhere.py:g")
    assert run.returncode == 2, run.stdout + run.stderr


def test_a_report_is_written_by_a_user_without_rights(compose: Compose, image: Image, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    reports.chmod(0o777)  # as if it belonged to that user, whom this machine need not know
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    run = compose.run("run", "--rm", "-T", "report", PORTPROOF_REPORTS=str(reports), PORTPROOF_USER="23456:23456")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {path.name: path.stat().st_uid for path in reports.iterdir()} == dict.fromkeys(
        ("parity.json", "parity.xml", "parity.html"), 23456
    )
    json.loads((reports / "parity.json").read_text())
    assert ET.parse(reports / "parity.xml").getroot().get("failures", "0") == "0"


def test_a_gpu_that_the_host_hands_in_stays_hidden(engine: DockerClient, image: Image) -> None:
    """A device node where the NVIDIA driver has its own, and the variables that would show it."""
    answer = engine.containers.run(
        image.id,
        ["smoke"],
        devices=["/dev/null:/dev/nvidia0:rwm", "/dev/null:/dev/nvidiactl:rwm"],
        environment={"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all", "HIP_VISIBLE_DEVICES": "0"},
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "size=1g,mode=1777"},
        remove=True,
    ).decode()
    assert "✓ pass  no accelerator is visible to either side" in answer
    assert "GPU" in answer.split("stages")[0]  # the header says that there is one, hidden


@pytest.mark.parametrize("init", [True, False])
def test_stop_ends_a_run_cleanly(engine: DockerClient, image: Image, init: bool) -> None:
    container = engine.containers.run(
        image.id,
        ["parity"],
        detach=True,
        init=init,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "size=1g,mode=1777"},
    )
    try:
        assert comes_true(lambda: workers(container) == 2)
        before = time.monotonic()
        container.stop(timeout=30)
        assert time.monotonic() - before < 10
        assert container.wait()["StatusCode"] == 130
        assert "Interrupted." in container.logs().decode()
        assert "Traceback" not in container.logs().decode()
    finally:
        container.remove(force=True)


def test_an_interrupt_at_the_terminal_ends_a_run(compose: Compose, engine: DockerClient, image: Image) -> None:
    """Ctrl-C as a terminal hands it on: a character. (A signal to compose, where there is none, goes no further.)"""
    name = "portproof-interrupted"
    terminal, theirs = pty.openpty()
    run = subprocess.Popen(
        compose.command("run", "--rm", "--name", name, "parity"),
        cwd=compose.files[0].parent,
        env=compose.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(terminal, shown))
    reader.start()
    try:
        assert comes_true(lambda: [workers(one) for one in engine.containers.list(filters={"name": name})] == [2])
        os.write(terminal, b"\x03")
        assert run.wait(timeout=10) == 130, shown
        assert comes_true(lambda: not engine.containers.list(all=True, filters={"name": name}), seconds=3)
        reader.join()
        assert b"Interrupted." in b"".join(shown)
        assert b"Traceback" not in b"".join(shown)
    finally:
        run.kill()
        reader.join()
        os.close(terminal)
        for left in engine.containers.list(all=True, filters={"name": name}):
            left.remove(force=True)


def read_all(terminal: int, into: list[bytes]) -> None:
    """Read what a terminal shows until nobody writes to it any more, which Linux reports as an error."""
    with suppress(OSError):
        while text := os.read(terminal, 4096):
            into.append(text)


def workers(container: Container) -> int:
    """How many of portproof's workers run in a container."""
    return container.exec_run(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).output.count(b"portproof.capture.worker")


def comes_true(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether a condition holds within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
