"""Tests of workers that stay, and of edits: many captures in one process give what one process each gives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from portproof import mirrors
from portproof.check import Settings, capture
from portproof.compare import compare
from portproof.compare.verdict import DIFFERS, SAME, Verdict, judge
from portproof.edits import Edit
from portproof.errors import InputError, MirrorError, WorkerError
from portproof.plan import PARITY, phases_for
from portproof.processes import Servers
from portproof.trace import Trace

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow]

EVAL = PARITY[:1]
BN, GELU = "features.2.token_mixer.0.bn", "features.3.channel_mixer.m.1"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as running:
        yield running


@pytest.fixture(scope="module")
def original(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    settings = Settings(servers=servers)
    return capture(mirrors.repvit_kws, "torch", tmp_path_factory.mktemp("original") / "torch", settings=settings)


def judged(servers: Servers, original: Trace, target: Path, *edits: Edit) -> Verdict:
    settings = Settings(servers=servers, edits=edits)
    port = capture(
        mirrors.repvit_kws, "tensorflow", target, phases=EVAL, settings=settings, weights_from=original
    )  # fmt: skip
    return judge(compare(original, port))


def test_a_worker_that_stays_writes_what_a_fresh_one_writes(servers: Servers, original: Trace, tmp_path: Path) -> None:
    phases = phases_for(["function", "batchnorm", "steps"])
    settings = Settings(servers=servers)
    mirror = mirrors.repvit_kws
    fresh = capture(mirror, "tensorflow", tmp_path / "fresh", phases=phases, weights_from=original)
    for again in range(2):  # the second one finds a model that has been trained
        staying = capture(
            mirror, "tensorflow", tmp_path / f"{again}", phases=phases, settings=settings, weights_from=original
        )
        assert staying.manifest.tensors.keys() == fresh.manifest.tensors.keys()
        for key in fresh.manifest.tensors:
            np.testing.assert_array_equal(staying.tensor(key), fresh.tensor(key), err_msg=key)
        assert staying.manifest.notes == fresh.manifest.notes
        assert staying.manifest.calls == fresh.manifest.calls


@pytest.mark.parametrize(
    ("edit", "layer", "cause"),
    [
        (Edit("set", (BN,), {"epsilon": 1e-3}), BN, "eps is 0.001"),
        (Edit("activation", (GELU,), {"function": "tanh GELU"}), GELU, "tanh GELU"),
        (Edit("skip", (GELU,)), GELU, "does nothing"),
    ],
)
def test_an_edit_is_in_force_for_its_capture_alone(
    servers: Servers, original: Trace, tmp_path: Path, edit: Edit, layer: str, cause: str
) -> None:
    verdict = judged(servers, original, tmp_path / "edited", edit)
    assert verdict.outcome == DIFFERS
    assert verdict.divergence is not None
    assert verdict.divergence.layer == layer
    assert cause in verdict.divergence.causes[0]
    assert judged(servers, original, tmp_path / "plain").outcome == SAME


def test_what_edits_set_shows_in_the_settings(servers: Servers, original: Trace, tmp_path: Path) -> None:
    verdict = judged(servers, original, tmp_path / "edited", Edit("set", (BN,), {"epsilon": 1e-3}))
    assert verdict.divergence is not None
    assert any("eps" in text and "0.001" in text for text in verdict.divergence.settings)


@pytest.mark.parametrize(
    ("edit", "message"),
    [(Edit("unheard-of"), "no edit 'unheard-of'"), (Edit("skip", ("features.99",)), "no layer 'features.99'")],
)
def test_an_edit_that_cannot_be_made_is_refused_and_the_worker_stays(
    servers: Servers, original: Trace, tmp_path: Path, edit: Edit, message: str
) -> None:
    before = {worker.process.pid for worker in servers._workers.values()}
    with pytest.raises(InputError, match=message):
        judged(servers, original, tmp_path / "port", edit)
    assert not (tmp_path / "port").exists()
    assert judged(servers, original, tmp_path / "port").outcome == SAME
    assert {worker.process.pid for worker in servers._workers.values()} == before


def test_an_error_of_a_job_is_its_own(servers: Servers, original: Trace, tmp_path: Path) -> None:
    broken = replace(mirrors.repvit_kws, tensorflow="portproof.models.repvit:nothing")
    with pytest.raises(MirrorError, match="has no 'nothing'"):
        capture(broken, "tensorflow", tmp_path / "port", phases=EVAL, settings=Settings(servers=servers))
    assert judged(servers, original, tmp_path / "port").outcome == SAME


def test_a_worker_that_was_killed_is_said_and_started_anew(original: Trace, tmp_path: Path, ports: Path) -> None:
    with Servers() as servers:
        dying = replace(mirrors.repvit_kws, tensorflow=f"{ports / 'kws.py'}:dies")
        with pytest.raises(WorkerError, match="killed by SIGKILL"):
            capture(dying, "tensorflow", tmp_path / "port", phases=EVAL, settings=Settings(servers=servers))
        assert judged(servers, original, tmp_path / "port").outcome == SAME
        (worker,) = servers._workers.values()
        os.kill(worker.process.pid, signal.SIGKILL)  # between two jobs
        worker.process.wait()
        with pytest.raises(WorkerError, match="killed by SIGKILL"):
            judged(servers, original, tmp_path / "other")
        assert judged(servers, original, tmp_path / "other").outcome == SAME


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with Servers() as servers:
        capture(mirrors.repvit_kws, "torch", tmp_path / "torch", phases=EVAL, settings=Settings(servers=servers))
        processes = [worker.process for worker in servers._workers.values()]
    assert processes
    assert all(process.poll() is not None for process in processes)
