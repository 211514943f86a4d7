"""FuxiCTR, and what it gets wrong or leaves open, each mended in one place."""
