"""Edits of a Keras model that plant defects in its layers: what they compute, on what, and with which weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from portproof.capture.edits_tensorflow import Edited, edit
from portproof.capture.rewrites import rewritten
from portproof.errors import InputError


def _training(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a layer's call is one in training mode; ``args`` are those after the inputs."""
    return bool(kwargs.get("training", args[0] if args and not tf.is_tensor(args[0]) else False))


def _outputs(made: Edited, paths: Sequence[str], function: Callable[[Any], Any]) -> None:
    """Let layers give ``function`` of their output."""
    for path in paths:
        made.wrap(path, lambda call, *args, **kwargs: function(call(*args, **kwargs)))


@edit("load")
def _load(made: Edited, _: Sequence[str], *, parameters: Sequence[str], how: str) -> None:
    """Carry tensors over wrongly (rewrites.py)."""
    made.on_values(lambda values: rewritten(values, parameters, how))


@edit("hide")
def _hide(made: Edited, _: Sequence[str], *, parameters: Sequence[str]) -> None:
    """Let the model not have these parameters."""
    made.hide(set(parameters))


@edit("share")
def _share(made: Edited, paths: Sequence[str]) -> None:
    """Let the second layer compute with the weights of the first."""
    first = made.layer(paths[0]).call
    made.wrap(paths[1], lambda _call, *args, **kwargs: first(*args, **kwargs))


@edit("freeze")
def _freeze(made: Edited, paths: Sequence[str]) -> None:
    """Let layers not be trainable."""
    for path in paths:
        made.set_attribute(made.layer(path), "trainable", False)
    made.look_again()


@edit("twice")
def _twice(made: Edited, paths: Sequence[str]) -> None:
    """Apply each layer to its own output."""
    for path in paths:
        made.wrap(path, lambda call, x, *args, **kwargs: call(call(x, *args, **kwargs), *args, **kwargs))


@edit("exchange")
def _exchange(made: Edited, paths: Sequence[str]) -> None:
    """Let the second of two layers in a row come first."""
    second = made.layer(paths[1]).call
    made.wrap(paths[0], lambda call, x, *args, **kwargs: call(second(x), *args, **kwargs))
    made.wrap(paths[1], lambda _call, x, *_args, **_kwargs: x)


@edit("move")
def _move(made: Edited, paths: Sequence[str]) -> None:
    """Take the first layer out, and apply it behind the second."""
    moved = made.layer(paths[0]).call
    made.wrap(paths[0], lambda _call, x, *_args, **_kwargs: x)
    _outputs(made, paths[1:], moved)


@edit("add")
def _add(made: Edited, paths: Sequence[str], *, side: str, term: str, factor: float) -> None:
    """Add a term, another layer's output or (``>``) its input, to what the layer takes or gives."""
    memory = made.remember(term.removeprefix(">"), given=term.startswith(">"))

    def call(original: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        if side == "input":
            return original(x + factor * memory["value"], *args, **kwargs)
        return original(x, *args, **kwargs) + factor * memory["value"]

    made.wrap(paths[0], call)


@edit("scale")
def _scale(made: Edited, paths: Sequence[str], *, factor: float) -> None:
    """Multiply each layer's output."""
    _outputs(made, paths, lambda output: output * factor)


@edit("softmax output")
def _softmax_output(made: Edited, paths: Sequence[str]) -> None:
    """Let each layer give probabilities."""
    _outputs(made, paths, tf.nn.softmax)


@edit("softmax axis")
def _softmax_axis(made: Edited, paths: Sequence[str], *, axis: int) -> None:
    """Let softmax layers sum to one over another axis."""
    for path in paths:
        made.wrap(path, lambda _call, x, *_args, **_kwargs: tf.nn.softmax(x, axis=axis))


@edit("shuffle channels")
def _shuffle_channels(made: Edited, paths: Sequence[str]) -> None:
    """Order the channels of each layer's output as (n / 2, 2) for (2, n / 2)."""

    def shuffled(output: Any) -> Any:
        halves = tf.reshape(output, (*output.shape[:-1], 2, output.shape[-1] // 2))
        return tf.reshape(tf.linalg.matrix_transpose(halves), output.shape)

    _outputs(made, paths, shuffled)


@edit("flatten channels first")
def _flatten_channels_first(made: Edited, paths: Sequence[str]) -> None:
    """Flatten (B, ..., C) as if it were (B, C, ...)."""

    def call(_: Any, x: Any, *_args: Any, **_kwargs: Any) -> Any:
        rank = len(x.shape)
        return tf.reshape(tf.transpose(x, (0, rank - 1, *range(1, rank - 1))), (x.shape[0], -1))

    for path in paths:
        made.wrap(path, call)


@edit("drop")
def _drop(made: Edited, paths: Sequence[str], *, rate: float) -> None:
    """Let dropout drop in eval mode too, the same values in every run."""

    def call(original: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        if _training(args, kwargs):
            return original(x, *args, **kwargs)
        kept = tf.random.stateless_uniform(x.shape, (0, 0)) >= rate
        return tf.where(kept, x / (1.0 - rate), 0.0)

    for path in paths:
        made.wrap(path, call)


@edit("pool")
def _pool(made: Edited, paths: Sequence[str], *, source: str, how: str) -> None:
    """Put something else in the place of the mean over positions that the layer is given, or computes."""
    (path,) = paths
    itself = source == f">{path}"
    memory = {} if itself else made.remember(source.removeprefix(">"), given=source.startswith(">"))

    def call(original: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        if itself:
            mean = original(x, *args, **kwargs)
            return tf.reshape(_POOLED[how](x), mean.shape)
        return original(tf.reshape(_POOLED[how](memory["value"]), x.shape), *args, **kwargs)

    made.wrap(path, call)


def _positions(x: Any) -> list[int]:
    return list(range(1, len(x.shape) - 1))


_POOLED: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: tf.reduce_max(x, _positions(x)),
    "sum": lambda x: tf.reduce_sum(x, _positions(x)),
    "one axis": lambda x: tf.reduce_mean(x, 1)[:, 0],
    "batch": lambda x: tf.reduce_mean(x, [0, *_positions(x)], keepdims=True) + tf.zeros_like(x[:, :1, :1]),
}


@edit("convolve")
def _convolve(
    made: Edited,
    paths: Sequence[str],
    *,
    pads: Sequence[Sequence[int]],
    mode: str = "constant",
    strides: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
) -> None:
    """Convolve with other geometry; ``pads`` are positions before and after, by spatial dimension."""
    for path in paths:
        layer = made.layer(path)
        kept = list(dilation or _tuple(layer.dilation_rate, len(pads)))

        def call(_: Any, x: Any, *_args: Any, layer: Any = layer, kept: list[int] = kept, **_kwargs: Any) -> Any:
            steps = list(strides or _tuple(layer.strides, len(pads)))
            padded = tf.pad(x, [(0, 0), *map(tuple, pads), (0, 0)], mode.upper())
            # Every position first, then those that the stride keeps: TF's kernels want equal strides, or no dilation.
            output = _every_position(layer, padded, kept)
            output = _kept(output, steps)
            if layer.use_bias:
                output = output + tf.convert_to_tensor(layer.bias)
            return output if layer.activation is None else layer.activation(output)

        made.wrap(path, call)


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _every_position(layer: Any, x: Any, dilation: Sequence[int]) -> Any:
    kernel = getattr(layer, "depthwise_kernel", None)
    kernel = tf.convert_to_tensor(layer.kernel if kernel is None else kernel)
    if any(cls.__name__.startswith("Depthwise") for cls in type(layer).__mro__):
        if len(x.shape) == 3:
            return tf.squeeze(_depthwise(x[:, None], kernel[None], [1, *dilation]), 1)
        return _depthwise(x, kernel, dilation)
    groups = x.shape[-1] // kernel.shape[-2]
    parts = [
        tf.nn.convolution(part, weights, 1, "VALID", dilations=list(dilation))
        for part, weights in zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    ]  # TF's CPU kernels have no gradient of a grouped convolution
    return tf.concat(parts, -1) if groups > 1 else parts[0]


def _depthwise(x: Any, kernel: Any, dilation: Sequence[int]) -> Any:
    return tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID", dilations=list(dilation))


def _kept(x: Any, steps: Sequence[int]) -> Any:
    return x[(slice(None), *(slice(None, None, step) for step in steps))]


@edit("keep every")
def _keep_every(made: Edited, paths: Sequence[str], *, steps: Sequence[int]) -> None:
    """Keep every k-th position of each layer's output, beginning with the first."""
    _outputs(made, paths, lambda output: _kept(output, steps))


@edit("shift mask")
def _shift_mask(made: Edited, paths: Sequence[str], *, input: int) -> None:
    """Move a layer's mask, its ``input``-th tensor, by one position."""

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        flat = tf.nest.flatten((args, kwargs))
        tensors = [index for index, value in enumerate(flat) if tf.is_tensor(value)]
        flat[tensors[input]] = tf.roll(flat[tensors[input]], -1, -1)
        args, kwargs = tf.nest.pack_sequence_as((args, kwargs), flat)
        return original(*args, **kwargs)

    for path in paths:
        made.wrap(path, call)


@edit("other frame")
def _other_frame(made: Edited, paths: Sequence[str], *, source: str, shift: int) -> None:
    """Give a layer another frame of the sequence that its input (B, d) was taken from."""
    memory = made.remember(source, given=False)

    def call(original: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        sequence = memory["value"]
        found = tf.argmax(tf.reduce_all(sequence == x[:, None], -1), 1, tf.int32)
        other = tf.gather(sequence, tf.maximum(found + shift, 0), batch_dims=1)
        return original(other, *args, **kwargs)

    for path in paths:
        made.wrap(path, call)


@edit("split heads otherwise")
def _split_heads_otherwise(made: Edited, paths: Sequence[str], *, heads: int) -> None:
    """Order the features of projections as (head size, heads) for (heads, head size)."""

    def split(output: Any) -> Any:
        batch, time = output.shape[:2]
        by_size = tf.reshape(output, (batch, time, -1, heads))
        return tf.reshape(tf.linalg.matrix_transpose(by_size), output.shape)

    _outputs(made, paths, split)


@edit("batchnorm")
def _batchnorm(made: Edited, paths: Sequence[str], *, how: str) -> None:
    """Let BatchNorms compute something else (the names are those of defects/normalization.py)."""
    known = (
        "eps outside the root", "no scale", "batch statistics in eval mode", "running statistics in training mode",
        "no update", "two updates", "unbiased variance", "correction without the batch",
        "normalized by the unbiased variance",
    )  # fmt: skip
    if how not in known:
        raise InputError(f"There is no wrong BatchNorm {how!r}; there are {', '.join(known)}.")
    for path in paths:
        layer = made.layer(path)
        made.wrap(path, lambda call, x, *args, layer=layer, **kwargs: _wrong(layer, call, how, x, args, kwargs))


def _wrong(layer: Any, call: Callable[..., Any], how: str, x: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    training = _training(args, kwargs)
    statistics = layer.moving_mean, layer.moving_variance
    before = [tf.identity(tf.convert_to_tensor(each)) for each in statistics]
    axes = _reduced(layer, x)
    mean, variance = tf.nn.moments(x, axes)
    count = tf.cast(tf.size(x) / tf.size(mean), x.dtype)
    if how == "running statistics in training mode":
        return call(x, training=False)
    if how == "two updates" and training:
        call(x, training=True)
        return call(x, training=True)
    if how == "no update" and training:
        output = call(x, training=True)
        for each, value in zip(statistics, before, strict=True):
            each.assign(value)
        return output
    if training and how in ("unbiased variance", "correction without the batch"):
        output = call(x, training=True)
        counted = count if how == "unbiased variance" else count / x.shape[0]
        factor = counted / (counted - 1.0)
        layer.moving_variance.assign(before[1] * layer.momentum + variance * factor * (1.0 - layer.momentum))
        return output
    if how == "batch statistics in eval mode" and not training:
        return _normalized(layer, x, axes, mean, variance)
    if how == "normalized by the unbiased variance" and training:
        call(x, training=True)
        return _normalized(layer, x, axes, mean, variance * count / (count - 1.0))
    if how in ("eps outside the root", "no scale"):
        if training:
            call(x, training=True)  # for the running statistics
        used = (mean, variance) if training else before
        return _normalized(layer, x, axes, *used, outside=how != "no scale", scaled=how != "no scale")
    return call(x, training=training)


def _reduced(layer: Any, x: Any) -> list[int]:
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    return [each for each in range(len(x.shape)) if each != axis % len(x.shape)]


def _normalized(
    layer: Any, x: Any, axes: Sequence[int], mean: Any, variance: Any, *, outside: bool = False, scaled: bool = True
) -> Any:
    """(x - mean) / sqrt(variance + eps) * gamma + beta, for statistics over ``axes``."""
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    gamma, beta = (
        None if each is None else tf.reshape(tf.convert_to_tensor(each), shape) for each in (layer.gamma, layer.beta)
    )
    mean, variance = tf.reshape(mean, shape), tf.reshape(variance, shape)
    root = tf.sqrt(variance) + layer.epsilon if outside else tf.sqrt(variance + layer.epsilon)
    output = (x - mean) / root
    output = output if gamma is None or not scaled else output * gamma
    return output if beta is None else output + beta


@edit("layernorm")
def _layernorm(made: Edited, paths: Sequence[str], *, how: str) -> None:
    """Let LayerNorms over the last axis take another axis, or the unbiased variance."""

    def call(layer: Any, x: Any) -> Any:
        axis = 1 if how == "wrong axis" else -1
        mean, variance = tf.nn.moments(x, [axis], keepdims=True)
        if how == "unbiased":
            variance = variance * x.shape[-1] / (x.shape[-1] - 1.0)
        output = (x - mean) / tf.sqrt(variance + layer.epsilon)
        output = output if layer.gamma is None else output * tf.convert_to_tensor(layer.gamma)
        return output if layer.beta is None else output + tf.convert_to_tensor(layer.beta)

    for path in paths:
        layer = made.layer(path)
        made.wrap(path, lambda _call, x, *_args, layer=layer, **_kwargs: call(layer, x))
