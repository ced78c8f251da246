"""Transfer between PyTorch and Keras: bit-exact both ways, the same outputs afterwards, and one error for what does not
fit, with nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from portproof.errors import TransferError
from portproof.transfer import fit, fit_shape, raise_for, tensorflow_to_torch, torch_to_tensorflow

torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow")

from portproof.models.repvit import KWSRepViT_TF, KWSRepViT_Torch  # noqa: E402 - after the frameworks are known to be there
from portproof.transfer import tensorflow as weights_tf  # noqa: E402
from portproof.transfer import torch as weights_torch  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]

nn, layers = torch.nn, tf.keras.layers


@dataclass(frozen=True)
class Pair:
    """A chain of layers written twice, and the shape of its input in canonical layout."""

    torch: Callable[[], list[Any]]
    keras: Callable[[], list[Any]]
    shape: tuple[int, ...]
    integers: int = 0


ZOO = {
    "dense": Pair(
        lambda: [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)],
        lambda: [layers.Dense(4), layers.ReLU(), layers.Dense(3, use_bias=False)],
        (2, 5),
    ),
    "conv1d": Pair(lambda: [nn.Conv1d(5, 4, 3, 2)], lambda: [layers.Conv1D(4, 3, 2)], (2, 5, 9)),
    # Kernels whose height differs from their width, and channels from both: a wrong axis cannot go unnoticed.
    "conv2d": Pair(lambda: [nn.Conv2d(5, 4, (3, 2))], lambda: [layers.Conv2D(4, (3, 2))], (2, 5, 7, 6)),
    "conv3d": Pair(lambda: [nn.Conv3d(3, 4, (1, 2, 3))], lambda: [layers.Conv3D(4, (1, 2, 3))], (2, 3, 4, 5, 6)),
    "grouped": Pair(
        lambda: [nn.Conv2d(6, 9, (2, 3), groups=3)], lambda: [layers.Conv2D(9, (2, 3), groups=3)], (2, 6, 5, 6)
    ),
    "depthwise": Pair(
        lambda: [nn.Conv2d(3, 6, (2, 3), groups=3)],
        lambda: [layers.DepthwiseConv2D((2, 3), depth_multiplier=2)],
        (2, 3, 5, 6),
    ),
    "depthwise1d": Pair(
        lambda: [nn.Conv1d(3, 6, 2, groups=3)], lambda: [layers.DepthwiseConv1D(2, depth_multiplier=2)], (2, 3, 6)
    ),
    "separable": Pair(
        lambda: [nn.Conv2d(3, 6, (2, 3), groups=3, bias=False), nn.Conv2d(6, 5, 1)],
        lambda: [layers.SeparableConv2D(5, (2, 3), depth_multiplier=2)],
        (2, 3, 5, 6),
    ),
    "transposed": Pair(
        lambda: [nn.ConvTranspose2d(5, 4, (3, 2), 2)], lambda: [layers.Conv2DTranspose(4, (3, 2), 2)], (2, 5, 3, 4)
    ),
    "transposed1d": Pair(lambda: [nn.ConvTranspose1d(5, 4, 3)], lambda: [layers.Conv1DTranspose(4, 3)], (2, 5, 6)),
    "transposed3d": Pair(
        lambda: [nn.ConvTranspose3d(3, 2, (1, 2, 3))], lambda: [layers.Conv3DTranspose(2, (1, 2, 3))], (2, 3, 3, 4, 5)
    ),
    "batchnorm": Pair(
        lambda: [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)],
        lambda: [
            layers.Conv2D(4, 1),
            layers.BatchNormalization(epsilon=1e-5),
            layers.Conv2D(4, 1),
            layers.BatchNormalization(epsilon=1e-5, center=False, scale=False),
        ],
        (2, 3, 4, 5),
    ),
    "layernorm": Pair(
        lambda: [nn.Linear(5, 4), nn.LayerNorm(4)],
        lambda: [layers.Dense(4), layers.LayerNormalization(epsilon=1e-5)],
        (2, 5),
    ),
    "embedding": Pair(
        lambda: [nn.Embedding(7, 4), nn.Linear(4, 3)],
        lambda: [layers.Embedding(7, 4), layers.Dense(3)],
        (2, 5),
        integers=7,
    ),
}


class Subclassed(tf.keras.Model):
    """A chain in a list, as most hand-written ports keep it."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__()
        self.parts = parts

    def call(self, inputs: Any) -> Any:
        for part in self.parts:
            inputs = part(inputs)
        return inputs


def sequential(parts: list[Any], shape: tuple[int, ...], dtype: str) -> Any:
    return tf.keras.Sequential([tf.keras.Input(shape, dtype=dtype), *parts])


def functional(parts: list[Any], shape: tuple[int, ...], dtype: str) -> Any:
    """A functional model with its last layer in a functional model of its own."""
    inputs = value = tf.keras.Input(shape, dtype=dtype)
    for part in parts[:-1]:
        value = part(value)
    inner = tf.keras.Input(value.shape[1:], dtype=value.dtype)
    return tf.keras.Model(inputs, tf.keras.Model(inner, parts[-1](inner))(value))


def subclassed(parts: list[Any], shape: tuple[int, ...], dtype: str) -> Any:
    model = Subclassed(parts)
    model(tf.zeros((1, *shape), dtype))
    return model


STYLES = {"sequential": sequential, "functional": functional, "subclassed": subclassed}


def original(pair: Pair, seed: int = 0) -> Any:
    """The torch model, with random values everywhere, also where layers start at 0 or 1."""
    torch.manual_seed(seed)
    model = nn.Sequential(*pair.torch()).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def port(pair: Pair, style: str) -> Any:
    rest = pair.shape[1:]
    shape = (*rest[1:], rest[0]) if len(rest) > 1 else tuple(rest)
    return STYLES[style](pair.keras(), shape, "int32" if pair.integers else "float32")


def outputs(pair: Pair, model: Any, keras: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, pair.integers, pair.shape) if pair.integers else rng.standard_normal(pair.shape, np.float32)
    with torch.no_grad():
        y = model(torch.from_numpy(x)).numpy()
    if x.ndim > 2:
        return y, np.moveaxis(np.asarray(keras(np.moveaxis(x, 1, -1), training=False)), -1, 1)
    return y, np.asarray(keras(x, training=False))


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    different = [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()]
    assert not different


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ZOO)
def test_round_trip_is_bit_exact_and_computes_the_same(name: str, style: str) -> None:
    pair = ZOO[name]
    source, target, back = original(pair), port(pair, style), original(pair, seed=1)
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    torch_to_tensorflow(source, target)
    ours, theirs = outputs(pair, source, target)
    # Sums of at most 3 * 2 * 3 products of numbers below 2: a few units in the last place, 2^-23 of the largest.
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=16 * 2**-23 * np.abs(ours).max())
    tensorflow_to_torch(target, back)
    assert_same_bits(before, source.state_dict())
    assert_same_bits(before, back.state_dict())


def test_repvit_round_trip_is_bit_exact() -> None:
    source, back = KWSRepViT_Torch(), KWSRepViT_Torch()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*source.parameters(), *source.buffers()):
            if tensor.is_floating_point():  # also special values travel: subnormals, infinities, negative zeros
                tensor.copy_(torch.randn(tensor.shape, generator=rng))
                tensor.flatten()[:3] = torch.tensor([1e-42, float("inf"), -0.0])[: tensor.numel()]
    target = KWSRepViT_TF()
    target(np.zeros((1, 100, 40), np.float32))
    torch_to_tensorflow(source, target)
    tensorflow_to_torch(target, back)
    assert_same_bits(source.state_dict(), back.state_dict())


def test_repvit_computes_the_same_after_transfer() -> None:
    source, target = KWSRepViT_Torch().eval(), KWSRepViT_TF()
    x = np.random.default_rng(0).standard_normal((2, 100, 40), np.float32)
    target(x)
    torch_to_tensorflow(source, target)
    with torch.no_grad():
        ours = source(torch.from_numpy(x)).numpy()
    # specs: float32 agrees to 2.9e-6 on this network; 1e-5 would not let the wrong eps pass, which is off by 4.5e-2.
    np.testing.assert_allclose(target(x, training=False), ours, rtol=0, atol=1e-5)


class Scaled(nn.Module):
    """A parameter without dimensions, directly on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.25))
        self.linear = nn.Linear(2, 2)


class ScaledKeras(tf.keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")
        self.linear = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.linear(inputs) * self.scale


def test_parameters_without_dimensions_and_outside_of_layers() -> None:
    source, target, back = Scaled(), ScaledKeras(), Scaled()
    target(tf.zeros((1, 2)))
    torch_to_tensorflow(source, target)
    assert float(tf.convert_to_tensor(target.scale)) == 3.25
    back.scale.data.zero_()
    tensorflow_to_torch(target, back)
    assert_same_bits(source.state_dict(), back.state_dict())


def test_what_does_not_fit_is_one_error_and_changes_nothing() -> None:
    class Original(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.extra, self.head = nn.Linear(3, 4), nn.Linear(7, 2, bias=False), nn.Linear(4, 2)

    class Port(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.norm = layers.Dense(4), layers.Dense(5), layers.LayerNormalization()

        def call(self, inputs: Any) -> Any:
            return self.norm(self.head(self.stem(inputs)))

    source, target = Original(), Port()
    target(tf.zeros((1, 3)))
    before = weights_tf.read(target)
    with pytest.raises(TransferError) as caught:
        torch_to_tensorflow(source, target)
    message = str(caught.value)
    assert message.splitlines()[0] == "The weights do not fit: 2 missing, 1 left over, 2 of the wrong shape."
    for line in (
        "missing: norm.weight",
        "missing: norm.bias",
        "left over: extra.weight",
        "of the wrong shape: head.weight: (2, 4) given, (5, 4) wanted",
        "of the wrong shape: head.bias: (2,) given, (5,) wanted",
    ):
        assert line in message
    assert_same_bits(before, weights_tf.read(target))
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    with pytest.raises(TransferError, match="2 left over"):
        tensorflow_to_torch(target, source)
    assert_same_bits(state, source.state_dict())


def test_layers_with_other_names_pair_by_order() -> None:
    # Equal shapes throughout: nothing but the order tells these layers apart.
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.beta, self.gamma = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    source = Named()
    inputs = value = tf.keras.Input((3,))
    for name in ("first", "second", "third"):
        value = layers.Dense(3, name=name)(value)
    target = tf.keras.Model(inputs, value)
    torch_to_tensorflow(source, target)
    for ours, theirs in zip(("alpha", "beta", "gamma"), ("first", "second", "third"), strict=True):
        kernel, bias = target.get_layer(theirs).get_weights()
        np.testing.assert_array_equal(kernel.T, getattr(source, ours).weight.detach().numpy())
        np.testing.assert_array_equal(bias, getattr(source, ours).bias.detach().numpy())


def test_a_shared_layer_is_carried_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    shared = layers.Dense(3, name="linear")
    inputs = tf.keras.Input((3,))
    target = tf.keras.Model(inputs, layers.Dense(3, name="other")(shared(shared(inputs))))
    source = Twice()
    torch_to_tensorflow(source, target)
    np.testing.assert_array_equal(shared.get_weights()[0].T, source.linear.weight.detach().numpy())
    assert len(weights_tf.variables(target)) == 4


def test_a_model_in_half_precision_keeps_its_dtype() -> None:
    source = nn.Linear(3, 2)
    target = nn.Linear(3, 2).bfloat16()
    weights_torch.write(target, weights_torch.read(source))
    assert target.weight.dtype == torch.bfloat16
    assert torch.equal(target.weight, source.weight.bfloat16())


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        ((4, 3), (4, 3), True),
        ((4, 3, 1, 1), (4, 3), True),  # a 1x1 convolution stands for a linear layer
        ((4, 3), (4, 3, 1), True),
        ((1,), (), True),
        ((4, 3), (3, 4), False),  # as many values, another tensor
        ((12,), (4, 3), False),
    ],
)
def test_only_dimensions_of_size_one_may_differ(given: tuple[int, ...], wanted: tuple[int, ...], fits: bool) -> None:
    value = np.arange(np.prod(given, dtype=int), dtype=np.float32).reshape(given)
    fitted = fit_shape(value, wanted)
    assert (fitted is not None) == fits
    if fitted is not None:
        assert fitted.shape == wanted
        np.testing.assert_array_equal(fitted.ravel(), value.ravel())


def test_batch_counters_are_neither_missing_nor_left_over() -> None:
    source = nn.BatchNorm1d(3)
    records = [record for record in weights_torch.records(source) if record.role != "num_batches_tracked"]
    assert set(fit(weights_torch.records(source), weights_torch.read(source), records)) == {r.name for r in records}
    raise_for(missing=["bn.num_batches_tracked"], left_over=["num_batches_tracked"])
