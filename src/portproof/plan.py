"""What a capture does: its phases, in order, the same on both sides.

A phase is one small experiment on a model: which weights, which precision, training mode or not, and what of it is
stored. Both sides work through the same list, so that their traces line up key by key.

The optimizers' hyper-parameters are dyadic fractions on purpose. TensorFlow's optimizers carry the learning rate and
the decay rates as float32, also in float64; a value such as 0.9 would then differ by 1e-8 between the frameworks before
the model was even touched. 0.875 is the same number in every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

STEPS = 5  # optimizer steps of the `sgd` and `adamw` phases

SGD = {"learning_rate": 2.0**-6, "momentum": 0.875}
# torch adds epsilon after the bias correction, Keras before it: capture/tensorflow.py aligns that step by step.
ADAMW = {"learning_rate": 2.0**-10, "beta_1": 0.875, "beta_2": 0.984375, "epsilon": 2.0**-14, "weight_decay": 2.0**-5}


@dataclass(frozen=True, slots=True)
class Phase:
    """One experiment.

    ``weights``: ``initial`` (what the source's factory gave) or ``excited`` (made to leave no path idle: excite.py).
    ``objective``: what is differentiated; ``mean`` of all outputs, ``loss``, or nothing.
    ``layers``: store every layer's output. ``optimizer``: take `STEPS` steps and store the state after the last.
    ``norms``: store the largest value of each gradient instead of the gradient. ``batches``: run the other input cases
    instead of the main one, and store outputs only.
    """

    name: str
    precision: Literal["float32", "float64"]
    weights: Literal["initial", "excited"] = "excited"
    training: bool = False
    objective: Literal["none", "mean", "loss"] = "none"
    layers: bool = False
    optimizer: Literal["", "sgd", "adamw"] = ""
    norms: bool = False
    batches: bool = False

    @property
    def cost(self) -> float:
        """About how long it takes, in forward passes of a Keras model: for dealing phases to processes."""
        forward = 3.0 if self.batches else 1.0
        backward = 0.0 if self.objective == "none" else 2.0
        return (forward + backward) * (STEPS if self.optimizer else 1)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the job file and the trace."""
        return asdict(self)


FORWARD = Phase("float32.forward", "float32", batches=True)
FORWARD64 = Phase("float64.forward", "float64", batches=True)
# The gradient count of the original smoke test, as it defines it: float32, training mode, mean of the logits, at the
# initial weights. Most of what it counts there is rounding noise (verdict.py), so it is shown, and the two float64
# gates below are judged.
COUNT = Phase("float32.count", "float32", "initial", training=True, objective="mean", norms=True)
COUNT_EVAL = Phase("float64.count-eval", "float64", "initial", objective="mean", norms=True)
COUNT_TRAIN = Phase("float64.count-train", "float64", "initial", training=True, objective="loss", norms=True)

# What simpler methods look at, for `portproof selftest` alone: float32 outputs at the weights that the factory gave.
INITIAL = Phase("float32.initial", "float32", "initial", batches=True)

SMOKE: tuple[Phase, ...] = (
    Phase("float64.eval", "float64", layers=True),
    FORWARD64,
    COUNT_EVAL,
    FORWARD,
)

PARITY: tuple[Phase, ...] = (
    Phase("float64.eval", "float64", objective="loss", layers=True),
    Phase("float64.train", "float64", training=True, objective="loss", layers=True),
    Phase("float64.sgd", "float64", training=True, objective="loss", optimizer="sgd"),
    Phase("float64.adamw", "float64", training=True, objective="loss", optimizer="adamw"),
    FORWARD64,
    COUNT_EVAL,
    COUNT_TRAIN,
    Phase("float32.eval", "float32", objective="loss", layers=True),
    Phase("float32.train", "float32", training=True, objective="loss"),
    FORWARD,
    COUNT,
)

PLANS: dict[str, tuple[Phase, ...]] = {"smoke": SMOKE, "parity": PARITY}

# What one can ask for on its own, and the phases of `PARITY` that it takes. The parameters need none.
CHECKS: dict[str, tuple[str, ...]] = {
    "parameters": (),
    "forward": ("float64.forward", "float32.forward"),
    "stages": ("float64.eval",),
    "counts": ("float64.count-eval", "float64.count-train", "float32.count"),
    "function": ("float64.eval", "float32.eval"),
    "training": ("float64.train", "float32.train"),
    "batchnorm": ("float64.train",),
    "steps": ("float64.train", "float64.sgd", "float64.adamw"),  # the variance rule is measured in `train`
    "precision": ("float64.eval", "float64.train", "float32.eval", "float32.train"),
}


def phases_for(checks: Sequence[str]) -> tuple[Phase, ...]:
    """The phases that these checks need, in the order of `PARITY`; all of them for no checks."""
    wanted = {name for check in checks for name in CHECKS[check]}
    return tuple(phase for phase in PARITY if phase.name in wanted) if checks else PARITY


_BUILD_COST = 5.0  # making a Keras model takes about as long as this many of its forward passes


def deal(phases: Sequence[Phase], lanes: int) -> list[list[Phase]]:
    """Deal phases to one or two processes so that they end at about the same time; each keeps the plan's order.

    The result depends on the plan alone, so that traces do not vary.
    """
    if lanes < 2 or len(phases) < 2:
        return [list(phases)]

    def time(lane: list[Phase]) -> float:
        # A training phase and the optimizers begin with the same gradients, which a lane computes once.
        alike = sum(bool(phase.optimizer) or phase.name == "float64.train" for phase in lane)
        shared = 3.0 * max(alike - 1, 0)
        return sum(phase.cost for phase in lane) - shared + _BUILD_COST * len({phase.precision for phase in lane})

    def split(choice: tuple[bool, ...]) -> tuple[list[Phase], list[Phase]]:
        second = [phase for phase, other in zip(phases[1:], choice, strict=True) if other]
        return [phase for phase in phases if phase not in second], second

    choices = product((False, True), repeat=len(phases) - 1)
    best = min((split(choice) for choice in choices), key=lambda pair: max(time(pair[0]), time(pair[1])))
    return [lane for lane in best if lane]
