"""Transfer: weights carried from PyTorch to TensorFlow and back, through canonical layout and without loss.

Both functions want both frameworks in one process; `portproof check` does the same across two processes. Names are
paired by `portproof.alignment`; whatever is missing, left over or of the wrong shape is one error that lists all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from portproof.alignment import BOOKKEEPING, pair_parameters
from portproof.errors import TransferError
from portproof.trace import ParameterRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fit", "fit_shape", "tensorflow_to_torch", "torch_to_tensorflow"]


def torch_to_tensorflow(source: Any, target: Any) -> None:
    """Copy every weight and statistic of a ``torch.nn.Module`` into a built ``keras.Model``.

    Raises:
        TransferError: a tensor has no counterpart or the wrong shape; nothing is changed then.
    """
    from portproof.transfer import tensorflow, torch

    records = [each.record for each in tensorflow.variables(target)]
    tensorflow.write(target, fit(torch.records(source), torch.read(source), records))


def tensorflow_to_torch(source: Any, target: Any) -> None:
    """Copy every weight and statistic of a built ``keras.Model`` into a ``torch.nn.Module``.

    Raises:
        TransferError: a tensor has no counterpart or the wrong shape; nothing is changed then.
    """
    from portproof.transfer import tensorflow, torch

    records = [each.record for each in tensorflow.variables(source)]
    torch.write(target, fit(records, tensorflow.read(source), torch.records(target)))


def fit(
    source: Sequence[ParameterRecord], values: Mapping[str, NDArray[Any]], target: Sequence[ParameterRecord]
) -> dict[str, NDArray[Any]]:
    """The values under the target's names and in its canonical shapes.

    Raises:
        TransferError: listing every tensor that is missing, left over or of the wrong shape.
    """
    pairing = pair_parameters(source, target)
    shapes = {record.name: record.shape for record in target}
    fitted, wrong = {}, []
    for name_source, name_target in pairing.pairs.items():
        value = fit_shape(values[name_source], shapes[name_target])
        if value is None:
            wrong.append(f"{name_target}: {values[name_source].shape} given, {shapes[name_target]} wanted")
        else:
            fitted[name_target] = value
    raise_for(missing=pairing.only_b, left_over=pairing.only_a, wrong_shape=wrong)
    return fitted


def fit_shape(value: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    """``value`` in ``shape`` if they differ by dimensions of size one only (a 1x1 convolution and a linear layer)."""
    if value.shape == shape:
        return value
    if [size for size in value.shape if size != 1] == [size for size in shape if size != 1]:
        return value.reshape(shape)
    return None


def raise_for(
    *, missing: Iterable[str] = (), left_over: Iterable[str] = (), wrong_shape: Iterable[str] = (), where: str = ""
) -> None:
    """Raise one `TransferError` that lists everything; does nothing if there is nothing to list."""
    groups = {
        "missing": [name for name in missing if name.rpartition(".")[2] not in BOOKKEEPING],
        "left over": [name for name in left_over if name.rpartition(".")[2] not in BOOKKEEPING],
        "of the wrong shape": list(wrong_shape),
    }
    lines = [f"  {label}: {name}" for label, names in groups.items() for name in names]
    if lines:
        counts = ", ".join(f"{len(names)} {label}" for label, names in groups.items() if names)
        raise TransferError(f"The weights{where} do not fit: {counts}.\n" + "\n".join(lines))
