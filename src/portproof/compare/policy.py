"""The policy: what two models may differ by, and the limit that it gives each measurement. All numbers stand here.

Limits are not guessed. In float64 two equal functions differ by rounding alone, about 1e-15 per operation; 1e-12 is
generous for a whole network, and a BatchNorm eps of 1.001e-5 instead of 1e-5 stands five orders of magnitude above it.
A network that amplifies rounding shows by how much in its own float32 run, and the limit follows. In float32 each side
is held against its own float64 run: two honest implementations err by the same order, TF32 or bfloat16 do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from portproof.compare.facts import Facts, Measurement
from portproof.errors import InputError

_FLOAT32_TO_FLOAT64 = 2.0**-29  # the ratio of the two precisions' units in the last place
_FLOAT32_ULP = 2.0**-24


@dataclass(frozen=True, slots=True)
class Policy:
    """What two models may differ by. All values are relative to a tensor's norm.

    ``float64``: the least limit of the float64 checks. ``conditioning``: how much more than its share of the float32
    error (2^-29 of it) a tensor may differ in float64, for networks that amplify rounding; never above
    ``float64_most``. ``steps``: how many times that limit the state after optimizer steps may differ by: AdamW divides
    rounding noise by rounding noise where a gradient is zero. ``precision``: how much larger than the reference's
    float32 error the port's may be, once it is above ``precision_floor``. ``dead``: a gradient below this share of its
    layer's largest counts as zero. ``float32``: the last resort, where neither a float64 proof nor the original's
    float32 error can be had; it is a guess.
    """

    float64: float = 1e-12
    conditioning: float = 64.0
    float64_most: float = 1e-9
    precision: float = 16.0
    precision_floor: float = 16 * _FLOAT32_ULP
    steps: float = 64.0
    dead: float = 1e-9
    float32: float = 1e-4

    @classmethod
    def from_mapping(cls, values: dict[str, Any], source: str) -> Policy:
        """From a parsed policy file; raises `InputError` for unknown names and for anything but positive numbers."""
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"{source}: no such limit: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InputError(f"{source}: {name} needs to be a positive number, not {value!r}.")
        return cls(**{name: float(value) for name, value in values.items()})


def limit64(measurement: Measurement, policy: Policy, overall: float = 0.0) -> float:
    """What two values of one function may differ by in float64, for this tensor.

    ``overall`` is the largest float32 error of the reference's training gradients; it stands in for tensors that have
    no float32 run of their own, such as the state after optimizer steps.
    """
    error = measurement.error_a
    if error is None or not math.isfinite(error):
        error = overall
    times = policy.steps if measurement.phase in ("float64.sgd", "float64.adamw") else 1.0
    return times * function_limit(error, policy)


def function_limit(error: float, policy: Policy) -> float:
    """What a tensor may differ by in float64 whose reference has this float32 error."""
    return max(policy.float64, min(policy.conditioning * error * _FLOAT32_TO_FLOAT64, policy.float64_most))


def precision_limit(measurement: Measurement, policy: Policy) -> float:
    """What the port's float32 error may be: a multiple of the original's, or a few units in the last place."""
    return error_limit(measurement.error_a or 0.0, policy)


def error_limit(error: float, policy: Policy) -> float:
    """What the port's float32 error may be where the original's is ``error``."""
    return max(policy.precision * error, policy.precision_floor)


def limit32(measurement: Measurement, policy: Policy) -> float:
    """Without a float64 proof: what two float32 values may differ by, from the original's own measured rounding.

    Where that is not known either (the original has no float64 run), ``float32`` of the policy has to do.
    """
    return 2 * precision_limit(measurement, policy) if measurement.error_a is not None else policy.float32


def overall_error(facts: Facts) -> float:
    """The largest float32 error of the original's training gradients."""
    errors = (
        each.error_a for each in facts.measurements if each.phase == "float64.train" and each.group == "gradients"
    )
    return max((error for error in errors if error is not None and math.isfinite(error)), default=0.0)
