"""Defects of BatchNorm and LayerNorm: epsilon, momentum, statistics, training against eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from portproof.defects.defect import TRAIN, Defect, Place, Places, at, group, loaded
from portproof.defects.port import Port
from portproof.edits import Edit

_NORMS = ("batchnorm", "layernorm", "groupnorm")


def _batchnorms(port: Port) -> list[str]:
    return port.of_kind("batchnorm")


def _layernorms(port: Port) -> list[str]:
    return port.of_kind("layernorm")


def _set(kinds: tuple[str, ...], setting: str, attribute: str, change: Callable[[float], float]) -> Places:
    """A setting that depends on the right one: ``change`` maps the value in torch's terms to Keras' wrong one."""

    def places(port: Port) -> Iterator[Place]:
        for layer in port.of_kind(*kinds):
            value = port.setting(layer, setting)
            if isinstance(value, (int, float)):
                yield Place((layer,), (Edit("set", (layer,), {attribute: change(value)}),))

    return places


def _roles(*roles: str, kinds: tuple[str, ...] = ("batchnorm",)) -> Callable[[Port], Iterator[tuple[str, ...]]]:
    """Layers of some kinds that have all these parameters or buffers, as the tuple of their names."""

    def select(port: Port) -> Iterator[tuple[str, ...]]:
        for layer in port.of_kind(*kinds):
            found = [port.parameter(layer, role) for role in roles]
            if all(found):
                yield tuple(each.name for each in found if each)

    return select


def _of_two_layers(port: Port) -> Iterator[tuple[str, ...]]:
    """Both statistics of a BatchNorm and those of the next one of the same width."""
    found = list(_roles("running_mean", "running_var")(port))
    for index, (mean, variance) in enumerate(found):
        width = _width(port, mean)
        other = next((each for each in found[index + 1 :] if _width(port, each[0]) == width), None)
        if other:
            yield mean, other[0], variance, other[1]


def _all_corrected_but_one(port: Port) -> Iterator[Place]:
    """One layer that follows Keras' rule would be no defect, which is why the others have to follow the original's."""
    layers = _batchnorms(port)
    for layer in layers if len(layers) > 2 else ():
        others = tuple(each for each in layers if each != layer)
        yield Place((layer,), (Edit("batchnorm", others, {"how": "unbiased variance"}),))


def _width(port: Port, mean: str) -> tuple[int, ...]:
    record: Any = port.parameter(port.owner[mean], "running_mean")
    return tuple(record.shape)


NORMALIZATION = group(
    "normalization",
    Defect(
        "eps-keras-default",
        "Keras' default epsilon of 1e-3 where PyTorch's is 1e-5.",
        _set(_NORMS, "eps", "epsilon", lambda eps: 1e-3 if eps != 1e-3 else 1e-5),
    ),
    Defect(
        "eps-slightly-off",
        "An epsilon of 1.001e-5, the smallest that TensorFlow's fused BatchNorm takes, which Keras 2 puts in silently.",
        _set(_NORMS, "eps", "epsilon", lambda eps: 1.001 * eps),
    ),
    Defect(
        "eps-outside-the-root",
        "(x - mean) / (sqrt(variance) + eps), as hand-written normalizations have it.",
        at(_batchnorms, "batchnorm", how="eps outside the root"),
    ),
    Defect(
        "momentum-copied",
        "PyTorch's momentum copied over: Keras' is the share of the old average, PyTorch's that of the new batch.",
        _set(("batchnorm",), "momentum", "momentum", lambda momentum: momentum),
        TRAIN,
    ),
    Defect(
        "momentum-keras-default",
        "Keras' default momentum of 0.99 where PyTorch's 0.1 makes 0.9.",
        _set(("batchnorm",), "momentum", "momentum", lambda momentum: 0.99 if momentum != 0.01 else 0.9),
        TRAIN,
    ),
    Defect(
        "swapped-statistics",
        "Running mean and variance loaded in each other's place: both are vectors of the same length.",
        loaded(_roles("running_mean", "running_var"), "swap"),
    ),
    Defect(
        "stale-statistics",
        "Running statistics left at 0 and 1: only trainable weights were carried over.",
        loaded(_roles("running_mean", "running_var"), "initial"),
    ),
    Defect(
        "statistics-of-another-layer",
        "The statistics of another BatchNorm of the same width: weights assigned in another order than they were read.",
        loaded(_of_two_layers, "swap"),
    ),
    Defect(
        "swapped-gamma-beta",
        "Scale and shift loaded in each other's place: get_weights() gives gamma first, a dictionary sorts beta first.",
        loaded(_roles("weight", "bias", kinds=_NORMS), "swap"),
    ),
    Defect(
        "no-scale",
        "scale=False, copied from a layer that a ReLU follows: the scale is not applied.",
        at(_batchnorms, "batchnorm", how="no scale"),
    ),
    Defect(
        "batch-statistics-in-eval",
        "training=True passed on, or the learning phase left at 1: eval mode normalizes with the batch's statistics.",
        at(_batchnorms, "batchnorm", how="batch statistics in eval mode"),
    ),
    Defect(
        "eval-statistics-in-training",
        "A composite that does not pass `training` on: the BatchNorm in it never sees a batch.",
        at(_batchnorms, "batchnorm", how="running statistics in training mode"),
        TRAIN,
    ),
    Defect(
        "frozen-batchnorm",
        "trainable=False, left from fine-tuning: in Keras it also means inference mode.",
        at(_batchnorms, "freeze"),
        TRAIN,
    ),
    Defect(
        "statistics-never-updated",
        "The batch normalizes, but the assignments to the running statistics never run, as in TF 1 without UPDATE_OPS.",
        at(_batchnorms, "batchnorm", how="no update"),
        TRAIN,
    ),
    Defect(
        "statistics-updated-twice",
        "The layer is called twice per step, once for the output and once for a regularizer or a metric.",
        at(_batchnorms, "batchnorm", how="two updates"),
        TRAIN,
    ),
    Defect(
        "biased-variance",
        "Running variances corrected by n / (n - 1), as PyTorch does and Keras does not, in every BatchNorm but one.",
        _all_corrected_but_one,
        TRAIN,
    ),
    Defect(
        "variance-corrected-wrongly",
        "Bessel's correction by hand, with the number of positions and without that of the batch's entries.",
        at(_batchnorms, "batchnorm", how="correction without the batch"),
        TRAIN,
    ),
    Defect(
        "batch-variance-unbiased",
        "torch.var's default in a hand-written BatchNorm: the batch is normalized by the unbiased variance.",
        at(_batchnorms, "batchnorm", how="normalized by the unbiased variance"),
        TRAIN,
    ),
    Defect(
        "layernorm-wrong-axis",
        "LayerNorm over the axis of time, after a transposition that the original has and the port has not.",
        at(_layernorms, "layernorm", how="wrong axis"),
    ),
    Defect(
        "layernorm-unbiased",
        "x.std() in a hand-written LayerNorm: PyTorch's std is unbiased by default, LayerNorm is not.",
        at(_layernorms, "layernorm", how="unbiased"),
    ),
)
