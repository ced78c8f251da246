"""Defects of padding, stride and dilation: a convolution that looks elsewhere, with outputs of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from portproof.defects.defect import Defect, Place, group
from portproof.defects.port import Port
from portproof.edits import Edit

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_POINTWISE = ("batchnorm", "gelu", "relu", "relu6", "silu", "identity", "dropout", "hard swish", "leaky relu")

Pads = list[list[int]]


@dataclass(frozen=True)
class Convolution:
    """The geometry of one convolution, a number per spatial dimension; ``pads`` are zeros before and after."""

    layer: str
    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: Pads

    @property
    def reach(self) -> list[int]:
        """How many positions the kernel spans beyond its first."""
        return [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]

    def same_pads(self) -> Pads:
        """What TensorFlow's 'same' pads: as little as the output needs, and the odd zero at the end."""
        pads = []
        for n, s, reach in zip(self.sizes, self.stride, self.reach, strict=True):
            total = max((-(-n // s) - 1) * s + reach + 1 - n, 0)
            pads.append([total // 2, total - total // 2])
        return pads

    def outputs(self, pads: Pads) -> list[int]:
        """The output sizes under other padding."""
        geometry = zip(self.sizes, pads, self.reach, self.stride, strict=True)
        return [(n + sum(pad) - reach - 1) // s + 1 for n, pad, reach, s in geometry]


def convolutions(port: Port) -> Iterator[Convolution]:
    """The convolutions whose geometry the port's settings tell."""
    for layer in port.of_kind(*_CONVOLUTIONS):
        sizes = port.input_shape(layer)[2:]
        kernel, stride, dilation = (
            _numbers(port.setting(layer, name, default), len(sizes))
            for name, default in (("kernel_size", None), ("stride", 1), ("dilation", 1))
        )
        if not sizes or not kernel or not stride or not dilation:
            continue
        padding = port.setting(layer, "padding", 0)
        if padding == "same":
            pads = Convolution(layer, sizes, kernel, stride, dilation, []).same_pads()
        elif numbers := _numbers(padding, len(sizes)):
            pads = [[pad, pad] for pad in numbers]
        else:
            continue
        found = Convolution(layer, sizes, kernel, stride, dilation, pads)
        if found.outputs(pads) == list(port.output_shape(layer)[2:]):
            yield found


def _numbers(value: object, rank: int) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,) * rank
    if isinstance(value, list) and len(value) == rank and all(isinstance(each, int) for each in value):
        return tuple(value)
    return ()


def _padded(
    otherwise: Callable[[Convolution], Pads | None], mode: str = "constant"
) -> Callable[[Port], Iterator[Place]]:
    """Other zeros around the input, where the output keeps its shape."""

    def places(port: Port) -> Iterator[Place]:
        for conv in convolutions(port):
            pads = otherwise(conv)
            if pads is not None and conv.outputs(pads) == conv.outputs(conv.pads):
                yield Place((conv.layer,), (Edit("convolve", (conv.layer,), {"pads": pads, "mode": mode}),))

    return places


def _same(conv: Convolution) -> Pads | None:
    return conv.same_pads() if conv.same_pads() != conv.pads else None


def _at_the_end(conv: Convolution) -> Pads | None:
    return [[0, sum(pad)] for pad in conv.pads] if any(pad[0] for pad in conv.pads) else None


def _causal(conv: Convolution) -> Pads | None:
    first, *others = conv.pads
    return [[sum(first), 0], *others] if first[1] else None


def _reflected(conv: Convolution) -> Pads | None:
    fits = all(max(pad) < size for pad, size in zip(conv.pads, conv.sizes, strict=True))
    return conv.pads if fits and any(sum(pad) for pad in conv.pads) else None


def _dilated(port: Port) -> Iterator[Place]:
    for conv in convolutions(port):
        if max(conv.kernel) > 1 and set(conv.dilation) == {1}:
            pads = [
                [before + (k - 1) // 2, after + k - 1 - (k - 1) // 2]
                for (before, after), k in zip(conv.pads, conv.kernel, strict=True)
            ]
            options = {"pads": pads, "dilation": [2] * len(pads)}
            yield Place((conv.layer,), (Edit("convolve", (conv.layer,), options),))


def _stride_moved(port: Port) -> Iterator[Place]:
    """The first of two convolutions keeps every position, and the second skips those of both."""
    found = {conv.layer: conv for conv in convolutions(port)}
    added = {term for each in port.sums for term in each.terms}
    for conv in found.values():
        if max(conv.stride) == 1:
            continue
        path, reached = [conv.layer], port.only_follower(conv.layer)
        while reached and port.layers[reached].kind in _POINTWISE:
            path.append(reached)
            reached = port.only_follower(reached)
        used_besides = {f">{taker}" for layer in path for taker in port.takers(layer)} | set(path)
        if reached in found and not added & used_besides:
            first = Edit("convolve", (conv.layer,), {"pads": conv.pads, "strides": [1] * len(conv.stride)})
            second = Edit("keep every", (reached,), {"steps": list(conv.stride)})
            yield Place((conv.layer, reached), (first, second))


PADDING = group(
    "padding",
    Defect(
        "same-padding",
        "padding='same' for PyTorch's padding=1: at stride 2 and even sizes TensorFlow pads the other side.",
        _padded(_same),
    ),
    Defect(
        "asymmetric-padding",
        "All of the padding at the bottom and right: ZeroPadding2D(((0, 2), (0, 2))), or an ONNX converter.",
        _padded(_at_the_end),
    ),
    Defect(
        "causal-padding",
        "padding='causal', or zeros in front alone, in time, where the original looks both ways.",
        _padded(_causal),
    ),
    Defect(
        "reflected-padding",
        "padding_mode='reflect' for zeros, or the other way round: Keras has no such argument, so it gets lost.",
        _padded(_reflected, "reflect"),
    ),
    Defect(
        "dilation",
        "dilation_rate 2 with the padding that keeps the shape: read off the next stage of the same network.",
        _dilated,
    ),
    Defect(
        "stride-moved",
        "The stride in the following convolution of the block, as ResNet's versions 1 and 1.5 differ.",
        _stride_moved,
    ),
)
