"""The ImageNet family: every number of its table, in both frameworks, and how its networks may be used.

Numbers come from the official code, counted with torch 2.13; multiply-adds and the first parameters also stand in its
README.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from repvit_sides import both

from portproof.models.repvit.config import VARIANTS, RepViTConfig, Variant
from portproof.models.repvit.shapes import state_shapes
from portproof.report.multiply_adds import multiply_adds
from portproof.trace import CallRecord, LayerRecord, Manifest, ParameterRecord, TensorInfo, Trace


class Row(NamedTuple):
    """One row of the table; ``macs`` are those of the fused network at 224 x 224, in G."""

    blocks: int
    gated: int
    trained: int
    distilled: int
    fused: int
    macs: float


TABLE = {
    "repvit_m0_6": Row(17, 7, 2_487_292, 2_808_932, 2_468_072, 0.385),
    "repvit_m0_9": Row(26, 10, 5_103_560, 5_489_328, 5_067_056, 0.816),
    "repvit_m1_0": Row(26, 10, 6_852_900, 7_302_796, 6_810_312, 1.106),
    "repvit_m1_1": Row(24, 9, 8_288_888, 8_802_912, 8_244_312, 1.337),
    "repvit_m1_5": Row(42, 18, 14_130_408, 14_644_432, 14_049_992, 2.274),
    "repvit_m2_3": Row(54, 24, 23_046_512, 23_688_792, 22_926_792, 4.516),
}
every = pytest.mark.parametrize("name", TABLE)
# Keras builds every weight for real: the large networks take seconds, three times each.
each_size = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "repvit_m0_6" else pytest.mark.slow) for name in TABLE]
)


def network(side: str, name: str, **options: Any) -> Any:
    """A network of the family; in torch without memory for its weights."""
    if side == "tensorflow":
        pytest.importorskip("tensorflow")
        from portproof.models.repvit import tensorflow_model

        return getattr(tensorflow_model, name)(**options)
    torch = pytest.importorskip("torch")
    from portproof.models.repvit import torch_model

    with torch.device("meta"):
        return getattr(torch_model, name)(**options)


def trainable(model: Any) -> int:
    tensors = model.parameters() if hasattr(model, "parameters") else model.trainable_variables
    return sum(int(np.prod(tuple(each.shape))) for each in tensors)


def config(name: str) -> RepViTConfig:
    return RepViTConfig.from_rows(VARIANTS[name].rows, in_channels=VARIANTS[name].in_channels)


def assert_numbers(side: str, name: str) -> None:
    row = TABLE[name]
    assert trainable(network(side, name)) == row.trained
    assert trainable(network(side, name, distillation=True)) == row.distilled
    assert trainable(network(side, name, fused=True)) == row.fused
    assert trainable(network(side, name, distillation=True, fused=True)) == row.fused


@every
def test_blocks(name: str) -> None:
    blocks = config(name).blocks
    assert (len(blocks), sum(block.use_se for block in blocks)) == TABLE[name][:2]


@pytest.mark.torch
@every
def test_parameters_in_torch(name: str) -> None:
    assert_numbers("torch", name)


@pytest.mark.tensorflow
@each_size
def test_parameters_in_tensorflow(name: str) -> None:
    assert_numbers("tensorflow", name)


@pytest.mark.torch
@pytest.mark.parametrize("form", [{}, {"distillation": True}, {"fused": True}], ids=["plain", "distilled", "fused"])
@every
def test_shapes_without_a_framework_are_those_of_the_state_dict(name: str, form: dict[str, bool]) -> None:
    state = network("torch", name, **form).state_dict()
    assert state_shapes(config(name), 1000, **form) == {key: tuple(value.shape) for key, value in state.items()}


def counted(name: str, size: int = 224, **form: bool) -> int:
    """Multiply-adds from a manifest as a capture of one image writes it, of a network that computes shapes alone."""
    torch = pytest.importorskip("torch")
    model = network("torch", name, **form).eval()
    from portproof.capture import kinds

    tensors: dict[str, TensorInfo] = {}
    calls: list[CallRecord] = []

    def note(path: str) -> Any:
        def hook(module: Any, given: Any, output: Any) -> None:
            for what, tensor in (("input", given[0]), ("output", output)):
                tensors[f"p/{what}/{path}"] = TensorInfo(tuple(tensor.shape), "float32", 0)
            calls.append(CallRecord(path, 0, (f"input/{path}",), (f"output/{path}",)))

        return hook

    leaves = {path: module for path, module in model.named_modules() if not list(module.children())}
    for path, module in leaves.items():
        module.register_forward_hook(note(path))
    model(torch.empty((1, 3, size, size), device="meta"))
    layers = [LayerRecord(path, kinds.kind(leaf), "", None, True, False) for path, leaf in leaves.items()]
    weights = [
        ParameterRecord(key, key.rpartition(".")[0], key.rpartition(".")[2], tuple(value.shape), True)
        for key, value in model.state_dict().items()
    ]
    manifest = Manifest("torch", name, {}, [], tuple(weights), tuple(layers), {"p": tuple(calls)}, tensors)
    return sum(multiply_adds(Trace(None, manifest)).values())  # type: ignore[arg-type]


@pytest.mark.torch
@every
def test_multiply_adds(name: str) -> None:
    assert round(counted(name, fused=True) / 1e9, 3) == TABLE[name].macs
    assert counted(name) > counted(name, fused=True)


def test_an_odd_stage_ends_without_a_gate_unless_it_is_one_block() -> None:
    gates = [[row[3] for row in Variant((8,), (depth,)).rows] for depth in (1, 2, 3, 4, 5)]
    assert gates == [[1], [1, 0], [1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0, 0]]


# --- Use --------------------------------------------------------------------------------------------------------------

SMALL = Variant((8, 16, 24), (1, 2, 3)).rows  # every kind of block


def small(side: str, kind: str = "RepViT", **options: Any) -> Any:
    """A small network of a side, in float64, with everything in it at work; and how to call it with NCHW arrays."""
    if side == "torch":
        torch = pytest.importorskip("torch")
        from portproof.models.repvit import torch_model

        model = getattr(torch_model, kind)(SMALL, **options).double()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.1, 0.5)

        def call(x: np.ndarray, *, training: bool = False) -> Any:
            model.train(training)
            return model(torch.from_numpy(x))

        return model, call
    pytest.importorskip("tensorflow")
    from portproof.models.repvit import tensorflow_model

    model = getattr(tensorflow_model, kind)(SMALL, dtype="float64", **options)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 0.5, weight.shape))
    return model, lambda x, training=False: model(np.moveaxis(x, 1, -1), training=training)


def images(batch: int = 2, height: int = 64, width: int = 40) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 3, height, width))


@both
def test_training_gives_both_logits_and_eval_their_mean(side: str) -> None:
    model, call = small(side, num_classes=5, distillation=True)
    logits = call(images(), training=True)
    assert [tuple(each.shape) for each in logits] == [(2, 5), (2, 5)]
    pooled = model.pool(_last(model, side)) if side == "tensorflow" else model.eval().pool(_last(model, side))
    heads = [_array(head(pooled)) for head in (model.classifier.classifier, model.classifier.classifier_dist)]
    np.testing.assert_allclose(_array(call(images())), (heads[0] + heads[1]) / 2, rtol=1e-12)
    assert not np.allclose(*heads)


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach() if hasattr(tensor, "detach") else tensor)


def _last(model: Any, side: str) -> Any:
    x = images()
    if side == "torch":
        import torch

        value = torch.from_numpy(x)
    else:
        value = np.moveaxis(x, 1, -1)
    for feature in model.features:
        value = feature(value)
    return value


@both
def test_a_plain_head_returns_logits_in_either_mode(side: str) -> None:
    _, call = small(side, num_classes=5)
    assert [tuple(call(images(), training=mode).shape) for mode in (True, False)] == [(2, 5), (2, 5)]


@both
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 33), (32, 100), (5, 3)])
def test_features_are_the_stages_outputs_at_any_size(side: str, height: int, width: int) -> None:
    _, call = small(side, "RepViTFeatures")
    outputs = call(images(1, height, width))
    shapes = [tuple(each.shape) if side == "torch" else tuple(np.moveaxis(each, -1, 1).shape) for each in outputs]
    reductions = (4, 8, 16)
    sizes = [(-(-height // by), -(-width // by)) for by in reductions]
    assert shapes == [(1, c, *size) for c, size in zip((8, 16, 24), sizes, strict=True)]


@both
def test_the_backbone_is_the_network_without_its_head(side: str) -> None:
    whole, _ = small(side, num_classes=5)
    features, call = small(side, "RepViTFeatures")
    if side == "torch":
        features.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("features.")})
        outputs = [each.detach().numpy() for each in call(images())]
        last = _last(whole.eval(), side).detach().numpy()
    else:
        features.set_weights([weight.numpy() for weight in whole.features.weights])
        outputs = [each.numpy() for each in call(images())]
        last = _last(whole, side).numpy()
    np.testing.assert_array_equal(outputs[-1], last)


@both
def test_wrong_arguments(side: str) -> None:
    for options, message in (({"num_classes": 0}, "num_classes"), ({"in_channels": 3, "num_classes": 2.5}, "integer")):
        with pytest.raises(ValueError, match=message):
            small(side, **options)
