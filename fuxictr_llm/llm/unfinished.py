"""The finished batches of an unfinished shard: a process that is killed loses one batch of texts at most.

The file has a record for each batch, in the order of encoding: a digest of the batch's tokens and vectors, the number
of its texts, the width of a vector, and the vectors in float32. Batches depend only on the texts of the shard, so a
resumed shard equals an uninterrupted one bit by bit.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fuxictr_llm.common.files import (
    OTHER_CACHE,
    explain_write_errors,
)

HEAD = struct.Struct("<16sII")


class Unfinished:
    """The batches in a file: read from it up to the first record that does not fit, computed and appended from there.

    Args:
        path: of the file; its folder exists.
        show: called after each batch with the number of its texts.

    Attributes:
        cut: how many texts of the shard are longer than they may be.
    """

    def __init__(self, path: Path, show: Callable[[int], None]):
        self.path, self.show, self.cut = path, show, 0
        self._place, self._is_known = 0, path.is_file()

    def __call__(self, tokens: Sequence[list[int]], make: Callable[[], Tensor]) -> Tensor:
        """The vectors `[n, D]` of a batch of texts, in float32 on the CPU: kept ones, or those that `make` gives.

        Raises:
            UserError: the file cannot be written.
        """
        vectors = self._known(tokens) if self._is_known else None
        if vectors is None:
            vectors = make()
            self._keep(tokens, vectors.numpy())
        self.show(len(tokens))
        return vectors

    def _known(self, tokens: Sequence[list[int]]) -> Tensor | None:
        with self.path.open("rb") as file:
            file.seek(self._place)
            head = file.read(HEAD.size)
            digest, count, width = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0)
            content = file.read(4 * count * width) if count == len(tokens) else b""
        if count != len(tokens) or digest != _digest(tokens, content):
            self._is_known = False
            return None
        self._place += HEAD.size + len(content)
        return torch.from_numpy(np.frombuffer(content, "<f4").reshape(count, width).copy())

    def _keep(self, tokens: Sequence[list[int]], vectors: np.ndarray) -> None:
        content = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        record = HEAD.pack(_digest(tokens, content), *vectors.shape) + content
        with explain_write_errors(self.path, OTHER_CACHE), self.path.open("r+b" if self._place else "wb") as file:
            file.seek(self._place)
            file.truncate()
            file.write(record)
        self._place += len(record)


def _digest(tokens: Sequence[list[int]], content: bytes) -> bytes:
    return hashlib.blake2b(json.dumps([*tokens]).encode() + content, digest_size=16).digest()
