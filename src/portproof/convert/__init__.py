"""Convert: a checkpoint of one framework as a file of the other, or of other names or form, with a proof of the result.

Three worker processes run at once: one reads the source and runs it, one writes the target with those weights, and one
of the target's framework loads the written file and runs that. The two runs are compared layer by layer in float64, and
only then does the file get its place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from portproof import mirror as mirrors
from portproof import processes
from portproof.capture.job import Job, make_inputs, write_inputs
from portproof.convert.recognise import Recognised, recognise
from portproof.errors import CheckpointError, InputError
from portproof.mirror import Mirror
from portproof.plan import Phase
from portproof.trace import Trace
from portproof.transfer.checkpoints import KERAS_SUFFIXES, TORCH_SUFFIXES, side_of
from portproof.values import Start

if TYPE_CHECKING:
    from portproof.processes import Progress

NAMES = ("official", "timm")
_EVAL = Phase("float64.eval", "float64", layers=True)
_READ, _WRITE, _VERIFY = "read", "write", "verify"


@dataclass(frozen=True)
class Conversion:
    """What was done and how it was proven. ``relative`` is the largest relative difference of any layer's output in
    float64; ``rounding`` that of the output after computed weights were rounded to the file's float32, if they were.
    """

    recognised: Recognised
    mirror: str
    blocks: int
    layers: int
    relative: float
    rounding: float | None
    reader: str
    size: int


def convert(
    source: Path,
    target: Path,
    *,
    mirror: str = "",
    names: str = "official",
    fused: bool = False,
    threads: int = 1,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Conversion:
    """Convert ``source`` (.pth, .pt, .safetensors, .keras, .weights.h5) to ``target``, a folder being a SavedModel.

    Args:
        source: the checkpoint.
        target: what to write; its ending says what.
        mirror: the name of the mirror whose weights these are; by default it is recognised by the tensors.
        names: of the tensors in a torch file: ``official`` or ``timm``.
        fused: write the re-parameterized form.
        threads: per worker.
        timeout: seconds.
        progress: is told of the workers' steps.

    Raises:
        PortproofError: the source cannot be read or does not fit, or the result is not the same model; nothing is
            written then.
    """
    sides = side_of(source), target_side(target, names)
    found = recognise(source, mirror)
    given = mirrors.get(found.mirror)
    wanted = _form(given, fused=fused)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the result gets there by renaming.
    with tempfile.TemporaryDirectory(prefix=".portproof-", dir=target.parent, ignore_cleanup_errors=True) as place:
        folder = Path(place).resolve()
        written = folder / "written" / target.name
        jobs = _jobs(given, wanted, sides, source.resolve(), written, names if names != "official" else "")
        jobs = {step: replace(job, threads=threads, timeout=timeout) for step, job in jobs.items()}
        for step, job in jobs.items():
            job.write(folder / f"{step}-{job.side}.json")
        processes.run(
            {step: folder / f"{step}-{job.side}.json" for step, job in jobs.items()},
            interpreters={},
            logs=processes.log_folder(),
            threads=threads,
            timeout=timeout,
            progress=progress,
            while_running=lambda: write_inputs(folder, make_inputs(given, 0, None)),
        )
        traces = {step: Trace.open(job.trace, verify=False) for step, job in jobs.items()}
        size = sum(each.stat().st_size for each in (written, *written.rglob("*")) if each.is_file())
        conversion = _proven(traces, found, wanted.name, size)
        if target.is_dir():
            shutil.rmtree(target)  # a SavedModel: `target_side` looked
        written.replace(target)
    return conversion


def target_side(target: Path, names: str = "official") -> str:
    """The framework that writes ``target``.

    Raises:
        InputError: its ending is unknown, something else is in its place, or its framework has no such names.
    """
    if names not in NAMES:
        raise InputError(f"--names {names!r} is not one of {', '.join(NAMES)}.")
    if target.name.endswith(TORCH_SUFFIXES):
        side = "torch"
    elif target.name.endswith(KERAS_SUFFIXES) or not target.suffix:
        side = "tensorflow"
    else:
        raise InputError(
            f"{target}: a target ends in {', '.join((*TORCH_SUFFIXES, *KERAS_SUFFIXES))}, "
            "or in nothing for a SavedModel folder."
        )
    if target.is_dir() and (target.suffix or not (target / "saved_model.pb").is_file()):
        raise InputError(f"{target} is a folder, and not a SavedModel: name another target.")
    if names != "official" and side != "torch":
        raise InputError(f"--names {names}: only torch files have names to choose, {target.name} is Keras'.")
    return side


def _form(given: Mirror, *, fused: bool) -> Mirror:
    """The mirror of the form that is written."""
    if not fused:
        return given
    if not given.fused:
        why = "is re-parameterized already" if not given.training else "has no re-parameterized form"
        raise InputError(f"--fused: the mirror {given.name} {why}.")
    return mirrors.get(given.fused)


def _jobs(
    given: Mirror, wanted: Mirror, sides: tuple[str, str], source: Path, written: Path, names: str
) -> Mapping[str, Job]:
    exchange = written.parent.parent
    read = Job(
        side=sides[0],
        subject=given.name,
        factory=getattr(given, sides[0]),
        inputs=given.inputs,
        phases=(_EVAL,),
        exchange=exchange,
        trace=exchange / "trace-read",
        checkpoint=source,
        start=Start(excite=False),
    )
    factory = getattr(wanted, sides[1])
    # What is computed from the weights carries float64's precision only until it is written.
    phases = () if wanted is given else (_EVAL,)
    write = replace(
        read, side=sides[1], factory=factory, phases=phases, trace=exchange / "trace-write", checkpoint=None
    )
    reloaded = f"portproof.convert.{sides[1]}_files:reloaded(path={str(written)!r}, factory={factory!r})"
    return {
        _READ: read,
        _WRITE: replace(write, weights="take", save=written, names=names),
        _VERIFY: replace(write, factory=reloaded, phases=(_EVAL,), trace=exchange / "trace-verify", weights="own"),
    }


def _proven(traces: Mapping[str, Trace], found: Recognised, mirror: str, size: int) -> Conversion:
    """The proof.

    Raises:
        CheckpointError: the result is not the same model.
    """
    from portproof.compare import compare
    from portproof.compare.verdict import SAME, judge

    read, verify = traces[_READ], traces[_VERIFY]
    computed = traces[_WRITE].phases() != []
    facts = compare(read, traces[_WRITE] if computed else verify)
    verdict = judge(facts)
    if verdict.outcome != SAME:
        where = f", first in {verdict.divergence.layer}" if verdict.divergence else ""
        raise CheckpointError(f"The result is not the same model ({verdict.summary}{where}); nothing was written.")
    outputs = [each for each in facts.measurements if each.group == "outputs"]
    return Conversion(
        recognised=found,
        mirror=mirror,
        blocks=sum("block" in call.kind_a for call in facts.calls[_EVAL.name]),
        layers=len({each.layer for each in outputs}),
        relative=max(each.distance.relative for each in outputs),
        rounding=_rounding(traces[_WRITE], verify) if computed else None,
        reader=" ".join(str(verify.manifest.environment[key]) for key in ("framework", "version")),
        size=size,
    )


def _rounding(exact: Trace, stored: Trace) -> float:
    """How far the file's output is from that of the computed weights, whose rounded values the file has to hold.

    Raises:
        CheckpointError: the file holds other values.
    """
    import numpy as np

    from portproof.compare.measure import relative_error
    from portproof.trace import MODEL

    for record in stored.manifest.parameters:
        key = f"weights/excited/{record.name}"
        value = stored.tensor(key)
        if key not in exact or not np.array_equal(exact.tensor(key).astype(value.dtype), value):
            raise CheckpointError(f"The written file does not hold what was computed for {record.name}.")
    last = next(call.outputs[0] for call in stored.manifest.calls[_EVAL.name] if call.layer == MODEL)
    key = f"{_EVAL.name}/{last}"
    return relative_error(stored.tensor(key), exact.tensor(key))
