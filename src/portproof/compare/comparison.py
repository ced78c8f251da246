"""The comparison of two traces: it gives facts. NumPy only; one pair of tensors in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from portproof.compare.batchnorm import flat_layers, measured_rules, without_rule
from portproof.compare.causes import likely_causes
from portproof.compare.facts import CallFacts, Distance, Facts, Measurement, provable
from portproof.compare.measure import distance, equal_distance, norm, relative_error, stored_distance, stored_error
from portproof.compare.pairing import Pairs, same_layout, same_shape
from portproof.compare.streaming import LARGE
from portproof.compare.structure import describe_structure, layer_settings
from portproof.errors import TraceError
from portproof.trace import MODEL, CallRecord, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Which phase holds the same experiment in the other precision.
_TWIN = {"float64.eval": "float32.eval", "float64.train": "float32.train", "float64.forward": "float32.forward"}


_LEAST_SHARE = 1e-4  # of the largest gradient in the model, per value
# Per value: below 2^-126 float32 loses digits, and some kernels take zero instead. Related to this it is one ulp.
_NORMAL = 2.0**-102
_SAMPLES = "float32.forward/batch/samples:0"
_FEW = 16  # outputs that still fit beside each other


def compare(a: Trace, b: Trace) -> Facts:
    """Hold two traces against each other: torch with TensorFlow, or any two of one side.

    Raises:
        TraceError: a trace cannot be read, or the two are of different experiments.
    """
    _check_same_experiment(a, b)
    pairs = Pairs(a, b)
    facts = {trace: trace.manifest.facts["phases"] for trace in (a, b)}
    coarse = {"a": tuple(_coarse(a)), "b": tuple(_coarse(b))}
    unavailable = {
        name: {phase: found["unavailable"] for phase, found in facts[trace].items() if "unavailable" in found}
        for name, trace in (("a", a), ("b", b))
    }
    comparison = _Comparison(pairs, fallback=not provable(coarse, unavailable))
    phases = [phase for phase in a.phases() if phase in b.phases()]
    if pairs.is_another_form:
        phases = [phase for phase in phases if not _trains(a, phase)]
    for phase in phases:
        comparison.phase(phase)
    structure = describe_structure(pairs)
    return Facts(
        sides={"a": _side(a), "b": _side(b)},
        structure=structure,
        measurements=tuple(comparison.measurements.values()),
        calls={phase: tuple(rows) for phase, rows in comparison.calls.items()},
        gradient_maxima={
            phase: {"a": facts[a][phase]["gradient_maxima"], "b": _renamed(facts[b][phase]["gradient_maxima"], pairs)}
            for phase in phases
            if "gradient_maxima" in facts[a][phase]
            and "gradient_maxima" in facts[b][phase]
            and not pairs.is_another_form
        },
        layers_of={record.name: record.layer for record in a.manifest.parameters},
        batchnorm=tuple(comparison.rules.values()),
        settings=tuple(layer_settings(pairs)),
        unavailable=unavailable,
        coarse=coarse,
        causes=tuple(likely_causes(pairs, comparison.measurements, comparison.calls)),
        samples=_samples(pairs),
        alone={"a": _alone(a, b), "b": _alone(b, a)},
        flat={phase: flat for phase in phases if (flat := tuple(flat_layers(a, phase)))},
        repeats=max((_repeats(a, phase) for phase in phases), default=0.0),
    )


def _alone(trace: Trace, other: Trace) -> tuple[str, ...]:
    """Phases and model outputs that ``other`` does not have."""
    found = [f"the phase {phase}" for phase in trace.phases() if phase not in other.phases()]
    for phase in (phase for phase in trace.phases() if phase in other.phases()):
        batches = [name for name in trace.names(phase, "batch") if f"{phase}/batch/{name}" not in other]
        found += [f"the output {name} of {phase}" for name in batches if other.names(phase, "batch")]
        counts = [_model_outputs(each, phase) for each in (trace, other)]
        if counts[1] and counts[0] > counts[1]:
            found.append(f"{counts[0]} outputs in {phase}, where the other side has {counts[1]}")
    return tuple(found)


def _model_outputs(trace: Trace, phase: str) -> int:
    """How many tensors the model returned."""
    calls = [call for call in trace.manifest.calls.get(phase, ()) if call.layer == MODEL]
    return sum(not key.startswith("inner/") for key in calls[0].outputs) if calls else 0


def _check_same_experiment(a: Trace, b: Trace) -> None:
    seeds = a.manifest.facts["seed"], b.manifest.facts["seed"]
    if seeds[0] != seeds[1]:
        raise TraceError(
            f"{a.path} and {b.path} were captured with the seeds {seeds[0]} and {seeds[1]}, so with different inputs: "
            "capture both with one seed."
        )
    if a.phases() and b.phases() and not set(a.phases()) & set(b.phases()):
        raise TraceError(
            f"{a.path} and {b.path} have no experiment in common: one holds {', '.join(a.phases())}, the other "
            f"{', '.join(b.phases())}. Capture both with the same --only."
        )
    for phase in set(a.phases()) & set(b.phases()):
        for name in a.names(phase, "source"):
            key = f"{phase}/source/{name}"
            if key in b and not np.array_equal(a.tensor(key), b.tensor(key)):
                raise TraceError(f"{a.path} and {b.path} were captured with different inputs {name!r}.")


class _Comparison:
    """Measures phase after phase; every pair of tensors once."""

    def __init__(self, pairs: Pairs, *, fallback: bool) -> None:
        self._fallback = fallback
        self.pairs, self.a, self.b = pairs, pairs.a, pairs.b
        self.measurements: dict[str, Measurement] = {}
        self.calls: dict[str, list[CallFacts]] = {}
        self._owner = {record.name: record.layer for record in self.a.manifest.parameters}
        self._kinds = [{record.name: record for record in trace.manifest.layers} for trace in (self.a, self.b)]
        self.rules = {rule["layer"]: rule for rule in measured_rules(pairs)}

    def phase(self, phase: str) -> None:
        """Measure everything that both sides stored of one phase."""
        self._measure_calls(phase)
        for name in self.a.names(phase, "batch"):
            if f"{phase}/batch/{name}" in self.b:
                self._add(phase, "batches", f"batch/{name}", f"batch/{name}", layer="")
        floor = self._gradient_floor(phase)
        for what, group in (("loss", "loss"), ("input-gradient", "input-gradient")):
            for name in self.a.names(phase, what):
                if f"{phase}/{what}/{name}" in self.b:
                    least = 0.0 if group == "loss" else floor * math.sqrt(self.a.stored(f"{phase}/{what}/{name}").size)
                    self._add(phase, group, f"{what}/{name}", f"{what}/{name}", layer="", least_scale=least)
        self._measure_parameters(phase)

    def _measure_calls(self, phase: str) -> None:
        rows = self.calls.setdefault(phase, [])
        for call, other in self.pairs.calls(phase):
            record, record_b = self._kinds[0][call.layer], self._kinds[1][other.layer]
            inputs = [self._call_tensor(phase, "inputs", x, y, call) for x, y in _zip(call.inputs, other.inputs)]
            outputs = [self._call_tensor(phase, "outputs", x, y, call) for x, y in _zip(call.outputs, other.outputs)]
            rows.append(
                CallFacts(
                    layer=call.layer,
                    other=other.layer,
                    leaf=record.leaf,
                    kind_a=record.kind,
                    kind_b=record_b.kind,
                    inputs=tuple(inputs),
                    outputs=tuple(key for key in outputs if key is not None),
                )
            )

    def _call_tensor(self, phase: str, group: str, key_a: str, key_b: str, call: CallRecord) -> str | None:
        if key_a.startswith("source/") and key_b.startswith("source/"):
            return None
        if f"{phase}/{key_a}" not in self.a or f"{phase}/{key_b}" not in self.b:
            return None
        if key_a.startswith("output/") and key_b.startswith("output/"):
            # An input that is some layer's output was measured as such.
            known = _measurement_key(phase, "outputs", key_a, key_b)
            if known in self.measurements:
                return known
        return self._add(phase, group, key_a, key_b, layer=call.layer)

    def _measure_parameters(self, phase: str) -> None:
        named = self.pairs.parameters.pairs
        for what, group in (("gradient", "gradients"), ("parameter", "parameters"), ("buffer", "buffers")):
            present = [
                name
                for name in named
                if f"{phase}/{what}/{name}" in self.a and f"{phase}/{what}/{named[name]}" in self.b
            ]
            scales = self._layer_scales(phase, what, present)
            for name in present:
                self._add(
                    phase,
                    group,
                    f"{what}/{name}",
                    f"{what}/{named[name]}",
                    layer=self._owner[name],
                    least_scale=scales.get(name, 0.0),
                )

    def _layer_scales(self, phase: str, what: str, names: list[str]) -> dict[str, float]:
        """What a tensor's difference is at least related to: the scale of its layer.

        A bias in front of a BatchNorm has the gradient zero, analytically, and rounding noise, numerically: its own
        norm means nothing. After optimizer steps the scale is that of the update, or a hundredth of the value.
        """
        if what == "buffer":
            # The mean of a channel is as exact as the channel is wide: in front of a BatchNorm that follows another
            # it is zero, analytically.
            spreads = {name: name.removesuffix("mean") + "var" for name in names if name.endswith("running_mean")}
            return {
                name: float(np.linalg.norm(np.sqrt(np.abs(self.a.tensor(f"{phase}/buffer/{spread}")))))
                for name, spread in spreads.items()
                if f"{phase}/buffer/{spread}" in self.a
            }
        rms: dict[str, float] = {}
        own: dict[str, float] = {}
        for name in names:
            value = self.a.tensor(f"{phase}/{what}/{name}").astype(np.float64)
            if what == "parameter":
                before = self._start(self.a, name)
                own[name] = 0.01 * norm(before)
                value = value - before
            layer = self._owner[name]
            if value.size:
                rms[layer] = max(rms.get(layer, 0.0), norm(value) / math.sqrt(value.size))
        sizes = {record.name: record.size for record in self.a.manifest.parameters}
        # A layer that is rounding noise as a whole has nothing of its own to be related to.
        floor = _LEAST_SHARE * max(rms.values(), default=0.0)
        return {
            name: max(own.get(name, 0.0), max(rms.get(self._owner[name], 0.0), floor) * math.sqrt(sizes[name]))
            for name in names
        }

    def _gradient_floor(self, phase: str) -> float:
        """What the gradient of an input is at least related to, per value: it is zero where BatchNorm cancels it."""
        scales = (value for _, value in self.a.items(phase, "gradient"))
        return _LEAST_SHARE * max(
            (float(np.sqrt(np.mean(np.square(value)))) for value in scales if value.size), default=0.0
        )

    def _start(self, trace: Trace, name: str) -> NDArray[Any]:
        key = f"weights/excited/{name}"  # absent where the other side's value did not fit
        return trace.tensor(key).astype(np.float64) if key in trace else np.zeros(())

    def _add(self, phase: str, group: str, key_a: str, key_b: str, *, layer: str, least_scale: float = 0.0) -> str:
        key = _measurement_key(phase, group, key_a, key_b)
        if key in self.measurements:
            return key
        names = key_a.partition("/")[2], key_b.partition("/")[2]
        streamed = self._streamed(phase, group, key_a, key_b, least_scale)
        if streamed is not None:
            self._store(key, phase, group, names, layer, streamed, key_a, key_b, least_scale, "")
            return key
        x, y = self.a.tensor(f"{phase}/{key_a}"), self.b.tensor(f"{phase}/{key_b}")
        y, note = (same_layout if group in ("outputs", "inputs", "batches") else same_shape)(x, y)
        if group == "parameters":  # of values after optimizer steps, what the steps changed
            x, y = x - self._start(self.a, key_a.partition("/")[2]), y - self._start(self.b, key_b.partition("/")[2])
        if group == "buffers":
            x, y, note = self._without_variance_rule(phase, key_a, key_b, x, y, note)
        found = distance(x, y, least_scale=least_scale, ulp=phase.startswith("float32"))
        self._store(key, phase, group, names, layer, found, key_a, key_b, least_scale, note)
        return key

    def _store(
        self,
        key: str,
        phase: str,
        group: str,
        names: tuple[str, str],
        layer: str,
        found: Distance,
        key_a: str,
        key_b: str,
        least_scale: float,
        note: str,
    ) -> None:
        self.measurements[key] = Measurement(
            phase=phase,
            group=group,
            name=names[0],
            other="" if names[1] == names[0] else names[1],
            layer=layer,
            distance=found,
            error_a=self._own_error(self.a, phase, key_a, least_scale),
            error_b=self._own_error(self.b, phase, key_b, least_scale),
            note=note,
        )

    def _streamed(self, phase: str, group: str, key_a: str, key_b: str, least_scale: float) -> Distance | None:
        """The distance of two large tensors that need no preparation, without reading them as a whole."""
        if group in ("parameters", "buffers"):
            return None  # of these, what an update changed is measured
        a, b = self.a.stored(f"{phase}/{key_a}"), self.b.stored(f"{phase}/{key_b}")
        if a.size < LARGE or a.shape != b.shape or (len(a.shape) >= 4 and a.shape[1] == a.shape[-1]):
            return None
        if key_a == key_b and self.a.same_shard(self.b, f"{phase}/{key_a}"):
            return equal_distance(a, least_scale)
        return stored_distance(a, b, least_scale=least_scale, ulp=phase.startswith("float32"))

    def _own_error(self, trace: Trace, phase: str, key: str, least_scale: float) -> float | None:
        """A side's error in float32, measured against its own float64 run of the same experiment.

        It belongs to the float64 measurement; where there is no float64 proof, to the float32 one.
        """
        if phase.startswith("float64"):
            single, double = _TWIN.get(phase, ""), phase
        else:
            single, double = phase, next((d for d, s in _TWIN.items() if s == phase and self._fallback), "")
        if f"{single}/{key}" not in trace or f"{double}/{key}" not in trace:
            return None
        value, exact = trace.stored(f"{single}/{key}"), trace.stored(f"{double}/{key}")
        least_scale = max(least_scale, _NORMAL * math.sqrt(exact.size))
        if value.size >= LARGE and value.shape == exact.shape:
            return stored_error(value, exact, least_scale)
        return relative_error(trace.tensor(f"{single}/{key}"), trace.tensor(f"{double}/{key}"), least_scale)

    def _without_variance_rule(
        self, phase: str, key_a: str, key_b: str, x: NDArray[Any], y: NDArray[Any], note: str
    ) -> tuple[NDArray[Any], NDArray[Any], str]:
        name_a, name_b = key_a.partition("/")[2], key_b.partition("/")[2]
        layer = self._owner[name_a]
        rule = self.rules.get(layer)
        if rule is None or not name_a.endswith("running_var") or rule["momentum_a"] is None:
            return x, y, note
        steps = _steps(self.a, phase)
        start = self._start(self.a, name_a), self._start(self.b, name_b)
        x = without_rule(x, start[0], rule["momentum_a"], steps, rule["factor_a"])
        y = without_rule(y, start[1], rule["momentum_a"], steps, rule["factor_b"])
        return x, y, "variance rule taken out" if rule["rule_a"] != rule["rule_b"] else note


def _steps(trace: Trace, phase: str) -> int:
    from portproof.plan import STEPS

    return STEPS if _plan(trace, phase)["optimizer"] else 1


def _trains(trace: Trace, phase: str) -> bool:
    return bool(_plan(trace, phase)["training"])


def _plan(trace: Trace, phase: str) -> dict[str, Any]:
    return next(each for each in trace.manifest.plan if each["name"] == phase)


def _zip(a: tuple[str, ...], b: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return zip(a, b, strict=False)  # a framework may pass a mask or a flag as one more input


def _measurement_key(phase: str, group: str, key_a: str, key_b: str) -> str:
    return f"{phase}/{group}/{key_a.partition('/')[2]}|{key_b.partition('/')[2]}"


def _renamed(maxima: dict[str, float], pairs: Pairs) -> dict[str, float]:
    back = {second: first for first, second in pairs.parameters.pairs.items()}
    return {back.get(name, name): value for name, value in maxima.items()}


def _coarse(trace: Trace) -> Iterator[str]:
    """Layers whose output is coarser than float64 in a float64 phase: they cast, whatever the caller wanted."""
    for phase, calls in trace.manifest.calls.items():
        if phase.startswith("float64.") and calls:
            seen = set()
            for call in calls:
                for key in call.outputs:
                    info = trace.manifest.tensors.get(f"{phase}/{key}")
                    if info and info.dtype in ("float32", "float16", "bfloat16") and call.layer not in seen:
                        seen.add(call.layer)
                        yield call.layer
            return


def _samples(pairs: Pairs) -> dict[str, list[list[float]]]:
    """What both sides make of the real examples, to be looked at; it is judged with the other batches."""
    if not all(_SAMPLES in trace for trace in (pairs.a, pairs.b)):
        return {}
    x, y = pairs.a.tensor(_SAMPLES), pairs.b.tensor(_SAMPLES)
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] > _FEW:
        return {}
    return {"a": x.astype(float).tolist(), "b": y.astype(float).tolist()}


def _repeats(trace: Trace, phase: str) -> float:
    """How many equal values a sum over a layer's positions may meet: equal inputs make equal values in every layer.

    It is the share of the commonest value in a batch entry times the positions of the largest output.
    """
    share = 0.0
    for _, value in trace.items(phase, "source"):
        if value.dtype.kind == "f" and value.size:
            rows = np.sort(value.reshape(len(value), -1), axis=1)
            share = max(share, *(_longest_run(row) / row.size for row in rows))
    positions = (
        math.prod((info.shape[0], *info.shape[2:]))
        for call in trace.manifest.calls.get(phase, ())
        for key in call.outputs
        if (info := trace.manifest.tensors.get(f"{phase}/{key}")) and info.shape
    )
    return share * max(positions, default=0)


def _longest_run(ordered: NDArray[Any]) -> int:
    edges = np.flatnonzero(np.diff(ordered) != 0)
    return int(np.diff(np.concatenate(([-1], edges, [ordered.size - 1]))).max())


def _side(trace: Trace) -> dict[str, Any]:
    manifest = trace.manifest
    return {
        "side": manifest.side,
        "subject": manifest.subject,
        "factory": manifest.facts["factory"],
        "weights": manifest.facts["weights"],
        "seed": manifest.facts["seed"],
        "environment": manifest.environment,
        "notes": list(manifest.notes),
    }
