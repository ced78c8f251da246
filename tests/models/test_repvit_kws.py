"""RepViT for KWS: its numbers and names. They come from the official code, counted with torch 2.13."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from repvit_sides import SMALL_CFGS, both, spectrograms

# --- The numbers of the network --------------------------------------------------------------------------------------


@both
def test_trainable_parameters(side: str, sides: Any, models: Any) -> None:
    shapes = sides(side).trainable(models(side))
    assert sum(math.prod(shape) for shape in shapes) == 214_222
    assert len(shapes) == 195


@both
def test_stage_shapes(side: str, sides: Any, models: Any) -> None:
    outputs = sides(side).features(models(side), spectrograms(1))
    expected = [(1, 24, 25, 10)] * 4 + [(1, 48, 13, 10)] * 7 + [(1, 96, 7, 10)] * 3
    assert [output.shape for output in outputs] == expected


@both
def test_gradients_that_are_not_zero_at_initialization(side: str, sides: Any, models: Any) -> None:
    # mean(logits) in eval mode and float64: of 195, the 13 residual branches that end in gamma = 0 are cut off from it,
    # with 4 tensors before each of them.
    gradients = sides(side).gradients(models(side, "float64"), spectrograms())
    assert sum(bool(np.any(gradient)) for gradient in gradients) == 195 - 13 * 4 == 143


@both
@pytest.mark.parametrize("shape", [(2, 100, 40), (1, 99, 39), (3, 101, 40), (1, 7, 5), (1, 1, 1)])
def test_logits_are_finite_and_differ_by_input(side: str, shape: tuple[int, int, int], sides: Any, models: Any) -> None:
    logits = sides(side).forward(models(side), spectrograms(*shape))
    assert logits.shape == (shape[0], 2)
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) == logits.size


@both
def test_dtypes(side: str, sides: Any, models: Any) -> None:
    for dtype in ("float32", "float64"):
        assert sides(side).forward(models(side, dtype), spectrograms(1)).dtype == dtype


@both
def test_number_of_classes_and_small_configuration(side: str, sides: Any) -> None:
    model = sides(side).build(SMALL_CFGS, 12)
    assert sides(side).forward(model, spectrograms(2, 20, 16)).shape == (2, 12)
    shapes = [output.shape[1:] for output in sides(side).features(model, spectrograms(2, 20, 16))]
    assert shapes == [(8, 5, 4), (8, 5, 4), (16, 3, 4), (24, 2, 2), (24, 2, 2)]


@both
def test_initial_weights_are_pytorchs(side: str, sides: Any, models: Any) -> None:
    """Kernels and biases uniform in ±1/sqrt(fan_in), the last gamma of every residual branch 0, the others 1."""
    leaves = sides(side).leaves(models(side))

    def values(path: str, torch_name: str, keras_names: tuple[str, ...]) -> np.ndarray:
        if side == "torch":
            return getattr(leaves[path], torch_name).detach().numpy()
        return next(getattr(leaves[path], name).numpy() for name in keras_names if hasattr(leaves[path], name))

    for path, fan_in in {
        "features.0.2.c": 12 * 9,
        "features.5.token_mixer.0.conv.c": 9,
        "features.5.token_mixer.0.conv1": 1,
        "features.12.channel_mixer.m.0.c": 96,
        "features.5.token_mixer.1.fc1": 48,
        "classifier": 96,
    }.items():
        kernel = values(path, "weight", ("depthwise_kernel", "kernel"))
        bound = 1 / math.sqrt(fan_in)
        assert 0.9 * bound < np.abs(kernel).max() <= bound, path
        assert abs(np.std(kernel) * math.sqrt(3) / bound - 1) < 0.25, path
    bias = values("features.12.token_mixer.0.conv1", "bias", ("bias",))
    assert 0.9 < np.abs(bias).max() <= 1
    for path, leaf in leaves.items():
        if path.split(".")[-1] == "bn":
            gamma = values(path, "weight", ("gamma",))
            assert np.all(gamma == (0.0 if path.endswith("channel_mixer.m.2.bn") else 1.0)), (path, leaf)


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_state_dict_has_the_official_names(models: Any) -> None:
    state = models("torch").state_dict()
    assert len(state) == 357
    assert sum(name.endswith("num_batches_tracked") for name in state) == 54
    assert {
        "features.0.0.c.weight": (12, 1, 3, 3),
        "features.0.2.bn.running_var": (24,),
        "features.1.token_mixer.0.conv.c.weight": (24, 1, 3, 3),
        "features.1.token_mixer.0.conv1.weight": (24, 1, 1, 1),
        "features.1.token_mixer.0.conv1.bias": (24,),
        "features.1.token_mixer.0.bn.weight": (24,),
        "features.1.token_mixer.1.fc1.weight": (8, 24, 1, 1),
        "features.1.token_mixer.1.fc2.bias": (24,),
        "features.4.token_mixer.0.c.weight": (24, 1, 3, 3),
        "features.4.token_mixer.2.c.weight": (48, 24, 1, 1),
        "features.12.token_mixer.1.fc1.bias": (24,),
        "features.13.channel_mixer.m.0.c.weight": (192, 96, 1, 1),
        "features.13.channel_mixer.m.2.bn.bias": (96,),
        "classifier.weight": (2, 96),
        "classifier.bias": (2,),
    }.items() <= {name: tuple(tensor.shape) for name, tensor in state.items()}.items()


@pytest.mark.torch
@pytest.mark.tensorflow
def test_leaf_paths_are_the_same_on_both_sides(sides: Any, models: Any) -> None:
    torch_leaves = sides("torch").leaves(models("torch"))
    tf_leaves = sides("tensorflow").leaves(models("tensorflow"))
    assert set(torch_leaves) == set(tf_leaves)
    assert {"features.1.token_mixer.0.conv.c", "features.2.token_mixer.1", "pool", "classifier"} <= set(tf_leaves)
    assert all(layer.name == path for path, layer in tf_leaves.items())


@pytest.mark.tensorflow
def test_keras_counts_and_weight_names(models: Any) -> None:
    model = models("tensorflow")
    assert sum(math.prod(v.shape) for v in model.non_trainable_variables) == 6_888
    assert len(model.non_trainable_variables) == 108
    assert model.count_params() == 221_110
    names = [getattr(variable, "path", variable.name) for variable in model.weights]
    assert len(set(names)) == len(names) == 303
    assert names[0].split(":")[0] == "features.0.0.c/kernel"
