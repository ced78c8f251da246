"""Tests of the image itself: what is in it, what is not, and how large it is."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

    from conftest import Compose

MOST_BYTES = 1.9e9  # issue 3; the CUDA build of torch alone, taken where the CPU wheels cannot be had, is larger


def output(engine: DockerClient, image: Image, *command: str) -> str:
    """What a command prints in a container of this image."""
    answer: bytes = engine.containers.run(
        image.id,
        list(command[1:]),
        entrypoint=command[0],
        remove=True,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "size=64m"},  # TensorFlow does not import where it can write nothing
    )
    return answer.decode()


@pytest.fixture(scope="session")
def distributions(engine: DockerClient, image: Image) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    return dict(json.loads(output(engine, image, "python", "-c", code)))


def test_it_is_small(image: Image, distributions: dict[str, str]) -> None:
    if not distributions["torch"].endswith("+cpu"):
        pytest.skip(f"built with torch {distributions['torch']}, which is not the CPU wheel")
    assert image.attrs["Size"] <= MOST_BYTES


def test_versions_are_those_of_the_lock(compose: Compose, image: Image, distributions: dict[str, str]) -> None:
    arguments = compose.config()["services"]["smoke"]["build"]["args"]
    name = f"{arguments['PYTHON_VERSION']}-tf{arguments['TF_VERSION']}.txt"
    root = compose.files[0].parent
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (root / "docker/locks" / name).read_text(), re.MULTILINE))
    replaced = {"torch"} if arguments["TORCH_REQUIREMENTS"] else set()
    found = {package: distributions[package] for package in locked if package in distributions}
    assert found.keys() >= {"torch", "keras", "numpy", "protobuf", "safetensors", "click"} - replaced
    assert {p: v for p, v in found.items() if p not in replaced} == {p: locked[p] for p in found if p not in replaced}
    assert distributions["tensorflow-cpu"] == arguments["TF_VERSION"]


def test_nothing_that_compiles_or_installs_is_left(engine: DockerClient, image: Image) -> None:
    found = output(
        engine, image, "sh", "-c",
        "which gcc cc c++ clang ld make uv cargo; ls -d /opt/tools /wheels /build;"
        "find /opt/portproof -name '*.a' -o -name '*.h' -path '*/include/*'; true",
    )  # fmt: skip
    assert found == ""


def test_it_runs_as_a_number_and_ends_on_an_interrupt(image: Image) -> None:
    config = image.attrs["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["StopSignal"] == "SIGINT"
    assert config["Entrypoint"] == ["portproof"]
    assert config["Cmd"] == ["smoke"]


def test_accelerators_are_hidden_from_frameworks_and_runtimes(image: Image) -> None:
    variables = dict(one.split("=", 1) for one in image.attrs["Config"]["Env"])
    assert variables["CUDA_VISIBLE_DEVICES"] == variables["HIP_VISIBLE_DEVICES"] == "-1"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_it_is_labelled(image: Image) -> None:
    labels = image.labels
    for name in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert labels[f"org.opencontainers.image.{name}"]


def test_the_list_of_parts_holds_every_distribution(
    engine: DockerClient, image: Image, distributions: dict[str, str]
) -> None:
    listed = json.loads(output(engine, image, "cat", image.labels["portproof.sbom"]))
    assert listed["bomFormat"] == "CycloneDX"
    parts = {one["name"].lower().replace("_", "-"): one["version"] for one in listed["components"]}
    parts["portproof"] = listed["metadata"]["component"]["version"]
    assert parts == distributions


def test_what_is_imported_is_compiled(engine: DockerClient, image: Image) -> None:
    """Nothing can be written beside the modules, so each would be compiled anew in every run: TensorFlow 5x as slow."""
    code = (
        "import sys, os, torch, tensorflow, portproof.check;"
        "print([m.__name__ for m in list(sys.modules.values()) if (getattr(m, '__file__', None) or '').endswith('.py')"
        " and m.__spec__ and m.__spec__.cached and not os.path.exists(m.__spec__.cached)])"
    )
    assert output(engine, image, "python", "-c", code).strip() == "[]"
