"""Honest runs: equal models under many conditions, none of which may be called different."""
