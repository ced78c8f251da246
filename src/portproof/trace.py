"""The Trace format: what one side did in one capture, as a folder of ``trace.json`` and safetensors shards.

A trace is complete or absent: it is written to a temporary folder that is renamed when everything is on disk. Tensors
are in canonical layout (PyTorch's: OIHW kernels, NCHW activations), so that whoever reads one needs to know nothing
about frameworks. Two captures of the same thing give the same bytes, but for the one field ``recorded``.

Tensor keys read ``<phase>/<what>/<name>``, for example ``float64.eval/output/features.0.0.c``; ``weights/...`` keys
carry the parameters and buffers that every phase started from. A large trace never stands in memory as a whole: it is
written in shards of about 64 MiB, and read one tensor, or a part of one, at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from portproof.errors import TraceError
from portproof.files import write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "portproof-trace/1"
MANIFEST = "trace.json"
_PART = "part.json"
MODEL = "(model)"  # the name of a model as a whole, among its layers
SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """One parameter or buffer. ``shape`` is the canonical one; ``native`` is the framework's own name for it."""

    name: str
    layer: str
    role: str
    shape: tuple[int, ...]
    trainable: bool
    native: str = ""

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer: its path, what kind it is in canonical words, and the settings it was made with, in torch's terms."""

    name: str
    kind: str
    type: str
    parent: str | None
    leaf: bool
    stage: bool
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of a layer, in order of completion. ``inputs`` and ``outputs`` name tensors as ``<what>/<name>``."""

    layer: str
    occurrence: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is; ``dtype`` is the one that it was computed in."""

    shape: tuple[int, ...]
    dtype: str
    shard: int


@dataclass(frozen=True)
class Manifest:
    """All of a trace but its tensors."""

    side: str
    subject: str
    environment: dict[str, Any]
    plan: list[dict[str, Any]]
    parameters: tuple[ParameterRecord, ...]
    layers: tuple[LayerRecord, ...]
    calls: dict[str, tuple[CallRecord, ...]]
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    shards: tuple[str, ...] = ()
    recorded: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``trace.json``; ``digest`` covers everything but ``recorded``."""
        body = {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "recorded"}
        text = json.dumps(body, separators=(",", ":"))
        head = json.dumps({"schema": SCHEMA, "digest": _digest(text), "recorded": self.recorded}, indent=1)
        return f'{head[:-2]},\n "body": {text}\n}}\n'

    @classmethod
    def from_json(cls, text: str, source: Path, *, verify: bool = True) -> Manifest:
        """Parse and verify; raises `TraceError` for anything that `to_json` did not write."""
        try:
            whole = json.loads(text)
            schema, digest, recorded, body = (whole[key] for key in ("schema", "digest", "recorded", "body"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TraceError(f"{source} is not a portproof trace (truncated or edited?): capture it again.") from error
        if schema != SCHEMA:
            raise TraceError(f"{source} has schema {schema!r}, this version reads {SCHEMA!r}: capture it again.")
        if verify and digest != _digest(json.dumps(body, separators=(",", ":"))):
            raise TraceError(f"{source} was changed after it was written: capture it again.")
        try:
            body["parameters"] = tuple(ParameterRecord(**_tuples(row, "shape")) for row in body["parameters"])
            body["layers"] = tuple(LayerRecord(**row) for row in body["layers"])
            body["calls"] = {
                phase: tuple(CallRecord(**_tuples(row, "inputs", "outputs")) for row in rows)
                for phase, rows in body["calls"].items()
            }
            body["tensors"] = {key: TensorInfo(**_tuples(row, "shape")) for key, row in body["tensors"].items()}
            body["notes"], body["shards"] = tuple(body["notes"]), tuple(body["shards"])
            return cls(**body, recorded=recorded)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(f"{source} lacks what a trace holds ({error!r}): capture it again.") from error


class TraceWriter:
    """Collects the tensors of one capture in shards; `finish` puts the complete trace in its place.

    Use it as a context manager: leaving it without `finish` removes what was written.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        self._pending: dict[str, NDArray[Any]] = {}
        self._pending_bytes = 0
        self._shards: list[str] = []
        self._tensors: dict[str, TensorInfo] = {}

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def add(self, key: str, array: NDArray[Any]) -> None:
        """Store ``array`` under ``key``. The array must not change afterwards: it is written later."""
        if key in self._tensors:
            raise ValueError(f"tensor {key!r} was captured twice")
        # safetensors has no complex numbers and numpy no bfloat16: both are stored as what holds them exactly.
        stored = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        self._pending[key] = np.ascontiguousarray(stored).reshape(array.shape)  # it makes 0-d arrays 1-d
        self._pending_bytes += stored.nbytes
        self._tensors[key] = TensorInfo(array.shape, array.dtype.name, len(self._shards))
        if self._pending_bytes >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._folder / shard_name(len(self._shards))
        try:
            save_file(self._pending, path)
        except SafetensorError as error:  # it wraps the operating system's error, a full disk among them
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, f"could not write: {error}", str(path)) from error
        path.chmod(0o644)  # safetensors makes it private; a container's traces are read by somebody else
        self._shards.append(_sha256(path))
        self._pending, self._pending_bytes = {}, 0

    def seal(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Leave what was added, and plain data beside it, in ``folder`` for another process to `absorb`."""
        self._flush()
        index = _plain(self._tensors)
        write_text(self._folder / _PART, json.dumps({"tensors": index, "shards": self._shards, "extra": extra}))
        self._folder.rename(folder)

    def absorb(self, folder: Path) -> dict[str, Any]:
        """Take over the tensors that another process sealed; returns the plain data beside them."""
        self._flush()
        part = json.loads((folder / _PART).read_text(encoding="utf-8"))
        first = len(self._shards)
        for index in range(len(part["shards"])):
            (folder / shard_name(index)).rename(self._folder / shard_name(first + index))
        self._shards += part["shards"]
        for key, row in part["tensors"].items():
            self._tensors[key] = TensorInfo(tuple(row["shape"]), row["dtype"], first + row["shard"])
        shutil.rmtree(folder)
        return dict(part["extra"])

    def finish(self, manifest: Manifest) -> Trace:
        """Write the manifest and rename the folder to its final name, replacing an older trace there."""
        self._flush()
        order = {phase["name"]: index for index, phase in enumerate(manifest.plan)}
        # By phase as planned, whichever process ran it; a phase's own tensors stay in the order of their capture.
        tensors = dict(sorted(self._tensors.items(), key=lambda item: order.get(item[0].partition("/")[0], -1)))
        complete = Manifest(**{**vars(manifest), "tensors": tensors, "shards": tuple(self._shards)})
        write_text(self._folder / MANIFEST, complete.to_json())
        self._folder.chmod(0o755)
        if self.target.exists():
            if not is_trace(self.target):
                raise TraceError(f"{self.target} exists and is not a trace: name another folder.")
            shutil.rmtree(self.target)
        self._folder.rename(self.target)
        return Trace(self.target, complete)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that stays on disk: ``block`` reads a part of it, at any time and from any thread."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def block(self, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """The values from ``start`` to ``stop`` of the flattened tensor, in ``buffer`` if one is given.

        Raises:
            TraceError: they are not there.
        """
        count = max(stop - start, 0)
        if buffer is None:
            buffer = np.empty(count * self.dtype.itemsize, np.uint8)
        values: NDArray[Any] = buffer[: count * self.dtype.itemsize].view(self.dtype)
        # Not by a memory map: what was read would stay resident, file after file.
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.dtype.itemsize)
            into = buffer.data[: values.nbytes]
            done = 0
            while done < len(into):
                read = file.readinto(into[done:])
                if not read:
                    raise TraceError(f"{self.path} is not complete. Capture it again.")
                done += read
        return values


class Trace:
    """A stored trace, read one tensor, or one part of a tensor, at a time."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._headers: dict[int, dict[str, Any]] = {}

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True, digest: Callable[[Path], str] | None = None) -> Trace:
        """Open a trace folder; with ``verify`` every shard is held against its SHA-256 first.

        ``digest`` computes that of a file, for callers that open many traces and know some of their files already.

        Raises:
            TraceError: not a trace, truncated, tampered with, or of another schema.
        """
        path = Path(path)
        if not is_trace(path):
            inside = sorted(str(each) for each in path.glob("*") if is_trace(each)) if path.is_dir() else []
            hint = f" It holds two: {' and '.join(inside)}." if inside else ""
            raise TraceError(f"{path} is not a trace, a folder with a {MANIFEST}.{hint}")
        try:
            text = (path / MANIFEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TraceError(f"{path / MANIFEST} cannot be read ({error}): capture it again.") from error
        manifest = Manifest.from_json(text, path / MANIFEST, verify=verify)
        if any(not 0 <= info.shard < len(manifest.shards) for info in manifest.tensors.values()):
            raise TraceError(f"{path / MANIFEST} names a shard that there is not: capture it again.")
        shards = [path / shard_name(index) for index in range(len(manifest.shards))]
        for shard in shards:
            if not shard.is_file():
                raise TraceError(f"{shard} is missing: the trace is incomplete, capture it again.")
        if verify:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter to others
                digests = list(pool.map(digest or _sha256, shards))
            for shard, found, wanted in zip(shards, digests, manifest.shards, strict=True):
                if found != wanted:
                    raise TraceError(
                        f"{shard} is not the file that was written (truncated or changed): capture it again."
                    )
        return cls(path, manifest)

    def __contains__(self, key: str) -> bool:
        return key in self.manifest.tensors

    def tensor(self, key: str) -> NDArray[Any]:
        """The tensor stored under ``key``; raises `TraceError` if there is none."""
        stored = self.stored(key)
        return stored.block(0, stored.size).reshape(stored.shape)

    def stored(self, key: str) -> StoredTensor:
        """The tensor under ``key``, not read yet; raises `TraceError` if there is none."""
        info = self.manifest.tensors.get(key)
        if info is None:
            raise TraceError(f"{self.path} holds no tensor {key!r}.")
        path = self.path / shard_name(info.shard)
        try:
            if info.shard not in self._headers:
                self._headers[info.shard] = _header(path)
            header = self._headers[info.shard]
            row = header[key]
            return StoredTensor(path, tuple(row["shape"]), np.dtype(_DTYPES[row["dtype"]]), row["data_offsets"][0])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TraceError(f"{path} cannot be read: {error!r}. Capture it again.") from error

    def same_shard(self, other: Trace, key: str) -> bool:
        """Whether ``key`` lies in files of equal content on both sides, by the SHA-256 that both manifests state."""
        infos = self.manifest.tensors.get(key), other.manifest.tensors.get(key)
        if infos[0] is None or infos[1] is None:
            return False
        return self.manifest.shards[infos[0].shard] == other.manifest.shards[infos[1].shard]

    def names(self, phase: str, what: str) -> list[str]:
        """The names of a phase's tensors of one kind, in the order in which they were captured."""
        prefix = f"{phase}/{what}/"
        return [key[len(prefix) :] for key in self.manifest.tensors if key.startswith(prefix)]

    def phases(self) -> list[str]:
        """The phases that were captured, in order."""
        return [phase["name"] for phase in self.manifest.plan]

    def items(self, phase: str, what: str) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and tensors of one kind, one at a time."""
        for name in self.names(phase, what):
            yield name, self.tensor(f"{phase}/{what}/{name}")


def is_trace(path: Path) -> bool:
    """Whether ``path`` is a folder that holds a trace."""
    with suppress(OSError):
        return (path / MANIFEST).is_file()
    return False


def shard_name(index: int) -> str:
    """The file name of a shard."""
    return f"tensors-{index:05d}.safetensors"


_DTYPES = {  # of safetensors
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def _header(path: Path) -> dict[str, Any]:
    """What lies where in a safetensors file: its first 8 bytes are the length of the JSON that says so."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    rows = [row for row in header.values() if "data_offsets" in row]
    for row in rows:
        row["data_offsets"] = [8 + length + each for each in row["data_offsets"]]
    if max((row["data_offsets"][1] for row in rows), default=8 + length) != size:
        raise ValueError("not a complete safetensors file")
    return header


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Records as mappings, at any depth; `dataclasses.asdict` does the same six times slower."""
    if is_dataclass(value):
        return {each: _plain(getattr(value, each)) for each in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value


def _tuples(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: tuple(value) if key in names else value for key, value in row.items()}
