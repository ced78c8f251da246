"""Capture of the PyTorch side: runs the phases of a job on a torch model and writes what happened."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd
from torch.overrides import TorchFunctionMode

from portproof.capture import kinds
from portproof.capture.exact_torch import make_exact
from portproof.capture.excite import excite, start_from
from portproof.capture.job import MAIN, Job, Weights, adopt_weights, other_cases, place
from portproof.capture.loading import call_factory, describe, dropout_note, load_factory, note_lowered, takes_by_name
from portproof.capture.recorder import Recorder, flatten
from portproof.errors import MirrorError, SetupError, WorkerError
from portproof.plan import ADAMW, SGD, STEPS, Phase
from portproof.trace import MODEL, LayerRecord, ParameterRecord, TraceWriter
from portproof.transfer import torch as weights_torch
from portproof.transfer.checkpoints import load_torch, save_torch

_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_LOWER = (torch.float32, torch.bfloat16, torch.float16)
# Modules call these too, so that replacing them covers both.
_DROPOUT_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_DROPOUT = (torch.nn.modules.dropout._DropoutNd,)


class Side:
    """The torch side of a job: `prepare` once, then `run` phase after phase. Holds the model between phases."""

    def __init__(self, job: Job, writer: TraceWriter, kept: dict[Any, Any] | None = None) -> None:
        """``kept`` is for a side whose models take long to make, where one process does several jobs."""
        self.job = job
        self.writer = writer
        self.notes: list[str] = []
        self.environment = prepare_framework(job.threads)
        # Before the user's module is imported, so that it finds the exact operations under every name.
        self.exact = make_exact()

    def prepare(self) -> None:
        """Build the model and settle the weights; a source side gives them to the exchange folder."""
        torch.manual_seed(self.job.seed)
        model = call_factory(load_factory(self.job.factory), self.job.factory)
        if not isinstance(model, torch.nn.Module):
            raise MirrorError(
                f"The factory {self.job.factory} returned a {type(model).__name__}, not a torch.nn.Module."
            )
        self.model = model.cpu().float()
        dropped = [path for path, module in self.model.named_modules() if isinstance(module, _DROPOUT) and module.p > 0]
        if dropped:
            self.notes.append(dropout_note(dropped))
        self.paths = dict(self.model.named_modules())
        self.inputs = self.job.load_inputs()
        self.order = self._execution_order()
        if self.job.checkpoint:
            load_torch(self.model, self.job.checkpoint)
        start_from(self.model, self.job.start, self.job.seed)
        initial = weights_torch.read(self.model)
        if self.job.weights == "take":
            taken = Weights.read(self.job.wait_for("weights", "the weights of the other side"))
            self.weights = adopt_weights(self.model, taken)
            self.source, self.own = place(self.weights, self.parameters(), initial)
        else:
            if self.job.start.excite:
                excite(self.model, self._call_main, self.job.seed)
            self.weights = Weights(tuple(self.parameters()), initial, weights_torch.read(self.model))
            if self.job.weights == "give":
                self.weights.write(self.job.exchange)
            self.source, self.own = {name: name for name in self.weights.excited}, {}

    def save(self, path: Path) -> None:
        """Write the model with the weights of the job, under the names that the job asks for."""
        weights_torch.write(self.model, self.own | {name: self.weights.excited[s] for name, s in self.source.items()})
        save_torch(self.model, path, self.job.names)

    def replaced(self) -> tuple[str, ...]:
        """Operations with float32 constants that were evaluated exactly in float64."""
        return self.exact.names()

    def parameters(self) -> list[ParameterRecord]:
        """The model's parameters and buffers, by the order in which their layers are executed."""
        last = len(self.order)
        return sorted(weights_torch.records(self.model), key=lambda record: self.order.get(record.layer, last))

    def layers(self) -> list[LayerRecord]:
        """The model's modules, in order of definition."""
        stages = _stages(self.model)
        return [
            LayerRecord(
                name=path or MODEL,
                kind=kinds.kind(module),
                type=type(module).__name__,
                parent=None if not path else path.rpartition(".")[0] or MODEL,
                leaf=not any(True for _ in module.children()),
                stage=path in stages,
                settings=kinds.settings(module),
            )
            for path, module in self.paths.items()
        ]

    def run(self, phase: Phase) -> dict[str, Any]:
        """Run one phase; returns its calls and the facts that are not tensors.

        Raises:
            WorkerError: the model raised in float32.
        """
        dtype = _PRECISIONS[phase.precision]
        self.model.to(dtype)
        values = getattr(self.weights, phase.weights)
        weights_torch.write(self.model, self.own | {name: values[source] for name, source in self.source.items()})
        self.model.train(phase.training)
        self.model.zero_grad(set_to_none=True)
        try:
            with self._without_dropout() if phase.training else nullcontext():
                if phase.batches:
                    return self._forward(phase, dtype)
                if phase.optimizer:
                    return self._optimize(phase, dtype)
                return self._differentiate(phase, dtype)
        except Exception as error:
            if phase.precision == "float64":
                return {"unavailable": describe(error)}
            raise self._failed(f"in {phase.name}", error) from error

    def _forward(self, phase: Phase, dtype: torch.dtype) -> dict[str, Any]:
        with torch.no_grad():
            for case in other_cases(self.inputs):
                for i, tensor in enumerate(_outputs(self._call(self._tensors(case, dtype)))):
                    self.writer.add(f"{phase.name}/batch/{case}:{i}", weights_torch.to_numpy(tensor))
        return {"calls": []}

    def _differentiate(self, phase: Phase, dtype: torch.dtype) -> dict[str, Any]:
        inputs = self._tensors(MAIN, dtype)
        differentiable = {name: tensor for name, tensor in inputs.items() if tensor.is_floating_point()}
        if phase.objective != "none":
            for tensor in differentiable.values():
                tensor.requires_grad_()
        recorder = Recorder(self.writer, phase.name, lambda t: (id(t), t._version), weights_torch.to_numpy)
        with torch.set_grad_enabled(phase.objective != "none"):
            outputs = list(_outputs(self._record(recorder, phase, inputs, dtype)))
        facts: dict[str, Any] = {"calls": recorder.calls}
        if phase.objective == "none":
            return facts
        loss = objective(outputs, phase.objective)
        self.writer.add(f"{phase.name}/loss/loss", weights_torch.to_numpy(loss))
        trainable = {name: t for name, t, is_trainable in weights_torch.tensors(self.model) if is_trainable}
        gradients = torch.autograd.grad(loss, [*trainable.values(), *differentiable.values()], allow_unused=True)
        facts["unconnected"] = [n for n, g in zip((*trainable, *differentiable), gradients, strict=True) if g is None]
        given = [
            torch.zeros_like(t) if g is None else g
            for t, g in zip((*trainable.values(), *differentiable.values()), gradients, strict=True)
        ]
        if phase.norms:
            facts["gradient_maxima"] = {
                name: float(gradient.abs().max()) for name, gradient in zip(trainable, given, strict=False)
            }
            return facts
        for name, gradient in zip(trainable, given, strict=False):
            self.writer.add(f"{phase.name}/gradient/{name}", weights_torch.to_numpy(gradient))
        for name, gradient in zip(differentiable, given[len(trainable) :], strict=True):
            self.writer.add(f"{phase.name}/input-gradient/{name}", weights_torch.to_numpy(gradient))
        if phase.training:
            self._store_buffers(phase)
        return facts

    def _optimize(self, phase: Phase, dtype: torch.dtype) -> dict[str, Any]:
        inputs = self._tensors(MAIN, dtype)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # One flat tensor instead of hundreds, as on the other side: these optimizers work element by element.
        flat = _flattened(trainable).clone()
        sizes = [parameter.numel() for parameter in trainable]
        update = _sgd([flat]) if phase.optimizer == "sgd" else _adamw([flat])
        for _ in range(STEPS):
            loss = objective(list(_outputs(self._call(inputs))), phase.objective)
            gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
            with torch.no_grad():
                given = [torch.zeros_like(p) if g is None else g for p, g in zip(trainable, gradients, strict=True)]
                update([_flattened(given)])
                for parameter, part in zip(trainable, flat.split(sizes), strict=True):
                    parameter.copy_(part.view_as(parameter))
        for name, tensor, is_trainable in weights_torch.tensors(self.model):
            if is_trainable:
                self.writer.add(f"{phase.name}/parameter/{name}", weights_torch.to_numpy(tensor))
        self._store_buffers(phase)
        return {"calls": []}

    def _store_buffers(self, phase: Phase) -> None:
        for name, tensor, is_trainable in weights_torch.tensors(self.model):
            if not is_trainable and tensor.is_floating_point():
                self.writer.add(f"{phase.name}/buffer/{name}", weights_torch.to_numpy(tensor))

    def _record(self, recorder: Recorder, phase: Phase, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
        for name, tensor in inputs.items():
            recorder.add_source(name, tensor)
        handles = []
        for path, module in self.paths.items():
            if phase.layers or not path:
                before, after = self._hooks(recorder, path or MODEL, phase)
                handles += [
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after, with_kwargs=True),
                ]
            elif phase.training and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(self._statistics_hook(phase, path)))
        watch = _LoweringWatch(recorder, self.notes) if dtype == torch.float64 else nullcontext()
        try:
            with watch:
                return self._call(inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, recorder: Recorder, path: str, phase: Phase) -> tuple[Callable[..., None], Callable[..., None]]:
        pending: list[list[tuple[torch.Tensor, str | None]]] = []

        def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            # Keys are looked up before the call: the call may change its input in place.
            recorder.begin(path)
            pending.append([(tensor, recorder.key_of(tensor)) for tensor in _outputs((args, kwargs))])
            if phase.training and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                self._store_batch_statistics(phase, path, args[0])

        def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            recorder.call(path, pending.pop(), _outputs(output))

        return before, after

    def _statistics_hook(self, phase: Phase, path: str) -> Callable[..., None]:
        def before(module: torch.nn.Module, args: Any) -> None:
            self._store_batch_statistics(phase, path, args[0])

        return before

    def _store_batch_statistics(self, phase: Phase, path: str, x: torch.Tensor) -> None:
        key = f"{phase.name}/batch-variance/{path}"
        if key not in self.writer:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            variance = x.detach().var(axes, unbiased=False)
            self.writer.add(key, weights_torch.to_numpy(variance))
            square = x.detach().square().mean(axes)
            self.writer.add(f"{phase.name}/batch-square/{path}", weights_torch.to_numpy(square))
            self.writer.add(f"{phase.name}/batch-count/{path}", np.asarray(x.numel() / x.shape[1], np.float64))

    def _tensors(self, case: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in self.inputs[case].items()}
        return {name: t.to(dtype, copy=True) if t.is_floating_point() else t for name, t in tensors.items()}

    def _call(self, inputs: dict[str, torch.Tensor]) -> Any:
        if len(inputs) > 1 and takes_by_name(self.model.forward, inputs):
            return self.model(**inputs)
        return self.model(*inputs.values())

    def _call_main(self) -> Any:
        try:
            return self._call(self._tensors(MAIN, torch.float32))
        except Exception as error:
            raise self._failed("on its main inputs", error) from error

    def _execution_order(self) -> dict[str, int]:
        order: dict[str, int] = {}

        def note(path: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:  # a hook that returned something would replace the input
                order.setdefault(path, len(order))

            return hook

        handles = [module.register_forward_pre_hook(note(path)) for path, module in self.paths.items()]
        self.model.eval()
        with torch.no_grad():
            self._call_main()
        for handle in handles:
            handle.remove()
        return order

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Let nothing be dropped while the block runs. In eval mode nothing may be, so there it stays as it is."""
        functional = torch.nn.functional
        originals = {name: getattr(functional, name) for name in _DROPOUT_FUNCTIONS}
        for name in _DROPOUT_FUNCTIONS:
            setattr(functional, name, lambda input, *_, **__: input)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(functional, name, original)

    def _failed(self, where: str, error: Exception) -> WorkerError:
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in self.job.inputs)
        return WorkerError(
            f"The torch model raised {where} (inputs {shapes}): {describe(error)}.", details=traceback.format_exc()
        )


class _LoweringWatch(TorchFunctionMode):  # type: ignore[misc]  # of torch, which carries no types here
    """Notices operations that take float64 and give less, wherever they hide in a model's own code.

    A TorchDispatchMode would see below torch's own functions too, but imports the inductor (1.1 s).
    """

    def __init__(self, recorder: Recorder, notes: list[str]) -> None:
        super().__init__()
        self._recorder, self._notes = recorder, notes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _outputs(result):
            if tensor.dtype in _LOWER and any(each.dtype == torch.float64 for each in _outputs((args, kwargs))):
                self._recorder.add_lowered(tensor)
                note_lowered(self._notes, str(tensor.dtype).removeprefix("torch."))
        return result


def prepare_framework(threads: int) -> dict[str, Any]:
    """Pin threads and make sure that no accelerator is visible; returns what was found.

    Raises:
        SetupError: torch sees an accelerator.
    """
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # it can be set once
        torch.set_num_interop_threads(1)
    # torch.use_deterministic_algorithms() is not called: it imports the inductor, which takes as long as torch itself
    # (1.1 s), and on the CPU with fixed threads it changes nothing.
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    if devices:
        raise SetupError(f"torch still sees {', '.join(devices)}: something undid CUDA_VISIBLE_DEVICES=-1.")
    return {
        "framework": "torch",
        "version": torch.__version__,
        "build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "accelerators": devices,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "mkldnn": bool(torch.backends.mkldnn.is_available()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


# torch.optim's functional form: the same kernels as the classes', whose step() imports torch.compile first (1.1 s).
def _sgd(parameters: list[torch.Tensor]) -> Callable[[list[torch.Tensor]], None]:
    momenta: list[torch.Tensor | None] = [None] * len(parameters)

    def update(gradients: list[torch.Tensor]) -> None:
        sgd(
            parameters,
            gradients,
            momenta,
            foreach=False,
            lr=SGD["learning_rate"],
            momentum=SGD["momentum"],
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    return update


def _adamw(parameters: list[torch.Tensor]) -> Callable[[list[torch.Tensor]], None]:
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    steps = [torch.zeros(()) for _ in parameters]

    def update(gradients: list[torch.Tensor]) -> None:
        adamw(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            foreach=False,
            amsgrad=False,
            beta1=ADAMW["beta_1"],
            beta2=ADAMW["beta_2"],
            lr=ADAMW["learning_rate"],
            weight_decay=ADAMW["weight_decay"],
            eps=ADAMW["epsilon"],
            maximize=False,
        )

    return update


def _flattened(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def objective(outputs: Sequence[torch.Tensor], which: str) -> torch.Tensor:
    """The scalar that is differentiated: the mean of the first output, or the loss that plan.py states."""
    if which == "mean":
        return outputs[0].mean()
    total = outputs[0].new_zeros(())
    for output in outputs:
        if not output.is_floating_point():
            continue
        if output.dim() == 2 and output.shape[1] > 1:
            labels = torch.arange(output.shape[0]) % output.shape[1]
            total = total + torch.nn.functional.cross_entropy(output, labels)
        else:
            total = total + 0.5 * (output * output).mean()
    return total


def _outputs(value: Any) -> Any:
    return flatten(value, lambda each: isinstance(each, torch.Tensor))


def _stages(model: torch.nn.Module) -> set[str]:
    """The paths of the model's direct parts; containers that only hold others are opened."""
    found: set[str] = set()

    def descend(module: torch.nn.Module, path: str) -> None:
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            if type(child) in (torch.nn.ModuleList, torch.nn.ModuleDict) or (
                not path and type(child) is torch.nn.Sequential
            ):
                descend(child, child_path)
            else:
                found.add(child_path)

    descend(model, "")
    return found
