"""RepViT behind one interface for both frameworks, for test cases that are written once."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

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
