"""Recorder: turns the layer calls of one phase into tensors and call records, for any framework."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from portproof.trace import CallRecord, TraceWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recorder:
    """Stores what layers return, and remembers which tensor came from where.

    ``identity`` gives a key that is equal for the same tensor with unchanged content (an operation in place changes
    it); ``to_array`` copies a tensor into NumPy, in canonical layout.
    """

    def __init__(
        self,
        writer: TraceWriter,
        phase: str,
        identity: Callable[[Any], Hashable],
        to_array: Callable[[Any], NDArray[Any]],
    ) -> None:
        self.calls: list[CallRecord] = []
        self._writer = writer
        self._phase = phase
        self._identity = identity
        self._to_array = to_array
        self._known: dict[Hashable, str] = {}
        self._alive: list[Any] = []  # an id is only unique while its tensor lives
        self._occurrences: dict[str, int] = {}
        self._open: list[tuple[str, list[Any]]] = []

    def add_source(self, name: str, tensor: Any) -> None:
        """Make a model input known."""
        self._store("source", name, tensor)

    def begin(self, layer: str) -> None:
        """A call begins; `call` ends it. Needed only for `add_lowered`."""
        self._open.append((layer, []))

    def add_lowered(self, tensor: Any) -> None:
        """Note that the innermost open call has computed something in less than the phase's precision.

        The first such tensor of a call is stored, and stands behind the outputs in the record of the call.
        """
        if self._open and not self._open[-1][1]:
            self._open[-1][1].append(tensor)

    def call(self, layer: str, inputs: Iterable[tuple[Any, str | None]], outputs: Iterable[Any]) -> None:
        """Record one finished call. ``inputs`` are pairs of a tensor and its key when the call began (`key_of`)."""
        occurrence = self._occurrences.get(layer, 0)
        self._occurrences[layer] = occurrence + 1
        stem = layer if occurrence == 0 else f"{layer}#{occurrence}"
        input_keys = [known or self._store("input", f"{stem}:{i}", tensor) for i, (tensor, known) in enumerate(inputs)]
        output_keys = []
        for i, tensor in enumerate(outputs):
            name = stem if i == 0 else f"{stem}:{i}"
            output_keys.append(self.key_of(tensor) or self._store("output", name, tensor))
        if self._open and self._open[-1][0] == layer:
            output_keys += [self._store("inner", stem, tensor) for tensor in self._open.pop()[1]]
        self.calls.append(CallRecord(layer, occurrence, tuple(input_keys), tuple(output_keys)))

    def key_of(self, tensor: Any) -> str | None:
        """The key under which this very tensor is known, if it came out of a recorded layer or is a model input."""
        return self._known.get(self._identity(tensor))

    def _store(self, what: str, name: str, tensor: Any) -> str:
        key = f"{what}/{name}"
        self._writer.add(f"{self._phase}/{key}", self._to_array(tensor))
        self._remember(tensor, key)
        return key

    def _remember(self, tensor: Any, key: str) -> None:
        self._known[self._identity(tensor)] = key
        self._alive.append(tensor)


def flatten(value: Any, is_tensor: Callable[[Any], bool]) -> Iterator[Any]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from flatten(each, is_tensor)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from flatten(each, is_tensor)
    elif hasattr(value, "to_tuple"):  # the output classes of Hugging Face models
        yield from flatten(value.to_tuple(), is_tensor)
