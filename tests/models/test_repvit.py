"""RepViT for KWS: its numbers, the agreement of its two sides, and what a Keras and a PyTorch model must be able to do.

Numbers come from the official code, counted with torch 2.13.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portproof.models.repvit import KWS_TINY_CFGS
from portproof.models.repvit.config import RepViTConfig, make_divisible, squeeze_channels

# Every kind of block, for what does not depend on depth.
SMALL_CFGS = ((3, 2, 8, 1, 0, 1), (3, 2, 16, 1, 1, (2, 1)), (5, 2, 24, 0, 1, 2), (3, 2, 24, 0, 1, 1))

both = pytest.mark.parametrize(
    "side", [pytest.param("torch", marks=pytest.mark.torch), pytest.param("tensorflow", marks=pytest.mark.tensorflow)]
)
each_depthwise = pytest.mark.parametrize("depthwise", ["depthwise", "grouped"])


@dataclass(frozen=True)
class Side:
    """One framework behind the few operations that the shared cases need; tensors leave it as NumPy, NCHW."""

    build: Callable[..., Any]
    forward: Callable[..., np.ndarray]
    features: Callable[[Any, np.ndarray], list[np.ndarray]]
    trainable: Callable[[Any], list[tuple[int, ...]]]
    gradients: Callable[[Any, np.ndarray], list[np.ndarray]]
    leaves: Callable[[Any], dict[str, Any]]


def torch_side() -> Side:
    torch = pytest.importorskip("torch")
    from portproof.models.repvit import KWSRepViT_Torch

    def build(*args: Any, dtype: str = "float32", **kwargs: Any) -> Any:
        return KWSRepViT_Torch(*args, **kwargs).to(getattr(torch, dtype)).eval()

    def tensor(model: Any, x: np.ndarray) -> Any:
        return torch.from_numpy(x).to(next(model.parameters()).dtype)

    def features(model: Any, x: np.ndarray) -> list[np.ndarray]:
        value, outputs = tensor(model, x).unsqueeze(1), []
        with torch.no_grad():
            for feature in model.features:
                value = feature(value)
                outputs.append(value.numpy())
        return outputs

    def gradients(model: Any, x: np.ndarray) -> list[np.ndarray]:
        model.zero_grad()
        model(tensor(model, x)).mean().backward()
        return [parameter.grad.numpy() for parameter in model.parameters()]

    return Side(
        build=build,
        forward=lambda model, x: model(tensor(model, x)).detach().numpy(),
        features=features,
        trainable=lambda model: [tuple(p.shape) for p in model.parameters()],
        gradients=gradients,
        leaves=lambda model: {name: m for name, m in model.named_modules() if not list(m.children())},
    )


def tensorflow_side() -> Side:
    tf = pytest.importorskip("tensorflow")
    from portproof.models.repvit import KWSRepViT_TF

    def features(model: Any, x: np.ndarray) -> list[np.ndarray]:
        value, outputs = tf.cast(x[..., np.newaxis], model.dtype), []
        for feature in model.features:
            value = feature(value)
            outputs.append(np.transpose(value, (0, 3, 1, 2)))
        return outputs

    def gradients(model: Any, x: np.ndarray) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=False))
        return [np.asarray(g) for g in tape.gradient(loss, model.trainable_variables)]

    def leaves(layer: Any, path: str = "") -> dict[str, Any]:
        members = {
            f"{path}{name}": value
            for name, value in vars(layer).items()
            if isinstance(value, tf.keras.layers.Layer) and not name.startswith("_")
        }
        if not members:
            return {path.removesuffix("."): layer}
        return {found: leaf for name, member in members.items() for found, leaf in leaves(member, f"{name}.").items()}

    return Side(
        build=KWSRepViT_TF,
        forward=lambda model, x: model(x, training=False).numpy(),
        features=features,
        trainable=lambda model: [tuple(v.shape) for v in model.trainable_variables],
        gradients=gradients,
        leaves=leaves,
    )


SIDES = {"torch": torch_side, "tensorflow": tensorflow_side}


@pytest.fixture(scope="module")
def sides() -> Callable[[str], Side]:
    """Give a side by name, importing its framework when it is first asked for."""
    made: dict[str, Side] = {}

    def side(name: str) -> Side:
        if name not in made:
            made[name] = SIDES[name]()
        return made[name]

    return side


@pytest.fixture(scope="module")
def models(sides: Callable[[str], Side]) -> Callable[..., Any]:
    """Give the whole KWS model of a side in a dtype, made once, as initialized; tests must not change it."""
    made: dict[tuple[str, str], Any] = {}

    def model(name: str, dtype: str = "float32") -> Any:
        if (name, dtype) not in made:
            made[name, dtype] = sides(name).build(dtype=dtype)
        return made[name, dtype]

    return model


@pytest.fixture
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def spectrograms(batch: int = 2, time: int = 100, mel: int = 40, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, time, mel))


def excite(model: Any, *, seed: int = 0) -> None:
    """Give every weight and BatchNorm statistic of a Keras model a random value: no path is zero, none the identity."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        name, shape = getattr(variable, "path", variable.name), tuple(variable.shape)
        if "gamma" in name or "variance" in name:
            value = rng.uniform(0.5, 1.5, shape)
        elif "kernel" in name:
            value = rng.normal(size=shape) / math.sqrt(np.prod(shape[:2]) if "conv" in name else shape[-2])
        else:
            value = rng.normal(0, 0.2, shape)
        variable.assign(value)


def carry_over(tf_leaves: dict[str, Any], torch_leaves: dict[str, Any]) -> None:
    """Copy TensorFlow's weights to PyTorch, pairing layers by path alone."""
    import torch

    names = {
        "gamma": "weight",
        "beta": "bias",
        "bias": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    for path, layer in tf_leaves.items():
        module = torch_leaves[path]
        for variable in layer.weights:
            name = variable.name.split("/")[-1].split(":")[0]
            value = variable.numpy()
            if "kernel" in name:
                name = "weight"
                if value.ndim == 4:  # HWIO, or HWCM where a depthwise layer is
                    depthwise = type(layer).__name__ == "PaddedDepthwiseConv2D"
                    value = value.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
                else:
                    value = value.T
            with torch.no_grad():
                getattr(module, names.get(name, name)).copy_(torch.from_numpy(value.copy()))


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def run_python(code: str) -> str:
    """Run ``code`` in a new interpreter and return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


# --- The numbers of the network ---------------------------------------------------------------------------------------


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


# --- Names ------------------------------------------------------------------------------------------------------------


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


# --- The two sides are the same function ------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.tensorflow
@each_depthwise
@pytest.mark.parametrize("shape", [(3, 100, 40), (1, 99, 39)])
def test_both_sides_compute_the_same_function(depthwise: str, shape: tuple[int, int, int], sides: Any) -> None:
    torch, tensorflow = sides("torch"), sides("tensorflow")
    # XLA compiles every grouped convolution by itself, so that variant takes the network of four blocks.
    cfgs = KWS_TINY_CFGS if depthwise == "depthwise" else SMALL_CFGS
    torch_model = torch.build(cfgs, dtype="float64")
    tf_model = tensorflow.build(cfgs, depthwise=depthwise, dtype="float64")
    excite(tf_model)
    carry_over(tensorflow.leaves(tf_model), torch.leaves(torch_model))
    x = spectrograms(*shape)
    for ours, theirs in zip(tensorflow.features(tf_model, x), torch.features(torch_model, x), strict=True):
        assert relative(ours, theirs) < 1e-12
    assert relative(tensorflow.forward(tf_model, x), torch.forward(torch_model, x)) < 1e-12


@pytest.mark.torch
@pytest.mark.tensorflow
def test_both_sides_compute_the_same_training_step(tf: Any, sides: Any) -> None:
    """Logits, gradients and running means in train mode, and running variances up to Keras' n/(n-1)."""
    import torch

    tf_model = sides("tensorflow").build(SMALL_CFGS, dtype="float64")
    torch_model = sides("torch").build(SMALL_CFGS, dtype="float64").train()
    excite(tf_model)
    tf_leaves, torch_leaves = sides("tensorflow").leaves(tf_model), sides("torch").leaves(torch_model)
    carry_over(tf_leaves, torch_leaves)
    x = spectrograms(3, 40, 16)
    old_variance = tf_leaves["features.0.0.bn"].moving_variance.numpy()
    with tf.GradientTape() as tape:
        logits = tf_model(x, training=True)
        loss = tf.reduce_sum(logits**2)
    gradient = tape.gradient(loss, tf_model.trainable_variables)[0]  # the stem's kernel, behind everything else
    torch_logits = torch_model(torch.from_numpy(x))
    (torch_logits**2).sum().backward()
    assert relative(logits.numpy(), torch_logits.detach().numpy()) < 1e-12
    expected = torch_leaves["features.0.0.c"].weight.grad.numpy()
    assert relative(np.transpose(gradient, (3, 2, 0, 1)), expected) < 1e-11
    for path, leaf in tf_leaves.items():
        if path.endswith("bn"):
            # Keras 2.15 computes the running mean with a momentum of float32, hence not 1e-12.
            assert relative(leaf.moving_mean.numpy(), torch_leaves[path].running_mean.numpy()) < 1e-7
    # In float64 both Keras 2 and 3 average the biased variance, and PyTorch the unbiased one.
    n = 3 * 20 * 8
    added, expected = (
        new - 0.9 * old_variance
        for new in (
            tf_leaves["features.0.0.bn"].moving_variance.numpy(),
            torch_leaves["features.0.0.bn"].running_var.numpy(),
        )
    )
    np.testing.assert_allclose(added, expected * (n - 1) / n, rtol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, (2, 1)), (5, (1, 2)), (3, 2), (3, 1)])
def test_depthwise_layer_equals_grouped_convolution(tf: Any, kernel_size: int, stride: Any) -> None:
    from portproof.models.repvit.tensorflow_layers import PaddedConv2D, PaddedDepthwiseConv2D

    options = {"strides": stride, "pad": kernel_size // 2, "dtype": "float64", "bias_initializer": "random_normal"}
    depthwise = PaddedDepthwiseConv2D(kernel_size, **options)
    grouped = PaddedConv2D(6, kernel_size, groups=6, **options)
    x = np.random.default_rng(0).normal(size=(2, 12, 9, 6))
    depthwise.build(x.shape)
    grouped.build(x.shape)
    kernel, bias = (weight.numpy() for weight in depthwise.weights)
    grouped.set_weights([kernel.transpose(0, 1, 3, 2), bias])
    assert relative(depthwise(x).numpy(), grouped(x).numpy()) < 1e-14
    assert tuple(depthwise.compute_output_shape(x.shape)) == tuple(grouped.compute_output_shape(x.shape))
    assert tuple(depthwise.compute_output_shape(x.shape)) == depthwise(x).shape


@pytest.mark.tensorflow
def test_gelu_is_exact_in_float64(tf: Any) -> None:
    from portproof.models.repvit.tensorflow_layers import GELU

    x = np.linspace(-4, 8, 1001)
    expected = np.array([0.5 * v * (1 + math.erf(v * math.sqrt(0.5))) for v in x])
    ours = GELU(dtype="float64")(tf.constant(x)).numpy()
    assert np.abs(ours - expected).max() < 2e-15
    # The reason for a layer of our own; if this fails, TF has mended its constant.
    assert np.abs(tf.nn.gelu(tf.constant(x)).numpy() - expected).max() > 1e-9


# --- What Keras does with the model -----------------------------------------------------------------------------------


@pytest.fixture
def small(sides: Any) -> Any:
    model = sides("tensorflow").build(SMALL_CFGS)
    excite(model)
    return model


@pytest.mark.tensorflow
def test_input_with_a_channel_axis(sides: Any, models: Any) -> None:
    x, forward = spectrograms(), sides("tensorflow").forward
    np.testing.assert_array_equal(forward(models("tensorflow"), x[..., np.newaxis]), forward(models("tensorflow"), x))


@pytest.mark.tensorflow
def test_graph_equals_eager(tf: Any, small: Any) -> None:
    x = tf.constant(spectrograms(), "float32")
    graph = tf.function(small)
    for training in (False, True):
        assert relative(graph(x, training=training).numpy(), small(x, training=training).numpy()) < 1e-5


@pytest.mark.tensorflow
def test_training_flag_reaches_every_batch_norm(tf: Any, small: Any) -> None:
    x = tf.constant(spectrograms(), "float32")
    before = [v.numpy() for v in small.non_trainable_variables]
    small(x, training=False)
    small(x)
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(small.non_trainable_variables, before, strict=True))
    small(x, training=True)
    assert not any(np.array_equal(v.numpy(), old) for v, old in zip(small.non_trainable_variables, before, strict=True))


@pytest.mark.tensorflow
def test_one_step_of_fit_changes_every_weight(small: Any) -> None:
    before = small.get_weights()
    small.compile("sgd", "mse", jit_compile=False)
    small.fit(spectrograms(4), np.ones((4, 2)), batch_size=4, verbose=0)
    for variable, new, old in zip(small.weights, small.get_weights(), before, strict=True):
        # But for those added to what a BatchNorm then centres: they have gradient 0, or rounding noise.
        if variable.name.split("/")[-1].split(":")[0] not in ("bias", "beta"):
            assert not np.array_equal(new, old), getattr(variable, "path", variable.name)


@pytest.mark.tensorflow
def test_symbolic_input(tf: Any, small: Any) -> None:
    inputs = tf.keras.Input((100, 40))
    outputs = small(inputs)
    assert tuple(outputs.shape) == (None, 2)
    x = spectrograms().astype("float32")
    functional = tf.keras.Model(inputs, outputs)
    np.testing.assert_allclose(functional(x), small(x), rtol=1e-6)


@pytest.mark.tensorflow
@each_depthwise
def test_keras_file(tf: Any, sides: Any, depthwise: str, tmp_path: Path) -> None:
    model = sides("tensorflow").build(SMALL_CFGS, 3, depthwise=depthwise, dtype="float64", name="mine")
    excite(model)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    x = spectrograms()
    np.testing.assert_array_equal(loaded(x).numpy(), model(x).numpy())
    assert loaded.get_config() == model.get_config()
    assert (loaded.name, loaded.dtype, loaded.depthwise) == ("mine", "float64", depthwise)


@pytest.mark.tensorflow
def test_weights_file(sides: Any, small: Any, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "model.weights.h5"
    small.save_weights(path)
    other = sides("tensorflow").build(SMALL_CFGS)
    other.load_weights(path)
    x = spectrograms()
    np.testing.assert_array_equal(other(x).numpy(), small(x).numpy())
    names: list[str] = []
    with h5py.File(path) as file:
        file.visit(names.append)
    assert any(name.endswith("/1/token_mixer/0/conv/c/vars/0") for name in names)


@pytest.mark.tensorflow
def test_saved_model(tf: Any, small: Any, tmp_path: Path) -> None:
    x = tf.constant(spectrograms(3), "float32")
    expected = small(x).numpy()
    small.export(str(tmp_path / "exported"))
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    assert relative(loaded.serve(x).numpy(), expected) < 1e-5
    assert loaded.serve(x[:1]).shape == (1, 2)


@pytest.mark.tensorflow
def test_dtype_follows_the_global_policy(tf: Any, sides: Any) -> None:
    tf.keras.mixed_precision.set_global_policy("float64")
    try:
        model = sides("tensorflow").build(SMALL_CFGS)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert {weight.dtype.name for weight in model.get_weights()} == {"float64"}
    assert model(spectrograms()).dtype == tf.float64


@pytest.mark.tensorflow
def test_dtype_follows_floatx() -> None:
    # In a process of its own: Keras 3 looks at floatx once, when the first layer is made.
    code = """if True:
        import tensorflow as tf
        from portproof.models.repvit import KWSRepViT_TF
        tf.keras.backend.set_floatx("float64")
        model = KWSRepViT_TF(((3, 2, 8, 1, 0, 1),))
        print(*{weight.dtype for weight in model.get_weights()}, model(tf.zeros((1, 9, 9))).dtype.name)"""
    assert run_python(code) == "float64 float64"


# --- Configuration ----------------------------------------------------------------------------------------------------


def test_widths() -> None:
    assert [squeeze_channels(c) for c in (24, 48, 96)] == [8, 16, 24]
    assert [make_divisible(v, 8) for v in (3, 24, 35, 36, 41)] == [8, 24, 32, 40, 40]
    blocks = RepViTConfig.from_rows(KWS_TINY_CFGS, in_channels=1).blocks
    assert [b.use_se for b in blocks] == [
        True,
        False,
        False,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [i for i, b in enumerate(blocks) if b.downsamples] == [3, 10]


@both
@pytest.mark.parametrize(
    ("cfgs", "message"),
    [
        ((), "cfgs is empty"),
        (((3, 2, 24, 1, 0),), r"cfgs\[0\].*6 entries"),
        (((3, 2, 24, 0, 0, 1), (3, 4, 24, 1, 0, 1)), r"cfgs\[1\].*t must be 2.*4"),
        (((3, 2, 24, 2, 0, 1),), "use_se must be 0 or 1.*2"),
        (((3, 2, 24, 0, 3, 1),), "use_hs must be 0 or 1.*3"),
        (((4, 2, 24, 0, 0, 1),), "k must be a positive odd"),
        (((3, 2, 0, 0, 0, 1),), "c must be a positive"),
        (((3, 2, 24, 0, 0, 3),), "stride must be 1, 2 or a pair"),
        (((3, 2, 24, 0, 0, (2, 1, 1)),), "stride must be 1, 2 or a pair"),
        (((3, 2, 24, 0, 0, 1), (3, 2, 48, 0, 0, 1)), r"cfgs\[1\].*stride 1 keeps its channels.*from 24 to 48"),
    ],
)
def test_wrong_configuration(side: str, cfgs: Any, message: str, sides: Any) -> None:
    with pytest.raises(ValueError, match=message):
        sides(side).build(cfgs)


@both
def test_wrong_number_of_classes(side: str, sides: Any) -> None:
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        sides(side).build(SMALL_CFGS, 0)


@pytest.mark.tensorflow
def test_wrong_depthwise(sides: Any) -> None:
    with pytest.raises(ValueError, match="depthwise must be one of depthwise, grouped, got 'separable'"):
        sides("tensorflow").build(SMALL_CFGS, depthwise="separable")


@both
@pytest.mark.parametrize("shape", [(100, 40), (2, 100, 40, 3), (1, 2, 100, 40, 1)])
def test_wrong_input_rank(side: str, shape: tuple[int, ...], sides: Any, models: Any) -> None:
    with pytest.raises(ValueError, match=r"KWSRepViT takes \(batch, time, mel.*got an input of shape"):
        sides(side).forward(models(side), np.zeros(shape, "float32"))


# --- Imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("KWS_TINY_CFGS", ["torch", "tensorflow", "keras"]),
        pytest.param("KWSRepViT_Torch", ["tensorflow", "keras"], marks=pytest.mark.torch),
        pytest.param("KWSRepViT_TF", ["torch"], marks=pytest.mark.tensorflow),
    ],
)
def test_each_name_imports_only_its_own_framework(name: str, absent: list[str]) -> None:
    code = f"import sys; from portproof.models.repvit import {name}; print([m for m in {absent} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_public_names() -> None:
    import portproof.models.repvit as package

    assert {"KWS_TINY_CFGS", "KWSRepViT_TF", "KWSRepViT_Torch"} <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'KWSRepViT_Jax'"):
        _ = package.KWSRepViT_Jax
