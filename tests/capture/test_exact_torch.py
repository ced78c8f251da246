"""The two torch operations with float32 constants in their backward pass: flawed as they are, exact once replaced."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

# In a process of its own: the replacement is for good, as in a worker.
SCRIPT = """
import torch
from portproof.capture.exact_torch import make_exact

x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
alpha = 0.3  # no float32 number
F = torch.nn.functional
modules = {"hardsigmoid": torch.nn.Hardsigmoid(), "celu": torch.nn.CELU(alpha)}
exact = {
    "celu": torch.where(x > 0, torch.ones_like(x), torch.exp(x / alpha)),
}
exact["hardsigmoid"] = torch.where((x > -3) & (x < 3), torch.full_like(x, 1.0) / 6, torch.zeros_like(x))

def errors():
    for name, module in modules.items():
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.sum().backward()
        inner = (x.abs() - 3).abs() > 1e-6  # at the corners every value between the sides is right
        yield name, float((leaf.grad - exact[name])[inner].abs().max()), y.detach()

before = {name: (error, y) for name, error, y in errors()}
single = {name: module(x.float()) for name, module in modules.items()}
log = make_exact()
after = {name: (error, y) for name, error, y in errors()}
for name, module in modules.items():
    assert before[name][0] > 1e-10, (name, "has no flaw any more", before[name][0])
    assert after[name][0] < 1e-15, (name, after[name][0])
    assert float((before[name][1] - after[name][1]).abs().max()) < 1e-15
    assert torch.equal(single[name], module(x.float()))
assert len(log.names()) == 2, log.names()
"""


def test_backward_is_flawed_without_and_exact_with_the_replacement() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
