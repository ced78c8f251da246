"""Edit: one change of the port in memory, while a capture runs: a planted defect, or the repair of one. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Edit:
    """A change of a model, by name, at some of its layers.

    ``what`` is a name in the table of the side that applies it (capture/edits_tensorflow.py); ``layers`` are paths of
    the port's layers, empty where the edit is not about layers (the loss, an optimizer); ``options`` are plain data.
    Edits apply in order and are taken back after the phase, so one loaded model serves any number of them.
    """

    what: str
    layers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the job file."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Edit:
        """From the plain data of `to_json`."""
        return cls(body["what"], tuple(body["layers"]), dict(body["options"]))
