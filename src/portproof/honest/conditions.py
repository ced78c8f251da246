"""Conditions under which an honest run is made: seeds, weights, inputs, sizes, threads, phases; drawn by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from portproof.mirror import Mirror
from portproof.plan import COUNT, COUNT_EVAL, COUNT_TRAIN, FORWARD, FORWARD64, PARITY, Phase
from portproof.values import NORMAL, Start

_BY_NAME = {phase.name: phase for phase in PARITY}
_LAYERS = tuple(Phase(f"{precision}.eval", precision, layers=True) for precision in ("float64", "float32"))

KINDS: dict[str, tuple[Phase, ...]] = {
    "outputs": (_LAYERS[0], FORWARD64, _LAYERS[1], FORWARD),
    "gradients": (_BY_NAME["float64.eval"], COUNT_EVAL, _BY_NAME["float32.eval"]),
    "training": (_BY_NAME["float64.train"], COUNT_TRAIN, _BY_NAME["float32.train"], COUNT),
    "everything": PARITY,
}
"""What a run captures. Every check of the verdict stands in "everything"; the others are its parts, and cheap."""

SHARES = {"outputs": 0.6, "gradients": 0.2, "training": 0.13, "everything": 0.07}

INPUTS = {
    NORMAL: 0.25,
    "uniform": 0.07,
    "heavy": 0.07,
    "zeros": 0.07,
    "constant": 0.07,
    "one-hot": 0.07,
    "padded": 0.07,
    "normal*1e-6": 0.07,
    "normal*1e4": 0.07,
    "padded*1e4": 0.05,
    "one-hot*1e-6": 0.04,
    "normal*1e-40": 0.05,  # denormal numbers in float32
    "heavy*1e4": 0.05,
}
STARTS = {
    Start(): 0.3,
    Start(excite=False): 0.1,
    Start(gain=0.125): 0.08,
    Start(gain=8.0): 0.08,
    Start(excite=False, gain=0.5): 0.08,
    Start(excite=False, gain=2.0): 0.08,
    Start(kernels="uniform"): 0.07,
    Start(kernels="heavy"): 0.07,
    Start(kernels="one-hot"): 0.07,
    Start(excite=False, kernels="heavy"): 0.07,
}
BATCHES = {1: 0.2, 2: 0.35, 3: 0.25, 5: 0.15, 8: 0.05}
THREADS = {1: 0.7, 2: 0.2, 4: 0.1}
ODD_SHARE = 0.6  # of runs with other than the mirror's own input sizes


@dataclass(frozen=True, slots=True)
class Conditions:
    """One honest run. ``sizes`` are the inputs' shapes without the batch; ``batches`` begin with the main one."""

    index: int
    kind: str
    seed: int
    values: str
    start: Start
    sizes: tuple[tuple[int, ...], ...]
    batches: tuple[int, ...]
    threads: int

    def of(self, mirror: Mirror) -> Mirror:
        """The mirror with these inputs."""
        specs = tuple(
            replace(spec, shape=(self.batches[0], *size), values=self.values if spec.dtype == "float32" else NORMAL)
            for spec, size in zip(mirror.inputs, self.sizes, strict=True)
        )
        own = tuple(spec.shape[1:] for spec in mirror.inputs)
        samples = mirror.samples if self.sizes == own else None
        return replace(mirror, inputs=specs, batches=self.batches[1:], samples=samples)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is captured."""
        return KINDS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def draw_conditions(
    mirror: Mirror, runs: int, seed: int, sizes: Sequence[tuple[tuple[int, ...], ...]]
) -> list[Conditions]:
    """Conditions of so many runs; ``sizes`` are what the mirror takes, its own first. The same for the same seed."""
    rng = random.Random(seed)
    found = []
    for index in range(runs):
        odd = len(sizes) > 1 and rng.random() < ODD_SHARE
        found.append(
            Conditions(
                index=index,
                kind=_choice(rng, SHARES),
                seed=rng.randrange(2**31),
                values=_choice(rng, INPUTS),
                start=_choice(rng, STARTS),
                sizes=rng.choice(sizes[1:]) if odd else sizes[0],
                batches=(_choice(rng, BATCHES), *sorted(rng.sample(range(1, max(BATCHES) + 1), 2))),
                threads=_choice(rng, THREADS),
            )
        )
    return found


def other_sizes(mirror: Mirror) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Sizes that a mirror might take besides its own: odd ones, and small ones; the same change in all its inputs.

    The channels of an image (the dimension after the batch, where two or more follow it) stay.
    """
    own = tuple(spec.shape[1:] for spec in mirror.inputs)
    both, first, last = slice(-2, None), slice(-2, -1), slice(-1, None)
    changes: tuple[tuple[slice, Callable[[int], int]], ...] = (
        (both, lambda n: n // 2 + 1),
        (both, lambda n: n // 3),
        (both, lambda n: n + 1),
        (first, lambda n: n // 2 - 1),
        (last, lambda n: n - 1),
    )
    for which, change in changes:
        sizes = tuple(_changed(size, which, change) for size in own)
        if sizes != own and all(min(size, default=1) >= 1 for size in sizes):
            yield sizes


def _changed(size: tuple[int, ...], which: slice, change: Callable[[int], int]) -> tuple[int, ...]:
    numbers = list(size)
    first = 1 if len(numbers) > 2 else 0
    free = list(range(len(numbers)))[first:][which]
    for position in free:
        numbers[position] = change(numbers[position])
    return tuple(numbers)


def _choice(rng: random.Random, shares: dict[Any, float]) -> Any:
    return rng.choices(list(shares), list(shares.values()))[0]
