"""Reports: facts and verdict stored as JSON, and shown as terminal output or JUnit XML.

`Report` is loaded when it is first asked for: the progress display has to start before NumPy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portproof.report.report import Report

__all__ = ["Report"]


def __getattr__(name: str) -> Any:
    if name != "Report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from portproof.report.report import Report

    return Report
