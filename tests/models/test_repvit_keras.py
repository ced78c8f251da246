"""What Keras has to be able to do with RepViT: train, save, load, export, and follow its dtype policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repvit_sides import SMALL_CFGS, each_depthwise, excite, relative, run_python, spectrograms

# --- What Keras does with the model ----------------------------------------------------------------------------------


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
