"""What the tests share: ports of the KWS network by name, and whether the frameworks are there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest

# Before any test imports a framework: hidden accelerators and pinned threads, as in a worker.
from portproof import cpu

cpu.isolate(1)

# How long an example takes is this machine's affair, and no test's.
hypothesis.settings.register_profile("portproof", deadline=None)
hypothesis.settings.load_profile("portproof")

PORTS = Path(__file__).parent / "ports"


def pytest_report_header() -> list[str]:
    """Say what this run covers, so that a missing framework shows."""
    found = {name: importlib.util.find_spec(name) is not None for name in ("torch", "tensorflow")}
    speech = os.environ.get("PORTPROOF_SPEECH", "not set")
    frameworks = ", ".join(f"{name} {'yes' if there else 'NO'}" for name, there in found.items())
    return [f"portproof: {frameworks}; speech: {speech}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a framework that is not installed, and say so."""
    for framework in ("torch", "tensorflow"):
        if importlib.util.find_spec(framework) is None:
            for item in items:
                if item.get_closest_marker(framework):
                    item.add_marker(pytest.mark.skip(reason=f"{framework} is not installed"))


@pytest.fixture(scope="session")
def ports() -> Path:
    """The folder of ports that tests hand to `check`."""
    return PORTS
