"""Defects of weights: tensors that were carried over wrongly, and layers that share or lack them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from portproof.defects.defect import Defect, Place, group, loaded
from portproof.defects.port import Port
from portproof.edits import Edit
from portproof.trace import ParameterRecord

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_KERNELS = (*_CONVOLUTIONS, "linear", "einsumdense", "embedding")
_WITH_BIAS = (*_CONVOLUTIONS, "linear", "einsumdense")

Names = Iterator[tuple[str, ...]]


def _kernels(test: Callable[[tuple[int, ...]], bool], *kinds: str) -> Callable[[Port], Names]:
    """Kernels by their canonical shape: (out, in / groups, *window)."""
    return lambda port: ((each.name,) for each in port.parameters(*(kinds or _KERNELS)) if test(each.shape))


def _biases(port: Port) -> Names:
    return ((each.name,) for each in port.parameters(*_WITH_BIAS, role="bias"))


def _depthwise(port: Port) -> Names:
    for record in port.parameters(*_CONVOLUTIONS):
        channels = port.input_shape(record.layer)[1]
        groups = channels // record.shape[1]
        if groups > 1 and record.shape[0] % 2 == 0:
            yield (record.name,)


def _twins(port: Port) -> Iterator[tuple[ParameterRecord, ParameterRecord]]:
    """Each kernel and the next one of the same kind and shape."""
    found = [each for each in port.parameters(*_KERNELS) if port.layers[each.layer].leaf]
    for index, first in enumerate(found):
        for second in found[index + 1 :]:
            if (first.shape, _kind(port, first)) == (second.shape, _kind(port, second)):
                yield first, second
                break


def _kind(port: Port, record: ParameterRecord) -> tuple[str, str]:
    return port.layers[record.layer].kind, port.layers[record.layer].type


def _twin_names(port: Port) -> Names:
    return ((first.name, second.name) for first, second in _twins(port))


def _copied(port: Port) -> Iterator[Place]:
    for first, second in _twins(port):
        options = {"parameters": [first.name, second.name], "how": "copy"}
        yield Place((second.layer,), (Edit("load", (), options),))


def _shared(port: Port) -> Iterator[Place]:
    for first, second in _twins(port):
        lost = [record.name for role in ("weight", "bias") if (record := port.parameter(second.layer, role))]
        edits = (Edit("share", (first.layer, second.layer)), Edit("hide", (), {"parameters": lost}))
        yield Place((second.layer,), edits)


def _without_bias(port: Port) -> Iterator[Place]:
    for record in port.parameters(*_WITH_BIAS, role="bias"):
        zero = Edit("load", (), {"parameters": [record.name], "how": "zero"})
        yield Place((record.layer,), (zero, Edit("hide", (), {"parameters": [record.name]})))


def _large(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[0] > 1


def _swappable(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and min(shape[:2]) > 1


def _windowed(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and max(shape[2:]) > 1


def _square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[2] == shape[3] > 1


WEIGHTS = group(
    "weights",
    Defect(
        "transposed-kernel",
        "Inputs and outputs of a kernel exchanged: (in, out) read as (out, in), with a reshape where it did not fit.",
        loaded(_kernels(_swappable), "transpose"),
    ),
    Defect(
        "reshaped-kernel",
        "OIHW reshaped into HWIO where it takes a transposition: the shape is right, the order is not.",
        loaded(_kernels(_large), "reshape"),
    ),
    Defect(
        "flipped-kernel",
        "A true convolution: the kernel turned round, as in signal processing and in some older frameworks.",
        loaded(_kernels(_windowed), "flip"),
    ),
    Defect(
        "height-width-exchanged",
        "The kernel's height and width exchanged: (time, frequency) read as (frequency, time).",
        loaded(_kernels(_square), "exchange height and width"),
    ),
    Defect(
        "group-order",
        "Channels of a grouped convolution ordered by place in the group: (channels / g, g) for (g, channels / g).",
        loaded(_depthwise, "group order"),
    ),
    Defect(
        "input-channels-reversed",
        "Input channels in reverse order, BGR for RGB.",
        loaded(_kernels(lambda shape: len(shape) > 2 and shape[1] > 1), "reverse inputs"),
    ),
    Defect(
        "missing-bias",
        "use_bias=False where the original has a bias.",
        _without_bias,
    ),
    Defect(
        "bias-left-at-zero",
        "The bias stays at its initial zero: only kernels were loaded.",
        loaded(_biases, "zero"),
    ),
    Defect(
        "kernel-left-at-initial",
        "One kernel keeps its initial value: its name did not match, and strict=False says nothing.",
        loaded(_kernels(_large), "initial"),
    ),
    Defect(
        "tensors-swapped",
        "Two kernels of equal shapes in each other's place: weights are assigned by order.",
        loaded(_twin_names, "swap"),
    ),
    Defect(
        "tensor-loaded-twice",
        "One kernel in two layers of equal shapes: a name that matches two layers.",
        _copied,
    ),
    Defect(
        "shared-layer",
        "One layer object used twice where the original has two: `[Block()] * n`.",
        _shared,
    ),
    Defect(
        "float16-weights",
        "A kernel that went through float16, as in a half-precision checkpoint.",
        loaded(_kernels(_large), "float16"),
    ),
    Defect(
        "bfloat16-weights",
        "A kernel that went through bfloat16.",
        loaded(_kernels(_large), "bfloat16"),
    ),
)
