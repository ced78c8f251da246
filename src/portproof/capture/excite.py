"""Excite a torch model: weights and statistics that leave no path idle, so that a defect anywhere can be seen.

A freshly initialised model hides defects: zero-initialised last BatchNorms switch off whole residual branches, biases
are zero, running statistics are 0 and 1 whatever the layer sees. Naive random values go to the other extreme: on a deep
network the outputs grow until float32 noise covers everything. So constant tensors get random values, each BatchNorm
gets the statistics of the data that it really sees (then moved a little, so that swapped or stale ones show), and a
linear head is centred so that the outputs depend on the input. Every value is a float32 number, so that both precisions
hold the very same weights.

A network without any normalisation (a re-parameterized one) has nothing that keeps its signal alive: at default
initialisation little of the input reaches the output. There each convolution and linear layer is scaled by what it
gives, as in "All you need is a good init" (Mishkin and Matas, ICLR 2016).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from portproof.values import Start, draw

# 0.5 at the end of a residual branch (where the affine weight starts at zero) keeps the variance from doubling with
# every block.
_RESIDUAL_SCALE = 0.5
_SPREAD = 0.2
_NARROWEST = 0.1  # standard deviation of a channel in front of a BatchNorm, of its root mean square
_LEAST_CENTRED = 2.0**-10  # of an output's size, what has to be left of it when it is centred: ten bits may cancel
_LIVELY = (0.25, 4.0)  # standard deviations that a layer's output may have as it is; outside, it is scaled to 1
_WEIGHTED = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
_NORMS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm)


def start_from(model: torch.nn.Module, start: Start, seed: int) -> None:
    """Redraw and scale the kernels of ``model`` in place, as ``start`` says; a kernel has two dimensions or more."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or not parameter.is_floating_point():
            continue
        with torch.no_grad():
            if start.kernels:
                drawn = torch.from_numpy(draw(start.kernels, _rng(seed, name), tuple(parameter.shape)))
                centred = drawn - drawn.mean()
                size = centred.std(correction=0)
                spread = parameter.std(correction=0) / size if size > 0 else 0.0
                parameter.copy_(parameter.mean() + centred * spread)
            parameter.mul_(start.gain)


def excite(model: torch.nn.Module, run: Callable[[], Any], seed: int) -> None:
    """Change ``model`` in place. ``run`` calls it once on the main inputs and returns its output.

    Constant tensors become random, BatchNorm statistics become those of the data moved by about a tenth of a standard
    deviation, and the bias of a linear layer that gives the model's output is centred.
    """
    residual_ends = {
        id(norm.weight) for norm in model.modules() if isinstance(norm, _NORMS) and norm.weight is not None
    }
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            constant = float(parameter.flatten()[0].detach())
            noise = torch.from_numpy(_rng(seed, name).standard_normal(tuple(parameter.shape)))
            with torch.no_grad():
                if constant == 0.0 and id(parameter) in residual_ends:
                    parameter.copy_(_RESIDUAL_SCALE * torch.exp(_SPREAD * noise))
                else:
                    parameter.copy_(_excited(constant, noise))
    norms = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    momenta = [module.momentum for _, module in norms]
    was_training = model.training
    last: list[tuple[torch.nn.Module, Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: last.append((module, output)))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        if norms:
            before = [(norm.running_mean.clone(), norm.running_var.clone()) for _, norm in norms]
            for _, norm in norms:
                norm.momentum = 1.0  # the running statistics become those of this batch
            model.train()
            run()
            for (name, norm), momentum, (mean, variance) in zip(norms, momenta, before, strict=True):
                norm.momentum = momentum
                if not bool((norm.running_mean + norm.running_var).isfinite().all()):
                    # A model that yields NaN shall do so on its own, and not by weights that hand it to the other side.
                    norm.running_mean.copy_(mean)
                    norm.running_var.copy_(variance)
                _widen(norm)
                _move_statistics(norm, _rng(seed, name))
        model.eval()
        if not any(isinstance(module, _NORMS) for module in model.modules()):
            _enliven(model, run)
        last.clear()
        output = run()
        for module, produced in last:
            if produced is output and module.bias is not None:
                rows = produced.reshape(-1, produced.shape[-1])
                centre, spread = rows.mean(0), rows.std(0, correction=0)
                # A single row, or rows that are all but equal, would be centred to rounding noise.
                module.bias -= torch.where(centre.isfinite() & (spread > _LEAST_CENTRED * centre.abs()), centre, 0.0)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.float().to(tensor.dtype))
    for hook in hooks:
        hook.remove()
    model.train(was_training)


def _enliven(model: torch.nn.Module, run: Callable[[], Any]) -> None:
    """Scale the kernel of every convolution and linear layer, in order of execution, so that its output varies by 1."""
    seen: set[torch.nn.Module] = set()

    def scale(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        if module in seen or not isinstance(output, torch.Tensor):
            return output
        seen.add(module)
        channel = output.dim() - 1 if isinstance(module, torch.nn.Linear) else 1
        others = [axis for axis in range(output.dim()) if axis != channel]
        # What differs by input and place; how far the channels are apart is the bias' affair.
        variation = float((output - output.mean(others, keepdim=True)).std())
        if not 0.0 < variation < float("inf") or _LIVELY[0] <= variation <= _LIVELY[1]:
            return output
        module.weight /= variation
        shape = [-1 if axis == channel else 1 for axis in range(output.dim())]
        bias = 0.0 if module.bias is None else module.bias.reshape(shape)
        return (output - bias) / variation + bias

    hooks = [
        module.register_forward_hook(scale)
        for module in model.modules()
        if isinstance(module, _WEIGHTED) and module.weight.is_floating_point()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()


def _excited(constant: float, noise: torch.Tensor) -> torch.Tensor:
    if noise.dim() > 1:  # a kernel that starts constant: as large as an ordinary initialisation would make it
        return constant + noise / noise[0].numel() ** 0.5
    if constant == 0.0:  # a bias
        return _SPREAD * noise
    return constant * torch.exp(_SPREAD * noise)  # the affine weight of a normalisation, or a scale


def _widen(norm: Any) -> None:
    """Let no channel be narrower than a tenth of its size: dividing by less amplifies its rounding, layer by layer."""
    square = norm.running_mean.square() + norm.running_var
    floor = torch.where(square > 0, _NARROWEST**2 * square, 1.0)  # a channel that is zero keeps what a new one has
    norm.running_var.copy_(torch.maximum(norm.running_var, floor))


def _move_statistics(norm: Any, rng: np.random.Generator) -> None:
    mean_noise, variance_noise = (torch.from_numpy(rng.standard_normal(norm.num_features)) for _ in range(2))
    norm.running_mean.add_(0.1 * norm.running_var.sqrt() * mean_noise)
    norm.running_var.mul_(torch.exp(_SPREAD * variance_noise))


def _rng(seed: int, name: str) -> np.random.Generator:
    # By name and not by position, so that a tensor's values do not depend on the tensors before it.
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
