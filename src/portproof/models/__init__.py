"""Mirrored models that ship with portproof; they know nothing of the harness."""
