"""Sessions: smoke, parity, selftest, tests, lint, types, bench with the Python that runs nox; smoke-3.11 ... by cell.

    nox -s smoke                          the smoke test, with this Python
    nox -s tests -- -k verdict            pytest, with arguments
    nox -s parity-3.12                    parity with every TensorFlow of Python 3.12
    nox -s "parity-3.12(tf='2.19.1')"     parity in one cell; the cells stand in src/portproof/cells.toml
    nox -t parity                         parity in all cells

torch comes from PyTorch's CPU index. PORTPROOF_TORCH_INDEX names another one; empty, it means the default index alone.
A Python that is missing is skipped, or an error where CI is set; --download-python auto fetches it instead.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.10.14"]
# ///

from __future__ import annotations

import functools
import hashlib
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"  # the first with download_python
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

HERE = Path(__file__).parent
PYPROJECT = nox.project.load_toml(HERE / "pyproject.toml")
MATRIX = nox.project.load_toml(HERE / "src" / "portproof" / "cells.toml")
CELLS = {(cell["python"], cell["tensorflow"]): cell for cell in MATRIX["cells"]}
PYTHONS = list(MATRIX["default"])

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_TIMEOUT = 5.0  # seconds to wait for the index before the fallback

BYTECODE = {"PYTHONDONTWRITEBYTECODE": None}
"""Lets Python keep what it compiles, whatever the user has set: else each import of TensorFlow takes 5x as long.

The first run compiles what it imports, in 9 s; compiling all of torch and TensorFlow at installation takes 30 s.
"""


def offer_pyenv(environ: os._Environ[str] | dict[str, str]) -> None:
    """Put the Pythons that pyenv has installed at the end of PATH.

    pyenv shows nox a ``python3.12`` that only answers where 3.12 was activated; installed is enough for us.
    """
    root = Path(environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [str(folder) for python in PYTHONS for folder in sorted(root.glob(f"{python}.*/bin"), key=_release)[-1:]]
    environ["PATH"] = os.pathsep.join([environ.get("PATH", ""), *found])


def _release(folder: Path) -> list[int]:
    return [int(part) for part in folder.parent.name.split(".") if part.isdigit()]


offer_pyenv(os.environ)

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ENVIRONMENT = f"env-{THIS_PYTHON}"
"""Smoke, parity, selftest, tests, bench and slow share this session's environment: 1.5 GB and a minute, paid once."""


@nox.session(name=ENVIRONMENT, default=False)
def environment(session: nox.Session) -> None:
    """The environment that smoke, parity, selftest, tests, bench and slow share."""
    if THIS_PYTHON not in PYTHONS:
        session.error(
            f"portproof has no cell for Python {THIS_PYTHON}: TensorFlow and torch are tried on {', '.join(PYTHONS)}. "
            f"Run nox with one of these, or name it: nox -s smoke-{PYTHONS[-1]}"
        )
    cell = CELLS[THIS_PYTHON, MATRIX["default"][THIS_PYTHON]]
    install_cell(session, cell, *group("test"), f"nox{nox.needs_version}")  # nox, for the tests of this file


def in_environment(session: nox.Session, *command: str) -> None:
    """Run ``python *command`` in the shared environment."""
    folder = Path(session.cache_dir).parent / ENVIRONMENT.replace(".", "-")  # nox names folders so
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    session.run(str(python), *command, *session.posargs, env=BYTECODE, external=True)


@nox.session(requires=[ENVIRONMENT], python=False)
def smoke(session: nox.Session) -> None:
    """The smoke test: both models build, run, learn and agree in shape."""
    in_environment(session, "-m", "portproof", "smoke")


@nox.session(requires=[ENVIRONMENT], python=False)
def parity(session: nox.Session) -> None:
    """Every check: are the two models the same function at the same precision?"""
    in_environment(session, "-m", "portproof", "parity")


@nox.session(requires=[ENVIRONMENT], python=False)
def selftest(session: nox.Session) -> None:
    """Can the checks fail? Every planted defect at one place; `-- --places 20` at twenty."""
    in_environment(session, "-m", "portproof", "selftest")


@nox.session(requires=[ENVIRONMENT], python=False)
def tests(session: nox.Session) -> None:
    """The tests, by pytest; those that take minutes are in `slow`."""
    in_environment(session, "-m", "pytest", "-m", "not slow and not docker")


@nox.session(requires=[ENVIRONMENT], python=False, default=False)
def slow(session: nox.Session) -> None:
    """The tests that take minutes."""
    in_environment(session, "-m", "pytest", "-m", "slow and not docker")


@nox.session(requires=[ENVIRONMENT], python=False, default=False)
def bench(session: nox.Session) -> None:
    """Wall times against that of importing TensorFlow."""
    in_environment(session, "tests/bench/bench.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and formatting; hadolint for the Dockerfile."""
    install(session, *group("lint"))
    session.run("hadolint", "--config", "docker/hadolint.yaml", "docker/Dockerfile")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the package."""
    install(session, "-e", ".", *group("types"))
    session.run("mypy", *session.posargs)


@nox.session(default=False)
def docker(session: nox.Session) -> None:
    """The tests that build the image and run it, with a real engine; PYTHON_VERSION and TF_VERSION select the cell."""
    install(session, "-e", ".", *group("docker"))
    session.run("pytest", "tests/docker", *session.posargs)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Write docker/locks anew; a second run changes nothing. `-- --upgrade` takes newer versions."""
    install(session, *(one for one in group("image") if one.startswith("uv")))
    session.run("python", "docker/lock.py", *session.posargs, env=uv_settings(os.environ))


def matrix_session(task: str, python: str) -> None:
    """Register ``smoke-3.12`` and the like: one run per TensorFlow that has wheels for this Python."""

    @nox.session(name=f"{task}-{python}", python=python, tags=[task], default=False, download_python="never")
    @nox.parametrize("tf", [tf for cell_python, tf in CELLS if cell_python == python])
    def run(session: nox.Session, tf: str) -> None:
        install_cell(session, CELLS[python, tf])
        session.run("python", "-m", "portproof", task, *session.posargs, env=BYTECODE)

    run.__doc__ = f"portproof {task} on Python {python}."


for _task in ("smoke", "parity"):
    for _python in PYTHONS:
        matrix_session(_task, _python)


def group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group."""
    return nox.project.dependency_groups(PYPROJECT, name)


def install_cell(session: nox.Session, cell: dict[str, str], *more: str) -> None:
    """Install the package and one cell's frameworks; name the torch build that came."""
    pins = [f"{name}=={cell[name]}" for name in ("torch", "keras", "numpy", "protobuf")]
    install(session, "-e", ".", f"tensorflow-cpu=={cell['tensorflow']}", *pins, *more, torch=True)
    code = "from portproof import cpu; print(cpu.installed_distributions()['torch'], cpu.torch_build())"
    answer = str(session.run("python", "-c", code, silent=True, log=False))
    version, _, build = answer.strip().partition(" ")
    hidden = "" if build == "cpu" else "; accelerators stay hidden, so it runs on the CPU"
    session.log(f"torch {version}, {build} build{hidden}; tensorflow-cpu {cell['tensorflow']}")


def install(session: nox.Session, *requirements: str, torch: bool = False) -> None:
    """Install into the session's environment, unless the very same was installed there before.

    With uv and with pip alike, wheels are looked for where pip is told to look.
    """
    wanted = "\n".join(requirements) + "\n" + hashlib.sha256((HERE / "pyproject.toml").read_bytes()).hexdigest()
    stamp = Path(session.bin).parent / "portproof-installed.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    uv = session.venv_backend == "uv"
    indexes: list[str] = []
    if torch:
        index, notice = torch_source(os.environ)
        if notice:
            session.warn(notice)
        if index:
            # Best match, as pip has it: the CPU index also mirrors old NumPy and the like, and uv would stop there.
            indexes = ["--extra-index-url", index, *(["--index-strategy", "unsafe-best-match"] if uv else [])]
    options = [] if uv else ["--no-compile"]  # see BYTECODE; uv compiles only when told to
    session.install(*options, *indexes, *requirements, env=uv_settings(os.environ) if uv else None)
    stamp.write_text(wanted)


def uv_settings(environ: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """What uv needs to find the wheels that pip would find."""
    settings = {}
    if "PIP_FIND_LINKS" in environ and "UV_FIND_LINKS" not in environ:
        settings["UV_FIND_LINKS"] = ",".join(environ["PIP_FIND_LINKS"].split())  # pip separates by spaces, uv by commas
    if "PIP_INDEX_URL" in environ and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environ.keys():
        settings["UV_DEFAULT_INDEX"] = environ["PIP_INDEX_URL"]
    if "PIP_EXTRA_INDEX_URL" in environ and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & environ.keys():
        settings["UV_INDEX"] = environ["PIP_EXTRA_INDEX_URL"]
    if "PIP_NO_INDEX" in environ and "UV_NO_INDEX" not in environ:
        settings["UV_NO_INDEX"] = environ["PIP_NO_INDEX"]
    return settings


def torch_source(environ: os._Environ[str] | dict[str, str]) -> tuple[str, str]:
    """Where torch comes from: the index to add to the default one, or none; and what to say when there is none."""
    if environ.get("PIP_NO_INDEX") or environ.get("UV_NO_INDEX"):
        return "", ""  # folders alone, as the user asked
    index = environ.get("PORTPROOF_TORCH_INDEX", TORCH_INDEX).strip()
    if index and reachable(index):
        return index, ""
    why = f"{index} cannot be reached" if index else "PORTPROOF_TORCH_INDEX is empty"
    folder = environ.get("UV_FIND_LINKS") or environ.get("PIP_FIND_LINKS")
    where = f"{folder} or else the default index" if folder else "the default index"
    return "", (
        f"{why}: taking torch from {where}; "
        "on Linux the default index has the CUDA build (about 4.6 GB); CUDA stays hidden."
    )


@functools.cache
def reachable(index: str) -> bool:
    """Whether a package index answers for torch within a few seconds, through the proxies of the environment."""
    if not index.startswith(("http://", "https://")):
        return True  # a folder: pip and uv say themselves what is wrong with it
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=INDEX_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401  # it asks for a password, which pip and uv look up
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it answered; pip and uv know their own certificates
    except OSError:
        return False


if __name__ == "__main__":
    nox.main()
