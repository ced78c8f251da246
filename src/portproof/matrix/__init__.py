"""The matrix: many cells run, gathered, and held against each other."""
