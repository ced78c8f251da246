"""How often the proven cause is the planted one: defects of the catalogue at random places, alone and in pairs.

    python tests/bench/proven.py [--places N] [--pairs N] [--seed N] [DEFECT...]

Only defects whose repair is a setting, an activation or a permutation of a tensor are counted; others can be named.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from portproof import mirrors
from portproof.check import Settings
from portproof.compare.proof import Proven
from portproof.defects.catalogue import CATALOGUE
from portproof.defects.defect import Defect, Place
from portproof.defects.port import Port
from portproof.plan import phases_for
from portproof.repair import Bench, Search

# Defect -> what the text of the proven cause has to say.
EXPECTED = {
    "same-padding": "pads",
    "asymmetric-padding": "pads",
    "causal-padding": "pads",
    "reflected-padding": "reflect",
    "dilation": "dilation",
    "eps-keras-default": "eps is 0.001",
    "eps-slightly-off": "eps is 1.001e-05",
    "eps-outside-the-root": "outside of the root",
    "momentum-copied": "momentum is 0.1 in the original and 0.9",
    "momentum-keras-default": "momentum is 0.1 in the original and 0.01",
    "swapped-statistics": "running mean and running variance are swapped",
    "statistics-of-another-layer": "running statistics are those of",
    "swapped-gamma-beta": "weight and bias of the BatchNorm are swapped",
    "no-scale": "gamma was left at one",
    "eval-uses-batch-statistics": "batch's statistics in eval mode",
    "training-uses-running-statistics": "running statistics in training mode",
    "frozen-batchnorm": "frozen",
    "frozen-layer": "frozen",
    "tanh-gelu": "tanh GELU",
    "sigmoid-gelu": "sigmoid GELU",
    "relu-for-gelu": "relu",
    "silu-for-gelu": "silu",
    "gelu-for-relu": "computes gelu",
    "relu6-for-relu": "relu6",
    "leaky-relu-for-relu": "leaky relu",
    "hard-sigmoid": "hard sigmoid",
    "tanh-for-sigmoid": "tanh",
    "activation-missing": "does nothing",
    "activation-doubled": "twice",
    # Where a kernel has sizes of one or two, several mistakes have the same effect.
    "transposed-kernel": "kernel (is transposed|was reshaped|is shuffled|is flipped|has its blocks)",
    "reshaped-kernel": "kernel (is transposed|was reshaped|is shuffled|has its blocks)",
    "flipped-kernel": "kernel is flipped",
    "height-width-exchanged": "height and width|kernel is transposed",
    "group-order": "kernel (was reshaped|is shuffled|has its blocks)",
    "input-channels-reversed": "kernel (is flipped along|has its blocks|is moved)",
    "tensors-swapped": "kernel is that of",
    "softmax-added": "softmax",
    "channels-shuffled": "channels .*order|shuffled|blocks|reshaped",
}


@dataclass(frozen=True)
class Planted:
    """One defect at one place."""

    defect: Defect
    place: Place

    def __str__(self) -> str:
        return f"{self.defect.name} at {self.place}"

    def named_by(self, proven: Iterable[Proven]) -> bool:
        """Whether a proven cause is this one: it says so, and it touches a layer where this was planted."""
        return any(
            re.search(EXPECTED.get(self.defect.name, ""), cause.text) and set(cause.others) & set(self.place.layers)
            for cause in proven
        )


@dataclass(frozen=True)
class Result:
    """What came of one run."""

    planted: Sequence[Planted]
    effective: bool
    right: bool
    text: str
    seconds: float


def run(bench: Bench, planted: Sequence[Planted]) -> Result:
    """Plant defects, diagnose, and hold the proven causes against what was planted."""
    started = time.perf_counter()
    bench.planted = tuple(edit for each in planted for edit in each.place.edits)
    search = Search(bench)
    search.run()
    seconds = time.perf_counter() - started
    if search.first is None:
        return Result(planted, False, True, "without effect", seconds)
    found = search.diagnosis(seconds)
    layers = {layer for each in planted for layer in each.place.layers}
    # Nothing but what was planted is blamed, all of it is found, and the two are the same then.
    right = all(each.named_by(found.proven) for each in planted) and found.outcome == "same"
    right = right and all(set(cause.others) <= layers for cause in found.proven)
    causes = "; ".join(f"{cause.text} [{', '.join(cause.others)}]" for cause in found.proven) or "nothing proven"
    return Result(planted, True, right, f"{causes} -> {found.outcome} {' | '.join(found.remaining[:1])}", seconds)


def places(port: Port, defect: Defect, count: int, rng: random.Random) -> list[Planted]:
    """Some places for a defect, at random."""
    found = list(defect.places(port))
    return [Planted(defect, place) for place in rng.sample(found, min(count, len(found)))]


def opened(phases: Sequence[str] = ("function", "batchnorm")) -> Bench:
    """RepViT KWS, without the phases that only confirm."""
    wanted = tuple(phase for phase in phases_for(list(phases)) if phase.precision == "float64")
    return Bench(mirrors.repvit_kws, wanted, Settings(), None, None)


def measure(names: Sequence[str], count: int, pairs: int, seed: int) -> tuple[list[Result], list[Result]]:
    """Results for single defects and for pairs."""
    rng = random.Random(seed)
    defects = [each for each in CATALOGUE if each.name in (names or EXPECTED)]
    with opened() as bench:
        port = Port(bench.look((), bench.looks[0]).trace)
        chosen = [each for defect in defects for each in places(port, defect, count, rng)]
        singles = [said(run(bench, [each])) for each in chosen]
        effective = [result.planted[0] for result in singles if result.effective]
        both = []
        while len(both) < pairs and len({each.defect.name for each in effective}) > 1:
            first, second = rng.sample(effective, 2)
            if not set(first.place.layers) & set(second.place.layers):
                both.append(said(run(bench, [first, second])))
    return singles, both


def said(result: Result) -> Result:
    """Print one result."""
    mark = "-" if not result.effective else "right" if result.right else "WRONG"
    print(f"{mark:6}{' + '.join(map(str, result.planted))} ({result.seconds:.1f} s): {result.text}", flush=True)
    return result


def rate(results: Sequence[Result]) -> float:
    """The share of effective defects whose proven cause is the planted one."""
    effective = [each for each in results if each.effective]
    return sum(each.right for each in effective) / len(effective) if effective else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", metavar="DEFECT")
    options = parser.parse_args()
    singles, pairs = measure(options.names, options.places, options.pairs, options.seed)
    for word, results in (("alone", singles), ("in pairs", pairs)):
        count = sum(each.effective for each in results)
        print(f"{word}: {rate(results):.1%} of {count}, {len(results) - count} without effect")
    return 0 if min(rate(singles), rate(pairs)) >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
