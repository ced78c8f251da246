"""Loading a user's factory in a worker: from a module or a file, with errors that say whose fault it is."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from portproof.errors import MirrorError, WorkerError
from portproof.mirror import check_factory

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Code that a user has not written: installed packages, the standard library, and what has no file.
_FOREIGN = re.compile(rf"[/\\](site|dist)-packages[/\\]|^<|^{re.escape(os.path.dirname(os.__file__))}[/\\]")
_HERE = os.path.dirname(__file__)


def load_factory(text: str) -> Callable[[], Any]:
    """The factory that an import string or ``path/to/file.py:attribute`` names.

    Raises:
        MirrorError: there is no such file, module or attribute, or it is not callable.
        WorkerError: the module raised while it was imported.
    """
    module_name, attribute, arguments = check_factory(text)
    try:
        if module_name.endswith(".py"):
            module = _import_file(Path(module_name).resolve())
        else:
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or "?"
        if not module_name.endswith(".py") and (module_name == missing or module_name.startswith(missing + ".")):
            raise MirrorError(f"There is no module {missing!r} (from {text!r}) for {sys.executable}.") from error
        raise MirrorError(
            f"{module_name} needs the package {missing!r}, which {sys.executable} does not have: install it there, or "
            "name another interpreter with --torch-python / --tensorflow-python."
        ) from error
    except Exception as error:
        raise WorkerError(
            f"Importing {module_name} raised {describe(error)}.", details=traceback.format_exc()
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = sorted(
                name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))
            )
            raise MirrorError(
                f"{module_name} has no {attribute!r}. It has: {', '.join(public[:12]) or 'nothing to call'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise MirrorError(f"{text} is a {type(found).__name__}, not a function that returns a model.")
    return partial(found, **arguments) if arguments else found


def call_factory(factory: Callable[[], Any], text: str) -> Any:
    """What the factory returns; raises `WorkerError` with the user's own error if it raises."""
    try:
        return factory()
    except Exception as error:
        raise WorkerError(f"The factory {text} raised {describe(error)}.", details=traceback.format_exc()) from error


def describe(error: BaseException) -> str:
    """An error on one line, with the place in the user's own code where it came from."""
    place = place_of(traceback.extract_tb(error.__traceback__))
    place = f" ({place})" if place else ""
    text = " ".join(_ANSI.sub("", str(error)).split())  # Keras prints its errors in bold
    return f"{type(error).__name__}: {text[:400]}{'…' if len(text) > 400 else ''}{place}"


def place_of(frames: Sequence[traceback.FrameSummary]) -> str:
    """``file.py:line`` of the innermost frame that is the user's own code; empty if there is none."""
    own = [frame for frame in frames if not _FOREIGN.search(frame.filename) and not frame.filename.startswith(_HERE)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def note_lowered(notes: list[str], dtype: str) -> None:
    """Note where the running code of the user turned float64 into ``dtype``."""
    place = place_of(
        traceback.StackSummary.extract(reversed(list(traceback.walk_stack(sys._getframe()))), lookup_lines=False)
    )
    text = f"computes in {dtype} when given float64: {place or 'in code of a package'}"
    if text not in notes:
        notes.append(text)


def dropout_note(layers: Sequence[str]) -> str:
    """What is said of dropout layers in the notes of a trace."""
    return f"dropout is off in training mode, for the frameworks draw different masks: {', '.join(layers)}"


def takes_by_name(function: Callable[..., Any], names: Iterable[str]) -> bool:
    """Whether ``function`` has a parameter of each of these names, so that several inputs can be passed by name."""
    try:
        return set(names) <= set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False


def _import_file(path: Path) -> Any:
    # Siblings of the file are importable, as if it had been started as a script.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
