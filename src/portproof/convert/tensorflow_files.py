"""The factory of a conversion's proof on the Keras side: the model with the weights of the file that was written.

A file stands by itself: ``.keras`` is opened by ``keras.models.load_model`` and a SavedModel by ``tf.saved_model``,
and their weights then go, value for value, into a model of the precision that the proof asks for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from portproof.capture.loading import call_factory, load_factory
from portproof.convert.waiting import wait_for
from portproof.errors import CheckpointError

# A SavedModel computes in float32, whatever the proof's precision: its error may be a few of what one operation rounds.
_GRAPH_ERROR = 1e-5


def reloaded(path: str, factory: str) -> Any:
    """The model of ``factory`` with every weight from the file ``path``, as soon as that is there.

    Raises:
        CheckpointError: the file cannot be opened by itself, or holds another model.
    """
    model = call_factory(load_factory(factory), factory)
    file = wait_for(Path(path))
    if file.name.endswith(".weights.h5"):
        from portproof.transfer.checkpoints import load_tensorflow

        load_tensorflow(model, file)
        return model
    try:
        stored = _of_folder(file, model) if file.is_dir() else _of_keras(file, model)
        model.set_weights(stored)
    except ValueError as error:
        raise CheckpointError(f"{file.name} does not hold this model: {error}") from error
    if file.is_dir():
        _check_graph(file, model)
    return model


def _of_keras(file: Path, model: Any) -> list[Any]:
    loaded = tf.keras.models.load_model(file, compile=False)
    if type(loaded) is not type(model):
        raise ValueError(f"it is a {type(loaded).__name__}, not a {type(model).__name__}")
    return list(loaded.get_weights())


def _of_folder(folder: Path, model: Any) -> list[Any]:
    # Keras exports the variables in the model's own order.
    loaded = tf.saved_model.load(str(folder))
    variables = loaded.variables
    shapes = [tuple(each.shape) for each in variables]
    if shapes != [tuple(each.shape) for each in model.weights]:
        raise ValueError("its variables are others")
    return [each.numpy() for each in variables]


def _check_graph(folder: Path, model: Any) -> None:
    """Run the SavedModel's own graph on random input, against the model whose layers the proof looks at."""
    loaded = tf.saved_model.load(str(folder))  # it has to live as long as its function
    (spec,) = loaded.serve.input_signature
    shape = [size or (2 if axis == 0 else 64) for axis, size in enumerate(spec.shape)]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ours, theirs = (
        np.asarray(each, np.float64) for each in (model(x.astype(model.compute_dtype), training=False), loaded.serve(x))
    )
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
    if not error <= _GRAPH_ERROR:
        raise CheckpointError(f"The graph in {folder.name} computes something else: relative difference {error:.1e}.")
