"""The two sides of RepViT are the same function, layer by layer and in training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from repvit_sides import SMALL_CFGS, carry_over, each_depthwise, excite, relative, spectrograms

from portproof.models.repvit import KWS_TINY_CFGS

# --- The two sides are the same function -----------------------------------------------------------------------------


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
