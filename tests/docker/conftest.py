"""An engine and the image of one cell, built once: what the tests of the container share.

PYTHON_VERSION and TF_VERSION select the cell as they do for compose; PORTPROOF_WHEELS, PORTPROOF_TORCH_INDEX and the
others of compose.yaml hold as well. Without an engine every test here is skipped, and says why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 900  # cold, with 500 MB to fetch; every wait in these tests has an end
RUN_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.docker)


@dataclass(frozen=True)
class Compose:
    """``docker compose`` on this checkout, with the files and the environment that the cell needs."""

    files: tuple[Path, ...]
    environ: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        files = [part for file in self.files for part in ("--file", str(file))]
        return ["docker", "compose", "--progress", "quiet", *files, *arguments]

    def run(self, *arguments: str, timeout: float = RUN_SECONDS, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def build(self, *options: str, folder: Path = ROOT, **environ: str) -> tuple[int, str]:
        """Build the image, from this checkout or another: the exit code, and what the steps printed."""
        command = ["--progress", "plain", "--project-directory", str(folder), "build", *options, "smoke"]
        run = self.run(*command, timeout=BUILD_SECONDS, **environ)
        return run.returncode, run.stdout + run.stderr

    def config(self, **environ: str) -> dict[str, Any]:
        answer = self.run("config", "--format", "json", **environ)
        assert answer.returncode == 0, answer.stderr
        return dict(json.loads(answer.stdout))

    def named(self, image: str, folder: Path) -> Compose:
        """The same, with an image of another name; so the one that all tests share stays."""
        override = folder / "image.json"
        override.write_text(json.dumps({"services": {"smoke": {"image": image}}}))  # JSON is YAML
        return replace(self, files=(*self.files, override))


@pytest.fixture(scope="session")
def engine() -> DockerClient:
    docker = pytest.importorskip("docker")
    if not hasattr(docker, "from_env"):  # Python takes this checkout's folder of that name for a package
        pytest.skip("the docker package is not installed here: nox -s docker")
    if not shutil.which("docker"):
        pytest.skip("there is no docker command here")
    try:
        client = docker.from_env(timeout=RUN_SECONDS)
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return client


@pytest.fixture(scope="session")
def compose(engine: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Compose:
    files = [ROOT / "compose.yaml"]
    bases = local_bases(engine)
    if bases:
        services = {
            name: {"build": {"additional_contexts": bases}} for name in ("smoke", "parity", "report", "test", "shell")
        }
        override = tmp_path_factory.mktemp("compose") / "bases.json"
        override.write_text(json.dumps({"services": services}))
        files.append(override)
    made = Compose(tuple(files), dict(os.environ))
    if made.run("version").returncode:
        pytest.skip("docker has no compose plugin here")
    return made


def local_bases(engine: DockerClient) -> dict[str, str]:
    """Where stand-ins for the base images lie in the engine, for want of a registry: what to build from instead."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    local = {tag for image in engine.images.list(filters={"label": "portproof.standin"}) for tag in image.tags}
    return {
        f"{tag}@{digest}": f"docker-image://{tag}"
        for tag, digest in re.findall(r"^FROM (python:\S+)@(sha256:[0-9a-f]+)", text, re.MULTILINE)
        if tag in local
    }


@pytest.fixture(scope="session")
def image(engine: DockerClient, compose: Compose) -> Image:
    """The image of the cell, built as a user builds it."""
    code, printed = compose.build()
    assert code == 0, printed[-4000:]
    return engine.images.get(compose.config()["services"]["smoke"]["image"])
