"""Likely causes: known patterns of porting defects, tried on the data of a layer that diverges. NumPy only.

Each pattern predicts what the port would have returned if it had that defect, from the reference's input, weights and
settings; a prediction that fits the port's output far better than the reference's own output does is a likely cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.facts import CallFacts, Cause, Measurement
from portproof.compare.measure import relative_error
from portproof.compare.pairing import Pairs, same_layout
from portproof.trace import CallRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_PHASE = "float64.eval"
_AGREES, _DIFFERS = 1e-12, 1e-11
_FITS = 1e-6  # a prediction is computed here, in NumPy, and only has to be much closer than the defect is large
_EARLIER = 6  # how many earlier outputs may have been the input of an activation
_MOST = 3  # later divergences are mostly consequences

_erf = np.frompyfunc(math.erf, 1, 1)


def likely_causes(
    pairs: Pairs, measurements: Mapping[str, Measurement], calls: Mapping[str, Sequence[CallFacts]]
) -> Iterator[Cause]:
    """Causes for the first layers that diverge although their inputs agree."""
    tried = 0
    agreeing: list[str] = []  # outputs of earlier layers on which both sides agree
    for facts, (call, other) in zip(calls.get(_PHASE, ()), pairs.calls(_PHASE), strict=True):
        inputs = [measurements[key].distance.relative for key in facts.inputs if key]
        outputs = [measurements[key].distance.relative for key in facts.outputs]
        if max(outputs, default=0.0) <= _DIFFERS:
            agreeing += call.outputs
            continue
        if max(inputs, default=0.0) > _AGREES:
            if tried == 0 and (text := _between(pairs, call, other, agreeing)):
                yield Cause(facts.layer, text)
                tried += 1
            continue
        texts = list(_explain(pairs, facts, call, other))
        if not texts and facts.leaf and facts.kind_a != facts.kind_b:
            texts = [f"the layers are of different kinds: {facts.kind_a} and {facts.kind_b}"]
        for text in texts:
            yield Cause(facts.layer, text)
        tried += 1
        if tried == _MOST:
            return


def _between(pairs: Pairs, call: CallRecord, other: CallRecord, agreeing: Sequence[str]) -> str:
    """What was computed in front of a layer, outside of any: two activations of one earlier output; empty if not."""
    x_a, x_b = (_tensor(side, record.inputs[0]) for side, record in ((pairs.a, call), (pairs.b, other)))
    if x_a is None or x_b is None:
        return ""
    x_b, _ = same_layout(x_a, x_b)
    known: dict[str, Callable[[Array], Array]] = {"nothing": lambda x: x, **_ACTIVATIONS}
    for key in agreeing[: -_EARLIER - 1 : -1]:
        earlier = _tensor(pairs.a, key)
        if earlier is None or earlier.shape != x_a.shape or x_a.shape != x_b.shape:
            continue
        with np.errstate(all="ignore"):
            results = {name: function(earlier) for name, function in known.items()}
        named = [
            next((name for name, result in results.items() if relative_error(result, x) < _FITS), "")
            for x in (x_a, x_b)
        ]
        if all(named) and named[0] != named[1]:
            return f"in front of it the port computes {named[1]} where the original computes {named[0]}"
    return ""


def _explain(pairs: Pairs, facts: CallFacts, call: CallRecord, other: CallRecord) -> Iterator[str]:
    x = _tensor(pairs.a, call.inputs[0]) if call.inputs else None
    y_a, y_b = _tensor(pairs.a, call.outputs[0]), _tensor(pairs.b, other.outputs[0])
    if x is None or y_a is None or y_b is None:
        return
    y_b, _ = same_layout(y_a, y_b)
    if y_a.shape != y_b.shape:
        yield f"the output shapes differ: {y_a.shape} and {y_b.shape}"
        return
    weights = {
        record.role: pairs.a.tensor(key).astype(np.float64)
        for record in pairs.a.manifest.parameters
        if record.layer == call.layer and (key := f"weights/excited/{record.name}") in pairs.a
    }
    settings = next(record.settings for record in pairs.a.manifest.layers if record.name == call.layer)
    finite = np.isfinite(y_b)  # a defect may leave NaN behind, such as the root of a negative "variance"
    if not finite.any():
        return
    own = relative_error(y_b[finite], y_a[finite])
    with np.errstate(all="ignore"):
        for text, prediction in _predictions(facts.kind_a, x, y_a, y_b, weights, settings):
            comparable = prediction.shape == y_b.shape and np.array_equal(np.isfinite(prediction), finite)
            if comparable and relative_error(prediction[finite], y_b[finite]) < min(_FITS, own / 100):
                yield text
                return


def _predictions(
    kind: str, x: Array, y_a: Array, y_b: Array, weights: Mapping[str, Array], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Array]]:
    yield "the layer does nothing in the port: its output is its input", x
    yield "the sign is flipped", -y_a
    if y_a.ndim == 2:
        shifted = np.exp(y_a - y_a.max(1, keepdims=True))
        yield "the port applies a softmax that the original does not", shifted / shifted.sum(1, keepdims=True)
    if kind == "batchnorm" and {"running_mean", "running_var"} <= set(weights):
        yield from _batchnorm(x, y_b, weights, float(settings.get("eps", 1e-5)))
    elif kind in ("conv2d", "linear", "conv1d", "conv3d"):
        yield from _linear_maps(x, y_a, weights, settings)
    else:
        for name, function in _ACTIVATIONS.items():
            if name != kind:
                yield f"the port computes {name} where the original computes {kind}", function(x)


def _batchnorm(x: Array, y_b: Array, weights: Mapping[str, Array], eps: float) -> Iterator[tuple[str, Array]]:
    mean, var = weights["running_mean"], weights["running_var"]
    gamma, beta = weights.get("weight", np.ones_like(mean)), weights.get("bias", np.zeros_like(mean))
    shape = (1, -1, *(1,) * (x.ndim - 2))

    def norm(mean: Array, var: Array, eps: float) -> Array:
        scale = gamma / np.sqrt(var + eps)
        return (x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape)

    fitted = _fitted_eps(x, y_b, mean, var, gamma, beta)
    if fitted is not None:
        yield f"BatchNorm eps is {fitted:.6g} in the port, {eps:.6g} in the original", norm(mean, var, fitted)
    yield "running mean and running variance are swapped", norm(var, mean, eps)
    axes = (0, *range(2, x.ndim))
    yield "BatchNorm uses the batch's statistics in eval mode", norm(x.mean(axes), x.var(axes), eps)
    yield "weight and bias of the BatchNorm are swapped", _affine(x, mean, var, beta, gamma, eps, shape)
    yield "BatchNorm has stale statistics: mean 0, variance 1", norm(np.zeros_like(mean), np.ones_like(var), eps)


def _affine(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, shape: tuple[int, ...]) -> Array:
    normal = (x - mean.reshape(shape)) / np.sqrt(var + eps).reshape(shape)
    return normal * gamma.reshape(shape) + beta.reshape(shape)


def _fitted_eps(x: Array, y: Array, mean: Array, var: Array, gamma: Array, beta: Array) -> float | None:
    """The eps that explains ``y`` best, from the channel in which it weighs most; ``None`` where none does."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *(1,) * (x.ndim - 2))
    centred, out = x - mean.reshape(shape), y - beta.reshape(shape)
    power = (out * centred).sum(axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = gamma * (centred * centred).sum(axes) / power
    eps = root * root - var
    usable = np.isfinite(eps) & (root > 0)
    if not usable.any():
        return None
    channel = int(np.where(usable, var, np.inf).argmin())
    # Six digits: what a person wrote, not what was measured.
    fitted = float(f"{eps[channel]:.6g}")
    return fitted if 0 <= fitted < 1 else None


def _linear_maps(
    x: Array, y_a: Array, weights: Mapping[str, Array], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Array]]:
    weight = weights.get("weight")
    if weight is None:
        return
    bias = weights.get("bias")
    if bias is not None:
        shape = (-1,) if y_a.shape[-1] == bias.size and y_a.ndim == 2 else (1, -1, *(1,) * (y_a.ndim - 2))
        if y_a.ndim == 2 or y_a.shape[1] == bias.size:
            yield "the bias is missing", y_a - bias.reshape(shape)
    if weight.ndim == 4 and x.ndim == 4 and settings.get("dilation", 1) == 1:
        yield from _convolutions(x, weight, bias, settings)
    matrix = weight.reshape(weight.shape[0], -1)
    pointwise = matrix.shape == weight.shape[:2] and settings.get("groups", 1) == 1 and settings.get("stride", 1) == 1
    if not pointwise or x.ndim < 2 or x.shape[1] != matrix.shape[1]:
        return
    text = "the kernel was reshaped where it has to be transposed"
    if matrix.shape[0] == matrix.shape[1]:  # where both are the same
        text = "the kernel is transposed (in and out exchanged)"
    output = np.moveaxis(np.tensordot(matrix.reshape(matrix.shape[::-1]).T, x, (1, 1)), 0, 1)
    yield text, output if bias is None else output + bias.reshape(shape)


def _convolutions(
    x: Array, weight: Array, bias: Array | None, settings: Mapping[str, Any]
) -> Iterator[tuple[str, Array]]:
    stride, kernel = _pair(settings.get("stride", 1)), weight.shape[2:]
    # TensorFlow's rule: as much padding as the output size needs, the odd row at the end.
    totals = [
        max((math.ceil(size / s) - 1) * s + k - size, 0) for size, s, k in zip(x.shape[2:], stride, kernel, strict=True)
    ]
    same = [(total // 2, total - total // 2) for total in totals]
    pad = settings.get("padding", 0)
    own = same if pad == "same" else [(p, p) for p in _pair(pad)]
    groups = x.shape[1] // weight.shape[1]  # a depthwise layer of Keras has no setting of that name
    if same != own:
        text = f"padding='same' pads {same[0]} rows and {same[1]} columns, the original {own[0]} and {own[1]}"
        yield text, _convolve(x, weight, bias, stride, same, groups)
    if max(kernel) > 1:
        yield "the kernel is flipped", _convolve(x, weight[:, :, ::-1, ::-1], bias, stride, own, groups)
        if kernel[0] == kernel[1]:
            turned = weight.swapaxes(2, 3)
            yield "height and width of the kernel are exchanged", _convolve(x, turned, bias, stride, own, groups)


def _convolve(
    x: Array, weight: Array, bias: Array | None, stride: Sequence[int], pads: Sequence[tuple[int, int]], groups: int
) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    slide: Any = np.lib.stride_tricks.sliding_window_view  # NumPy's own types know one axis only
    windows = slide(padded, weight.shape[2:], (2, 3))[:, :, :: stride[0], :: stride[1]]
    batch, channels = x.shape[:2]
    grouped = windows.reshape(batch, groups, channels // groups, *windows.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    output = np.einsum("bgihwkl,goikl->bgohw", grouped, kernels, optimize=True)
    output = output.reshape(batch, weight.shape[0], *output.shape[3:])
    return output if bias is None else output + bias.reshape(1, -1, 1, 1)


def _pair(value: Any) -> list[int]:
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value), int(value)]


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh GELU": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "sigmoid GELU": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: 0.5 * x * (1 + np.asarray(_erf(x / math.sqrt(2)), np.float64)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "leaky relu (0.3)": lambda x: np.where(x > 0, x, 0.3 * x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard sigmoid (x/6)": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard sigmoid (0.2 x)": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "tanh": np.tanh,
}


def _tensor(trace: Any, key: str) -> Array | None:
    full = f"{_PHASE}/{key}"
    if full not in trace:
        return None
    array = trace.tensor(full)
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else None
