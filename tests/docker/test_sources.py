"""Tests of where the wheels come from: a folder and no network, or a mirror; and of what is no cell, or an old lock.

Each builds the image anew, from another source than the first: the layers must be the same to the byte.
"""

from __future__ import annotations

import base64
import functools
import http.server
import os
import re
import shlex
import shutil
import ssl
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient
    from docker.models.images import Image

    from conftest import Compose

ROOT = Path(__file__).parents[2]
FETCH_SECONDS = 600
IN_README = re.compile(r"^\*\*Without a network\*\*.*\n\n((?:    .*\n)+)", re.MULTILINE)

NO_EXTENSION = "[req]\ndistinguished_name = name\n[name]\n"
SERVER_EXTENSIONS = "[server]\nsubjectAltName = IP:127.0.0.1\nbasicConstraints = critical, CA:FALSE\n"


@pytest.fixture(scope="module")
def instructions() -> list[str]:
    """What the README says to type where there is no network."""
    found = IN_README.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found
    return found[1].replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def wheels(
    engine: DockerClient,
    compose: Compose,
    image: Image,
    instructions: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """The wheels of both locks, fetched as the README says: by this Python on this kind of machine: the base."""
    build = compose.config()["services"]["smoke"]["build"]
    arguments = build["args"]
    if arguments["TORCH_REQUIREMENTS"]:
        pytest.skip("torch is not the lock's here")
    given = Path(build["additional_contexts"]["wheels"])
    there = {path.name for path in given.glob("torch-*.whl")}
    commands = [line.strip() for line in instructions if line.strip().startswith("pip download")]
    commands = [re.sub(r"[\d.]+-tf[\d.]+\.txt", lock_name(arguments), command) for command in commands]
    if there:  # instead of an index that may not be reached
        commands = [re.sub(r"--extra-index-url \S+", "--find-links /given", command) for command in commands]
    settings = {"HOME": "/tmp", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}
    if arguments["INDEX_URL"]:
        settings["PIP_INDEX_URL"] = arguments["INDEX_URL"]
    folder = tmp_path_factory.mktemp("fetched")
    for command in commands:
        engine.containers.run(
            base(engine, arguments["PYTHON_VERSION"]),
            shlex.split(command),
            working_dir="/here",
            volumes=[f"{folder}:/here", f"{ROOT / 'docker'}:/here/docker:ro", f"{given}:/given:ro"],
            user=f"{os.getuid()}:{os.getgid()}",
            environment=settings,
            remove=True,
        )
    yield folder / "wheels"
    shutil.rmtree(folder)  # 0.5 GB


def base(engine: DockerClient, python: str) -> str:
    """The base image of a Python: this engine's stand-in, or what the Dockerfile names."""
    name = re.search(
        rf"^FROM ((python:{re.escape(python)}-\S+)@\S+)", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE
    )
    assert name
    return name[2] if engine.images.list(name[2]) else name[1]


def lock_name(arguments: dict[str, str]) -> str:
    return f"{arguments['PYTHON_VERSION']}-tf{arguments['TF_VERSION']}.txt"


def settings_of(instructions: list[str]) -> dict[str, str]:
    """The variables that the README exports."""
    words = [word for line in instructions for word in shlex.split(line) if line.strip().startswith("export")]
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_without_a_network_wheels_are_enough_and_give_the_same_layers(
    engine: DockerClient, compose: Compose, image: Image, instructions: list[str], wheels: Path, tmp_path: Path
) -> None:
    apart = compose.named("portproof:without-a-network", tmp_path)
    settings = settings_of(instructions) | {"PORTPROOF_WHEELS": str(wheels)}
    assert apart.config(**settings)["services"]["smoke"]["build"]["network"] == "none"
    try:
        code, printed = apart.build("--no-cache", **settings)
        assert code == 0, printed[-4000:]
        version = apart.run("run", "--rm", "-T", "smoke", "--version", **settings)
        assert version.stdout.startswith("portproof, version "), version.stderr
        assert engine.images.get("portproof:without-a-network").attrs["RootFS"] == image.attrs["RootFS"]
    finally:
        remove(engine, "portproof:without-a-network")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes the mirror's certificate, is not here")
def test_behind_a_mirror_with_a_password_and_its_own_authority_the_layers_are_the_same(
    engine: DockerClient, compose: Compose, image: Image, wheels: Path, tmp_path: Path
) -> None:
    apart = compose.named("portproof:behind-a-mirror", tmp_path)
    (tmp_path / "none").mkdir()
    with mirror(wheels, tmp_path, "user:s3cret-of-the-index") as (url, asked):
        (tmp_path / "index-url").write_text(url)
        settings = {
            "PORTPROOF_INDEX_URL_FILE": str(tmp_path / "index-url"),
            "PORTPROOF_TORCH_INDEX": "",  # the same index
            "PORTPROOF_CA": str(tmp_path / "ca.pem"),
            "PORTPROOF_WHEELS": str(tmp_path / "none"),
            "PORTPROOF_BUILD_NETWORK": "host",  # where the mirror is
        }
        try:
            code, printed = apart.build("--no-cache", **settings)
            assert code == 0, printed[-4000:]
            made = engine.images.get("portproof:behind-a-mirror")
            assert asked >= {path.name for path in wheels.iterdir()}
            assert made.attrs["RootFS"] == image.attrs["RootFS"]
            assert "s3cret" not in f"{made.attrs} {made.history()} {printed}"
        finally:
            remove(engine, "portproof:behind-a-mirror")


def test_what_is_no_cell_is_refused_with_those_that_are(compose: Compose, image: Image) -> None:
    python = compose.config()["services"]["smoke"]["build"]["args"]["PYTHON_VERSION"]
    code, printed = compose.build(TF_VERSION="2.9.9")
    assert code != 0
    assert f"no cell has Python {python} with TensorFlow 2.9.9: set TF_VERSION to one of 2." in printed
    code, printed = compose.build(PYTHON_VERSION="3.9")
    assert code != 0
    assert re.search(r"python-3\.9: .*did you mean python-3\.\d+\?", printed)


def test_a_lock_that_is_older_than_the_project_is_refused(compose: Compose, image: Image, tmp_path: Path) -> None:
    """The project is installed without its dependencies, so what a lock lacks would only be missed at run time."""
    for name in ("LICENSE", "README.md", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docker", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        project.replace('dependencies = ["', 'dependencies = ["colorama>=0.4", "', 1)
    )
    apart = compose.named("portproof:stale", tmp_path)
    code, printed = apart.build(folder=tmp_path)
    assert code != 0
    assert "requires `colorama>=0.4`, but it's not installed" in printed
    assert "the cell's lock is older than pyproject.toml: nox -s lock writes it anew" in printed


def remove(engine: DockerClient, name: str) -> None:
    """Take a test's image away, if it was built."""
    if engine.images.list(name):
        engine.images.remove(name)


@contextmanager
def mirror(wheels: Path, folder: Path, password: str) -> Iterator[tuple[str, set[str]]]:
    """An index of some wheels over TLS: its address, and the wheels that were asked for with the password."""
    index = folder / "index"
    for wheel in wheels.iterdir():
        project = index / "simple" / re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()
        project.mkdir(parents=True)
        (project / wheel.name).symlink_to(wheel)
    expected = "Basic " + base64.b64encode(password.encode()).decode()
    asked: set[str] = set()

    class Handler(http.server.SimpleHTTPRequestHandler):
        """Lists folders as links, which is all that an index has to do."""

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                return
            asked.add(Path(self.translate_path(self.path)).name)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(index)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(folder))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://{password}@127.0.0.1:{server.server_port}/simple", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A server's certificate and key, signed by an authority of its own, ca.pem."""
    (folder / "openssl.cnf").write_text(NO_EXTENSION + SERVER_EXTENSIONS)
    new = "openssl req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    authority = "-subj /CN=authority -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem"
    signed = "-subj /CN=127.0.0.1 -extensions server -CA ca.pem -CAkey ca.key -keyout server.key -out server.pem"
    for options in (authority, signed):
        subprocess.run([*new.split(), *options.split()], cwd=folder, check=True, capture_output=True)
    return folder / "server.pem", folder / "server.key"
