"""Job: what a worker process is asked to do, as a JSON file, and the folder through which the two sides share inputs
and weights.

The exchange folder holds ``inputs.safetensors`` (written by the parent; keys ``<case>/<input>``, case ``main`` first)
and ``weights/`` (written by the source side: the values every phase starts from, in canonical layout). Each appears
complete, by renaming; a side that needs one waits for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from portproof.alignment import BOOKKEEPING, pair_parameters
from portproof.edits import Edit
from portproof.errors import WorkerError
from portproof.files import atomic_path, write_text
from portproof.mirror import InputSpec, Mirror
from portproof.plan import Phase
from portproof.trace import ParameterRecord
from portproof.transfer import adopt, fit_shape
from portproof.values import Start, draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAIN = "main"
SAMPLES = "samples"
_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Job:
    """One worker's order. ``weights``: ``give`` (this side is the source), ``take``, or ``own`` (keep what it has).

    The phases are dealt to ``lanes`` processes, where the framework can be forked after its import. ``edits`` are in
    force in every phase. ``start``: what weights that are given start from. ``save`` is where to write the model with
    its weights, as a file of the framework; ``names`` are those that its tensors get there, where the model knows
    others than its own.
    """

    side: str
    subject: str
    factory: str
    inputs: tuple[InputSpec, ...]
    phases: tuple[Phase, ...]
    exchange: Path
    trace: Path
    weights: str = "give"
    checkpoint: Path | None = None
    start: Start = field(default_factory=Start)
    seed: int = 0
    threads: int = 1
    lanes: int = 1
    timeout: float = 600.0
    edits: tuple[Edit, ...] = ()
    save: Path | None = None
    names: str = ""

    def write(self, path: Path) -> None:
        """Write the job file."""
        write_text(path, json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job file that `write` wrote."""
        body = json.loads(path.read_text(encoding="utf-8"))
        body["inputs"] = tuple(InputSpec(**{**row, "shape": tuple(row["shape"])}) for row in body["inputs"])
        body["phases"] = tuple(Phase(**row) for row in body["phases"])
        body["edits"] = tuple(Edit.from_json(row) for row in body["edits"])
        body["start"] = Start(**body["start"])
        for key in ("exchange", "trace", "checkpoint", "save"):
            body[key] = Path(body[key]) if body[key] else None
        return cls(**body)

    def wait_for(self, name: str, what: str) -> Path:
        """The path of something in the exchange folder, once it is there.

        Raises:
            WorkerError: it did not come within ``timeout`` seconds, or the folder is gone with its owner.
        """
        path = self.exchange / name
        deadline = time.monotonic() + self.timeout
        while not path.exists():
            if time.monotonic() > deadline or not self.exchange.is_dir():
                raise WorkerError(f"The {self.side} worker waited in vain for {what}: did the other side stop?")
            time.sleep(_POLL_SECONDS)
        return path

    def load_inputs(self) -> dict[str, dict[str, NDArray[Any]]]:
        """All input cases: case -> input name -> array in canonical layout, batch first."""
        flat = load_file(self.wait_for("inputs.safetensors", "the inputs"))
        cases: dict[str, dict[str, NDArray[Any]]] = {MAIN: {}}
        for key, array in flat.items():
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = array
        ordered = {case: {spec.name: arrays[spec.name] for spec in self.inputs} for case, arrays in cases.items()}
        return dict(sorted(ordered.items(), key=lambda item: (item[0] != MAIN, item[0])))


@dataclass(frozen=True)
class Weights:
    """The values that every phase starts from, in canonical layout; ``excited`` equals ``initial`` where nothing was
    excited (own weights, a checkpoint)."""

    records: tuple[ParameterRecord, ...]
    initial: dict[str, NDArray[Any]]
    excited: dict[str, NDArray[Any]]
    computed: bool = False  # by the model that took them: see portproof.transfer

    def write(self, exchange: Path) -> None:
        """Put the weights into the exchange folder, complete."""
        sets = {"initial": self.initial, "excited": self.excited}
        tensors = {
            f"{which}/{name}": np.ascontiguousarray(array).reshape(array.shape)  # it makes 0-d arrays 1-d
            for which, values in sets.items()
            for name, array in values.items()
        }
        folder = exchange / "weights.partial"
        folder.mkdir()
        save_file(tensors, folder / "weights.safetensors")
        write_text(folder / "records.json", json.dumps([asdict(record) for record in self.records]))
        folder.rename(exchange / "weights")

    @classmethod
    def read(cls, folder: Path) -> Weights:
        """Read what `write` wrote."""
        rows = json.loads((folder / "records.json").read_text(encoding="utf-8"))
        records = tuple(ParameterRecord(**{**row, "shape": tuple(row["shape"])}) for row in rows)
        sets: dict[str, dict[str, NDArray[Any]]] = {"initial": {}, "excited": {}}
        for key, array in load_file(folder / "weights.safetensors").items():
            which, _, name = key.partition("/")
            sets[which][name] = array
        return cls(records, sets["initial"], sets["excited"])


def adopt_weights(model: Any, weights: Weights) -> Weights:
    """``weights`` in the form that the model itself holds."""
    initial, excited = (adopt(model, weights.records, values) for values in (weights.initial, weights.excited))
    return Weights(tuple(excited.records), dict(initial.values), dict(excited.values), excited.computed)


def place(
    weights: Weights, records: Sequence[ParameterRecord], own: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Which of the source's tensors each of a model's own gets, and the values of those that get none.

    ``weights`` are brought into the shapes of the model. What has no counterpart, or one of another shape, keeps its
    own value in every phase; the comparison lists it.
    """
    shapes = {record.name: record.shape for record in records}
    pairs = {name: source for source, name in pair_parameters(weights.records, records).pairs.items()}
    counters = {record.name: record.name for record in records if record.role in BOOKKEEPING}
    placed = {}
    for name, source in {**counters, **pairs}.items():
        for values in (weights.initial, weights.excited):
            fitted = fit_shape(values[source], shapes[name]) if source in values else None
            if fitted is not None:
                values[source] = fitted
                placed[name] = source
    return placed, {name: value for name, value in own.items() if name not in placed}


def other_cases(inputs: Mapping[str, Any]) -> list[str]:
    """The input cases of a phase that runs batches: all but the main one, which the other phases run."""
    return [case for case in inputs if case != MAIN] or [MAIN]


def make_inputs(
    mirror: Mirror, seed: int, samples: Mapping[str, NDArray[np.float32]] | None
) -> dict[str, NDArray[Any]]:
    """Every input case of a mirror: the main batch, the other batch sizes, and the samples as one batch.

    The entries of a batch differ from each other; float inputs are float32 numbers, so that both precisions can hold
    them exactly.
    """
    batches = {MAIN: mirror.inputs[0].shape[0]} | {f"batch of {size}": size for size in mirror.batches}
    arrays: dict[str, NDArray[Any]] = {}
    for index, (case, batch) in enumerate(batches.items()):
        for position, spec in enumerate(mirror.inputs):
            rng = np.random.default_rng([seed, index, position])
            shape = (batch, *spec.shape[1:])
            if spec.dtype == "float32":
                arrays[f"{case}/{spec.name}"] = draw(spec.values, rng, shape)
            elif spec.dtype == "bool":
                arrays[f"{case}/{spec.name}"] = rng.integers(0, 2, shape).astype(np.bool_)
            else:
                arrays[f"{case}/{spec.name}"] = rng.integers(0, spec.high, shape).astype(spec.dtype)
    if samples:
        arrays[f"{SAMPLES}/{mirror.inputs[0].name}"] = np.stack(
            [np.asarray(each, np.float32) for each in samples.values()]
        )
    return arrays


def write_inputs(exchange: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put the inputs into the exchange folder, complete."""
    with atomic_path(exchange / "inputs.safetensors") as temporary:
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, temporary)
