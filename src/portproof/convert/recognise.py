"""Recognising a checkpoint: its tensors' names and shapes without a framework, and the mirror that they fit.

Nothing in a file is executed: of a pickle, only the structure is read, and every class in it is a stand-in.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from portproof import mirror as mirrors
from portproof.alignment import BOOKKEEPING
from portproof.capture.loading import load_factory
from portproof.errors import CheckpointError, MirrorError, TransferError
from portproof.mirror import Mirror
from portproof.transfer.checkpoints import keras_shapes

_LISTED = 6  # tensors of each kind that an error names
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognised:
    """The mirror of a checkpoint, whether it was ``guessed`` from the tensors, and how many these are."""

    mirror: str
    guessed: bool
    tensors: int


def recognise(path: Path, name: str = "") -> Recognised:
    """The mirror ``name``, or without a name the one that the checkpoint's tensors fit.

    Raises:
        CheckpointError: no mirror fits, or several do.
        TransferError: the named mirror does not fit; the message says which tensors, and which mirror does.
    """
    shapes = tensors(path)
    if name:
        chosen = mirrors.get(name)
        wanted = _expected(chosen)
        if shapes and wanted and sizes(shapes) != sizes(wanted):
            _refuse(path, chosen.name, shapes, wanted)
        return Recognised(name, False, len(shapes))
    fitting = _fitting(shapes)
    if len(fitting) != 1:
        why = f"fit several mirrors ({', '.join(fitting)})" if fitting else "fit no registered mirror"
        what = f"The {len(shapes)} tensors in {path} {why}" if shapes else f"{path} does not show its tensors"
        raise CheckpointError(f"{what}: name one with --mirror (portproof list).")
    return Recognised(fitting[0], True, len(shapes))


def sizes(shapes: Shapes) -> Counter[int]:
    """How often each number of values occurs: the same in every layout and under all names."""
    return Counter(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in BOOKKEEPING)


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint; empty if only the framework itself can tell."""
    try:
        if path.suffix == ".safetensors":
            found = _of_safetensors(path)
        elif path.suffix in (".pth", ".pt"):
            found = _of_pickle(path)
        else:
            found = keras_shapes(path)
    except (OSError, ValueError, KeyError, AttributeError, IndexError, ImportError, EOFError, TypeError):
        return {}  # broken, or in an older format: whoever reads it in earnest says what is wrong
    except (pickle.UnpicklingError, zipfile.BadZipFile, struct.error):
        return {}
    if found and all(name.startswith("module.") for name in found):  # saved from DataParallel
        return {name.removeprefix("module."): shape for name, shape in found.items()}
    return found


def _expected(mirror: Mirror) -> Shapes:
    """The tensors of a mirror's torch side; none if it does not say."""
    return load_factory(mirror.shapes)() if mirror.shapes else {}


def _fitting(shapes: Shapes) -> list[str]:
    """The registered mirrors whose tensors have these sizes."""
    if not shapes:
        return []
    found = []
    for name in mirrors.names():
        try:
            mirror: Mirror = mirrors.get(name)
        except MirrorError:
            continue  # someone else's, which cannot be loaded
        if mirror.shapes and sizes(_expected(mirror)) == sizes(shapes):
            found.append(name)
    return found


def _refuse(path: Path, name: str, shapes: Shapes, wanted: Shapes) -> NoReturn:
    fitting = _fitting(shapes)
    hint = f"They are those of {fitting[0]}: --mirror {fitting[0]}" if fitting else "No registered mirror has them all"
    if not set(shapes) & set(wanted):  # other names throughout, such as timm's or Keras'
        raise TransferError(f"The {len(shapes)} tensors in {path} are not those of {name}. {hint}.")
    differing = [each for each in wanted if each in shapes and math.prod(shapes[each]) != math.prod(wanted[each])]
    groups = {
        "missing": [each for each in wanted if each not in shapes],
        "left over": [each for each in shapes if each not in wanted],
        "of the wrong shape": [f"{each}: {shapes[each]} given, {wanted[each]} wanted" for each in differing],
    }
    counters = tuple(f".{name}" for name in BOOKKEEPING)  # no output depends on them
    groups = {label: [name for name in names if not name.endswith(counters)] for label, names in groups.items()}
    groups = {label: names for label, names in groups.items() if names}
    counts = ", ".join(f"{len(names)} {label}" for label, names in groups.items())
    lines = [f"  {label}: {each}" for label, names in groups.items() for each in names[:_LISTED]]
    more = sum(max(len(names) - _LISTED, 0) for names in groups.values())
    lines += [f"  and {more} more"] if more else []
    raise TransferError("\n".join([f"The weights in {path} do not fit {name}: {counts}.", *lines, f"{hint}."]))


def _of_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _of_pickle(path: Path) -> dict[str, tuple[int, ...]]:
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(member) as file:
            content = _Structure(file).load()
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return {name: each.shape for name, each in content.items() if isinstance(each, _Tensor)}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]


class _StandIn:
    """In place of every class and function that a pickle names: takes anything and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Structure(pickle.Unpickler):
    """Reads what a pickle of torch's is made of, and calls nothing that it names."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return lambda storage, offset, size, *rest: _Tensor(tuple(int(each) for each in size))
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda data, *rest: data
        return _StandIn

    def persistent_load(self, _: Any) -> None:
        """A storage: the values, which are not looked at."""
