"""An expid and config files -> one checked, flat dict of settings."""

AFFECTS_RESULTS = False  # see common/code_digest.py
