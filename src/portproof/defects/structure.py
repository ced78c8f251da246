"""Defects of structure: what is added, gated, pooled and flattened between the layers, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from portproof.defects.defect import Defect, Place, Places, at, group
from portproof.defects.port import Port
from portproof.edits import Edit


def _terms(identity: bool, factor: float) -> Places:
    """A term of a sum counted ``factor`` times more: the identity of a residual, or one of the other branches."""

    def places(port: Port) -> Iterator[Place]:
        for each in port.sums:
            for term in each.terms:
                if term.startswith(">") == identity:
                    options = {"side": each.side, "term": term, "factor": factor}
                    yield Place((each.layer,), (Edit("add", (each.layer,), options),))

    return places


def _gates(port: Port) -> tuple[str, ...]:
    return port.gates


def _moved_gate(port: Port) -> Iterator[Place]:
    """A gate that leaves its place for the end of another layer that gives the same shape."""
    for gate in port.gates:
        shape, inside = port.output_shape(gate), port.below(gate)
        for other in (*port.composites(), *port.of_kind("identity")):
            related = other in inside or gate.startswith(f"{other}.") or other in (gate, *port.gates)
            if not related and port.output_shape(other) == shape:
                yield Place((gate, other), (Edit("move", (gate, other)),))


def _pooled(how: str) -> Places:
    """Something else than the mean over all positions."""
    return lambda port: (
        Place((mean.layer,), (Edit("pool", (mean.layer,), {"source": mean.source, "how": how}),))
        for mean in port.means
        if len(port.input_shape(mean.source[1:] if mean.source[0] == ">" else mean.source)) > 3 or "axis" not in how
    )


def _flattened(port: Port) -> Iterator[Place]:
    for layer in port.of_kind("flatten", "reshape"):
        given, made = port.input_shape(layer), port.output_shape(layer)
        if len(given) > 2 and len(made) == 2 and sum(size > 1 for size in given[1:]) > 1:
            yield Place((layer,), (Edit("flatten channels first", (layer,)),))


def _dropping(port: Port) -> Iterator[Place]:
    for layer in port.of_kind("dropout"):
        if rate := port.setting(layer, "p"):
            yield Place((layer,), (Edit("drop", (layer,), {"rate": rate}),))


def _dropout_rate(port: Port) -> Iterator[Place]:
    for layer in port.of_kind("dropout"):
        rate = port.setting(layer, "p")
        if rate and rate != 0.5:
            yield Place((layer,), (Edit("set", (layer,), {"rate": 1.0 - rate}),))


def _last(port: Port) -> list[str]:
    """The leaf that gives the model's output, if that is a row of scores."""
    output = port.calls[-1].outputs[:1] if port.calls else ()
    found = [call.layer for call in port.calls if call.outputs[:1] == output and port.layers[call.layer].leaf]
    return [layer for layer in found[:1] if len(port.output_shape(layer)) == 2 and port.output_shape(layer)[1] > 1]


def _many_channels(port: Port) -> list[str]:
    """Convolutions whose output has an even number of channels."""
    return [layer for layer in port.of_kind("conv1d", "conv2d") if port.output_shape(layer)[1] % 2 == 0]


STRUCTURE = group(
    "structure",
    Defect(
        "residual-missing",
        "No shortcut: the condition `stride == 1 and in == out` was read otherwise.",
        _terms(identity=True, factor=-1.0),
    ),
    Defect(
        "residual-doubled",
        "The shortcut twice: the block adds its input, and so does the loop that calls it.",
        _terms(identity=True, factor=1.0),
    ),
    Defect(
        "branch-missing",
        "One of the branches of a sum is built, and not added.",
        _terms(identity=False, factor=-1.0),
    ),
    Defect(
        "branch-doubled",
        "A branch added twice: `y += branch(x)` in a loop over a list that holds it twice.",
        _terms(identity=False, factor=1.0),
    ),
    Defect(
        "gate-skipped",
        "A squeeze-and-excite block is built, and its output is not used.",
        at(_gates, "skip"),
    ),
    Defect(
        "gate-moved",
        "Squeeze-and-excite in another place of the stage: the same parameters, the same shapes.",
        _moved_gate,
    ),
    Defect(
        "gate-applied-twice",
        "x * gate(x) computed by the block, and multiplied once more by whoever calls it.",
        at(_gates, "twice"),
    ),
    Defect(
        "max-for-mean",
        "Global max pooling in place of the mean.",
        _pooled("max"),
    ),
    Defect(
        "sum-for-mean",
        "The sum over positions in place of the mean.",
        _pooled("sum"),
    ),
    Defect(
        "mean-over-wrong-axis",
        "The mean over one axis and the first position of the other: axis=(1, 2) under the other layout of channels.",
        _pooled("one axis"),
    ),
    Defect(
        "mean-over-batch",
        "The mean also over the entries of the batch: right for batches of one.",
        _pooled("batch"),
    ),
    Defect(
        "flatten-order",
        "Flatten of channels-last activations into a dense layer that was trained on channels-first ones.",
        _flattened,
    ),
    Defect(
        "channels-shuffled",
        "A reshape of channels into (2, n / 2) that the original undoes, and the port does not.",
        at(_many_channels, "shuffle channels"),
    ),
    Defect(
        "dropout-left-on",
        "training=True for a dropout layer, left from Monte Carlo dropout.",
        _dropping,
    ),
    Defect(
        "dropout-rate",
        "The share that is kept in place of the share that is dropped, as in TF 1's keep_prob.",
        _dropout_rate,
    ),
    Defect(
        "softmax-added",
        "activation='softmax' on the last layer: PyTorch's loss takes logits.",
        at(_last, "softmax output"),
    ),
    Defect(
        "logits-scaled",
        "Scores divided by a softmax temperature of 2 that belongs to distillation.",
        at(_last, "scale", factor=0.5),
    ),
)
