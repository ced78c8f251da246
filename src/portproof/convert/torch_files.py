"""The factory of a conversion's proof on the torch side: the model with the weights of the file that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portproof.capture.loading import call_factory, load_factory
from portproof.convert.waiting import wait_for
from portproof.transfer.checkpoints import load_torch


def reloaded(path: str, factory: str) -> Any:
    """The model of ``factory`` with every tensor from the file ``path``, as soon as that is there."""
    model = call_factory(load_factory(factory), factory)
    load_torch(model, wait_for(Path(path)))
    return model
