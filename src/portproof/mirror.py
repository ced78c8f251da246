"""Mirror: a model written twice, and the registry of mirrors that are known by name.

Mirrors are found through the entry point group ``portproof.mirrors``; the ones that ship are registered exactly like a
user's own. A factory is named by an import string ``package.module:attribute`` or ``path/to/file.py:attribute``, so
that it can be called in another process, interpreter or machine; keyword arguments may follow, as literals:
``package.module:attribute(num_classes=10)``.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof.errors import MirrorError
from portproof.values import NORMAL, check_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = "portproof.mirrors"
DTYPES = ("float32", "int32", "int64", "bool")
LAYOUTS = ("auto", "same")
_CALL = re.compile(r"(?P<factory>.*?:[\w.]+)\((?P<arguments>.*)\)")
_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:,\d+)*),?"
    r"(?::(?P<dtype>\w+)(?:<(?P<high>\d+))?)?(?:~(?P<values>.+))?"
)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: ``shape`` with the batch first, in canonical layout (images as NCHW). Integers lie in [0, ``high``).

    ``float32`` inputs are filled with ``values`` (values.py: ``normal``, ``padded``, ``normal*1e4``, ...), and the
    float64 run gets the very same numbers. With ``layout="auto"`` an input of four or five dimensions reaches
    TensorFlow with its channels last; with ``"same"`` it is left as it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int = 2
    layout: str = "auto"
    values: str = NORMAL

    def __post_init__(self) -> None:
        check_values(self.values)
        if self.dtype not in DTYPES:
            raise MirrorError(f"Input {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}.")
        if not self.shape or min(self.shape) < 1:
            raise MirrorError(f"Input {self.name!r}: every dimension needs to be at least 1, not {self.shape}.")
        if self.high < 1:
            raise MirrorError(f"Input {self.name!r}: integers lie in [0, HIGH), so HIGH needs to be at least 1.")
        if self.layout not in LAYOUTS:
            raise MirrorError(f"Input {self.name!r}: layout {self.layout!r} is not one of {', '.join(LAYOUTS)}.")

    @classmethod
    def parse(cls, text: str, *, default_name: str = "x", layout: str = "auto") -> InputSpec:
        """Read ``[NAME=]SHAPE[:DTYPE[<HIGH]][~VALUES]``: ``2,100,40``, ``ids=2,16:int64<1000``, ``2,100,40~padded``."""
        match = _INPUT.fullmatch(text.replace(" ", ""))
        if not match:
            raise MirrorError(
                f"--input {text!r} is not [NAME=]SHAPE[:DTYPE[<HIGH]][~VALUES], for example 2,100,40 or "
                "ids=2,16:'int64<1000' or 2,100,40~padded."
            )
        shape = tuple(int(size) for size in match["shape"].split(","))
        dtype, values = match["dtype"] or "float32", match["values"] or NORMAL
        return cls(match["name"] or default_name, shape, dtype, int(match["high"] or 2), layout, values)


@dataclass(frozen=True)
class Mirror:
    """A model written twice: a name, two factories, the inputs.

    ``torch`` and ``tensorflow`` name functions, with or without arguments, that return a ``torch.nn.Module`` and a
    ``keras.Model``. ``batches`` are the batch sizes of the forward check, besides the inputs' own. ``samples`` gives
    real examples (name -> one example without batch dimension) for a mirror with a single input; ``audio`` turns a
    mono waveform in [-1, 1] and its sample rate in Hz into one such example. Without ``training``, for networks that
    are not to be trained (re-parameterized ones), only eval mode is checked. ``shapes`` names a function that gives
    the shapes of the torch side's state dict by name, without a framework: by them a checkpoint is recognised.
    ``fused`` is the name of the mirror of the same network re-parameterized.
    """

    name: str
    torch: str
    tensorflow: str
    inputs: tuple[InputSpec, ...]
    batches: tuple[int, ...] = (1, 3)
    samples: Callable[[], Mapping[str, NDArray[np.float32]]] | None = field(default=None, compare=False)
    audio: Callable[[NDArray[Any], int], NDArray[np.float32]] | None = field(default=None, compare=False)
    description: str = ""
    training: bool = True
    shapes: str = ""
    fused: str = ""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise MirrorError(f"Mirror {self.name!r} has no inputs: give at least one shape.")
        names = [spec.name for spec in self.inputs]
        if len(set(names)) != len(names):
            raise MirrorError(f"Mirror {self.name!r} has two inputs of one name: {', '.join(names)}.")
        for factory in (self.torch, self.tensorflow, *([self.shapes] if self.shapes else [])):
            check_factory(factory)


def check_factory(text: str) -> tuple[str, str, dict[str, Any]]:
    """Split ``MODULE:ATTRIBUTE`` or ``FILE.py:ATTRIBUTE`` and the keyword arguments behind it.

    Raises:
        MirrorError: it cannot name a factory.
    """
    call = _CALL.fullmatch(text)
    arguments = _arguments(call["arguments"], text) if call else {}
    module, separator, attribute = (call["factory"] if call else text).rpartition(":")
    if not separator or not module or not all(part.isidentifier() for part in attribute.split(".")):
        raise MirrorError(
            f"{text!r} does not name a factory: write package.module:function or path/to/file.py:function."
        )
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise MirrorError(f"There is no file {module} (from {text!r}).")
    elif not all(part.isidentifier() for part in module.split(".")):
        raise MirrorError(f"{module!r} is neither a Python file nor a module name (from {text!r}).")
    return module, attribute, arguments


def _arguments(written: str, text: str) -> dict[str, Any]:
    """The values of ``name=literal, ...``."""
    try:
        call = ast.parse(f"f({written})", mode="eval").body
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and not call.args
            and all(each.arg for each in call.keywords)
        ):
            return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError):
        pass
    raise MirrorError(f"{text!r}: a factory takes arguments as name=literal, ..., such as build(num_classes=10).")


def names() -> list[str]:
    """The names of all registered mirrors, sorted."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def get(name: str) -> Mirror:
    """The registered mirror of that name.

    Raises:
        MirrorError: there is none, or its entry point cannot be loaded.
    """
    found = [entry for entry in importlib.metadata.entry_points(group=GROUP) if entry.name == name]
    if not found:
        raise MirrorError(f"There is no mirror {name!r}. Known: {', '.join(names()) or 'none'} (portproof list).")
    try:
        mirror = found[0].load()
        if callable(mirror):
            mirror = mirror()
    except Exception as error:
        raise MirrorError(f"Mirror {name!r} ({found[0].value}) cannot be loaded: {error!r}.") from error
    if not isinstance(mirror, Mirror):
        raise MirrorError(f"Mirror {name!r} ({found[0].value}) is a {type(mirror).__name__}, not a portproof.Mirror.")
    return mirror
