"""How the raw files of single data sets become tables."""

AFFECTS_RESULTS = False  # see common/code_digest.py
