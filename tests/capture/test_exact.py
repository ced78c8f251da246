"""Tests for exact float64 on the TensorFlow side: each flaw is shown, then shown to be gone."""

import inspect
import math
import pickle

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from tensorflow.nn import gelu as imported_gelu  # noqa: E402 - before `make_exact`, as a careless module might

from portproof.capture.exact import exact_float64, make_exact  # noqa: E402

pytestmark = pytest.mark.tensorflow

KERAS = int(keras.__version__.split(".", maxsplit=1)[0])
EXACT, FLAWED = 3e-15, 1e-10
X = np.random.default_rng(0).normal(size=(2, 4, 5, 8))
Y = np.random.default_rng(1).normal(size=X.shape)

_erf = np.vectorize(math.erf)


def _gelu(x):
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def _tanh_gelu(x):
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _leaky(slope):
    return lambda x: np.where(x > 0, x, slope * x)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attention(x):
    scores = np.einsum("btnh,bsnh->bnts", x, x) / math.sqrt(x.shape[-1])
    return np.einsum("bnts,bsnh->btnh", _softmax(scores), x)


def _upsampled(x, size):
    for axis in (1, 2):
        old, new = x.shape[axis], size[axis - 1]
        position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = np.floor(position).astype(int)
        weight = (position - low).reshape([-1] + [1] * (3 - axis))
        x = x.take(low, axis) * (1 - weight) + x.take(np.minimum(low + 1, old - 1), axis) * weight
    return x


def _running_mean():
    layer = keras.layers.BatchNormalization(momentum=0.9)
    layer.build((None, 4, 5, 8))

    def step(x):
        layer.moving_mean.assign(tf.ones_like(layer.moving_mean))
        layer(x, training=True)
        return tf.convert_to_tensor(layer.moving_mean)

    return step


def _multi_head_attention():
    layer = keras.layers.MultiHeadAttention(1, 8, use_bias=False)
    x = tf.zeros((1, 3, 8), keras.backend.floatx())
    layer(x, x)
    identity = np.eye(8)
    layer.set_weights([identity[:, None]] * 3 + [identity[None]])
    return lambda x: layer(x[:, 0], x[:, 0])


class Case:
    """An operation, what it should give, and the major versions of Keras that give something else in float64."""

    def __init__(self, build, reference, *, flawed=(2, 3), only=(2, 3)):
        self.build = build
        self.reference = reference
        self.flawed = KERAS in flawed
        self.available = KERAS in only


K3 = {"flawed": (3,), "only": (3,)}
layers = keras.layers
CASES = {
    "tf.nn.gelu": Case(lambda: tf.nn.gelu, _gelu),
    "imported gelu": Case(lambda: imported_gelu, _gelu),
    "tanh gelu": Case(lambda: lambda x: tf.nn.gelu(x, approximate=True), _tanh_gelu),
    "keras.activations.gelu": Case(lambda: keras.activations.gelu, _gelu),
    "Activation('gelu')": Case(lambda: layers.Activation("gelu"), _gelu),
    "Activation(gelu)": Case(lambda: layers.Activation(keras.activations.gelu), _gelu),
    "keras.ops.gelu": Case(lambda: lambda x: keras.ops.gelu(x, approximate=False), _gelu, **K3),
    "silu(beta)": Case(lambda: lambda x: tf.nn.silu(x, beta=1.7), lambda x: x / (1 + np.exp(-1.7 * x))),
    "leaky_relu": Case(lambda: tf.nn.leaky_relu, _leaky(0.2)),
    "LeakyReLU": Case(lambda: layers.LeakyReLU(0.3), _leaky(0.3)),
    "ReLU(max_value)": Case(lambda: layers.ReLU(0.7), lambda x: x.clip(0, 0.7), flawed=(3,)),
    "PReLU": Case(lambda: layers.PReLU(keras.initializers.Constant(0.3)), _leaky(0.3), flawed=(3,)),
    "Rescaling": Case(lambda: layers.Rescaling(1 / 255, 0.1), lambda x: x / 255 + 0.1),
    "Normalization": Case(
        lambda: layers.Normalization(mean=[0.1] * 8, variance=[0.3] * 8),
        lambda x: (x - 0.1) / math.sqrt(0.3),
        flawed=(3,),
    ),
    "BatchNormalization's running mean": Case(_running_mean, lambda x: 0.9 + 0.1 * x.mean((0, 1, 2)), flawed=(2,)),
    "MultiHeadAttention": Case(_multi_head_attention, lambda x: _attention(x[:, 0][:, :, None])[:, :, 0], flawed=(3,)),
    "dot_product_attention": Case(lambda: lambda x: keras.ops.dot_product_attention(x, x, x), _attention, **K3),
    "UpSampling2D": Case(
        lambda: keras.Sequential([layers.UpSampling2D(2, interpolation="bilinear"), layers.Activation("linear")]),
        lambda x: _upsampled(x, (8, 10)),
    ),
    "tf.image.resize": Case(
        lambda: lambda x: tf.cast(tf.image.resize(x, (7, 3)), x.dtype), lambda x: _upsampled(x, (7, 3))
    ),
    "Huber": Case(
        lambda: lambda x: keras.losses.Huber(0.7)(Y, x),
        lambda x: np.where(abs(x - Y) <= 0.7, (x - Y) ** 2 / 2, 0.7 * abs(x - Y) - 0.7**2 / 2).mean(),
        flawed=(2,),
    ),
    "LogCosh": Case(lambda: lambda x: keras.losses.LogCosh()(Y, x), lambda x: np.log(np.cosh(x - Y)).mean()),
    "L2": Case(lambda: keras.regularizers.L2(0.01), lambda x: 0.01 * (x**2).sum(), flawed=(3,)),
    "a number": Case(lambda: lambda x: x * tf.cast(math.pi, x.dtype), lambda x: x * math.pi),
    "a list": Case(lambda: lambda x: x - tf.cast([0.1, 0.2] * 4, x.dtype), lambda x: x - [0.1, 0.2] * 4),
    "a constant": Case(lambda: lambda x: x * tf.cast(tf.constant(0.1), x.dtype), lambda x: x * 0.1),
    "a root": Case(lambda: lambda x: x / tf.cast(tf.sqrt(2.0), x.dtype), lambda x: x / math.sqrt(2)),
    "a dimension": Case(
        lambda: lambda x: x * tf.cast(1 / tf.sqrt(tf.cast(tf.shape(x)[2], tf.float32)), x.dtype),
        lambda x: x / math.sqrt(5),
    ),
    "softmax": Case(lambda: tf.nn.softmax, _softmax, flawed=()),
    "selu": Case(
        lambda: tf.nn.selu,
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        flawed=(),
    ),
}
NAMES = [name for name, case in CASES.items() if case.available]


def _set_precision(name):
    # Both, because Keras 3 keeps the policy that the first layer found, whatever becomes of floatx.
    keras.backend.set_floatx(name)
    keras.mixed_precision.set_global_policy(name)


@pytest.fixture
def float32():
    before = keras.backend.floatx()
    _set_precision("float32")
    yield
    _set_precision(before)


@pytest.fixture
def float64():
    before = keras.backend.floatx()
    _set_precision("float64")
    yield
    _set_precision(before)


def _error(result, reference):
    assert result.dtype == tf.float64
    return np.abs(np.asarray(result) - reference).max() / np.abs(reference).max()


def _results(case, x):
    """The result in eager mode and inside a `tf.function`."""
    function = case.build()
    return function(x), tf.function(function)(x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("float64")
def test_is_exact_in_float64_and_was_not_before(name):
    case, reference = CASES[name], CASES[name].reference(X)
    if case.flawed:
        result = case.build()(tf.constant(X))
        assert np.abs(np.asarray(result) - reference).max() / np.abs(reference).max() > FLAWED
    with exact_float64() as log:
        for result in _results(case, tf.constant(X)):
            assert _error(result, reference) < EXACT
    assert log.names() or not case.flawed


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_bit_identical(name):
    x = tf.constant(X, tf.float32)
    before = _results(CASES[name], x)
    with exact_float64():
        after = _results(CASES[name], x)
    for old, new in zip(before, after, strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("tf.nn.gelu", lambda x: 0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
        ("leaky_relu", lambda x: np.where(x > 0, 1, 0.2)),
        ("tf.image.resize", lambda x: _upsampled_transposed(np.ones((2, 7, 3, 8)), x)),
    ],
)
def test_gradients_are_exact(name, derivative):
    def gradient():
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(CASES[name].build()(x))
        return tape.gradient(total, x)

    assert _error(gradient(), derivative(X)) > FLAWED
    with exact_float64():
        assert _error(gradient(), derivative(X)) < EXACT


def _upsampled_transposed(gradient, x):
    """The gradient of a resize, which is linear: pixel by pixel."""
    out = np.zeros(x.shape)
    for row, column in np.ndindex(*x.shape[1:3]):
        pixel = np.zeros((1, *x.shape[1:3], 1))
        pixel[0, row, column] = 1
        out[:, row, column] = (_upsampled(pixel, gradient.shape[1:3]) * gradient).sum((1, 2))
    return out


@pytest.mark.usefixtures("float64")
def test_adam_is_exact():
    def step():
        optimizer = keras.optimizers.Adam(0.125)
        weight = tf.Variable(X) if KERAS == 2 else keras.Variable(X)
        optimizer.build([weight])
        optimizer.apply_gradients([(tf.constant(Y), weight)])
        return tf.convert_to_tensor(weight)

    first, second = Y * (1 - 0.9), Y**2 * (1 - 0.999)
    reference = X - 0.125 * math.sqrt(1 - 0.999) / (1 - 0.9) * first / (np.sqrt(second) + 1e-7)
    assert _error(step(), reference) > FLAWED
    with exact_float64() as log:
        assert _error(step(), reference) < EXACT
    assert any("adam" in name and "0.9, 0.999" in name for name in log.names())


def _graph():
    return tf.cast([0.1, 0.25], tf.float64)


def test_log_names_the_function_and_the_constant():
    with exact_float64() as log:
        tf.nn.gelu(tf.constant(X))
        tf.nn.gelu(tf.constant(X))
        tf.nn.leaky_relu(tf.constant(X), 0.3)
        tf.cast(0.1, tf.float64)
        tf.function(_graph)()
    constant = next(c for c in ("1.4142135623730951", "0.7071067811865476") if any(c in name for name in log.names()))
    assert log.names() == tuple(
        sorted(
            (
                f"tensorflow.python.ops.nn_ops.gelu: {constant}",
                "tensorflow.python.ops.nn_ops.leaky_relu: 0.3",
                f"{__name__}.test_log_names_the_function_and_the_constant: 0.1",
                f"{__name__}._graph: [0.1, 0.25]",
            )
        )
    )
    log.clear()
    assert log.names() == ()


def test_log_lists_a_few_of_many_constants():
    with exact_float64() as log:
        for value in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7):
            tf.cast(value, tf.float64)
    (name,) = log.names()
    assert name.endswith(": 0.1, 0.2, 0.3, 0.4, ... (6 in all)")


def test_what_float32_holds_is_left_alone():
    with exact_float64() as log:
        for value in (0.5, 3.0, math.inf, math.nan, [1.0, 0.25], 7, [1, 2], np.float32(0.1), True):
            np.testing.assert_array_equal(tf.cast(value, tf.float64), np.asarray(value, np.float64))
        # A dtype that was asked for, and values that went through a variable, are the model's own affair.
        assert float(tf.cast(tf.constant(0.1, tf.float32), tf.float64)) == float(np.float32(0.1))
        assert float(tf.cast(tf.Variable(0.1), tf.float64)) == float(np.float32(0.1))
    assert log.names() == ()


def test_casts_to_other_types_are_unchanged():
    with exact_float64():
        assert tf.cast(1.9, tf.int32).numpy() == 1
        assert tf.cast(0.1, tf.float32).numpy() == np.float32(0.1)
        assert tf.cast(0.1, tf.float16).numpy() == np.float16(0.1)
        assert tf.cast(0.1, tf.complex128).numpy() == 0.1
        assert tf.cast(0.1 + 0.2j, tf.complex128).numpy() == 0.1 + 0.2j
        same = tf.constant([0.1, 0.2])
        assert tf.cast(same, tf.float32) is same
        with pytest.raises(tf.errors.UnimplementedError):
            tf.cast("text", tf.float64)


def test_a_constant_made_elsewhere_keeps_its_value():
    with exact_float64():
        values = [0.1, 0.2]
        outside, changed = tf.constant(0.1), tf.constant(values)
        values[0] = 7.0

        @tf.function
        def inside(x):
            _, x = tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, x * tf.cast(outside, x.dtype)), (0, x))
            return x

        assert float(inside(tf.constant(1.0, tf.float64))) == pytest.approx(0.01, rel=EXACT)
        np.testing.assert_array_equal(tf.cast(changed, tf.float64), [0.1, 0.2])


def test_a_long_loop_over_a_float32_state_is_not_followed():
    with exact_float64() as log:
        state = tf.constant(0.1)
        for _ in range(2000):
            state = tf.maximum(state / 1.25, 0.1)
        tf.cast(state, tf.float64)
    assert log.names() == ()


def test_composite_and_symbolic_tensors_are_cast_as_before():
    with exact_float64():
        ragged = tf.cast(tf.ragged.constant([[0.1], [0.2, 0.3]]), tf.float64)
        assert isinstance(ragged, tf.RaggedTensor)
        assert ragged.dtype == tf.float64
        sparse = tf.cast(tf.sparse.from_dense(np.eye(3, dtype="float32")), tf.float64)
        assert isinstance(sparse, tf.SparseTensor)
        assert sparse.dtype == tf.float64
        inputs = keras.Input((3,), dtype="float32")
        symbolic = (keras.ops.cast if KERAS == 3 else tf.cast)(inputs, "float64")
        outputs = (keras.ops.gelu if KERAS == 3 else tf.nn.gelu)(symbolic)
        assert keras.Model(inputs, outputs)(np.ones((2, 3), "float32")).dtype == tf.float64


@pytest.mark.usefixtures("float64")
def test_models_and_constants_can_be_saved(tmp_path):
    with exact_float64():
        assert pickle.loads(pickle.dumps(tf.constant(0.1).numpy())) == np.float32(0.1)
        model = keras.Sequential([keras.Input((8,)), layers.Dense(4, activation="gelu"), layers.LeakyReLU(0.3)])
        expected = model(X[0, 0])
        model.save(tmp_path / "model.keras")
        np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(X[0, 0]), expected)
        module = tf.Module()
        module.call = tf.function(tf.nn.gelu, input_signature=[tf.TensorSpec((None, 8), tf.float64)])
        tf.saved_model.save(module, tmp_path / "module")
    loaded = tf.saved_model.load(tmp_path / "module")
    assert _error(loaded.call(tf.constant(X[0, 0])), _gelu(X[0, 0])) < EXACT


def test_undo_restores_tensorflow():
    functions = [inspect.unwrap(function) for function in (tf.math.log, tf.broadcast_to)]
    before = [(function.__code__, function.__defaults__) for function in functions]
    rounded = tf.nn.gelu(tf.constant(X))
    log = make_exact()
    assert make_exact() is log
    with exact_float64() as inner:
        assert inner is log
    assert _error(tf.nn.gelu(tf.constant(X)), _gelu(X)) < EXACT
    log.undo()
    np.testing.assert_array_equal(tf.nn.gelu(tf.constant(X)), rounded)
    assert [(function.__code__, function.__defaults__) for function in functions] == before
    log.undo()
