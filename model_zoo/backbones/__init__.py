"""CTR models, one a file, on fuxictr.pytorch.layers alone, with FuxiCTR's constructor arguments."""
