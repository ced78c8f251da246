"""Capture of the TensorFlow side: runs the phases of a job on a Keras model (Keras 2 or 3) and writes what happened."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from portproof.alignment import pair_parameters
from portproof.capture import (  # noqa: F401  defects and repairs register their edits
    defects_tensorflow,
    defects_training_tensorflow,
    kinds,
    repairs_tensorflow,
)
from portproof.capture.edits_tensorflow import Edited, edited
from portproof.capture.exact import make_exact
from portproof.capture.job import MAIN, Job, Weights, adopt_weights, other_cases, place
from portproof.capture.keras_model import (
    ACTIVATION,
    KerasModel,
    Layouts,
    activation_apart,
    has_fused_activation,
    tensors_in,
    wrapped_calls,
)
from portproof.capture.loading import call_factory, describe, dropout_note, load_factory, note_lowered
from portproof.capture.recorder import Recorder
from portproof.capture.steps_tensorflow import FirstStep, as_arrays, objective, optimize
from portproof.errors import InputError, MirrorError, SetupError, WorkerError
from portproof.plan import Phase
from portproof.trace import MODEL, LayerRecord, ParameterRecord, TraceWriter
from portproof.transfer import tensorflow as weights_tf
from portproof.transfer.checkpoints import load_tensorflow, save_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Side:
    """The TensorFlow side of a job: `prepare` once, then `run` phase after phase.

    Each precision has a model of its own, made by the same factory under another default dtype: a Keras layer cannot
    change its dtype after it was built.
    """

    def __init__(self, job: Job, writer: TraceWriter, kept: dict[Any, Any] | None = None) -> None:
        self.job = job
        self.writer = writer
        self.notes: list[str] = []
        self.environment = prepare_framework(job.threads)
        # Before the user's module is imported, so that it finds the exact operations under every name.
        self.exact = make_exact()
        self.exact.clear()
        self.models: dict[str, KerasModel] = {}
        self._kept = kept  # models and their own values from earlier jobs of this process, where there are any
        self.own: dict[str, NDArray[Any]] = {}
        self.impossible: WorkerError | None = None  # why there is no model in float64
        self.first_steps: dict[str, FirstStep] = {}

    def prepare(self) -> None:
        """Load the factory, build the first model and settle the weights."""
        self.inputs = self.job.load_inputs()
        model = self._first_model()
        if self.job.checkpoint:
            load_tensorflow(model.keras, self.job.checkpoint)
        if self.job.weights == "take":
            taken = Weights.read(self.job.wait_for("weights", "the weights of the other side"))
            self.weights = adopt_weights(model.keras, taken)
            self._place(model)
            precision = next(iter(self.models))
            if self.own and self._kept and self._kept[self._key(precision)][2] != self.job.seed:
                model = self.models[precision] = self._new_model(precision)
                self._place(model)
        else:
            # As float32 numbers, so that both precisions hold the very same weights.
            values = {
                name: value.astype(np.float32) if value.dtype == np.float64 else value
                for name, value in weights_tf.read(model.keras).items()
            }
            if self.job.weights == "own":
                with edited(model, self.job.edits) as edits:
                    values = edits.values(values)
            self.weights = Weights(tuple(model.parameters()), values, values)
            self.source = {name: name for name in values}
            if self.job.weights == "give":
                self.weights.write(self.job.exchange)

    def save(self, path: Path) -> None:
        """Write the model with the weights of the job."""
        model = self._model("float32")
        model.write(self.own | {name: self.weights.excited[source] for name, source in self.source.items()})
        model(MAIN)  # a SavedModel holds what was traced, and Keras traces no model that was never called
        save_tensorflow(model.keras, path)

    def replaced(self) -> tuple[str, ...]:
        """Operations with float32 constants that were evaluated exactly in float64."""
        return self.exact.names()

    def parameters(self) -> list[ParameterRecord]:
        """The model's parameters and buffers."""
        model = next(iter(self.models.values()))
        with edited(model, self.job.edits):
            return model.parameters()

    def layers(self) -> list[LayerRecord]:
        """The model's layers, in order of definition."""
        model = next(iter(self.models.values()))
        with edited(model, self.job.edits):
            return self._layers(model)

    def _layers(self, model: KerasModel) -> list[LayerRecord]:
        with_children = {parent for _, parent in model.layers.values()}
        records = [
            LayerRecord(
                name=path or MODEL,
                kind=kinds.kind(layer),
                type=type(layer).__name__,
                parent=None if parent is None else parent or MODEL,
                leaf=path not in with_children,
                stage=parent == "",
                settings=kinds.settings(layer),
            )
            for path, (layer, parent) in model.layers.items()
        ]
        for path, (layer, _) in model.layers.items():
            if has_fused_activation(layer):
                kind = kinds.activation_kind(layer.activation)
                records.append(
                    LayerRecord(f"{path}.{ACTIVATION}", kind, "activation", path or MODEL, leaf=True, stage=False)
                )
        return records

    def run(self, phase: Phase) -> dict[str, Any]:
        """Run one phase; returns its calls and the facts that are not tensors.

        Raises:
            WorkerError: the model raised in float32.
        """
        try:
            model = self._model(phase.precision)
            values = getattr(self.weights, phase.weights)
            with (
                model.without_dropout() if phase.training else nullcontext(),
                edited(model, self.job.edits, training=phase.training) as edits,
            ):
                given = self.own | {name: values[source] for name, source in self.source.items()}
                # A port's own values have been edited once, so that the trace says what it started from.
                model.write(given if self.job.weights == "own" else edits.values(given))
                if phase.batches:
                    return self._forward(model, phase)
                if phase.optimizer:
                    return self._optimize(model, phase, edits)
                return self._differentiate(model, phase, edits)
        except InputError:
            raise
        except Exception as error:
            if phase.precision == "float64":
                return {"unavailable": describe((error is self.impossible and error.__cause__) or error)}
            raise self._failed(f"in {phase.name}", error) from error

    def _first_model(self) -> KerasModel:
        """The model that is looked at before the phases; the float32 one where float64 is impossible."""
        if not self.job.phases or self.job.phases[0].precision == "float32":
            return self._model("float32")
        try:
            return self._model("float64")
        except WorkerError as error:
            self.impossible = error
            return self._model("float32")

    def _model(self, precision: str) -> KerasModel:
        if precision == "float64" and self.impossible:
            raise self.impossible
        # A layer may ask for the default dtype while it runs, too.
        tf.keras.backend.set_floatx(precision)
        tf.keras.mixed_precision.set_global_policy(precision)
        if precision not in self.models:
            model = self.models[precision] = self._kept_model(precision) or self._new_model(precision)
            for note in model.notes:
                self._note(note)
        return self.models[precision]

    def _new_model(self, precision: str) -> KerasModel:
        # Constants of initializers are nobody's concern: the weights are overwritten.
        with self.exact.unlogged():
            model = self._built(precision)
        if self._kept is not None:
            values = {each.record.name: each.read() for each in model.variables}
            self._kept[self._key(precision)] = model, values, self.job.seed
        return model

    def _kept_model(self, precision: str) -> KerasModel | None:
        model, values, _ = (self._kept or {}).get(self._key(precision), (None, {}, 0))
        if model:
            model.give(self.inputs)
            model.write(values)
        return model

    def _key(self, precision: str) -> Any:
        shapes = tuple((name, array.shape[1:]) for name, array in self.inputs[MAIN].items())
        # What the seed drew is overwritten by weights that are taken; `_place` sees to what they leave.
        seed = None if self.job.weights == "take" else self.job.seed
        return self.job.factory, seed, precision, shapes

    def _built(self, precision: str) -> KerasModel:
        tf.keras.backend.clear_session()  # so that the second model's layers get the same names as the first one's
        tf.keras.backend.set_floatx(precision)
        tf.keras.mixed_precision.set_global_policy(precision)
        tf.keras.utils.set_random_seed(self.job.seed)
        keras = call_factory(load_factory(self.job.factory), self.job.factory)
        if not isinstance(keras, tf.keras.Model):
            raise MirrorError(f"The factory {self.job.factory} returned a {type(keras).__name__}, not a keras.Model.")
        model = KerasModel(keras, precision, self.inputs, {spec.name: spec.layout for spec in self.job.inputs})
        uncompiled = model.uncompile()
        if not keras.built or not keras.weights:
            try:
                model(MAIN)
            except Exception as error:
                raise self._failed("on its main inputs", error) from error
            model.forget()
            uncompiled += model.uncompile()  # layers that came into being in a `build`
        if uncompiled:
            names = ", ".join(uncompiled)
            model.notes.append(f"a tf.function that was run eagerly, so that its layers can be seen: {names}")
        dropped = model.dropout()
        if dropped:
            model.notes.append(dropout_note(dropped))
        return model

    def _place(self, model: KerasModel) -> None:
        """Settle which of the source's tensors each variable gets."""
        pairing = pair_parameters(self.weights.records, model.parameters())
        if pairing.by_order or pairing.only_a or pairing.only_b:
            try:
                model.sort_by_execution()
            except Exception as error:
                raise self._failed("on its main inputs", error) from error
        self.source, self.own = place(self.weights, model.parameters(), weights_tf.read(model.keras))

    def _forward(self, model: KerasModel, phase: Phase) -> dict[str, Any]:
        def wrap(path: str, layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                given = list(tensors_in((args, kwargs)))
                layouts.given(layer, [tensor for tensor in given if id(tensor) not in made])
                output = original(*args, **kwargs)
                produced = list(tensors_in(output))
                made.update((id(tensor), tensor) for tensor in produced)
                layouts.returned(layer, given, produced)
                return output

            return call

        for case in other_cases(self.inputs):
            inputs = model.inputs(case)
            made: dict[int, Any] = {id(tensor): tensor for tensor in inputs.values()}
            layouts = Layouts(tensor for name, tensor in inputs.items() if name in model.moved)
            with wrapped_calls({path: layer for path, (layer, _) in model.layers.items()}, wrap):
                outputs = list(tensors_in(model.call(inputs, training=False)))
            for i, tensor in enumerate(outputs):
                self.writer.add(f"{phase.name}/batch/{case}:{i}", layouts.to_array(tensor))
        return {"calls": []}

    def _differentiate(self, model: KerasModel, phase: Phase, edits: Edited) -> dict[str, Any]:
        inputs = model.inputs(MAIN)
        differentiable = {name: tensor for name, tensor in inputs.items() if tensor.dtype.is_floating}
        layouts = Layouts(tensor for name, tensor in inputs.items() if name in model.moved)
        recorder = Recorder(self.writer, phase.name, id, layouts.to_array)
        for name, tensor in inputs.items():
            recorder.add_source(name, tensor)
        if phase.objective == "none":
            with self._recording(model, recorder, layouts, phase):
                model.call(inputs, training=phase.training)
            return {"calls": recorder.calls}
        variables = model.trainable()
        with tf.GradientTape() as tape:
            for tensor in differentiable.values():
                tape.watch(tensor)
            with self._recording(model, recorder, layouts, phase):
                outputs = list(tensors_in(model.call(inputs, training=phase.training)))
            loss = edits.objective(objective(outputs, phase.objective), outputs)
        sources = [each.variable for each in variables] + list(differentiable.values())
        names = [each.record.name for each in variables] + list(differentiable)
        gradients = tape.gradient(loss, sources)
        self.writer.add(f"{phase.name}/loss/loss", np.asarray(loss))
        facts: dict[str, Any] = {"calls": recorder.calls}
        facts["unconnected"] = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
        arrays = as_arrays(sources, gradients)
        if phase.norms:
            facts["gradient_maxima"] = {
                name: float(np.abs(array).max()) for name, array in zip(names[: len(variables)], arrays, strict=False)
            }
            return facts
        for each, array in zip(variables, arrays, strict=False):
            self.writer.add(f"{phase.name}/gradient/{each.record.name}", each.layout.to_canonical(array))
        for name, array in zip(differentiable, arrays[len(variables) :], strict=True):
            moved = np.moveaxis(array, -1, 1) if name in model.moved else array
            self.writer.add(f"{phase.name}/input-gradient/{name}", moved)
        if phase.training:
            self._store_buffers(model, phase)
            self.first_steps[phase.precision] = FirstStep.of(model, arrays[: len(variables)])
        return facts

    def _optimize(self, model: KerasModel, phase: Phase, edits: Edited) -> dict[str, Any]:
        self.first_steps[phase.precision] = optimize(model, phase, edits, self.first_steps.get(phase.precision))
        for each in model.trainable():
            self.writer.add(f"{phase.name}/parameter/{each.record.name}", each.read())
        self._store_buffers(model, phase)
        return {"calls": []}

    def _store_buffers(self, model: KerasModel, phase: Phase) -> None:
        for each in model.variables:
            if not each.record.trainable and tf.as_dtype(each.variable.dtype).is_floating:
                self.writer.add(f"{phase.name}/buffer/{each.record.name}", each.read())

    @contextmanager
    def _recording(self, model: KerasModel, recorder: Recorder, layouts: Layouts, phase: Phase) -> Iterator[None]:
        """Record the calls of the model's layers while the block runs."""

        def wrap(path: str, layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
            name = path or MODEL
            fused = has_fused_activation(layer)

            def call(*args: Any, **kwargs: Any) -> Any:
                if not tf.executing_eagerly():  # inside of a tf.function of the model's own: nothing to be seen there
                    self._note(f"inside of a tf.function, so not recorded: {name}")
                    return original(*args, **kwargs)
                if phase.training and isinstance(layer, tf.keras.layers.BatchNormalization):
                    self._store_batch_statistics(phase, path, layer, next(tensors_in((args, kwargs))))
                if path and not phase.layers:
                    return original(*args, **kwargs)
                recorder.begin(name)
                given = [(tensor, recorder.key_of(tensor)) for tensor in tensors_in((args, kwargs))]
                layouts.given(layer, [tensor for tensor, key in given if key is None])

                def finish(key: str, taken: list[Any], output: Any) -> None:
                    produced = list(tensors_in(output))
                    layouts.returned(layer, [tensor for tensor, _ in given], produced)
                    recorder.call(key, taken, produced)

                if not fused:
                    output = original(*args, **kwargs)
                    finish(name, given, output)
                    return output
                with activation_apart(layer) as between:
                    output = original(*args, **kwargs)
                inner = [] if not between else [between[0]]
                finish(name, given, inner or output)
                if inner:
                    finish(f"{path}.{ACTIVATION}", [(inner[0], recorder.key_of(inner[0]))], output)
                return output

            return call

        self.exact.on_lowered = (
            (lambda tensor: self._lowered(recorder, tensor)) if phase.precision == "float64" else None
        )
        watched = {
            path: layer
            for path, (layer, _) in model.layers.items()
            if phase.layers or not path or (phase.training and isinstance(layer, tf.keras.layers.BatchNormalization))
        }
        try:
            with wrapped_calls(watched, wrap):
                yield
        finally:
            self.exact.on_lowered = None

    def _lowered(self, recorder: Recorder, tensor: Any) -> None:
        if tf.executing_eagerly():
            recorder.add_lowered(tensor)
        note_lowered(self.notes, tensor.dtype.name)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _store_batch_statistics(self, phase: Phase, path: str, layer: Any, x: Any) -> None:
        key = f"{phase.name}/batch-variance/{path}"
        if key not in self.writer:
            axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
            array = np.asarray(x)
            axes = tuple(each for each in range(array.ndim) if each != axis % array.ndim)
            self.writer.add(key, array.var(axes))
            self.writer.add(f"{phase.name}/batch-square/{path}", np.square(array).mean(axes))
            count = array.size / array.shape[axis]
            self.writer.add(f"{phase.name}/batch-count/{path}", np.asarray(count, np.float64))

    def _failed(self, where: str, error: Exception) -> WorkerError | MirrorError:
        if isinstance(error, (WorkerError, MirrorError)):
            return error
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in self.job.inputs)
        return WorkerError(
            f"The TensorFlow model raised {where} (inputs {shapes}): {describe(error)}.", details=traceback.format_exc()
        )


def prepare_framework(threads: int) -> dict[str, Any]:
    """Pin threads and make sure that no accelerator is visible; returns what was found.

    Raises:
        SetupError: TensorFlow sees an accelerator.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    devices = [device.name for device in tf.config.list_physical_devices() if device.device_type != "CPU"]
    if devices:
        raise SetupError(f"TensorFlow still sees {', '.join(devices)}: something undid CUDA_VISIBLE_DEVICES=-1.")
    return {
        "framework": "tensorflow",
        "version": tf.__version__,
        "keras": str(sys.modules[tf.keras.Model.__module__.partition(".")[0]].__version__),
        "build": "CUDA" if tf.test.is_built_with_cuda() else "CPU",
        "accelerators": devices,
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "interop_threads": tf.config.threading.get_inter_op_parallelism_threads(),
    }
