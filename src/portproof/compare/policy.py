"""The policy: what two models may differ by, and the limit that it gives each measurement. All numbers stand here.

Limits are not guessed. In float64 two equal functions differ by rounding alone, about 1e-15 per operation; 1e-12 is
generous for a whole network, and a BatchNorm eps of 1.001e-5 instead of 1e-5 stands five orders of magnitude above it.
A network that amplifies rounding shows by how much in its own float32 run, and the limit follows. In float32 each side
is held against its own float64 run: two honest implementations err by the same order, TF32 or bfloat16 do not.

One thing is bounded, not measured: the order of a sum. Frameworks add up one after the other or pairwise. Where values
vary that is a matter of a few units in the last place; over n equal values (padding, constant inputs) it is n of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import median_low
from typing import Any

from portproof.compare.facts import Facts, Measurement
from portproof.errors import InputError

_FLOAT32_TO_FLOAT64 = 2.0**-29  # the ratio of the two precisions' units in the last place
_FLOAT32_ULP, _FLOAT64_ULP = 2.0**-24, 2.0**-53
# Of ``dead``: a layer whose largest gradient is this much smaller than the model's is rounding noise as a whole.
DEAD_LAYER = 1e-3
# To be more than noise, the largest values of a gradient on both sides need to agree by this; they do to 1e-9.
GRADIENTS_AGREE = 1e-3
_STEPS = ("float64.sgd", "float64.adamw")
_TRAINING = ("float64.train", *_STEPS)
_ANYTHING = 1e300  # more than any finite difference: NaN or Inf on one side alone is a difference in any case
_NO_DIGITS = 0.1  # a float32 error above this is no measure of anything: it cannot grow much further


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


@dataclass(frozen=True)
class Limits:
    """The limits of one comparison: a policy, and what the original's own rounding shows there.

    ``typical``: the median float32 error by phase and group; one tensor's own may be small by luck, above all where few
    values count. ``overall``: the largest float32 error of the training gradients; it stands in for what has no
    float32 run of its own, such as the state after optimizer steps. ``repeats``: how many equal values one sum may
    meet.
    ``flat``: whether BatchNorms divided nothing but rounding noise in training mode (facts.py).
    """

    policy: Policy
    typical: Mapping[tuple[str, str], float] = field(default_factory=dict)
    overall: float = 0.0
    repeats: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    overflow: bool = False
    flat: bool = False

    @classmethod
    def of(cls, facts: Facts, policy: Policy) -> Limits:
        """The limits for these facts."""
        errors: dict[tuple[str, str], list[float]] = {}
        sizes: dict[str, int] = {}
        for each in facts.measurements:
            if each.error_a and math.isfinite(each.error_a):  # zeros have no error, and are no measure of any
                errors.setdefault((each.phase, each.group), []).append(each.error_a)
            if each.group == "outputs":
                sizes[each.layer] = max(sizes.get(each.layer, 0), math.prod(each.distance.shape_a))
        training = [each for each in facts.measurements if (each.phase, each.group) == ("float64.train", "gradients")]
        return cls(
            policy,
            typical={key: median_low(found) for key, found in errors.items()},
            overall=max(errors.get(("float64.train", "gradients"), ()), default=0.0),
            repeats=facts.repeats,
            sizes=sizes,
            flat="float64.train" in facts.flat,
            overflow=any(each.error_a is not None and not math.isfinite(each.error_a) for each in training),
        )

    def function(self, measurement: Measurement) -> float:
        """What two values of one function may differ by in float64, for this tensor."""
        share = min(self._share(measurement), self.policy.float64_most)
        return self._times(measurement) * max(self.policy.float64, share, self._equal_terms(measurement) * _FLOAT64_ULP)

    def beyond(self, measurement: Measurement) -> float:
        """What rounding alone may make of this tensor: a difference above the limit, up to this, cannot be judged.

        It is the limit itself unless the original amplifies rounding by more than ``float64_most`` allows for, or
        overflows in float32.
        """
        if self.flat and measurement.phase in _TRAINING:
            return _ANYTHING
        own = measurement.error_a
        if self.overflow if own is None else not math.isfinite(own):
            return _ANYTHING
        if self._error(measurement) > _NO_DIGITS:
            return _ANYTHING
        limit, share = self.function(measurement), self._share(measurement)
        return limit if share <= self.policy.float64_most else max(limit, self._times(measurement) * share)

    def precision(self, measurement: Measurement) -> float:
        """What the port's float32 error may be: a multiple of the original's, or a few units in the last place."""
        typical = self.typical.get((measurement.phase, measurement.group), 0.0)
        error = max(measurement.error_a or 0.0, typical)
        return max(
            self.policy.precision * error, self.policy.precision_floor, self._equal_terms(measurement) * _FLOAT32_ULP
        )

    def gradients(self) -> float:
        """What a float32 error may be of which nothing is known but what the training gradients err by."""
        return max(self.policy.precision * self.overall, self.policy.precision_floor)

    def is_open(self, measurement: Measurement) -> bool:
        """Whether the original's own float32 error is so large that zeros in place of the port's value would pass."""
        return self.precision(measurement) >= 1.0 or (self.flat and measurement.phase in _TRAINING)

    def float32(self, measurement: Measurement) -> float:
        """Without a float64 proof: what two float32 values may differ by, from the original's own measured rounding.

        Where that is not known either (the original has no float64 run), ``float32`` of the policy has to do.
        """
        return 2 * self.precision(measurement) if measurement.error_a is not None else self.policy.float32

    def _error(self, measurement: Measurement) -> float:
        """The original's float32 error that counts for this tensor."""
        error = measurement.error_a
        if error is None or not math.isfinite(error):
            return self.overall
        return max(error, self.typical.get((measurement.phase, measurement.group), 0.0))

    def _share(self, measurement: Measurement) -> float:
        return self.policy.conditioning * self._error(measurement) * _FLOAT32_TO_FLOAT64

    def _equal_terms(self, measurement: Measurement) -> float:
        """How many equal values may have been added up, one after the other, for one value of this tensor."""
        if measurement.group not in ("gradients", "parameters") or not measurement.distance.shape_a:
            return self.repeats
        return max(self.repeats, self.sizes.get(measurement.layer, 0) / max(measurement.distance.shape_a[0], 1))

    def _times(self, measurement: Measurement) -> float:
        return self.policy.steps if measurement.phase in _STEPS else 1.0
