"""Defects planted in a port of RepViT KWS: each turns the verdict and names the first wrong layer; honest ports do not.

Each port runs in a real worker process, on the weights of one stored trace of the original, and is compared with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from portproof import mirrors
from portproof.check import capture
from portproof.compare import compare
from portproof.compare.verdict import DIFFERS, SAME, Verdict, judge
from portproof.plan import phases_for
from portproof.trace import Trace

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]

# What locates each of the defects below; test_reviewed.py runs the optimizers' phases as well.
PHASES = phases_for(["function", "batchnorm", "precision"])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("original")
    return capture(mirrors.repvit_kws, "torch", folder / "torch", phases=PHASES)


@pytest.fixture
def judged(original: Trace, ports: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Verdict:
    mirror = replace(mirrors.repvit_kws, tensorflow=f"{ports / 'kws.py'}:{request.param}")
    port = capture(mirror, "tensorflow", tmp_path / "port", phases=PHASES, weights_from=original)
    return judge(compare(original, port))


@pytest.mark.parametrize("judged", ["honest", "own_gelu", "grouped"], indirect=True)
def test_honest_ports_are_the_same_model(judged: Verdict) -> None:
    assert judged.outcome == SAME, [check for check in judged.checks if check.status == "fail"]
    assert judged.divergence is None


# The port, the layer that is wrong first, and a word of the cause where the pattern is a known one.
DEFECTS = [
    ("eps_keras_default", "features.0.0.bn", "eps is 0.001"),
    ("eps_slightly_off", "features.0.0.bn", "eps is 1.001e-05"),
    ("same_padding", "features.0.2.c", "padding='same'"),
    ("tanh_gelu", "features.0.1", "tanh GELU"),
    ("transposed_kernel", "features.5.channel_mixer.m.0.c", "reshaped where it has to be transposed"),
    ("moved_squeeze_excite", "features.1.token_mixer.1", "does nothing in the port"),
    ("swapped_statistics", "features.5.channel_mixer.m.0.bn", "swapped"),
    ("keras_momentum", "features.0.0.bn", "momentum is 0.1 in the original and 0.9 in the port"),
    ("half_precision_inside", "features.3.channel_mixer.m.1", ""),
    # The gradient is cut inside m.1; the first parameters without one are those of the layer in front of it.
    ("stopped_gradient", "features.6.channel_mixer.m.0.bn", ""),
    ("yields_nan", "features.2.channel_mixer.m.1", ""),
]


@pytest.mark.parametrize(("judged", "layer", "cause"), DEFECTS, indirect=["judged"], ids=[row[0] for row in DEFECTS])
def test_defects_are_caught_and_located(judged: Verdict, layer: str, cause: str) -> None:
    assert judged.outcome == DIFFERS
    assert judged.divergence is not None
    assert judged.divergence.layer == layer
    assert judged.divergence.inputs_agree
    assert cause in " / ".join((*judged.divergence.causes, *judged.divergence.settings))
