"""Data: named downloads, data-set preparation, building and loading, all through FuxiCTR's own forms."""

SPLITS = ("train", "valid", "test")
