"""Tests of honest runs on real models: no alarm on equal ones, an alarm where there has to be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from portproof import processes
from portproof.compare.policy import Policy
from portproof.honest import runner
from portproof.mirror import InputSpec, Mirror
from portproof.trace import Trace

pytestmark = [pytest.mark.torch, pytest.mark.tensorflow, pytest.mark.usefixtures("in_process")]


class _Here:
    """In place of `Servers`: both sides in this process, as the fixture `in_process` has it."""

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, *arguments: Any, **options: Any) -> Any:
        return processes.run(*arguments, **options)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Servers", _Here)


def pair(ports: Path, keras: str, torch: str = "classifier") -> Mirror:
    files = f"{ports / 'pairs_torch.py'}:{torch}", f"{ports / 'pairs_keras.py'}:{keras}"
    return Mirror("pair", *files, (InputSpec("x", (2, 3, 17, 13)),))


def test_equal_models_raise_no_alarm(ports: Path) -> None:
    said = []
    result = runner.run(pair(ports, "classifier"), 25, seed=1, progress=lambda run, report: said.append((run, report)))
    assert [run.outcome for run in result.runs if run.outcome not in ("same", "undecided")] == []
    assert result.count("same") > 20
    assert result.sizes == (((3, 17, 13),),)  # its head takes no other
    assert [run.conditions["index"] for run in result.runs] == list(range(25))
    assert all(report is not None for _, report in said)
    assert {"function-layers", "function-gradients", "training-layers", "precision-layers"} <= {
        name for run in result.runs for name in run.checks
    }
    assert all(0 <= found.share <= 1 for run in result.runs if run.outcome == "same" for found in run.checks.values())


def test_models_that_are_not_equal_raise_alarms(ports: Path) -> None:
    result = runner.run(pair(ports, "classifier_without_permute"), 5, seed=1)
    assert len(result.alarms) == 5
    assert all("function-layers" in run.failed or "training-layers" in run.failed for run in result.alarms)


def test_a_limit_below_rounding_raises_alarms(ports: Path) -> None:
    """Were the limits of no consequence, this would find nothing either."""
    strict = Policy(float64=1e-18, conditioning=1e-9, precision=1e-9, precision_floor=1e-18)
    result = runner.run(pair(ports, "classifier"), 5, seed=1, policy=strict)
    assert len(result.alarms) >= 4


def test_what_a_framework_refuses_is_counted_as_such(ports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Trace:
        raise runner.PortproofError("no such model")

    monkeypatch.setattr(runner, "accepted_sizes", lambda *_: [((3, 17, 13),)])
    monkeypatch.setattr(runner, "check", refuse)
    result = runner.run(pair(ports, "classifier"), 3)
    assert [(run.outcome, run.why) for run in result.runs] == [("refused", "no such model")] * 3


def test_an_interrupt_ends_the_other_runs(ports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "accepted_sizes", lambda *_: [((3, 17, 13),)])
    monkeypatch.setattr(runner, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner.run(pair(ports, "classifier"), 200, jobs=2)
