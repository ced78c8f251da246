"""Re-parameterization: the same function without BatchNorm, in both frameworks, and refused where it would not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repvit_sides import SMALL_CFGS, both, excite, relative, spectrograms

from portproof.models.repvit.folding import fold, is_folded

IMAGE_CFGS = ((3, 2, 8, 1, 0, 1), (3, 2, 16, 0, 1, 2), (3, 2, 16, 1, 1, 1))


def build(side: str, network: str, dtype: str = "float64", **options: Any) -> Any:
    """A network with every weight and statistic at work, and what calls it with NumPy arrays as torch takes them."""
    cfgs = SMALL_CFGS if network == "KWSRepViT" else IMAGE_CFGS
    if side == "torch":
        torch = pytest.importorskip("torch")
        from portproof.models.repvit import torch_model

        model = getattr(torch_model, network)(cfgs, **options).to(getattr(torch, dtype)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    low = 0.5 if name.endswith(("bn.weight", "running_var")) else -0.5
                    tensor.uniform_(low, low + 1.0, generator=generator)
        return model
    pytest.importorskip("tensorflow")
    from portproof.models.repvit import tensorflow_model

    model = getattr(tensorflow_model, network)(cfgs, dtype=dtype, **options)
    excite(model)
    return model


def run(side: str, model: Any, dtype: str = "float64") -> np.ndarray:
    kws = type(model).__name__ == "KWSRepViT"
    x = spectrograms(2, 40, 16) if kws else np.random.default_rng(1).standard_normal((2, 3, 40, 24))
    x = x.astype(dtype)
    if side == "torch":
        import torch

        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    return model(x if kws else np.moveaxis(x, 1, -1), training=False).numpy()


def norms(side: str, model: Any) -> int:
    if side == "torch":
        return sum("BatchNorm" in type(module).__name__ for module in model.modules())
    return sum(type(layer).__name__ == "BatchNormalization" for layer in model._flatten_layers())


@both
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("KWSRepViT", {}),
        ("RepViT", {"num_classes": 5}),
        ("RepViT", {"num_classes": 5, "distillation": True}),
    ],
    ids=["kws", "plain", "distilled"],
)
def test_the_fused_network_is_the_same_function(side: str, network: str, options: dict[str, Any]) -> None:
    model = build(side, network, **options)
    before = run(side, model)
    fused = model.fuse()
    assert type(fused) is type(model)
    assert norms(side, fused) == 0 < norms(side, model)
    assert relative(run(side, fused), before) < 1e-13
    np.testing.assert_array_equal(run(side, model), before)  # and the model itself is left as it was


@both
def test_in_float32_the_fused_weights_carry_one_rounding(side: str) -> None:
    double, single = build(side, "RepViT"), build(side, "RepViT", "float32")
    if side == "torch":
        double.load_state_dict(single.state_dict())
        names = [(key, value.numpy()) for key, value in double.fuse().state_dict().items()]
        found = {key: value.numpy() for key, value in single.fuse().state_dict().items()}
    else:
        double.set_weights(single.get_weights())
        names = list(enumerate(double.fuse().get_weights()))
        found = dict(enumerate(single.fuse().get_weights()))
    for key, exact in names:
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], exact.astype(np.float32))


@both
def test_the_backbone_fuses(side: str) -> None:
    model = build(side, "RepViTFeatures")
    fused = model.fuse()
    x = np.random.default_rng(0).standard_normal((1, 3, 33, 20))
    if side == "torch":
        import torch

        pairs = zip(model(torch.from_numpy(x)), fused(torch.from_numpy(x)), strict=True)
        values = [(a.detach().numpy(), b.detach().numpy()) for a, b in pairs]
    else:
        x = np.moveaxis(x, 1, -1)
        values = [(a.numpy(), b.numpy()) for a, b in zip(model(x), fused(x), strict=True)]
    assert len(values) == 2
    assert all(relative(b, a) < 1e-13 for a, b in values)


# --- Refused ----------------------------------------------------------------------------------------------------------


@both
def test_a_fused_network_is_not_fused_again(side: str) -> None:
    with pytest.raises(ValueError, match="fused already"):
        build(side, "KWSRepViT", fused=True).fuse()


@pytest.mark.torch
def test_train_mode_is_refused_in_whole_and_in_part() -> None:
    model = build("torch", "KWSRepViT").train()
    with pytest.raises(ValueError, match=r"KWSRepViT is in train mode.*call model.eval\(\) first"):
        model.fuse()
    model.eval().features[2].token_mixer[0].bn.train()
    with pytest.raises(ValueError, match=r"features\.2\.token_mixer\.0\.bn is in train mode"):
        model.fuse()


def torch_changes() -> dict[str, tuple[Callable[[Any], Any], str]]:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def put(path: str, module: Any) -> Callable[[Any], Any]:
        parent, _, name = path.rpartition(".")
        return lambda model: setattr(model.get_submodule(parent), name, module.double().eval())

    return {
        # What the official code turns into an identity without a word.
        "another norm": (put("features.1.token_mixer.0.bn", nn.InstanceNorm2d(8)), "InstanceNorm2d, not a BatchNorm2d"),
        "one more norm": (put("features.1.token_mixer.1", nn.BatchNorm2d(8)), "BatchNorm2d, not a SqueezeExcite"),
        "activation": (put("features.1.channel_mixer.m.1", nn.GELU("tanh")), "settings .approximate='tanh'"),
        "eps": (lambda model: setattr(model.features[0][0].bn, "eps", 1e-3), "eps=0.001"),
        "stride": (lambda model: setattr(model.features[2].token_mixer[0].c, "stride", (1, 1)), "stride"),
        "hook": (lambda model: model.pool.register_forward_hook(lambda *_: None), "pool has a forward hook"),
        "method": (lambda model: setattr(model.pool, "forward", lambda x: x.amax((2, 3))), "forward method of its own"),
        "extra": (lambda model: model.add_module("extra", nn.Dropout()), "extra is a Dropout that it does not make"),
        "buffer": (lambda model: model.register_buffer("scale", torch.ones(1)), "it holds scale"),
        "statistics": (put("features.0.0.bn", nn.BatchNorm2d(4, track_running_stats=False)), "track_running_stats"),
    }


@pytest.mark.torch
@pytest.mark.parametrize("change", ["another norm", "one more norm", "activation", "eps", "stride", "hook", "method",
                                    "extra", "buffer", "statistics"])  # fmt: skip
def test_a_torch_model_that_is_not_as_it_was_made_is_refused(change: str) -> None:
    model = build("torch", "KWSRepViT")
    apply, message = torch_changes()[change]
    apply(model)
    with pytest.raises(ValueError, match=f"fuse knows only the modules that KWSRepViT makes, but .*{message}"):
        model.eval().fuse()


@pytest.mark.torch
def test_a_momentum_is_free_to_choose() -> None:
    model = build("torch", "KWSRepViT")
    model.features[0][0].bn.momentum = 0.01
    assert relative(run("torch", model.fuse()), run("torch", model)) < 1e-13


@pytest.mark.tensorflow
@pytest.mark.parametrize("change", ["activation", "eps", "pad", "extra", "method"])
def test_a_keras_model_that_is_not_as_it_was_made_is_refused(change: str) -> None:
    tf = pytest.importorskip("tensorflow")
    model = build("tensorflow", "KWSRepViT")
    block = model.features[1]
    if change == "activation":
        block.channel_mixer.m[1].__class__ = type("TanhGELU", (tf.keras.layers.Layer,), {})
        message = "m.1 is a TanhGELU, not a GELU"
    elif change == "eps":
        block.token_mixer[0].bn.epsilon = 1e-3
        message = "epsilon='0.001', not '1e-05'"
    elif change == "pad":
        model.features[0][0].c.pad = 0
        message = "pad='0', not '1'"
    elif change == "extra":
        object.__setattr__(model, "extra", tf.keras.layers.Dropout(0.5))  # Keras 3 refuses it by itself
        message = "extra is a Dropout that it does not make"
    else:
        object.__setattr__(model.pool, "call", lambda x: tf.reduce_max(x, (1, 2)))
        message = "pool has a call method of its own"
    with pytest.raises(ValueError, match=f"fuse knows only the layers that KWSRepViT makes, but .*{message}"):
        model.fuse()


# --- Folding ----------------------------------------------------------------------------------------------------------


def batch_norm(rng: np.random.Generator, channels: int, prefix: str) -> dict[str, np.ndarray]:
    values = {name: rng.normal(size=channels) for name in ("weight", "bias", "running_mean")}
    return {f"{prefix}{name}": each for name, each in {**values, "running_var": rng.uniform(0, 2, channels)}.items()}


def normalised(x: np.ndarray, values: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    """PyTorch's documentation of BatchNorm2d, in eval mode, for x (B, C)."""
    weight, bias, mean, variance = (values[f"{prefix}{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), channels=st.integers(1, 5), out=st.integers(1, 5))
def test_each_kind_of_part_folds(seed: int, channels: int, out: int) -> None:
    """At one place of a 1x1 image, where padding is all that a 3x3 kernel sees besides its middle."""
    rng = np.random.default_rng(seed)
    values = {"a.c.weight": rng.normal(size=(out, channels, 1, 1)), **batch_norm(rng, out, "a.bn.")}
    values |= {"b.conv.c.weight": rng.normal(size=(channels, 1, 3, 3)), **batch_norm(rng, channels, "b.conv.bn.")}
    values |= {"b.conv1.weight": rng.normal(size=(channels, 1, 1, 1)), "b.conv1.bias": rng.normal(size=channels)}
    values |= batch_norm(rng, channels, "b.bn.")
    for head in ("classifier.classifier", "classifier.classifier_dist"):
        values |= {f"{head}.l.weight": rng.normal(size=(out, channels)), f"{head}.l.bias": rng.normal(size=out)}
        values |= batch_norm(rng, channels, f"{head}.bn.")
    values["a.bn.num_batches_tracked"] = np.array(3)
    folded = fold(values)
    assert list(folded) == [f"{part}.{name}" for part in ("a", "b", "classifier") for name in ("weight", "bias")]
    assert is_folded(folded)
    assert not is_folded(values)
    x = rng.normal(size=(4, channels))
    expected = normalised(x @ values["a.c.weight"][:, :, 0, 0].T, values, "a.bn.")
    np.testing.assert_allclose(x @ folded["a.weight"][:, :, 0, 0].T + folded["a.bias"], expected, rtol=1e-9, atol=1e-9)
    middle = normalised(x * values["b.conv.c.weight"][:, 0, 1, 1], values, "b.conv.bn.")
    middle = middle + x * values["b.conv1.weight"][:, 0, 0, 0] + values["b.conv1.bias"] + x
    expected = normalised(middle, values, "b.bn.")
    np.testing.assert_allclose(x * folded["b.weight"][:, 0, 1, 1] + folded["b.bias"], expected, rtol=1e-9, atol=1e-9)
    heads = [
        normalised(x, values, f"{head}.bn.") @ values[f"{head}.l.weight"].T + values[f"{head}.l.bias"]
        for head in ("classifier.classifier", "classifier.classifier_dist")
    ]
    found = x @ folded["classifier.weight"].T + folded["classifier.bias"]
    np.testing.assert_allclose(found, (heads[0] + heads[1]) / 2, rtol=1e-9, atol=1e-9)


def test_a_part_that_lacks_something_is_named() -> None:
    with pytest.raises(ValueError, match=r"features\.0\.0 cannot be folded without its bn\.weight"):
        fold({"features.0.0.c.weight": np.zeros((1, 1, 1, 1))})
