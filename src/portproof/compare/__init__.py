"""Compare: two traces become facts (NumPy only), and facts become a verdict (not even that)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portproof.compare.comparison import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from portproof.compare.comparison import compare

    return compare
