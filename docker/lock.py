"""Writes docker/locks: what goes into the image of each cell, and what builds it, to the hash. Run by `nox -s lock`.

    nox -s lock                 after a change of cells.toml, pyproject.toml or torch-cpu.toml; keeps what still fits
    nox -s lock -- --upgrade    takes the newest versions that the cells allow

uv resolves for x86_64 and aarch64 at once and keeps the versions of a lock that is there: a second run changes nothing.
torch alone is not resolved: its line comes from torch-cpu.toml.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCKS = HERE / "locks"

MACHINES = ("aarch64", "x86_64")
TENSORFLOW = {
    "x86_64": "tensorflow-cpu",
    "aarch64": "tensorflow",  # is a CPU build there; tensorflow-cpu has no wheels for aarch64
}
HEADER = "# {what}: written by `nox -s lock`, not by hand.\n"
HASHED_LINE = "{requirement} \\\n    --hash=sha256:{hashes}\n"


def main() -> None:
    """Write every lock; name those that changed."""
    parser = argparse.ArgumentParser(description="Write docker/locks.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the cells allow")
    upgrade: bool = parser.parse_args().upgrade
    pyproject = _load(ROOT / "pyproject.toml")
    torch = _load(HERE / "torch-cpu.toml")
    cells: list[dict[str, str]] = _load(ROOT / "src/portproof/cells.toml")["cells"]
    wanted = {LOCKS / "build.txt": build_lock(pyproject)}
    wanted |= {LOCKS / lock_name(cell): cell_lock(cell, pyproject, torch) for cell in cells}
    LOCKS.mkdir(exist_ok=True)
    for stale in set(LOCKS.glob("*.txt")) - wanted.keys():
        stale.unlink()
        print(f"removed {stale.name}")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # uv waits for the network most of the time
        texts = pool.map(lambda item: resolve(item[0], **item[1], upgrade=upgrade), wanted.items())
        for lock, text in zip(wanted, texts, strict=True):
            changed = not lock.is_file() or lock.read_text(encoding="utf-8") != text
            lock.write_text(text, encoding="utf-8")
            print(f"{'changed' if changed else 'same   '} {lock.name}")


def lock_name(cell: dict[str, str]) -> str:
    """The file name of a cell's lock, which the Dockerfile puts together from its build arguments."""
    return f"{cell['python']}-tf{cell['tensorflow']}.txt"


def cell_lock(cell: dict[str, str], pyproject: dict[str, Any], torch: dict[str, Any]) -> dict[str, Any]:
    """What a cell's lock is resolved from: the cell, what portproof and torch need at run time, and pytest."""
    version = torch["version"]
    if version.partition("+")[0] != cell["torch"]:
        sys.exit(f"docker/torch-cpu.toml has the wheels of torch {version}, cells.toml asks for {cell['torch']}")
    major, minor = cell["python"].split(".")
    tag = "cp" + cell["python"].replace(".", "")
    hashes = [torch["sha256"][f"{tag}-{tag}-{machine}"] for machine in MACHINES]
    return {
        "what": f"Python {cell['python']} x TensorFlow {cell['tensorflow']} x torch {version}, x86_64 and aarch64",
        "python": cell["python"],
        "below": f"python_full_version < '{major}.{int(minor) + 1}' and ",  # uv takes --python-version as "from" alone
        "requirements": [
            *(f"{name}=={cell['tensorflow']} ; platform_machine == '{on}'" for on, name in TENSORFLOW.items()),
            *(f"{name}=={cell[name]}" for name in ("keras", "numpy", "protobuf")),
            *torch["requires"],
            *pyproject["project"]["dependencies"],
            *pyproject["dependency-groups"]["test"],
        ],
        "more": HASHED_LINE.format(
            requirement=f"torch=={version}", hashes=" \\\n    --hash=sha256:".join(sorted(hashes))
        ),
    }


def build_lock(pyproject: dict[str, Any]) -> dict[str, Any]:
    """What builds the image and stays out of it: uv, the build backend, the writer of the SBOM."""
    return {
        "what": "What builds the image and stays out of it",
        "python": pyproject["project"]["requires-python"].removeprefix(">="),
        "below": "",
        "requirements": [*pyproject["build-system"]["requires"], *pyproject["dependency-groups"]["image"]],
        "more": "",
    }


def resolve(
    lock: Path, *, what: str, python: str, below: str, requirements: list[str], more: str, upgrade: bool
) -> str:
    """The text of a lock: ``requirements`` resolved with hashes, and the lines of ``more`` in their place."""
    with tempfile.TemporaryDirectory() as scratch:
        # uv takes the environments to resolve for from the project in its working directory alone.
        targets = [f"{below}platform_machine == '{machine}' and sys_platform == 'linux'" for machine in MACHINES]
        Path(scratch, "pyproject.toml").write_text(f"[tool.uv]\nenvironments = {targets}\n", encoding="utf-8")
        Path(scratch, "in.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        out = Path(scratch, "out.txt")
        if lock.is_file() and not upgrade:
            out.write_text(lock.read_text(encoding="utf-8"), encoding="utf-8")
        command = [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
        ]
        command += ["--python-version", python, "--only-binary", ":all:", "in.txt", "-o", "out.txt"]
        # Wheels of a folder would bring hashes that nobody else can check.
        environ = {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}
        run = subprocess.run(command, cwd=scratch, env=environ, capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(f"{lock.name}: {run.stderr}")
        everywhere = " ; " + " or ".join(
            f"({one})" for one in targets
        )  # on every line that holds for both: says nothing
        text = out.read_text(encoding="utf-8").replace(everywhere, "").replace(below, "")
        entries = split(text) + split(more)
    return HEADER.format(what=what) + "".join(sorted(entries))


def split(text: str) -> list[str]:
    """The entries of a hashed requirements file, each with its lines of hashes."""
    return re.findall(r"^\w.*\n(?:[ \t]+\S.*\n)*", text, re.MULTILINE)


def _load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
