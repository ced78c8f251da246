"""Float64 that is float64: evaluates TensorFlow's float32 constants exactly while a model runs in float64.

TensorFlow turns a Python float into a float32 tensor before it casts it to float64, and some kernels take their
constants as float32 attributes. In float32 nothing shows; in float64 the result is off by as much as a real defect.
Measured in float64 against PyTorch and NumPy, output and gradient, relative to the largest value, on TF 2.15.1 (with
Keras 2.15), 2.16.2, 2.19.1 and 2.21.0 (with Keras 3.15); "all" are these four, and the last three agree throughout.

================================================== ============ ====== ==============================================
operation                                          versions     error  cause
================================================== ============ ====== ==============================================
gelu, exact and tanh                               all          3e-9   cast(sqrt(2)), cast(0.044715)
silu(beta=1.7)                                     all          4e-9   convert_to_tensor(beta), then cast
leaky_relu, LeakyReLU, relu with a negative slope  all          1e-8   kernel LeakyRelu: attribute alpha is float32
relu(max_value, threshold), PReLU(Constant)        Keras 3      2e-8   cast of a Python float
MultiHeadAttention                                 Keras 3      2e-7   cast(1 / sqrt(key_dim))
ops.dot_product_attention                          Keras 3      2e-8   1 / sqrt(cast(dim, "float32")), then cast
BatchNormalization, running mean and variance      Keras 2      4e-9   convert_to_tensor(1 - momentum), then cast
Normalization(mean, variance)                      Keras 3      2e-8   convert_to_tensor(list), then cast
Rescaling                                          all          3e-8   cast(scale), cast(offset)
UpSampling2D, tf.image.resize: bilinear            all          2e-7   the kernel computes and returns float32
Resizing: bilinear                                 Keras 3      2e-7   the kernel computes and returns float32
Huber, a number as sample weight                   Keras 2      1e-7   cast(delta); convert_to_tensor(weight)
LogCosh                                            all          5e-9   cast(log(2.0)), the logarithm taken in float32
regularizers L1, L2; initializer Constant          Keras 3      2e-8   cast of a Python float
ops.quantile, ops.logaddexp, ops.logaddexp2        Keras 3      6e-8   convert_to_tensor(float), cast(log(2.0))
SGD with momentum or weight decay, Adam, AdamW,    all          7e-8   cast(momentum), cast(beta_1), ...
Nadam, Adamax, Lion, Adafactor
not repaired: learning rate schedules              all          7e-8   float32 throughout
not repaired: Resizing                             Keras 2      2e-7   casts its input to float32
not repaired: resize bicubic, area, antialiased    all          -      the kernel computes and returns float32
not repaired: CTC loss                             all          2e-7   Keras 3 casts to float32; tf.nn.ctc_loss raises
================================================== ============ ====== ==============================================

Exact as they are: convolutions, Dense, EinsumDense, Embedding, pooling, Layer-, Group- and UnitNormalization, the
output of BatchNormalization, Dropout's scale, softmax, elu, selu, erf, cross-entropies with label smoothing, mean
squared error, GRU, LSTM, SGD without momentum, RMSprop.

The repair is one idea: a float32 tensor that was rounded from a better known value remembers that value, and a cast to
float64 returns the remembered value instead of the rounded one. A tensor that nobody casts to float64 is what it always
was, so float32 results stay bit-identical.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from reprlib import repr as short_repr
from types import FunctionType
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import constant_op, func_graph
from tensorflow.python.ops import gen_array_ops, gen_image_ops, gen_math_ops, gen_nn_ops

_MEMORY = "_portproof_exact"
# A value is followed through this many operations, so that a loop over a float32 state cannot pile up its history.
_MAX_DEPTH = 8
# Operations through which a value is followed from the constant to the cast: sqrt(2.0), 1 / sqrt(dim), a list of means
# reshaped and broadcast, and the clipping and transposing that Keras puts between a resized image and its cast.
_FOLLOWED = (
    gen_math_ops.sqrt,
    gen_math_ops.rsqrt,
    gen_math_ops.exp,
    gen_math_ops.log,
    gen_math_ops.real_div,
    gen_math_ops.minimum,
    gen_math_ops.maximum,
    gen_array_ops.broadcast_to,
    gen_array_ops.reshape,
    gen_array_ops.squeeze,
    gen_array_ops.transpose,
)
_LOWER = (tf.float32, tf.bfloat16, tf.float16)
# Functions and modules that pass a cast on; the call site is the function that asked for it.
_CONVERTERS = {"_call", "cast", "_saturate_cast", "saturate_cast", "convert_to_tensor"}
_MACHINERY = (__name__, "tensorflow.python.util.", "tensorflow.python.autograph.")


class ExactLog:
    """What was evaluated exactly, and the way back to TensorFlow as it was."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}
        # Told of every float64 tensor that is cast to less, if somebody wants to know.
        self.on_lowered: Callable[[Any], None] | None = None
        self._undo: list[Callable[[], None]] = []

    def names(self) -> tuple[str, ...]:
        """Where constants were evaluated exactly, and which: "module.function: 0.1, 0.9", sorted."""
        return tuple(f"{site}: {_listed(sorted(values))}" for site, values in sorted(self._values.items()))

    def clear(self) -> None:
        """Forget what was logged so far, such as the initializers that run while a model is built."""
        self._values.clear()

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Log nothing of what happens in the block, and keep what was logged before it."""
        before = {site: set(values) for site, values in self._values.items()}
        try:
            yield
        finally:
            self._values = before

    def undo(self) -> None:
        """Restore TensorFlow's own functions."""
        global _active  # noqa: PLW0603 - TensorFlow's functions are process-wide, and so is their replacement
        while self._undo:
            self._undo.pop()()
        if _active is self:
            _active = None

    def _add(self, value: object) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and (
            frame.f_code.co_name in _CONVERTERS or frame.f_globals.get("__name__", "").startswith(_MACHINERY)
        ):
            frame = frame.f_back
        # Autograph calls a function that it rewrote outer_factory.<locals>.inner_factory.<locals>.tf__name.
        function = frame.f_code.co_qualname.split("inner_factory.<locals>.")[-1].removeprefix("tf__")
        site = f"{frame.f_globals.get('__name__', '?')}.{function.replace('.<locals>', '')}"
        self._values.setdefault(site, set()).add(str(value))


def _listed(values: list[str], limit: int = 4) -> str:
    return ", ".join(values[:limit]) + (f", ... ({len(values)} in all)" if len(values) > limit else "")


_active: ExactLog | None = None


def make_exact() -> ExactLog:
    """Evaluate float32 constants exactly wherever they enter a float64 computation, from now on in the whole process.

    Functions that were imported from TensorFlow or Keras before are covered too. Called again, it returns the same log.
    """
    global _active  # noqa: PLW0603 - see ExactLog.undo
    if _active is None:
        log = _active = ExactLog()
        log._undo += [
            _replace(constant_op._constant_impl, _remembering_constant),
            _replace(func_graph.FuncGraph.capture, _remembering_capture),
            _replace(gen_math_ops.cast, lambda original: _exact_cast(original, log)),
            _replace(gen_nn_ops.leaky_relu, lambda original: _exact_leaky_relu(original, log)),
            _replace(gen_image_ops.resize_bilinear, _remembering_resize),
            *(_replace(function, _following) for function in _FOLLOWED),
        ]
    return _active


@contextmanager
def exact_float64() -> Iterator[ExactLog]:
    """`make_exact` for the length of a `with` block; inside another one it changes nothing."""
    outer = _active
    log = make_exact()
    try:
        yield log
    finally:
        if log is not outer:
            log.undo()


@dataclass(frozen=True, slots=True)
class _Constant:
    """The Python numbers that a float32 constant was made from."""

    value: Any
    make: Callable[[Any], Any]
    depth: int = 0

    def tensor(self) -> Any:
        return self.make(self.value)

    def is_rounded(self) -> bool:
        return _is_rounded(self.value)

    def __str__(self) -> str:
        return short_repr(np.asarray(self.value).tolist())


@dataclass(frozen=True, slots=True)
class _Computed:
    """An operation to be repeated in float64, when somebody asks for its exact result."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    depth: int

    def tensor(self) -> Any:
        return self.function(*map(_widened, self.arguments))

    def is_rounded(self) -> bool:
        return True

    def __str__(self) -> str:
        shown = (
            str(_memory(argument) or "x") for argument in self.arguments if isinstance(argument, (float, tf.Tensor))
        )
        return f"{self.function.__name__.lstrip('_')}({', '.join(shown)})"


def _memory(value: Any) -> _Constant | _Computed | None:
    if value.__class__ is float:
        return _Constant(value, _constant64)
    # Not getattr(value, _MEMORY): tensors answer a name they do not have with a long error message, which takes time.
    attributes = getattr(value, "__dict__", None)
    return attributes.get(_MEMORY) if attributes else None


def _remember(tensor: Any, memory: _Constant | _Computed) -> None:
    if memory.depth <= _MAX_DEPTH:
        setattr(tensor, _MEMORY, memory)


def _constant64(value: float) -> Any:
    return tf.constant(value, tf.float64)


def _widened(argument: Any) -> Any:
    memory = _memory(argument)
    if memory is not None:
        return memory.tensor()
    return tf.cast(argument, tf.float64) if getattr(argument, "dtype", None) == tf.float32 else argument


def _is_rounded(value: Any) -> bool:
    """Whether a number, or a nested list of numbers, changes when it becomes float32."""
    exact = np.asarray(value, np.float64)
    with np.errstate(over="ignore"):
        return not np.array_equal(exact.astype(np.float32), exact, equal_nan=True)


def _is_number(value: Any) -> bool:
    """Whether this is a Python number, or a nested list of them."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_number, value))
    return isinstance(value, (int, float))


def _replace(function: Any, wrap: Callable[[Any], Callable[..., Any]]) -> Callable[[], None]:
    """Make `function` run `wrap(original)`; returns the undo.

    The code is exchanged inside the function object, because TensorFlow exports one function under a dozen names and
    wraps it in dispatchers, and Keras and users' modules import it from there: all of them hold this one object.
    """
    target = inspect.unwrap(function)
    code, defaults, namespace = target.__code__, target.__defaults__, target.__globals__
    key = f"_portproof_{target.__name__}"
    namespace[key] = wrap(FunctionType(code, namespace, target.__name__, defaults))
    target.__defaults__ = None
    target.__code__ = _call.__code__.replace(co_names=(key,))

    def undo() -> None:
        target.__code__ = code
        target.__defaults__ = defaults
        del namespace[key]

    return undo


def _replacement(*args: Any, **kwargs: Any) -> Any:
    """Stands in `_call` for the name that `_replace` puts there."""
    raise NotImplementedError


def _call(*args: Any, **kwargs: Any) -> Any:
    """The code that `_replace` gives a function: it looks the replacement up in the namespace of that function."""
    return _replacement(*args, **kwargs)


def _remembering_constant(original: Any) -> Callable[..., Any]:
    def _constant_impl(value: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(value, dtype, *args, **kwargs)
        # A dtype that was asked for is meant; only TensorFlow's own choice of float32 is a rounding nobody wanted.
        if (
            dtype is None
            and isinstance(value, (float, list, tuple))
            and result.dtype == tf.float32
            and _is_number(value)
        ):

            def make(numbers: Any) -> Any:
                return original(numbers, tf.float64, *args, **kwargs)

            # A copy, because a list may change before the constant is cast.
            _remember(result, _Constant(value if isinstance(value, float) else np.asarray(value, np.float64), make))
        return result

    return _constant_impl


def _remembering_capture(original: Any) -> Callable[..., Any]:
    """A constant made outside a `tf.function` and used inside it keeps its value."""

    def capture(self: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, tensor, *args, **kwargs)
        if (memory := _memory(tensor)) is not None:
            _remember(result, memory)
        return result

    return capture


def _exact_cast(original: Any, log: ExactLog) -> Callable[..., Any]:
    def cast(x: Any, DstT: Any, Truncate: bool = False, name: Any = None) -> Any:  # noqa: N803 - TensorFlow's names
        memory = _memory(x)
        if memory is not None and DstT in {tf.float64, tf.complex128} and memory.is_rounded():
            # Cut off from x: no gradient reaches the constant, which nobody trains. A resized image passes its own on.
            log._add(memory)
            exact = memory.tensor()
            exact.set_shape(x.shape)
            return exact if DstT == tf.float64 else original(exact, DstT, Truncate, name)
        result = original(x, DstT, Truncate, name)
        if log.on_lowered is not None and DstT in _LOWER and getattr(x, "dtype", None) == tf.float64:
            log.on_lowered(result)
        # A dimension on its way into 1 / sqrt(dim).
        if DstT == tf.float32 and isinstance(x, tf.Tensor) and x.dtype.is_integer and x.shape.rank == 0:
            _remember(result, _Computed(float64, (x,), 1))
        return result

    def float64(x: Any) -> Any:
        return original(x, tf.float64)

    return cast


def _following(original: Any) -> Callable[..., Any]:
    def follow(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        known = {index: memory for index, argument in enumerate(args) if (memory := _memory(argument)) is not None}
        if not known or kwargs.keys() - {"name"} or result.dtype != tf.float32:
            return result
        # A Python float counts where it is the whole input, as in sqrt(2.0). max(x, 0.5) rounds nothing of its own.
        tensors = [index for index, argument in enumerate(args) if isinstance(argument, tf.Tensor)]
        if not tensors or known.keys() & tensors:
            # Without the name, which is the only string: an operation of that name exists already.
            arguments = tuple(argument for argument in args if not isinstance(argument, str))
            _remember(result, _Computed(original, arguments, 1 + max(memory.depth for memory in known.values())))
        return result

    return follow


def _exact_leaky_relu(original: Any, log: ExactLog) -> Callable[..., Any]:
    def leaky_relu(features: Any, alpha: float = 0.2, name: Any = None) -> Any:
        if features.dtype != tf.float64 or not _is_rounded(alpha):
            return original(features, alpha, name)
        log._add(alpha)
        return tf.where(features > 0, features, alpha * features, name=name)

    return leaky_relu


def _remembering_resize(original: Any) -> Callable[..., Any]:
    def resize_bilinear(
        images: Any, size: Any, align_corners: bool = False, half_pixel_centers: bool = False, name: Any = None
    ) -> Any:
        result = original(images, size, align_corners, half_pixel_centers, name)
        if images.dtype == tf.float64:
            _remember(result, _Computed(_bilinear, (images, size, align_corners, half_pixel_centers), 1))
        return result

    return resize_bilinear


def _bilinear(images: Any, size: Any, align_corners: bool, half_pixel_centers: bool) -> Any:
    """The ResizeBilinear kernel in float64: one axis after the other, edges repeated."""
    for axis in (1, 2):
        old, new = tf.shape(images)[axis], size[axis - 1]
        old64, new64 = tf.cast(old, tf.float64), tf.cast(new, tf.float64)
        scale = tf.where(align_corners and new > 1, (old64 - 1) / tf.maximum(new64 - 1, 1), old64 / new64)
        index = tf.range(new64, dtype=tf.float64)
        position = (index + 0.5) * scale - 0.5 if half_pixel_centers else index * scale
        below = tf.floor(position)
        low = tf.gather(images, tf.maximum(tf.cast(below, tf.int32), 0), axis=axis)
        high = tf.gather(images, tf.minimum(tf.cast(tf.math.ceil(position), tf.int32), old - 1), axis=axis)
        weight = tf.reshape(position - below, [-1, 1, 1] if axis == 1 else [-1, 1])
        images = low + (high - low) * weight
    return images
