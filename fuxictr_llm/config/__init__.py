"""Config files and expids, resolved into one checked, flat dict of settings."""

AFFECTS_RESULTS = False  # see common/code_digest.py
