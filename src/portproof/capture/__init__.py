"""Capture: run one side of a mirror in a process of its own and write its Trace."""
