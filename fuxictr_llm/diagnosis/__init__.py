"""What works with a model class: the doctor, the table of a zoo, tiny data."""

AFFECTS_RESULTS = False  # see common/code_digest.py
