"""Rows, values and entities of a data set as texts."""

AFFECTS_VECTORS = False  # see common/code_digest.py
