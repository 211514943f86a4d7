"""Data: named downloads, data-set preparation, building and loading, all through FuxiCTR's own forms."""

AFFECTS_VECTORS = False  # see common/code_digest.py

SPLITS = ("train", "valid", "test")
