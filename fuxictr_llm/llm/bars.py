"""Bars of huggingface_hub and transformers, shown as `Progress`: after five seconds, as lines without a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tqdm.auto import tqdm

from fuxictr_llm.common.progress import BYTES, Progress

AFFECTS_RESULTS = False  # see common/code_digest.py
AFFECTS_VECTORS = False


class Bar(tqdm):
    """A bar for a library that takes a class of tqdm's form."""

    def __init__(self, iterable: Any = None, **options: Any):
        super().__init__(iterable, total=options.get("total"), desc=options.get("desc"), disable=True)
        unit = BYTES if options.get("unit") == BYTES else "parts"
        self._progress = Progress(str(options.get("desc") or "loading").rstrip(". :").lower(), self.total or 0, unit)

    def __iter__(self) -> Iterator[Any]:
        with self._progress:
            for item in self.iterable:
                yield item
                self.update(1)

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0
        self._progress.total = self.total or 0  # the hub's grows with each file
        self._progress.update(int(n or 0))

    def close(self) -> None:
        if hasattr(self, "_progress"):  # tqdm closes what was not made, too
            self._progress.__exit__(*sys.exc_info())


@contextmanager
def shown_as_ours() -> Iterator[None]:
    """In the block, the bars of transformers are `Bar`s."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils.logging import set_tqdm_hook

    before = set_tqdm_hook(lambda _, args, options: Bar(*args, **options))
    try:
        with patch.object(gguf, "tqdm", Bar):
            yield
    finally:
        set_tqdm_hook(before)
