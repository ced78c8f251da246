"""Tests of the architecture: imports point one way, and a framework is imported only where the tables say so."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[1] / "src" / "portproof"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

FRAMEWORK_MODULES = {
    "torch": (
        "capture/torch.py",
        "capture/exact_torch.py",
        "capture/excite.py",  # sets the reference's weights, which both sides then receive
        "models/*/torch_*.py",
        "transfer/torch.py",
        "probe.py",  # runs in the interpreter that the doctor examines
    ),
    "tensorflow": (
        "capture/tensorflow.py",
        "capture/edits_tensorflow.py",
        "capture/defects_tensorflow.py",
        "capture/defects_training_tensorflow.py",
        "capture/repairs_tensorflow.py",
        "capture/steps_tensorflow.py",
        "capture/keras_model.py",
        "capture/exact.py",
        "models/*/tensorflow_*.py",
        "transfer/tensorflow.py",
        "convert/tensorflow_files.py",
        "probe.py",
    ),
}
FAMILY = {"torch": "torch", "tensorflow": "tensorflow", "keras": "tensorflow", "tf_keras": "tensorflow"}

# area -> the areas of portproof it may import; an area is a module or package right below portproof.
MAY_IMPORT = {
    "models": {"models"},
    "errors": set(),
    "files": {"errors"},
    "cpu": {"errors"},
    "probe": set(),
    "plan": {"errors"},
    "edits": set(),
    "rearrange": set(),
    "diagnosis": {"cpu"},
    "mirror": {"errors", "values"},
    "values": {"errors"},
    "trace": {"errors", "files"},
    "alignment": {"errors", "trace"},
    "defects": {"defects", "edits", "errors", "trace"},
    "data": {"data", "errors", "files"},
    "transfer": {"transfer", "alignment", "errors", "files", "trace"},
    "matrix": {"matrix", "check", "compare", "cpu", "errors", "files", "mirror", "plan", "report", "trace"},
    "compare": {"compare", "alignment", "edits", "errors", "files", "plan", "rearrange", "trace"},
    "capture": {
        "capture",
        "alignment",
        "cpu",
        "edits",
        "errors",
        "files",
        "mirror",
        "plan",
        "rearrange",
        "trace",
        "transfer",
        "values",
    },
}
# For the areas above the table: what must not look up, or sideways.
MAY_NOT_IMPORT = {
    "report": {"capture", "check", "cli", "models", "processes", "transfer"},
    "doctor": {"capture", "check", "cli", "compare", "models", "transfer"},
    "selftest": {"capture", "cli", "models", "report", "transfer"},
    "check": {"cli", "defects", "models", "repair", "selftest"},
    "repair": {"cli", "models"},
    "processes": {"check", "cli", "compare", "models", "report"},
    "convert": {"check", "cli", "models", "report"},
}


class Import(NamedTuple):
    """One import that runs, at module level or inside a function."""

    name: str  # absolute and dotted
    line: int

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]

    @property
    def area(self) -> str:
        """``compare`` of ``portproof.compare.verdict``; empty for other packages."""
        return [*self.name.split("."), ""][1] if self.root == "portproof" else ""


def imports(module: str) -> list[Import]:
    """Every import of a module but those for type checkers, which never run."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    package = ["portproof", *Path(module).parent.parts]
    return list(_imports(tree, package))


def _imports(node: ast.AST, package: list[str]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=orelse):
                for statement in orelse:
                    yield from _imports(ast.Module([statement], []), package)
            case ast.Import(names=names):
                yield from (Import(alias.name, child.lineno) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                # `from portproof import cpu` imports portproof.cpu; `from portproof.cpu import isolate`, portproof.cpu.
                yield from (
                    Import(f"{prefix}.{alias.name}" if prefix == "portproof" else prefix, child.lineno)
                    for alias in names
                )
            case _:
                yield from _imports(child, package)


def area_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_a_framework_is_imported_only_where_the_table_says(module: str) -> None:
    for one in imports(module):
        family = FAMILY.get(one.root)
        if family is not None:
            allowed = any(fnmatch.fnmatch(module, pattern) for pattern in FRAMEWORK_MODULES[family])
            assert allowed, f"{module}:{one.line} imports {one.name}: let a module of FRAMEWORK_MODULES do it"


def test_a_module_imports_one_framework_at_most() -> None:
    both = [m for m in MODULES if len({FAMILY[one.root] for one in imports(m) if one.root in FAMILY}) > 1]
    assert both == ["probe.py"]  # one function per framework, one of them called per process


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    area = area_of(module)
    for one in imports(module):
        if not one.area or one.area == area:
            continue
        where = f"{module}:{one.line} imports {one.name}"
        assert one.area != "cli" or module == "__main__.py", f"{where}: the command line is the top, nothing imports it"
        assert one.area in MAY_IMPORT.get(area, {one.area}), f"{where}: {area} may import {sorted(MAY_IMPORT[area])}"
        assert one.area not in MAY_NOT_IMPORT.get(area, ()), f"{where}: that points upwards or sideways"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("report/")])
def test_reports_know_the_facts_of_a_matrix_and_nothing_else_of_it(module: str) -> None:
    found = {one.name for one in imports(module) if one.area == "matrix"}
    assert found <= {"portproof.matrix.facts"}  # which imports nothing, so that no circle closes


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("compare/")])
def test_comparing_needs_numpy_and_nothing_heavier(module: str) -> None:
    for one in imports(module):
        assert one.root in {"numpy", "portproof"} | sys.stdlib_module_names, f"{module}:{one.line} imports {one.name}"


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("models/")])
def test_the_harness_names_no_model(module: str) -> None:
    named = [one for one in imports(module) if one.area == "models"]
    assert named == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
    assert docstring, f"{module} has no docstring"


def test_the_tables_name_files_and_areas_that_exist() -> None:
    for patterns in FRAMEWORK_MODULES.values():
        for pattern in patterns:
            assert fnmatch.filter(MODULES, pattern), f"no module matches {pattern}"
    areas = {area_of(module) for module in MODULES}
    assert MAY_IMPORT.keys() | MAY_NOT_IMPORT.keys() <= areas


@pytest.mark.parametrize("statement", ["import portproof", "import portproof.cli", "from portproof.cli import main"])
def test_the_command_line_loads_neither_numpy_nor_a_framework(statement: str) -> None:
    heavy = ["numpy", "torch", "tensorflow", "keras", "jax"]
    code = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


# The checker itself.


def test_the_import_reader_sees_what_runs_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "sample.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import keras\n"
        "from portproof import cpu\n"
        "from . import verdict\n"
        "from ..trace import Trace\n"
        "def late():\n    import tensorflow.python.ops as ops\n    with x:\n        from portproof.capture import job\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    found = imports("compare/sample.py")
    assert [(one.root, one.area) for one in found] == [
        ("typing", ""),
        ("keras", ""),
        ("portproof", "cpu"),
        ("portproof", "compare"),
        ("portproof", "trace"),
        ("tensorflow", ""),
        ("portproof", "capture"),
    ]
