"""Transfer: weights carried from PyTorch to TensorFlow and back, through canonical layout and without loss.

Both functions want both frameworks in one process; `portproof check` does the same across two processes. Names are
paired by `portproof.alignment`; whatever is missing, left over or of the wrong shape is one error that lists all of it.

A model that can hold its weights in several forms (a re-parameterized network) may have a method ``adopt_weights``: it
is given arrays in canonical layout by canonical name, and returns them in the form that the model itself holds. Where
it does, weights of any form that it knows can be carried into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portproof.alignment import BOOKKEEPING, pair_parameters
from portproof.errors import TransferError
from portproof.trace import ParameterRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["adopt", "fit", "fit_shape", "tensorflow_to_torch", "torch_to_tensorflow"]


def torch_to_tensorflow(source: Any, target: Any) -> None:
    """Copy every weight and statistic of a ``torch.nn.Module`` into a built ``keras.Model``.

    Raises:
        TransferError: a tensor has no counterpart or the wrong shape; nothing is changed then.
    """
    from portproof.transfer import tensorflow, torch

    records = [each.record for each in tensorflow.variables(target)]
    given = adopt(target, torch.records(source), torch.read(source))
    tensorflow.write(target, fit(given.records, given.values, records))


def tensorflow_to_torch(source: Any, target: Any) -> None:
    """Copy every weight and statistic of a built ``keras.Model`` into a ``torch.nn.Module``.

    Raises:
        TransferError: a tensor has no counterpart or the wrong shape; nothing is changed then.
    """
    from portproof.transfer import tensorflow, torch

    records = [each.record for each in tensorflow.variables(source)]
    given = adopt(target, records, tensorflow.read(source))
    torch.write(target, fit(given.records, given.values, torch.records(target)))


@dataclass(frozen=True)
class Adopted:
    """Weights in the form of a model; ``computed`` says that tensors were made of others, and not just renamed."""

    records: Sequence[ParameterRecord]
    values: Mapping[str, NDArray[Any]]
    computed: bool = False


def adopt(model: Any, records: Sequence[ParameterRecord], values: Mapping[str, NDArray[Any]]) -> Adopted:
    """``values`` as the model's own ``adopt_weights`` gives them; as they are where it has none.

    Raises:
        TransferError: the model refuses them.
    """
    function = getattr(model, "adopt_weights", None)
    if function is None:
        return Adopted(records, values)
    try:
        found = function(values)
    except ValueError as error:
        raise TransferError(f"The weights do not fit: {error}.") from error
    origins = {id(value): name for name, value in values.items()}
    known = {record.name: record for record in records}
    made = []
    for name, value in found.items():
        layer, _, role = name.rpartition(".")
        origin = known.get(origins.get(id(value), ""))
        made.append(ParameterRecord(name, layer, role, value.shape, origin.trainable if origin else True, name))
    return Adopted(made, found, any(id(value) not in origins for value in found.values()))


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
