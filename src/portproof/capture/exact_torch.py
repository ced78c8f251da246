"""Exact float64 on the PyTorch side: two operations whose backward pass carries a float32 constant.

Measured with torch 2.13, relative to the largest gradient: ``hardsigmoid`` multiplies by a float32 1/6 (3e-8), ``celu``
with an alpha that float32 cannot hold by a float32 1/alpha (3e-9). Their forward passes are exact. In float32 both stay
what they are; in float64 they are composed of operations that are exact there. The TensorFlow side has its own list in
exact.py.
"""

from __future__ import annotations

import torch


class ExactLog:
    """Which operations were replaced, for the trace."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def add(self, name: str) -> None:
        """Note one replacement."""
        self._seen.add(name)

    def names(self) -> tuple[str, ...]:
        """All that were replaced, sorted."""
        return tuple(sorted(self._seen))


def make_exact() -> ExactLog:
    """Replace both operations in ``torch.nn.functional`` for float64 tensors; to be called before a user's import."""
    log = ExactLog()
    functional = torch.nn.functional
    hardsigmoid, celu = functional.hardsigmoid, functional.celu

    def exact_hardsigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        if input.dtype != torch.float64:
            return hardsigmoid(input, inplace)
        log.add("torch.nn.functional.hardsigmoid: gradient 1/6 in float32")
        return torch.clamp(input + 3.0, 0.0, 6.0) / 6.0

    def exact_celu(input: torch.Tensor, alpha: float = 1.0, inplace: bool = False) -> torch.Tensor:
        if input.dtype != torch.float64:
            return celu(input, alpha, inplace)
        log.add("torch.nn.functional.celu: gradient 1/alpha in float32")
        # The clamp keeps the branch that is not taken from overflowing, whose gradient would be 0 * inf.
        return torch.where(input > 0, input, alpha * torch.expm1(torch.clamp(input, max=0.0) / alpha))

    functional.hardsigmoid = exact_hardsigmoid
    functional.celu = exact_celu
    return log
