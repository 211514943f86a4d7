"""FuxiCTR's FeatureProcessor, and its models, without Ray.

FuxiCTR's package `fuxictr.preprocess` imports Ray for its own way of writing a built data set, which we do not use and
a process that serves a model must not need. Its embeddings import that package: serving imports this module first.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

PACKAGE = "fuxictr.preprocess"


@contextmanager
def _without_ray() -> Iterator[None]:
    """In the block, an empty package stands in for FuxiCTR's: what is imported of it is the same afterwards."""
    if PACKAGE in sys.modules:
        yield
        return
    spec = find_spec(PACKAGE)
    package = ModuleType(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules[PACKAGE] = package
    try:
        module = importlib.import_module(f"{PACKAGE}.feature_processor")
        package.FeatureProcessor = module.FeatureProcessor  # type: ignore[attr-defined]
        yield
    finally:
        del sys.modules[PACKAGE]


with _without_ray():
    import fuxictr.datasets  # FuxiCTR's own processors
    import fuxictr.pytorch.models  # noqa: F401
    from fuxictr.preprocess.feature_processor import FeatureProcessor as FeatureProcessor
    from fuxictr.preprocess.normalizer import Normalizer as Normalizer
    from fuxictr.preprocess.tokenizer import Tokenizer as Tokenizer
    from fuxictr.preprocess.tokenizer import load_pretrain_emb as load_pretrain_emb
