"""Tests of noxfile.py: which sessions there are, which cells they run in, and where torch is taken from."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[1]

# TensorFlow release -> the Pythons it has wheels for, from its classifiers; 2.15 has none for 3.12, 2.19 none for 3.13.
MATRIX = {
    "2.15.1": ["3.11"],
    "2.16.2": ["3.11", "3.12"],
    "2.17.1": ["3.11", "3.12"],
    "2.18.1": ["3.11", "3.12"],
    "2.19.1": ["3.11", "3.12"],
    "2.20.0": ["3.11", "3.12", "3.13"],
    "2.21.0": ["3.11", "3.12", "3.13"],
}
CELLS = {(python, tensorflow) for tensorflow, pythons in MATRIX.items() for python in pythons}


def cells() -> dict[str, Any]:
    return tomllib.loads((ROOT / "src/portproof/cells.toml").read_text(encoding="utf-8"))


def test_the_table_holds_the_fifteen_cells_once_each() -> None:
    listed = [(cell["python"], cell["tensorflow"]) for cell in cells()["cells"]]
    assert len(listed) == len(CELLS) == 15
    assert set(listed) == CELLS


def test_every_cell_pins_what_decides_results() -> None:
    for cell in cells()["cells"]:
        assert cell.keys() == {"python", "tensorflow", "torch", "keras", "numpy", "protobuf"}
        assert cell["torch"] == "2.13.0"
        # TensorFlow 2.16 was the first with Keras 3, 2.18 the first with NumPy 2.
        release = tuple(int(part) for part in cell["tensorflow"].split("."))
        assert cell["keras"].startswith("3." if release >= (2, 16) else "2.15.")
        assert cell["numpy"].startswith("2." if release >= (2, 18) else "1.26.")


def test_the_default_of_each_python_is_a_cell() -> None:
    default = cells()["default"]
    assert default == {"3.11": "2.19.1", "3.12": "2.19.1", "3.13": "2.21.0"}
    assert set(default.items()) <= CELLS


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    pytest.importorskip("nox", reason="nox is not installed here; it lives beside the environments that it makes")
    spec = importlib.util.spec_from_file_location("portproof_noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def listed(noxfile: ModuleType) -> list[dict[str, Any]]:
    """Every session, as `python noxfile.py --json -l` has it for the workflow."""
    names = ["smoke", "parity", "selftest", "tests", "slow", "bench", "lint", "types", "docker", "bench-docker", "lock"]
    names += [f"{task}-{python}" for task in ("smoke", "parity") for python in noxfile.PYTHONS]
    run = subprocess.run(
        [sys.executable, str(ROOT / "noxfile.py"), "--json", "-l", "-s", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sessions: list[dict[str, Any]] = json.loads(run.stdout)
    return sessions


@pytest.mark.parametrize("task", ["smoke", "parity"])
def test_each_cell_has_its_session_under_the_name_that_is_typed(listed: list[dict[str, Any]], task: str) -> None:
    found = {(one["session"], one["name"], one["python"]) for one in listed if task in one["tags"]}
    assert found == {(f"{task}-{python}(tf='{tf}')", f"{task}-{python}", python) for python, tf in CELLS}


def test_plain_sessions_carry_no_python(listed: list[dict[str, Any]]) -> None:
    plain = {one["session"] for one in listed if not one["tags"]}
    assert {
        "smoke",
        "parity",
        "selftest",
        "tests",
        "slow",
        "bench",
        "lint",
        "types",
        "docker",
        "bench-docker",
        "lock",
    } <= plain
    assert [name for name in plain if name.startswith("env-")] == [f"env-{sys.version_info[0]}.{sys.version_info[1]}"]


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/whl/cpu"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An index that has torch and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/whl"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_list_of_sessions_is_enough_for_a_ci_matrix(noxfile: ModuleType) -> None:
    """What .github/workflows/ci.yml does with jq: session, Python and TensorFlow of every cell, and nothing else."""
    command = [sys.executable, str(ROOT / "noxfile.py"), "--json", "-l", "-t", "parity"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = [(one["session"], one["python"], one["call_spec"]["tf"]) for one in json.loads(run.stdout)]
    assert sorted(listed) == sorted((f"parity-{python}(tf='{tf}')", python, tf) for python, tf in CELLS)


class Installing:
    """A session that notes what it was asked to install, and leaves lock files to look at."""

    def __init__(self, folder: Path, backend: str = "uv") -> None:
        self.bin, self.venv_backend, self.folder = str(folder / "bin"), backend, folder
        self.installed: list[tuple[str, ...]] = []
        self.warned: list[str] = []
        self.stops = False

    def create_tmp(self) -> str:
        return str(self.folder)

    def install(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.installed.append(arguments)
        if self.stops:
            raise KeyboardInterrupt

    def run(self, *_: str, **__: Any) -> str:
        return "2.13.0+cpu cpu"

    def warn(self, message: str) -> None:
        self.warned.append(message)

    def log(self, _: str) -> None:
        """What build came, which no test asks for."""


CELL = {"python": "3.12", "tensorflow": "2.19.1", "torch": "2.13.0"}


@pytest.mark.parametrize("official", [True, False])
def test_a_cell_is_installed_from_its_lock_by_hash(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, official: bool
) -> None:
    source = ("https://index.example/cpu", "") if official else ("", "cannot be reached")
    monkeypatch.setattr(noxfile, "torch_source", lambda _: source)
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    session = Installing(tmp_path)
    noxfile.install_cell(session, CELL)
    locked, *rest = session.installed
    assert "--require-hashes" in locked
    assert locked[-1].endswith("3.12-tf2.19.1.txt")
    text = Path(locked[-1]).read_text(encoding="utf-8")
    lock = (ROOT / "docker/locks/3.12-tf2.19.1.txt").read_text(encoding="utf-8")
    if official:
        assert text == lock
        assert rest == [(*locked[:4], "--no-deps", "-e", ".")]
        assert session.warned == []
    else:  # torch alone, and announced
        left_out = [line for line in lock.splitlines() if line not in text.splitlines()]
        assert left_out[0].startswith("torch==2.13.0+cpu")
        assert len(left_out) == 3  # and its two hashes
        assert [one[-1] for one in rest] == ["torch==2.13.0", "."]
        assert session.warned == ["cannot be reached"]


def test_a_wheel_folder_makes_the_whole_lock_usable(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(noxfile, "torch_source", lambda _: ("", "cannot be reached"))
    (tmp_path / "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", f"/nowhere {tmp_path}")
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    session = Installing(tmp_path)
    noxfile.install_cell(session, CELL)
    assert session.warned == []
    assert [one[-1].rpartition("/")[2] for one in session.installed] == ["3.12-tf2.19.1.txt", "."]
    assert not noxfile.cpu_wheel({**CELL, "python": "3.13"}, {"PIP_FIND_LINKS": str(tmp_path)})


def test_an_installation_that_was_broken_off_is_done_anew(noxfile: ModuleType, tmp_path: Path) -> None:
    session = Installing(tmp_path)
    (tmp_path / "bin").mkdir()
    session.stops = True
    with pytest.raises(KeyboardInterrupt):
        noxfile.install(session, ["numpy"])
    session.stops = False
    noxfile.install(session, ["numpy"])
    noxfile.install(session, ["numpy"])
    assert session.installed == [("numpy",), ("--reinstall", "numpy")]  # and the third time nothing


def test_an_index_that_answers_is_taken_without_a_word(noxfile: ModuleType, index: str) -> None:
    assert noxfile.torch_source({"PORTPROOF_TORCH_INDEX": f"{index}/cpu/"}) == (f"{index}/cpu/", "")


def test_an_index_without_torch_is_as_good_as_none(noxfile: ModuleType, index: str) -> None:
    source, notice = noxfile.torch_source({"PORTPROOF_TORCH_INDEX": f"{index}/rocm"})
    assert source == ""
    assert "cannot be reached" in notice


def test_the_fallback_is_announced_in_one_line(noxfile: ModuleType, closed_port: str) -> None:
    source, notice = noxfile.torch_source({"PORTPROOF_TORCH_INDEX": closed_port})
    assert source == ""
    assert notice == (
        f"{closed_port} cannot be reached: taking torch from the default index; "
        "on Linux the default index has the CUDA build (about 4.6 GB); CUDA stays hidden."
    )


def test_the_fallback_names_a_wheel_folder_where_one_is_offered(noxfile: ModuleType, closed_port: str) -> None:
    _, notice = noxfile.torch_source({"PORTPROOF_TORCH_INDEX": closed_port, "PIP_FIND_LINKS": "/wheels"})
    assert "taking torch from /wheels or else the default index" in notice


def test_an_empty_setting_means_the_default_index_and_says_so(noxfile: ModuleType) -> None:
    source, notice = noxfile.torch_source({"PORTPROOF_TORCH_INDEX": ""})
    assert source == ""
    assert notice.startswith("PORTPROOF_TORCH_INDEX is empty: taking torch from the default index")


def test_without_a_setting_pytorchs_own_cpu_index_is_taken(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(noxfile, "reachable", lambda url: asked.append(url) or True)
    assert noxfile.torch_source({}) == ("https://download.pytorch.org/whl/cpu", "")
    assert asked == ["https://download.pytorch.org/whl/cpu"]


def test_without_any_index_no_index_is_asked(noxfile: ModuleType) -> None:
    assert noxfile.torch_source({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}) == ("", "")


def test_uv_looks_where_pip_is_told_to(noxfile: ModuleType) -> None:
    assert noxfile.uv_settings({"PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "https://mirror.example/simple"}) == {
        "UV_FIND_LINKS": "/a,/b",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
    }
    assert noxfile.uv_settings({"PIP_FIND_LINKS": "/a", "UV_FIND_LINKS": "/b"}) == {}


@pytest.fixture
def installed(noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """What noxfile's ``install`` hands to nox when uv, or pip, is to install torch from an index that answers."""

    def install(backend: str) -> list[str]:
        handed: list[str] = []

        class Session:
            bin = str(tmp_path / backend / "bin")
            venv_backend = backend

            def install(self, *arguments: str, env: dict[str, str] | None) -> None:
                handed.extend(arguments)

        (tmp_path / backend).mkdir()
        noxfile.install(Session(), ["torch"], torch=noxfile.torch_source(os.environ)[0])
        return handed

    monkeypatch.setattr(noxfile, "reachable", lambda url: True)
    return install


@pytest.mark.parametrize("backend", ["uv", "virtualenv"])
def test_without_any_index_what_nox_installs_comes_from_folders_alone(
    installed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    handed = installed(backend)
    assert "--no-index" in handed
    assert not [one for one in handed if one.startswith(("http", "--extra-index"))]


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_what_pip_takes_for_no_is_no(
    installed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", value)
    handed = installed("uv")
    assert "--no-index" not in handed
    assert "https://download.pytorch.org/whl/cpu" in handed


def test_an_unsupported_python_is_told_what_to_do(noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):  # noqa: N818 - it stands for nox's own way of leaving a session
        pass

    class Session:
        def error(self, message: str) -> None:
            raise Stop(message)

    monkeypatch.setattr(noxfile, "THIS_PYTHON", "3.14")
    with pytest.raises(Stop, match=r"no cell for Python 3\.14: .*3\.11, 3\.12, 3\.13.*nox -s smoke-3\.13"):
        noxfile.environment(Session())


def test_pyenv_pythons_are_offered_last(noxfile: ModuleType, tmp_path: Path) -> None:
    for version in ("3.12.9", "3.12.10", "3.13.0", "3.10.13"):
        (tmp_path / "versions" / version / "bin").mkdir(parents=True)
    environ = {"PYENV_ROOT": str(tmp_path), "PATH": "first"}
    noxfile.offer_pyenv(environ)
    assert environ["PATH"].split(os.pathsep) == [
        "first",
        str(tmp_path / "versions/3.12.10/bin"),
        str(tmp_path / "versions/3.13.0/bin"),
    ]


def test_no_package_host_is_named_but_pytorchs_index() -> None:
    files = [
        ROOT / "noxfile.py",
        ROOT / ".ci" / "run",
        ROOT / "compose.yaml",
        *(p for p in (ROOT / "docker").rglob("*.*") if p.suffix != ".pyc"),
    ]
    files += [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.toml")]
    urls = {url for path in files for url in re.findall(r"https?://[^/\s\"')]+", path.read_text(encoding="utf-8"))}
    assert {url for url in urls if re.search("pypi|pythonhosted|nvidia|download|index|simple", url)} == {
        "https://download.pytorch.org"
    }
