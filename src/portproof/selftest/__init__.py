"""Self-test: plants the defects of the catalogue in a port, one at a time, and sees whether they are caught."""

from portproof.selftest.result import CAUGHT, MISSED, NO_EFFECT, RAISES, Outcome, Result, Row
from portproof.selftest.runner import run

__all__ = ["CAUGHT", "MISSED", "NO_EFFECT", "RAISES", "Outcome", "Result", "Row", "run"]
